"""Defences from the command line to the page: chosen, recorded, shown, and listed."""

from __future__ import annotations

import importlib.util
import json
import shutil
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from test_cli import CARD, one_line, run
from test_report import Page

import holdfast as hf
from holdfast.cli.evaluate import suite_or_usual
from holdfast.defences import steps
from holdfast.errors import InputError
from holdfast.models import build, save_checkpoint
from holdfast.report import write_report

ROOT = Path(__file__).resolve().parents[1]
# So wide a ball that every attack is over at once.
QUICK = ["--data", "digits", "--limit", 6, "--eps", 0.9, "--quiet", "--no-curve"]


@pytest.fixture
def model(tmp_path: Path) -> Path:
    torch.manual_seed(0)
    return save_checkpoint(tmp_path / "model", build("small-cnn", {"width": 4}), CARD)


def read(file: Path) -> dict:
    return json.loads(file.read_text())


# -- the command --------------------------------------------------------------------------------


def test_a_chain_is_recorded_in_the_order_in_which_it_sees_the_image(
    model, tmp_path, monkeypatch, capsys
):
    out = tmp_path / "run"
    defences = ["--defence", "bit-depth:bits=3", "--defence", "noise:sigma=0.02"]
    status = run(monkeypatch, "evaluate", model, *QUICK, *defences, "--samples", 2, "--out", out)
    assert status == 0
    said = capsys.readouterr().out
    line = (
        "suite adaptive, because bit-depth:bits=3 has no gradient of its own; "
        "noise:sigma=0.02 draws random numbers"
    )
    assert line in said.splitlines()[:2]  # a note on the classes comes first
    assert "over 10 fresh draws, worst:" in said and "had the attacker not known" in said
    result, request = read(out / "result.json"), read(out / "request.json")
    specs = ["bit-depth:bits=3", "noise:sigma=0.02"]
    assert result["model"]["defences"] == request["asked"]["model"]["defences"] == specs
    assert result["suite"] == "adaptive"
    assert result["model"]["architecture"] == "small-cnn"
    assert [figure["kind"] for figure in result["draws"]] == ["average", "worst", "majority"]
    bare = tmp_path / "bare"
    assert run(monkeypatch, "evaluate", model, *QUICK, "--suite", "fgsm", "--out", bare) == 0
    plain = read(bare / "result.json")
    # The weights are the same, the run is not.
    assert plain["model"]["sha256"] == result["model"]["sha256"]
    assert plain["identity"] != result["identity"] and plain["unaware"] is None
    assert "defences" not in plain["model"] and plain["draws"] == []


def test_the_suite_that_was_named_is_the_suite(capsys):
    net = build("small-cnn", {"width": 4})
    assert suite_or_usual(None, net) == "autoattack"
    assert suite_or_usual("apgd", hf.defences.Noise(net)) == "apgd"
    assert suite_or_usual(None, hf.defences.Median(net)) == "autoattack"
    assert capsys.readouterr().out == ""
    assert suite_or_usual(None, hf.defences.Noise(net)) == "adaptive"
    assert capsys.readouterr().out.count("\n") == 1


@pytest.mark.parametrize(
    ("spec", "says"),
    [
        ("jpg", "did you mean 'jpeg'"),
        ("jpeg:quality=0", "quality must be a whole number from 1 to 100, not 0"),
        ("median:kernel=9", "larger than the images (8×8)"),
        ("noise:sigma=-1", "sigma must be a number above 0"),
        ("own_defence:Shrink", "it must keep the shape"),
        ("own_defence:Bright", "transform left [0, 1]"),
        ("own_defence:Nothing", "has no 'Nothing'"),
    ],
)
def test_bad_defences_are_one_line(spec, says, model, tmp_path, monkeypatch, capsys):
    (tmp_path / "own_defence.py").write_text(
        "from holdfast.defences import Defence\n"
        "class Shrink(Defence):\n"
        "    def transform(self, images):\n        return images[:, :, 1:]\n"
        "class Bright(Defence):\n"
        "    def transform(self, images):\n        return images + 1\n"
    )
    monkeypatch.chdir(tmp_path)  # where a user's own module lies
    monkeypatch.setattr(sys, "path", [*sys.path])
    status = run(
        monkeypatch, "evaluate", model, *QUICK, "--defence", spec, "--out", tmp_path / "out"
    )
    assert status == 2
    assert says in one_line(capsys.readouterr().err)
    assert not (tmp_path / "out").exists()


def test_a_card_may_declare_defences(tmp_path):
    net = build("small-cnn", {"width": 4})
    folder = save_checkpoint(tmp_path / "m", net, CARD | {"defences": ["median", "bit-depth"]})
    loaded = hf.load(folder)
    assert [step.spec for step in steps(loaded)] == ["median:kernel=3", "bit-depth:bits=4"]
    assert loaded.card["architecture"] == "small-cnn"
    for bad, says in (("median", "a list of names"), (["medien"], "did you mean 'median'")):
        card = folder / "card.json"
        card.write_text(json.dumps(json.loads(card.read_text()) | {"defences": bad}))
        with pytest.raises(InputError, match=says) as refused:
            hf.load(folder)
        assert "card.json" in str(refused.value)
    with pytest.raises(InputError, match=r"card\.json: 'defences' must be a list of names"):
        save_checkpoint(tmp_path / "bad", net, CARD | {"defences": "median"})


# -- the page -----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def evaluated(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("defended")
    torch.manual_seed(0)
    net = save_checkpoint(folder / "model", build("small-cnn", {"width": 4}), CARD)
    suite = ["--suite", "pgd", "--defence", "noise:sigma=0.02"]
    with pytest.MonkeyPatch.context() as patch:
        assert run(patch, "evaluate", net, *QUICK, *suite, "--out", folder / "run") == 0
    return folder / "run"


@pytest.fixture
def defended(evaluated, tmp_path) -> Path:
    return Path(shutil.copytree(evaluated, tmp_path / "defended"))


def test_the_page_shows_what_each_attacker_leaves_and_a_strip_an_image(defended, tmp_path):
    page = Page(write_report([defended], tmp_path / "page.html"))
    result, strips = read(defended / "result.json"), load_file(defended / "strips.safetensors")
    assert "model behind noise:sigma=0.02" in page.text
    for row in ("does not know of the defence", "knows all of it", "average 21", "worst 10"):
        assert row in page.text
    unaware = 100 * result["unaware"]["robust_accuracy"]
    assert (
        f"does not know of the defence {result['unaware']['attack']} {unaware:.1f} %" in page.text
    )
    assert len(page.all("article", "strip-of")) == len(strips["index"])
    pictures = [img for img in page.all("img") if "what the defence makes of it" in img["alt"]]
    assert len(pictures) == 2 * len(strips["index"])
    wrong = int((strips["answers"] != torch.tensor(labels(defended, strips))[:, None]).sum())
    spans = page.html.split('class="quintuple"')[1:]
    assert sum(part.split("</article>")[0].count('class="wrong"') for part in spans) == wrong
    first = f"{result['classes'][int(strips['answers'][0, 4])]}, "
    assert first + f"{100 * float(strips['confidences'][0, 4]):.1f} %" in page.text


def labels(folder: Path, strips: dict) -> list[int]:
    rows = (folder / "verdicts.csv").read_text().splitlines()[1:]
    return [int(rows[i].split(",")[1]) for i in strips["index"].tolist()]


def test_several_runs_get_a_table_of_defences(defended, model, tmp_path, monkeypatch, capsys):
    bare = tmp_path / "bare"
    assert run(monkeypatch, "evaluate", model, *QUICK, "--suite", "pgd", "--out", bare) == 0
    page = Page(write_report([bare, defended], tmp_path / "page.html"))
    assert len(page.all("table", "defences")) == 1
    assert "Attacked, the defence unknown" in page.text
    capsys.readouterr()
    assert run(monkeypatch, "leaderboard", tmp_path) == 0
    assert "behind" in capsys.readouterr().out
    alone = Page(write_report([bare], tmp_path / "page.html"))
    assert not alone.all("table", "defences") and not alone.all("article", "strip-of")


@pytest.mark.parametrize("damage", ["cut", "missing", "shape", "index", "nan"])
def test_a_damaged_file_of_strips_is_one_line(defended, tmp_path, damage):
    file = defended / "strips.safetensors"
    tensors = load_file(file)
    if damage == "cut":
        file.write_bytes(file.read_bytes()[:-7])
    else:
        if damage == "missing":
            del tensors["unaware"]
        elif damage == "shape":
            tensors["answers"] = tensors["answers"][:, :4].contiguous()
        elif damage == "index":
            tensors["index"] = tensors["index"] + 1000
        else:
            tensors["clean"][0, 0, 0, 0] = torch.nan
        save_file(tensors, file)
    with pytest.raises(InputError, match=r"strips\.safetensors") as refused:
        write_report([defended], tmp_path / "page.html")
    assert "\n" not in str(refused.value)


# -- the benchmark and its document -------------------------------------------------------------


def script(name: str, monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    spec = importlib.util.spec_from_file_location(f"{name}_script", ROOT / f"benchmarks/{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_rows_are_written_as_they_fall_and_not_made_twice(model, tmp_path, monkeypatch, capsys):
    bench, out = script("defences", monkeypatch), tmp_path / "defences-model.json"

    def measure(*defences: str, eps: str = "0.9", limit: int = 4) -> dict:
        arguments = ["defences.py", model, "--data", "digits", "--limit", limit, "--eps", eps]
        arguments += ["--samples", 2, "--device", "cpu", "--out", out, "--runs", tmp_path / "runs"]
        monkeypatch.setattr(sys, "argv", [*map(str, arguments), "--defences", *defences])
        bench.main()
        return read(out)

    measure("none")
    held = measure("none", "median+noise")
    assert "none                     is there already" in capsys.readouterr().out
    none, both = held["rows"]
    assert none["defence"] == "none" and none["unaware"] is None and none["draws"] == []
    assert both["options"] == ["median:kernel=3", "noise:sigma=0.05"] and both["random"]
    assert both["unaware"]["n"] == held["n"] == 4 and len(both["draws"]) == 3
    assert both["milliseconds_per_image"] > 0 and both["seconds"] > 0
    with pytest.raises(InputError, match="another threat"):
        measure("none", eps="0.8")

    undefended = {"threat": {"norm": "linf"}, "recipe": {"objective": {"name": "standard"}}}
    assert bench.trained_for(undefended) is None
    page = script("defences_page", monkeypatch)
    lines = page.tables([held])
    assert lines[0] == "### model, adversarially trained, L∞ 0.1"
    (row,) = [line for line in lines if line.startswith("| `median")]
    assert row.startswith("| `median:kernel=3`, then `noise:sigma=0.05` |")
    assert any("worst of 10" in line for line in lines)


def test_the_page_says_where_a_defence_hurts(monkeypatch):
    page = script("defences_page", monkeypatch)
    bare = {"robust_accuracy": 0.4, "robust_accuracy_interval": [0.36, 0.44]}
    for value, says in ((0.35, "**hurts**"), (0.37, "no difference"), (0.45, "helps")):
        row = {
            "robust_accuracy": value,
            "robust_accuracy_interval": [value - 0.025, value + 0.025],
        }
        assert page.beside(row, bare) == says
    one_of_512 = {"robust_accuracy": 0.002, "robust_accuracy_interval": [0.00005, 0.011]}
    none = {"robust_accuracy": 0.0, "robust_accuracy_interval": [0.0, 0.0072]}
    assert page.beside(none, one_of_512) == "no difference"
    assert page.beside(bare, bare) == page.beside(bare, None) == "—"
    assert page.tables([])[0].startswith("No results yet")
