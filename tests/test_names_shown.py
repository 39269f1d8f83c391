"""Names come from files: no terminal, page, table or spreadsheet acts on one."""

from __future__ import annotations

import csv
import io
import json
import re
import sys
import unicodedata
import xml.etree.ElementTree as ET
from html.parser import HTMLParser

import numpy as np
import pytest
from own_script import DATA, only_its_own_script
from run_folders import evaluation_run, training_run
from verbs import print_leaderboard, print_zoo

from holdfast import cli, data
from holdfast.data.base import DataSet, Split
from holdfast.errors import HoldfastError, InputError
from holdfast.evaluation.result import Verdict, write_verdicts
from holdfast.models import build, save_checkpoint
from holdfast.report import write_report
from holdfast.runs.files import csv_text
from holdfast.runs.progress import ProgressLine
from holdfast.terminal import csv_cell, printable, tell, tell_table
from holdfast.uncertainty.run.output import metrics_csv

NAMES = [
    "\x1b]0;owned\x07\x1b[2J",
    "\x9b31m",
    "a\nholdfast: all is well",
    "a\r\nb",
    "a\rb",
    "\x08\x08\x08",
    "\u202egnp.exe",
    "\u2028line",
    "\ufeff\u200b",
    "\x00",
    "\x7f",
]
MARKUP = ["w40[robust]", "[red]x[/red]", "[/]", "[bold", ":smile:", "[link=http://x]y[/link]"]
HTML = [
    "</script><script>alert(1)</script>",
    "<img src=x onerror=alert(1)>",
    '"><svg onload=alert(1)>',
    "' onmouseover='alert(1)",
    "javascript:alert(1)",
    "]]><!--",
    "{{ 7 * 7 }}{% raw %}",
    "</title></style></pre>",
]


def active(text: str) -> list[str]:
    """Characters that are acted upon rather than shown, apart from line ends."""
    return [
        c for c in text if c != "\n" and unicodedata.category(c) in ("Cc", "Cf", "Cs", "Zl", "Zp")
    ]


@pytest.mark.parametrize("name", NAMES)
def test_printable_text_is_one_line_that_nothing_acts_on(name):
    shown = printable(f"before {name} after")
    assert not active(shown) and "\n" not in shown
    assert shown.startswith("before ") and shown.endswith(" after")
    assert "\\" in shown


def test_ordinary_names_stay_as_they_are():
    for name in (
        "größe ∞",
        "ε = 8/255\u00a0%",
        "猫",
        "a\\b",
        "👩\u200d🔬",
        "می\u200cخواهم",
        *MARKUP,
        *HTML,
    ):
        assert printable(name) == name


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("kind", [InputError, HoldfastError])
def test_messages_of_errors_are_one_plain_line(name, kind):
    said = str(kind(f"model {name} is unknown"))
    assert not active(said) and "\n" not in said
    assert len(str(kind("x" * 10**6))) < 3000


@pytest.mark.parametrize("name", [*NAMES, *MARKUP])
def test_the_terminal_shows_names_as_they_are(name, capsys):
    tell(name)
    tell(name, error=True)
    with ProgressLine(name, interval=0) as line:
        line.update(0.5, name)
        line.say(name)
    tell_table(name, ("model",), [(name,)])
    shown = capsys.readouterr()
    for text in (shown.out, shown.err):
        assert not active(text)
        assert printable(name) in re.sub(r"\s*\n\s*", " ", text) or len(name) > 60
    assert shown.err.count("\n") == 3


def test_a_terminal_with_a_bar_shows_names_as_they_are(monkeypatch):
    class Terminal(io.StringIO):
        def isatty(self):
            return True

    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "200")
    for name in MARKUP:
        terminal = Terminal()
        monkeypatch.setattr(sys, "stderr", terminal)
        with ProgressLine(f"title {name}") as line:
            line.update(0.5, f"word {name}")
            line.say(f"said {name}")
        plain = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", terminal.getvalue())
        assert f"title {name}" in plain and f"said {name}" in plain


def test_a_character_that_the_terminal_lacks_ends_no_command(tmp_path, monkeypatch):
    raw = io.BytesIO()
    monkeypatch.setattr(sys, "stderr", io.TextIOWrapper(raw, encoding="ascii"))
    monkeypatch.setattr(sys, "argv", ["holdfast", "report", str(tmp_path / "ε\udcff")])
    with pytest.raises(SystemExit) as end:
        cli.main()
    sys.stderr.flush()
    assert end.value.code == 2
    assert raw.getvalue().startswith(b"holdfast: run folder") and b"\\u03b5" in raw.getvalue()


@pytest.mark.parametrize("name", [*NAMES, *MARKUP, *HTML])
def test_the_leaderboard_shows_names_as_they_are(tmp_path, name, capsys):
    folder = evaluation_run(tmp_path / "runs" / "w40[robust]", name=name, pixels=name)
    change(folder / "result.json", suite=name, flags=[{"name": name, "fired": True, "detail": ""}])
    print_leaderboard(tmp_path / "runs")
    text = capsys.readouterr().out
    assert not active(text)
    folded = re.sub(r"[\s│┃]+", "", text)
    assert "w40[robust]" in folded
    assert re.sub(r"\s+", "", printable(name)) in folded or len(name) > 12


def change(file, **changes):
    value = json.loads(file.read_text())
    file.write_text(json.dumps({**value, **changes}))


def test_the_zoo_shows_names_as_they_are(tmp_path, monkeypatch, capsys):
    card = {"architecture": "small-cnn", "arguments": {"width": 4}, "classes": ["a"]}
    monkeypatch.setenv("HOLDFAST_ZOO", str(tmp_path / "zoo"))
    for name in ("w40[robust]", "\x1b[2J"):
        save_checkpoint(tmp_path / "zoo" / name, build("small-cnn", {"width": 4}), card)
    print_zoo()
    text = capsys.readouterr().out
    assert not active(text) and "w40[robust]" in text and "\\x1b[2J" in text


# --- pages --------------------------------------------------------------------------------------


class Harmless(HTMLParser):
    """Fails on any element or attribute that runs or loads something; the page's own script, which
    the policy names by its hash, is looked at apart."""

    def handle_starttag(self, tag, attributes):
        assert tag != "script" or attributes in ([], [("type", "application/json")])
        assert tag not in ("iframe", "object", "embed", "form", "base"), tag
        for name, value in attributes:
            assert not name.startswith("on"), (tag, name)
            if name in ("src", "href", "action", "xlink:href"):
                assert value.startswith(("data:", "#")), value


@pytest.mark.parametrize("name", [*NAMES, *HTML])
def test_pages_hold_names_and_nothing_that_runs(tmp_path, name):
    run = evaluation_run(tmp_path / "run", name=name, pixels=name, fired=("gradients-vanish",))
    result = json.loads((run / "result.json").read_text())
    result["attacks"][0]["name"] = name
    result["flags"][0] |= {"name": name, "detail": name, "figures": {name: name}}
    result["classes"] = [f"{name}{i}" for i in range(10)]
    result["model"] |= {"defences": [name], "architecture": name, "source": name}
    result["suite"] = name
    if result.get("curve"):
        result["curve"]["attack"] = name
    (run / "result.json").write_text(json.dumps(result))
    change(
        run / "request.json", command=["holdfast", name], asked={name: name}, versions={name: name}
    )
    train = training_run(tmp_path / "train")
    change(train / "result.json", events=[{"epoch": 3, "kind": name, "detail": name}])
    again = evaluation_run(tmp_path / "again", name=name)
    page = write_report([run, again, train], tmp_path / "page.html").read_text(encoding="utf-8")
    Harmless().feed(page)
    assert only_its_own_script(page)
    for text in re.findall(f"{DATA}(.*?)</script>", page, re.S):  # what the script will show
        held = json.loads(text)
        assert not any(active(each) for each in (*held["classes"], *held["attacks"]))
    assert not [c for c in active(page) if c != "\t"]
    drawings, depth, begin = 0, 0, 0
    for tag in re.finditer(r"<(/?)svg\b", page):
        begin = tag.start() if depth == 0 else begin
        depth += -1 if tag[1] else 1
        if depth == 0:  # well-formed, whatever the names in it are
            ET.fromstring(page[begin : tag.end() + 1])
            drawings += 1
    assert drawings > 5 and depth == 0


# --- tables -------------------------------------------------------------------------------------

FORMULAS = [
    "=cmd|' /C calc'!A0",
    "+1+cmd",
    "-2+3+cmd",
    "@SUM(A1)",
    "\t=1",
    "\r=1",
    "  =1",
    "|x",
    "%x",
]


@pytest.mark.parametrize("name", FORMULAS)
def test_no_cell_is_a_formula(tmp_path, name):
    (row,) = csv.reader(io.StringIO(csv_text([name], [])))
    assert row[0][0] in "'\\"
    verdict = Verdict(0, 1, 1, 0.5, True, name, -1, 2, 0.5, 0.1, 1, 1)
    write_verdicts(tmp_path / "v.csv", (verdict,))
    (row,) = csv.DictReader((tmp_path / "v.csv").open(newline=""))
    assert row["attack"][0] in "'\\" and row["target"] == "-1"
    text = metrics_csv({"foreign": {name: {"value": -0.5}}, name: {"value": 1}})
    assert all(row[0][0] not in "=+-@\t\r|%" for row in csv.reader(io.StringIO(text)))
    assert "-0.5" in text


def test_numbers_and_names_are_no_formulas():
    for value in (-1, 0.5, "-1", "-1e-3", "+3", "apgd-ce", "square", "", None, True, "-inf"):
        assert csv_cell(value) == value
    (row,) = csv.reader(io.StringIO(csv_text(["a\nb"], [])))
    assert row == ["a\\nb"]


def test_figures_and_listings_hold_any_class_name(tmp_path, capsys):
    split = Split(
        np.zeros((4, 3, 8, 8), np.uint8), np.array(list("abcd")), np.array([0, 1, 2, 3]), "made up"
    )
    names = ("a$\\frac{$b", "\x1b[2J", "line\nline", "$x")
    data.figure(DataSet("$\\bad{", names, split, split, split), tmp_path / "f.svg")
    ET.parse(tmp_path / "f.svg")
    data.figure(DataSet("$\\bad{", names, split, split, split), tmp_path / "f.png")
