"""Comparing evaluations: the same images, image by image; what cannot be compared is said."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path
from typing import Any

import models
import numpy as np
import pytest
from command_line import command
from own_script import only_its_own_script
from run_folders import evaluation_run, training_run

import holdfast as hf
from holdfast.errors import InputError
from holdfast.evaluation.paired import Paired
from holdfast.report.image_by_image import as_text

LABELS = np.random.default_rng(5).integers(0, 10, 400)


def run_of(folder: Path, seed: int, n: int = 400, **changes: Any) -> Path:
    return evaluation_run(folder, n=n, labels=LABELS[:n], seed=seed, name=f"m{seed}", **changes)


def verdicts(run: Path) -> list[dict[str, str]]:
    with (run / "verdicts.csv").open(newline="") as file:
        return list(csv.DictReader(file))


@pytest.fixture
def two(tmp_path: Path) -> list[Path]:
    return [
        run_of(tmp_path / "a", 1, standard=0.8, robust=0.4),
        run_of(tmp_path / "b", 2, standard=0.85, robust=0.5),
    ]


def test_counts_and_images_are_those_of_the_verdicts(two: list[Path]) -> None:
    found = hf.compare(two)
    rows = list(zip(*map(verdicts, two), strict=True))
    for side, stands in (
        (found.pairs[0].standard, lambda row: row["clean_prediction"] == row["label"]),
        (found.pairs[0].robust, lambda row: row["broken"] == "0"),
    ):
        pairs = [(stands(a), stands(b)) for a, b in rows]
        counts = [pairs.count(p) for p in [(1, 1), (1, 0), (0, 1), (0, 0)]]
        assert [side.both, side.first, side.second, side.neither] == counts
        assert side.only_first == tuple(i for i, p in enumerate(pairs) if p == (True, False))
        assert side.only_second == tuple(i for i, p in enumerate(pairs) if p == (False, True))
        alone = Paired(400, counts[1], counts[2])
        assert (side.difference, side.interval) == (alone.difference, alone.interval())
        assert side.p_value == side.p_holm == alone.p_value
    assert found.pairs[0].robust.difference == pytest.approx(0.1)
    assert found.n == 400 and not found.notes[1:]  # the images were named, not summed


def test_which_runs_are_compared_and_corrected_for(two: list[Path], tmp_path: Path) -> None:
    runs = [*two, run_of(tmp_path / "c", 3, robust=0.41)]
    assert [(p.first, p.second) for p in hf.compare(runs).pairs] == [(0, 1), (0, 2)]
    found = hf.compare(runs, pairs="all")
    assert [(p.first, p.second) for p in found.pairs] == [(0, 1), (0, 2), (1, 2)]
    raw = [pair.robust.p_value for pair in found.pairs]
    order = np.argsort(raw)
    stepped = np.maximum.accumulate([min(1, raw[k] * (3 - i)) for i, k in enumerate(order)])
    assert [found.pairs[k].robust.p_holm for k in order] == pytest.approx(list(stepped))
    assert any("Holm" in note and "3 pairs" in note for note in found.notes)
    with pytest.raises(InputError, match="pairs must be one of first, all"):
        hf.compare(runs, pairs="some")


def test_images_are_known_by_their_pixels(tmp_path: Path) -> None:
    """Whatever their places: two halves that overlap share what they share."""
    x, model, other = models.images(30), models.Net(4), models.Net(4, seed=1)
    x[7] = x[3]  # a copy is told from its original by its turn
    y = models.answers(model, x)
    y[::5] = (y[::5] + 1) % 4
    threat = ("linf", 0.02)
    first = hf.evaluate(model, x[:20], y[:20], threat, suite="fgsm", run=tmp_path / "a")
    second = hf.evaluate(other, x[3:], y[3:], threat, suite="fgsm", run=tmp_path / "b")
    found = hf.compare([tmp_path / "a", tmp_path / "b"])
    assert found.images == tuple(range(3, 20)) and found.n == 17
    side = found.pairs[0].robust
    stands = [(not first.broken[i], not second.broken[i - 3]) for i in range(3, 20)]
    assert side.both == stands.count((True, True))
    assert side.only_first == tuple(i + 3 for i, s in enumerate(stands) if s == (True, False))
    assert any("20, 27 images: compared are the 17" in note for note in found.notes)
    in_memory = hf.compare([first, second])
    assert in_memory.pairs == found.pairs and in_memory.images == found.images
    with pytest.raises(InputError, match=r"other images: .* have none in common"):
        hf.compare([first, hf.evaluate(other, 1 - x, y, threat, suite="fgsm")])
    with pytest.raises(InputError, match="other labels on the same images"):
        hf.compare([first, hf.evaluate(other, x, (y + 1) % 4, threat, suite="fgsm")])
    with pytest.raises(InputError, match="list of two runs"):
        hf.compare(first)  # type: ignore[arg-type]


def test_the_shared_images_of_runs_of_different_size(two: list[Path], tmp_path: Path) -> None:
    short = run_of(tmp_path / "short", 4, n=150)
    found = hf.compare([two[0], short])
    assert found.images == tuple(range(150))
    assert any("400, 150 images: compared are the 150" in note for note in found.notes)
    assert found.runs[0].n == 400 and found.runs[1].n == 150
    held = verdicts(two[0])[:150]
    assert found.runs[0].robust_accuracy == sum(r["broken"] == "0" for r in held) / 150


def test_what_else_may_make_the_difference_is_said(two: list[Path], tmp_path: Path) -> None:
    other = run_of(tmp_path / "c", 3, suite="swift", fired=("gradients-vanish",))
    notes = " ".join(hf.compare([two[0], other]).notes)
    assert "suites differ (apgd, swift)" in notes and "flags of m3: gradients-vanish" in notes


def test_attackers_who_know_less_are_told_apart() -> None:
    model, x, y = models.digits(8)
    known = hf.evaluate(model, x, y, ("linf", 0.2), suite="fgsm")
    asked = hf.evaluate(model, x, y, ("linf", 0.2), suite="square", queries=20)
    notes = " ".join(hf.compare([known, asked]).notes)
    assert "the attackers differ (knows the model; " in notes and "20 queries an image" in notes
    assert "attackers" not in " ".join(hf.compare([known, known.model_copy()]).notes)


def test_goals_compare_with_their_like(tmp_path: Path) -> None:
    model, x, y = models.digits(16)

    def aimed(**options: Any) -> hf.Evaluation:
        return hf.evaluate(model, x, y, ("linf", 0.2), suite="fgsm", **options)

    same = [aimed(goal="target", targets=(y + 1) % 10, seed=seed) for seed in (0, 1)]
    found = hf.compare(same)
    assert any("the target was not reached" in note for note in found.notes)
    with pytest.raises(InputError, match="other targets on 16 of the images"):
        hf.compare([same[0], aimed(goal="target", targets=(y + 2) % 10)])
    with pytest.raises(InputError, match="goal is 'target' in result 1, and 'untargeted' in"):
        hf.compare([same[0], aimed()])
    low, _ = same[0].robust_accuracy_interval
    assert hf.require(same[0], f"target-reached<={1 - low}").met
    assert not hf.require(same[0], f"target-reached<{1 - low}").met


@pytest.mark.parametrize(
    ("changes", "spoil", "says"),
    [
        ({"eps": 4 / 255}, None, "L∞ 4/255: figures of different ones do not compare"),
        ({"norm": "l2", "eps": 0.5}, None, "threat model L∞ 8/255, .* of L2 0.5"),
        ({"pixels": "PNG"}, None, "other images: 400 of cifar10 test .the JPEG"),
        ({"data": "svhn"}, None, "are on other images: .* of svhn test"),
        ({}, lambda f: (f / "verdicts.csv").unlink(), "holds no verdicts.csv"),
        ({}, lambda f: (f / "result.json").unlink(), "the run is not finished"),
        ({}, lambda f: (f / "result.json").write_text("{"), "cannot be read"),
        ({"status": "begun"}, None, "has status 'begun'"),
        ({"n": 399}, None, "verdicts.csv holds 400 images, but"),
        ({}, lambda f: (f / "verdicts.csv").write_text("index\n1\n"), "has no column"),
    ],
)
def test_what_cannot_be_compared_is_one_line(
    two: list[Path], tmp_path: Path, changes: dict[str, Any], spoil: Any, says: str, monkeypatch,
    capsys,
) -> None:  # fmt: skip
    count = changes.pop("n", None)
    other = run_of(tmp_path / "other", 3, **changes)
    if count:
        held = json.loads((other / "result.json").read_text())
        (other / "result.json").write_text(json.dumps({**held, "n": count}))
    if spoil:
        spoil(other)
    with pytest.raises(InputError, match=says):
        hf.compare([two[0], other])
    assert command(monkeypatch, "compare", two[0], other) == 2
    told = capsys.readouterr().err
    assert told.startswith("holdfast: ") and told.count("\n") == 1


def test_what_is_no_pair_of_evaluations_is_one_line(two: list[Path], tmp_path: Path) -> None:
    for runs, says in (
        (two[:1], "two runs at least, not 1"),
        ([two[0], two[0]], "given twice"),
        ([two[0], tmp_path / "a" / ".." / "a"], "given twice"),
        ([two[0], training_run(tmp_path / "t")], "a run of training, no evaluation"),
        ([two[0], tmp_path / "gone"], "does not exist"),
        ([two[0], tmp_path / "a" / "verdicts.csv"], "is a file; give the run's folder"),
    ):
        with pytest.raises(InputError, match=says):
            hf.compare(runs)


def test_every_format_says_the_same(two: list[Path], monkeypatch, capsys) -> None:
    found = hf.compare(two)
    side = found.pairs[0].robust
    for kind in ("text", "md", "tex", "csv", "json"):
        assert command(monkeypatch, "compare", *two, "--format", kind) == 0
        text = capsys.readouterr().out
        if kind in ("text", "md", "tex"):
            assert f"{side.first}" in text and f"{side.second}" in text and "Tango" in text
        if kind == "json":
            assert json.loads(text) == found.to_dict()
        if kind == "csv":
            rows = list(csv.DictReader(io.StringIO(text)))
            assert len(rows) == 400
            only = [int(r["image"]) for r in rows if r["A standing"] > r["B standing"]]
            assert tuple(only) == side.only_first
    assert command(monkeypatch, "compare", *two, "--format", "xls") == 2
    assert "--format must be one of" in capsys.readouterr().err


def test_pages_and_files(two: list[Path], tmp_path: Path, monkeypatch, capsys) -> None:
    page = tmp_path / "page.html"
    assert command(monkeypatch, "compare", *two, "--out", page) == 0
    text = page.read_text()
    assert "Image by image" in text and "m2 beside m1" in text and "McNemar" in text
    assert f"holdfast compare {two[0]}" in text
    folder = tmp_path / "deep" / "folder"
    for _ in range(2):  # its own files are replaced
        assert command(monkeypatch, "compare", *two, "--out", folder) == 0
    assert sorted(p.name for p in folder.iterdir()) == [
        "comparison.html", "comparison.json", "images.csv",
    ]  # fmt: skip
    assert hf.read(folder / "comparison.json") == hf.compare(two)
    (folder / "images.csv").write_text("mine")
    assert command(monkeypatch, "compare", *two, "--out", folder) == 2
    assert (folder / "images.csv").read_text() == "mine"
    assert command(monkeypatch, "compare", *two, "--out", tmp_path / "x.pdf") == 2
    assert not (tmp_path / "x.pdf").exists()
    (tmp_path / "file").write_text("mine")
    assert command(monkeypatch, "compare", *two, "--out", tmp_path / "file") == 2
    assert "file" in capsys.readouterr().err


def test_files_of_other_formats(two: list[Path], tmp_path: Path, monkeypatch, capsys) -> None:
    found = hf.compare(two)
    for kind in ("md", "tex", "csv", "json"):
        out = tmp_path / f"out.{kind}"
        for _ in range(2):  # its own file is replaced
            assert command(monkeypatch, "compare", *two, "--out", out) == 0
        if kind == "json":
            assert hf.read(out) == found
        else:
            assert out.read_text() == as_text(found, kind)
        out.write_text("mine")
        assert command(monkeypatch, "compare", *two, "--out", out) == 2
        assert out.read_text() == "mine" and "did not write there" in capsys.readouterr().err


EVIL = "\x1b[2J</td><script>alert(1)</script>|a_b&\\end{table}\n"


def test_names_are_shown_and_nothing_acts_on_them(tmp_path: Path, monkeypatch, capsys) -> None:
    runs = [evaluation_run(tmp_path / f"{i}", n=50, labels=LABELS[:50], seed=i) for i in range(2)]
    for i, run in enumerate(runs):
        held = json.loads((run / "result.json").read_text())
        held["model"]["name"], held["suite"] = f"{EVIL}{i}", EVIL
        (run / "result.json").write_text(json.dumps(held))
    found = hf.compare(runs)
    assert command(monkeypatch, "compare", *runs, "--out", tmp_path / "p.html") == 0
    assert "\x1b" not in capsys.readouterr().out
    assert only_its_own_script((tmp_path / "p.html").read_text())
    tex, text = as_text(found, "tex"), as_text(found, "md")
    assert "\x1b" not in tex + text and "<script" not in text
    assert tex.count(r"\end{table}") == 2 and r"a\_b\&\textbackslash{}end\{table\}" in tex
    for line in text.splitlines():
        if line.startswith("| A"):
            assert line.replace(r"\|", "").count("|") == 6
