"""Exports: PNGs that still fool the model, exact arrays, tables, card and annex; nothing lost."""

from __future__ import annotations

import csv
import io
import json
import shlex
import shutil
import sys
from pathlib import Path
from typing import Any

import models
import numpy as np
import pytest
import torch
import yaml
from command_line import command
from PIL import Image
from printed_commands import in_markdown
from run_folders import evaluation_run, training_run
from torch import Tensor, nn

import holdfast as hf
from holdfast.errors import InputError
from holdfast.exporting import images as image_module
from holdfast.exporting.rounding import LOST, MENDED, PLAIN, rounded
from holdfast.models import save_checkpoint
from holdfast.report.tables import latex, markdown
from holdfast.search import Verifier

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks" / "results"
N = 40


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory) -> Path:
    """A model that reads digits, as a folder."""
    folder = tmp_path_factory.mktemp("models") / "reader"
    model, _, _ = models.digits(1)
    card = {"architecture": "small-cnn", "arguments": {"width": 8},
            "classes": [str(k) for k in range(10)], "trained_on": "train", "seed": 3}  # fmt: skip
    save_checkpoint(folder, model, card)
    return folder


@pytest.fixture(scope="module")
def judged(checkpoint: Path, tmp_path_factory) -> Path:
    """An evaluation of it by the command line."""
    from verbs import evaluate_command

    out = tmp_path_factory.mktemp("runs") / "judged"
    with pytest.MonkeyPatch.context() as patch:
        words = ["holdfast", "evaluate", str(checkpoint), "--data", "digits", "--out", str(out)]
        patch.setattr(sys, "argv", words)
        evaluate_command(str(checkpoint), "digits", out, suite="pgd", eps="0.1", limit=N,
                         curve=False, device="cpu")  # fmt: skip
    return out


def rows_of(file: Path) -> list[dict[str, str]]:
    with file.open(newline="") as stream:
        return list(csv.DictReader(stream))


def read_png(file: Path) -> Tensor:
    array = np.asarray(Image.open(file))
    array = array[None] if array.ndim == 2 else array.transpose(2, 0, 1)
    assert array.dtype == np.uint8
    return torch.from_numpy(array.astype(np.float32)).div(255)


# --- PNGs ---------------------------------------------------------------------------------------


def test_every_png_fools_the_model_inside_the_ball(
    judged: Path, checkpoint: Path, tmp_path
) -> None:
    to = tmp_path / "deep" / "pngs"
    counts = hf.export(judged, to).counts
    assert counts is not None
    verdicts = rows_of(judged / "verdicts.csv")
    broken = [row for row in verdicts if row["broken"] == "1" and row["attack"] != "clean"]
    assert counts.broken == len(broken) > 15  # all, not those kept as examples
    assert counts.plain + counts.mended + counts.lost == counts.broken
    assert counts.wrong + counts.standing + counts.broken == N
    model, x, y = hf.load(checkpoint), *models.digits(N)[1:]
    listed = rows_of(to / "index.csv")
    assert len(listed) == N
    named = {row["file"]: int(row["index"]) for row in listed if row["file"]}
    assert {str(f.relative_to(to)) for f in to.rglob("*.png")} == set(named)
    assert len(named) == counts.plain + counts.mended
    for file, index in named.items():
        point = read_png(to / file)
        assert int(models.answers(model, point[None])[0]) != int(y[index])
        assert float((point - x[index]).abs().max()) <= 0.1 + 1e-6
        assert file.startswith(f"{int(y[index])}/")
    assert not [p for p in to.parent.iterdir() if p.name.startswith(".")]


@pytest.mark.parametrize(
    ("norm", "eps"), [("linf", 0.0713), ("l2", 0.9), ("l1", 5.0), ("l0", 4.0), ("spatial", 1.0)]
)
def test_in_every_threat_model(norm: str, eps: float, tmp_path: Path) -> None:
    model, x, y = models.digits(24)
    suite = {"l0": "sigma-zero", "spatial": "rotation-translation"}.get(norm, "pgd")
    result = hf.evaluate(model, x, y, (norm, eps), suite=suite, run=tmp_path / "run")
    to = tmp_path / "pngs"
    counts = hf.export(tmp_path / "run", to, model=model, data=(x, y)).counts
    assert counts.broken == sum(v.broken and v.attack != "clean" for v in result.verdicts) > 0
    assert counts.plain + counts.mended >= 0.6 * counts.broken
    threat = hf.Threat(norm, eps)
    for row in rows_of(to / "index.csv"):
        if row["file"]:
            point, image = read_png(to / row["file"]), x[int(row["index"])]
            assert int(models.answers(model, point[None])[0]) == int(row["prediction"])
            assert row["prediction"] != row["label"]
            if norm == "spatial":
                exact = result.adversarial[int(row["index"])]
                assert float((point - exact).abs().max()) <= 0.5 / 255 + 1e-5
            else:
                assert bool(threat.contains(point[None], image[None])[0])
                distance = float(threat.distance(point[None], image[None])[0])
                assert float(row["distance_of_png"]) == pytest.approx(distance, rel=1e-4)


class Few(nn.Module):
    """Class 1 where the pixels marked in `weight` are together `needed` levels above 100."""

    def __init__(self, weight: Tensor, needed: float):
        super().__init__()
        self.weight, self.needed = weight, needed

    def forward(self, images: Tensor) -> Tensor:
        levels = (images.double() * 255 - 100) * self.weight
        gain = levels.flatten(1).sum(1) - self.needed
        return torch.stack([-gain, gain], 1).float()


GREY = torch.full((1, 1, 4, 4), 100 / 255)


def eight_bit(model: Any, point: Tensor, levels: float) -> Any:
    """The point in 8 bits, in a ball of so many levels."""
    threat, verifier = hf.Threat("linf", levels / 255), Verifier(model)
    none = torch.zeros(1, 0)
    return rounded(verifier, threat, GREY, point, none, torch.tensor([0]), torch.tensor([1]))


@pytest.mark.parametrize(
    ("needed", "moved", "how"),
    [(31, 2.0, PLAIN), (23, 1.5, PLAIN), (31, 2.4, PLAIN), (33, 2.4, LOST), (39, 2.5, LOST)],
)
def test_what_rounding_does_is_known_in_closed_form(needed: float, moved: float, how: int) -> None:
    """Sixteen pixels, a ball of 2.5 levels: in 8 bits 2 levels on each, 32 in all, are the most."""
    found = eight_bit(Few(torch.ones(4, 4), needed), GREY + moved / 255, 2.5)
    assert int(found.how[0]) == how
    if how == PLAIN:
        assert int(found.prediction[0]) == 1
        assert set(found.levels.flatten().tolist()) == {102}


def test_points_that_rounding_loses_are_mended() -> None:
    """A boundary that only some pixels carry: those round to where they do not fool, and one more
    level on them, inside the ball, does."""
    weight = torch.zeros(4, 4)
    weight[0, :2] = 1.0
    point = GREY + 1.4 * weight / 255  # 2.8 levels in all; rounded to 2, which do not fool it
    for model in (
        Few(weight, 2.7),
        models.without_torch(Few(weight, 2.7)),
    ):  # without gradients too
        found = eight_bit(model, point, 3)
        assert int(found.how[0]) == MENDED and int(found.prediction[0]) == 1
        moved = found.levels.float() - 100
        assert float(moved.abs().max()) <= 3 and float((moved * weight).sum()) >= 3
    # Where even the nearest point outwards is not enough, the gradient at the rounded point helps.
    found = eight_bit(Few(weight, 5.5), GREY + 1.4 * weight / 255, 3)
    assert int(found.how[0]) == MENDED
    assert int(eight_bit(Few(weight, 6.5), point, 3).how[0]) == LOST


def test_a_black_box_is_asked_no_more_than_helps() -> None:
    class Box(nn.Module):
        asked = 0

        def forward(self, images: Tensor) -> Tensor:
            self.asked += len(images)
            with torch.no_grad():
                return Few(torch.ones(4, 4), 33)(images)

    box = Box()
    assert int(eight_bit(box, GREY + 2.4 / 255, 2.5).how[0]) == LOST
    assert box.asked == 5  # four roundings, and to see that there is no gradient


def test_a_ball_without_8_bit_images_leaves_none(tmp_path: Path) -> None:
    """Within half a level of an 8-bit image there is no other one."""
    model, x, _ = models.digits(120)
    mixed = []
    for one, other in zip(x[:60], x[60:], strict=True):  # onto the boundary, by halving
        low, high, label = 0.0, 1.0, int(models.answers(model, one[None])[0])
        for _ in range(20):
            middle = (low + high) / 2
            at = int(models.answers(model, torch.lerp(one, other, middle)[None])[0])
            low, high = (middle, high) if at == label else (low, middle)
        mixed.append((torch.lerp(one, other, low) * 255).round() / 255)
    images = torch.stack(mixed)
    labels = models.answers(model, images)
    threat = ("linf", 0.45 / 255)
    hf.evaluate(model, images, labels, threat, suite="pgd", run=tmp_path / "run")
    to = tmp_path / "to"
    counts = hf.export(tmp_path / "run", to, model=model, data=(images, labels)).counts
    assert counts.lost == counts.broken > 5
    assert not list(to.rglob("*.png"))
    assert {row["outcome"] for row in rows_of(to / "index.csv")} >= {
        "does not fool the model in 8 bits"
    }


def test_with_a_target_the_pngs_reach_it(tmp_path: Path) -> None:
    model, x, y = models.digits(24)
    result = hf.evaluate(
        model, x, y, ("linf", 0.25), suite="pgd", goal="target", targets="random",
        run=tmp_path / "run",
    )  # fmt: skip
    reached = [v for v in result.verdicts if v.broken and v.attack != "clean"]
    to = tmp_path / "to"
    counts = hf.export(tmp_path / "run", to, model=model, data=(x, y)).counts
    assert counts.broken == len(reached) > 3 and counts.plain + counts.mended > 3
    aims = {verdict.index: verdict.target for verdict in reached}
    for row in rows_of(to / "index.csv"):
        if row["file"]:
            (at,) = models.answers(model, read_png(to / row["file"])[None]).tolist()
            assert at == aims[int(row["index"])]
    text = hf.export(tmp_path / "run", tmp_path / "t.md").files[0].read_text()
    assert "robust: the target, random, was not reached" in text


def test_images_that_were_handed_over_are_where_they_came_from(tmp_path: Path) -> None:
    model, x, y = models.digits(12)
    points = hf.evaluate(model, x, y, ("linf", 0.1), suite="fgsm").adversarial
    hf.judge(model, x, y, points, ("linf", 0.1), run=tmp_path / "run")
    with pytest.raises(InputError, match="handed to it: they are where they came from"):
        hf.export(tmp_path / "run", tmp_path / "to", model=model, data=(x, y))
    annex = hf.export(tmp_path / "run", tmp_path / "a.md", annex=True).files[0].read_text()
    assert "no search was made on this model" in annex


def test_judge_reads_the_arrays(checkpoint: Path, judged: Path, tmp_path: Path) -> None:
    """What is exported goes to another model, or comes back to this one."""
    hf.export(judged, tmp_path / "points.npz")
    model, x, y = hf.load(checkpoint), *models.digits(N)[1:]
    again = hf.judge(model, x, y, tmp_path / "points.npz", ("linf", 0.1))
    assert again.robust_accuracy == hf.read(judged).robust_accuracy


def test_a_random_defence_is_asked_as_its_verdicts_were(tmp_path: Path) -> None:
    model, x, y = models.digits(16)
    defended = hf.defences.parse("noise:sigma=0.05")(model)
    hf.evaluate(defended, x, y, ("linf", 0.2), suite="pgd", run=tmp_path / "run")
    counts = hf.export(tmp_path / "run", tmp_path / "to", model=defended, data=(x, y)).counts
    assert counts.broken > 3 and counts.plain + counts.mended >= counts.broken - 1


def test_the_runs_own_defences_stand_in_front(
    checkpoint: Path, tmp_path: Path, monkeypatch
) -> None:
    out = tmp_path / "run"
    words = ["evaluate", checkpoint, "--data", "digits", "--limit", "12", "--suite", "pgd",
             "--eps", "0.2", "--defence", "bit-depth:bits=3", "--out", out, "--quiet",
             "--no-curve"]  # fmt: skip
    assert command(monkeypatch, *words) == 0
    found = hf.export(out, tmp_path / "pngs")
    defended = hf.defences.parse("bit-depth:bits=3")(hf.load(checkpoint))
    for row in rows_of(tmp_path / "pngs" / "index.csv"):
        if row["file"]:
            point = read_png(tmp_path / "pngs" / row["file"])
            assert int(models.answers(defended, point[None])[0]) != int(row["label"])
    assert found.counts.broken > 0
    assert (
        "bit-depth:bits=3" in hf.export(out, tmp_path / "card.md", card=True).files[0].read_text()
    )


def test_an_export_that_is_cut_off_leaves_nothing(
    judged: Path, tmp_path: Path, monkeypatch
) -> None:
    real, calls = image_module._png, []

    def dies(levels: Tensor) -> bytes:
        calls.append(1)
        if len(calls) > 3:
            raise KeyboardInterrupt
        return real(levels)

    monkeypatch.setattr(image_module, "_png", dies)
    with pytest.raises(KeyboardInterrupt):
        hf.export(judged, tmp_path / "pngs")
    assert not list(tmp_path.iterdir())
    monkeypatch.setattr(image_module, "_png", real)
    hf.export(judged, tmp_path / "pngs")
    assert (tmp_path / "pngs" / "index.csv").is_file()


def test_folders_that_hold_something(judged: Path, tmp_path: Path, monkeypatch, capsys) -> None:
    to = tmp_path / "pngs"
    to.mkdir()  # an empty one is taken
    assert command(monkeypatch, "export", judged, "--to", to, "--quiet") == 0
    assert "still fool the model" in capsys.readouterr().out
    (to / "notes").write_text("mine")
    stale = next(to.rglob("*.png"))
    index = (to / "index.csv").read_text()
    (to / "0" / "999.png").write_bytes(b"old")
    earlier = "999,0,0,0,fools the model,1,0.1,0.1,0/999.png\n"
    earlier += "998,0,0,0,fools the model,1,0.1,0.1,../outside.png\n"
    (to / "index.csv").write_text(index + earlier)
    (tmp_path / "outside.png").write_bytes(b"not inside")
    assert command(monkeypatch, "export", judged, "--to", to, "--quiet") == 2
    assert "holds files already" in capsys.readouterr().err and stale.is_file()
    assert command(monkeypatch, "export", judged, "--to", to, "--quiet", "--force") == 0
    assert (to / "notes").read_text() == "mine" and stale.is_file()
    assert not (to / "0" / "999.png").exists() and (to / "index.csv").read_text() == index
    assert (tmp_path / "outside.png").read_bytes() == b"not inside"
    assert command(monkeypatch, "export", judged, "--to", tmp_path / "outside", "--quiet") == 0
    (tmp_path / "file").write_text("x")
    assert command(monkeypatch, "export", judged, "--to", tmp_path / "file", "--quiet") == 2
    assert command(monkeypatch, "export", judged, "--to", tmp_path / "file" / "x", "--quiet") == 2
    assert (tmp_path / "file").read_text() == "x"


# --- arrays and verdicts -------------------------------------------------------------------------


def test_arrays_hold_every_point_exactly(tmp_path: Path) -> None:
    model, x, y = models.digits(20)
    result = hf.evaluate(model, x, y, ("linf", 0.1), suite="pgd", run=tmp_path / "run")
    before = (tmp_path / "run" / "journal.sqlite").read_bytes()
    hf.export(tmp_path / "run", tmp_path / "points.npz", data=(x, y))
    assert (tmp_path / "run" / "journal.sqlite").read_bytes() == before
    held = np.load(tmp_path / "points.npz", allow_pickle=False)
    assert {k: (v.dtype, v.shape) for k, v in held.items()} == {
        "adversarial": (np.float32, (20, 1, 8, 8)), "images": (np.float32, (20, 1, 8, 8)),
        "index": (np.int64, (20,)), "labels": (np.int64, (20,)),
    }  # fmt: skip
    assert np.array_equal(held["adversarial"], result.adversarial.numpy())
    assert np.array_equal(held["images"], x.numpy()) and np.array_equal(held["labels"], y.numpy())
    wrong = models.answers(model, torch.from_numpy(held["adversarial"])) != y
    assert torch.equal(wrong, result.broken)


def test_a_random_sample_of_the_images(tmp_path: Path) -> None:
    """A budget or a precision judges some images out of all: these are exported and compared."""
    model, x, y = models.digits(200)
    run = tmp_path / "run"
    result = hf.evaluate(model, x, y, ("linf", 0.1), suite="fgsm", until="12%", run=run)
    assert result.n < 150
    hf.export(run, tmp_path / "points.npz", data=(x, y))
    held = np.load(tmp_path / "points.npz")
    assert held["index"].tolist() == [verdict.index for verdict in result.verdicts]
    assert np.array_equal(held["images"], x[held["index"]].numpy())
    assert np.array_equal(held["adversarial"], result.adversarial.numpy())
    counts = hf.export(run, tmp_path / "pngs", model=model, data=(x, y)).counts
    assert counts.broken + counts.wrong + counts.standing == result.n
    whole = hf.evaluate(model, x, y, ("linf", 0.1), suite="fgsm")
    found = hf.compare([run, whole])
    assert found.n == result.n and found.images == tuple(held["index"].tolist())
    assert not found.pairs[0].robust.only_first and not found.pairs[0].robust.only_second


def test_verdicts_and_a_summary(judged: Path, tmp_path: Path) -> None:
    other = evaluation_run(tmp_path / "other", n=30, fired=("stands-at-huge-eps",))
    found = hf.export([judged, other], tmp_path / "all.csv")
    assert [file.name for file in found.files] == ["all.csv", "all.summary.csv"]
    rows = rows_of(tmp_path / "all.csv")
    assert len(rows) == N + 30 and {row["run"] for row in rows} == {str(judged), str(other)}
    own = rows_of(judged / "verdicts.csv")
    assert [{k: row[k] for k in own[0]} for row in rows[:N]] == own
    summary = rows_of(tmp_path / "all.summary.csv")
    record = hf.read(judged)
    assert float(summary[0]["robust_accuracy"]) == record.robust_accuracy
    assert float(summary[0]["robust_low"]) == record.robust_accuracy_interval[0]
    assert (summary[0]["norm"], float(summary[0]["eps"])) == ("linf", 0.1)


def test_files_that_are_there_are_replaced_by_force_alone(judged, tmp_path, monkeypatch) -> None:
    for name in ("a.csv", "a.npz", "a.md", "a.tex"):
        file = tmp_path / name
        file.write_text("mine")
        assert command(monkeypatch, "export", judged, "--to", file) == 2
        assert file.read_text() == "mine"
        assert command(monkeypatch, "export", judged, "--to", file, "--force") == 0
        assert file.read_bytes() != b"mine"
    (tmp_path / "b.summary.csv").write_text("mine")
    assert command(monkeypatch, "export", judged, "--to", tmp_path / "b.csv") == 2
    assert not (tmp_path / "b.csv").exists()


# --- what cannot be exported --------------------------------------------------------------------


def spoiled(run: Path, to: Path, name: str, content: bytes | None) -> Path:
    shutil.copytree(run, to)
    if content is None:
        (to / name).unlink()
    else:
        (to / name).write_bytes(content)
    return to


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("journal.sqlite", None, "holds no journal.sqlite"),
        ("journal.sqlite", b"nonsense" * 100, "is damaged"),
        ("verdicts.csv", None, "holds no verdicts.csv"),
        ("verdicts.csv", b"index\n1\n", "is damaged"),
        ("result.json", None, "the run is not finished"),
        ("result.json", b"{", "cannot be read"),
    ],
)
def test_damaged_runs_are_one_line(judged, tmp_path, name, content, says, monkeypatch, capsys):
    run = spoiled(judged, tmp_path / "run", name, content)
    for to in ("out.npz", "out"):
        with pytest.raises(InputError, match=says):
            hf.export(run, tmp_path / to)
        assert command(monkeypatch, "export", run, "--to", tmp_path / to) == 2
        told = capsys.readouterr().err
        assert told.startswith("holdfast: ") and told.count("\n") == 1
        assert not (tmp_path / to).exists()


def test_another_runs_journal_is_refused(judged: Path, tmp_path: Path) -> None:
    model, x, y = models.digits(N)
    hf.evaluate(model, x, y, ("linf", 0.05), suite="fgsm", run=tmp_path / "other")
    journal = (tmp_path / "other" / "journal.sqlite").read_bytes()
    run = spoiled(judged, tmp_path / "run", "journal.sqlite", journal)
    with pytest.raises(InputError, match="is the journal of another run"):
        hf.export(run, tmp_path / "out.npz")


def test_other_data_and_other_models_are_refused(judged: Path, tmp_path: Path) -> None:
    model, x, y = models.digits(N)
    with pytest.raises(InputError, match=r"40 of the 40 images .* are not there"):
        hf.export(judged, tmp_path / "a.npz", data=(1 - x, y))
    with pytest.raises(InputError, match="1 of the 40 images"):
        hf.export(judged, tmp_path / "a.npz", data=(x[1:], y[1:]))
    with pytest.raises(InputError, match="the labels are others"):
        hf.export(judged, tmp_path / "a.npz", data=(x, (y + 1) % 10))
    order = torch.randperm(N)  # the same ones in another order are found
    hf.export(judged, tmp_path / "b.npz", data=(x[order], y[order]))
    assert np.array_equal(np.load(tmp_path / "b.npz")["images"], x.numpy())
    model.linear.bias.data += 1
    with pytest.raises(InputError, match="has other weights"):
        hf.export(judged, tmp_path / "to", model=model)
    with pytest.raises(InputError, match="no such folder"):
        hf.export(judged, tmp_path / "to", data=tmp_path / "nowhere")
    assert not (tmp_path / "to").exists()


def test_a_model_of_no_known_weights_must_be_fooled(tmp_path: Path) -> None:
    model, x, y = models.digits(20)
    hf.evaluate(model, x, y, ("linf", 0.1), suite="pgd", run=tmp_path / "run")
    with pytest.raises(InputError, match="does not name its model"):
        hf.export(tmp_path / "run", tmp_path / "to", data=(x, y))
    with pytest.raises(InputError, match="does not name its data"):
        hf.export(tmp_path / "run", tmp_path / "to", model=model)

    def right(images: Tensor) -> Tensor:
        near = (images[:, None] - x[None]).flatten(2).norm(dim=2).argmin(1)
        return nn.functional.one_hot(y[near], 10).float()

    with pytest.raises(InputError, match="do not fool this model, so it is another"):
        hf.export(tmp_path / "run", tmp_path / "to", model=right, data=(x, y))
    assert not (tmp_path / "to").exists()


def test_no_code_is_taken_from_a_record(judged: Path, tmp_path: Path) -> None:
    for field, value in (("source", "os:getcwd"), ("defences", ["os.path:join"])):
        held = json.loads((judged / "result.json").read_text())
        held.pop("seal")
        held["model"][field] = value
        run = spoiled(judged, tmp_path / field, "result.json", json.dumps(held).encode())
        with pytest.raises(InputError, match=r"may name no code|no code is taken from a file"):
            hf.export(run, tmp_path / f"to-{field}")


def test_what_is_no_evaluation_or_no_target(judged: Path, tmp_path: Path) -> None:
    certified, trained = RESULTS / "certificates-gaussian", training_run(tmp_path / "trained")
    for run, to, says in (
        (certified, "a.npz", "is a run of certification, which has no verdicts"),
        (certified, "a.csv", "which has no verdicts"),
        (trained, "out", "run of training, which has no verdicts; evaluate its model first"),
        (trained, "a.md", "run of training: evaluate its model first"),
        ([judged, judged], "out", "of one run at a time"),
        ([], "out", "no run to export"),
        (judged, "a.docx", "cannot be written: give a folder, or a file that ends in"),
        (tmp_path / "gone", "out", "does not exist"),
    ):
        with pytest.raises(InputError, match=says):
            hf.export(run, tmp_path / to)
    with pytest.raises(InputError, match="two files"):
        hf.export(judged, tmp_path / "out", card=True, annex=True)
    with pytest.raises(InputError, match="a card is a folder's"):
        hf.export(judged, tmp_path / "card.tex", card=True)


# --- tables, card, annex --------------------------------------------------------------------------

EVIL = "a|b_c & 50% \\input{x} $x^2$ #1 <script>`\x1b[2J\n---\n- {y}"


def named_evil(folder: Path, **changes: Any) -> Path:
    run = evaluation_run(folder, n=50, name="m", fired=("gradients-vanish",), **changes)
    held = json.loads((run / "result.json").read_text())
    held["model"] |= {"name": EVIL, "architecture": EVIL}
    held["suite"], held["data"]["pixels"] = EVIL, EVIL
    held["flags"][0] |= {"fired": True, "detail": EVIL}
    held["classes"] = [EVIL] * 10
    (run / "result.json").write_text(json.dumps(held))
    return run


def test_tables_say_what_the_runs_say() -> None:
    assert latex("50% of a_b & {c}") == r"50\% of a\_b \& \{c\}"
    assert markdown("*a* [b](c) `d`") == r"\*a\* \[b\](c) \`d\`"


def test_tables_say_what_is_a_sample(tmp_path: Path) -> None:
    """Its interval is another one, and the number of images was not fixed."""
    wide = {"robust_accuracy_anytime_interval": [0.31, 0.52], "population": 5000}
    sample = evaluation_run(tmp_path / "sample", stopped="until", **wide)
    whole = evaluation_run(tmp_path / "whole", name="other", stopped="all images", **wide)
    for kind in ("md", "tex"):
        text = hf.export([sample, whole], tmp_path / f"t.{kind}").files[0].read_text()
        assert "1000 of 5000" in text and text.count("of 5000") == 1
        assert "31.0, 52.0" in text and "valid at any time" in text
        assert "any time" not in hf.export(whole, tmp_path / f"w.{kind}").files[0].read_text()
    hf.export([sample, whole], tmp_path / "all.csv")
    rows = rows_of(tmp_path / "all.summary.csv")
    assert [(row["population"], row["anytime"]) for row in rows] == [("5000", "1"), ("1000", "0")]


def test_tables_group_what_compares(judged: Path, tmp_path: Path) -> None:
    slim, w40 = RESULTS / "cifar10-linf-slim-swift", RESULTS / "cifar10-linf-w40-swift"
    (file,) = hf.export([slim, judged, w40], tmp_path / "t.md").files
    text = file.read_text()
    assert text.count("| model |") == 2  # another suite, threat model and data: another table
    assert "| cifar10-linf-slim | 69.3 %" in text and "37.8 %" in text and r"\[34.8, 40.9\]" in text
    first = text[: text.index("Accuracy under the suite pgd")]
    assert "cifar10-linf-w40" in first
    (file,) = hf.export([slim, RESULTS / "certificates-gaussian"], tmp_path / "t.tex").files
    text = file.read_text()
    assert text.count(r"\begin{table}") == text.count(r"\end{table}") == 2
    assert r"37.8 \% [34.8, 40.9]" in text and "certified at 0.25" in text
    sure = RESULTS / "cifar10-linf-slim-swift"
    assert hf.export(sure, tmp_path / "one.md").files[0].read_text().count("| model |") == 1


def test_no_name_acts_on_a_table(tmp_path: Path) -> None:
    run = named_evil(tmp_path / "run")
    tex = hf.export(run, tmp_path / "t.tex").files[0].read_text()
    assert "\\input" not in tex and "\x1b" not in tex and r"\textbackslash{}input\{x\}" in tex
    (row,) = [line for line in tex.splitlines() if "textbackslash{}input" in line and "&" in line
              and "caption" not in line]  # fmt: skip
    assert row.replace(r"\&", "").count("&") == 4 and row.endswith(r"\\")
    text = hf.export(run, tmp_path / "t.md").files[0].read_text()
    assert "<script" not in text and "\x1b" not in text
    (row,) = [line for line in text.splitlines() if line.startswith("| a")]
    assert row.replace(r"\|", "").count("|") == 6
    rows = list(csv.reader(io.StringIO(hf.export(run, tmp_path / "t.csv").files[1].read_text())))
    assert len(rows) == 2 and "\x1b" not in rows[1][1]


def metadata(text: str) -> dict[str, Any]:
    _, head, _ = text.split("---\n", 2)
    return yaml.safe_load(head)


def test_the_card_says_what_run_and_checkpoint_say(judged: Path, tmp_path: Path) -> None:
    (file,) = hf.export(judged, tmp_path / "model", card=True).files
    assert file == tmp_path / "model" / "README.md"
    text, record = file.read_text(), hf.read(judged)
    held = metadata(text)
    assert held["library_name"] == "holdfast" and held["pipeline_tag"] == "image-classification"
    (entry,) = held["model-index"]
    (result,) = entry["results"]
    assert entry["name"] == "reader" and result["task"]["type"] == "image-classification"
    assert result["dataset"] == {"type": "digits", "name": "digits", "split": "test"}
    values = {m["name"]: m["value"] for m in result["metrics"]}
    assert values == {
        "standard accuracy, n = 40": pytest.approx(record.standard_accuracy, abs=1e-6),
        "robust accuracy (L∞ 0.1, pgd), n = 40": pytest.approx(record.robust_accuracy, abs=1e-6),
    }
    assert "- trained on: train" in text and "- seed: 3" in text
    assert f"{100 * record.robust_accuracy:.1f} %" in text and "--data digits" in text
    with pytest.raises(InputError, match="is there already"):
        hf.export(judged, tmp_path / "model", card=True)
    hf.export(judged, tmp_path / "model", card=True, force=True)
    published = hf.export(RESULTS / "cifar10-linf-2h-swift", tmp_path / "p.md", card=True)
    assert "trained for L∞ 8/255" in published.files[0].read_text()


def test_a_card_takes_the_training_and_the_certification_too(judged: Path, tmp_path: Path) -> None:
    trained = training_run(tmp_path / "trained")
    text = hf.export([judged, trained], tmp_path / "c.md", card=True).files[0].read_text()
    assert "Training on cifar10 train, 24 epochs" in text and "--budget 60m" in text
    certified = RESULTS / "certificates-gaussian"
    held = json.loads((certified / "result.json").read_text())
    own = json.loads((judged / "result.json").read_text())
    (tmp_path / "own").mkdir()
    held.pop("seal", None)
    held.pop("files", None)
    (tmp_path / "own" / "result.json").write_text(json.dumps({**held, "model": own["model"]}))
    text = hf.export([judged, tmp_path / "own"], tmp_path / "d.md", card=True).files[0].read_text()
    names = [m["name"] for r in metadata(text)["model-index"][0]["results"] for m in r["metrics"]]
    assert "certified accuracy (radius 0.25), n = 250" in names and len(names) == 5
    assert "Nothing is certified" not in text


@pytest.mark.parametrize("channels", [1, 2, 3, 4])
def test_pngs_hold_their_channels(channels: int) -> None:
    levels = torch.randint(0, 256, (channels, 5, 7), dtype=torch.uint8)
    held = np.asarray(Image.open(io.BytesIO(image_module._png(levels))))
    held = held[None] if channels == 1 else held.transpose(2, 0, 1)
    assert np.array_equal(held, levels.numpy())


def test_a_card_without_checkpoint_or_of_two_models(judged: Path, tmp_path: Path) -> None:
    run = named_evil(tmp_path / "run")
    text = hf.export(run, tmp_path / "card.md", card=True).files[0].read_text()
    held = metadata(text)
    assert "\x1b" not in text and "<script" not in text.split("---\n", 2)[2]
    assert held["model-index"][0]["name"].startswith("a|b_c & 50%")
    assert "how it was trained is not said" in text and "Health checks fired" in text
    assert text.count("```") % 2 == 0
    with pytest.raises(InputError, match="of different models: a card is of one"):
        hf.export([judged, run], tmp_path / "two.md", card=True)
    with pytest.raises(InputError, match="needs an evaluation"):
        hf.export(RESULTS / "certificates-gaussian", tmp_path / "two.md", card=True)
    with pytest.raises(InputError, match=r"there is no such folder|is unknown|neither a folder"):
        hf.export(judged, tmp_path / "two.md", card=True, model="no-such-model")


def statuses(text: str) -> dict[str, str]:
    heads = [line[4:].rpartition(": ") for line in text.splitlines() if line.startswith("### ")]
    return {place.split(",")[0] + ("·" if "poison" in place else ""): s for place, _, s in heads}


def test_the_annex_claims_what_was_measured_and_no_more(judged: Path, tmp_path: Path) -> None:
    (file,) = hf.export(judged, tmp_path / "papers", annex=True).files
    text, record = file.read_text(), hf.read(judged)
    assert file.name == "annex.md" and "no declaration of conformity" in text
    assert f"Robust accuracy {100 * record.robust_accuracy:.1f} %" in text
    assert statuses(text) == {
        "15(1)": "measured in part", "15(3)": "measured in part", "15(4)": "not measured",
        "15(5)": "measured in part", "15(5)·": "not measured",
        "MEASURE 2.5": "measured in part", "MEASURE 2.6": "measured in part",
        "MEASURE 2.7": "measured in part", "ISO/IEC 24029-2:2023": "not measured",
        "ISO/IEC 24029-3": "measured in part",
    }  # fmt: skip
    for word in ("complies", "compliant", "conforms", "fulfils", "satisfies"):
        assert word not in text
    certified = hf.export(RESULTS / "certificates-interval", tmp_path / "c.md", annex=True)
    text = certified.files[0].read_text()
    assert statuses(text)["ISO/IEC 24029-2:2023"] == "measured in part"
    assert statuses(text)["ISO/IEC 24029-3"] == "not measured"
    smoothed = hf.export(RESULTS / "certificates-gaussian", tmp_path / "s.md", annex=True)
    text = smoothed.files[0].read_text()
    assert statuses(text)["ISO/IEC 24029-2:2023"] == "not measured"
    assert statuses(text)["ISO/IEC 24029-3"] == "measured in part"


def test_the_annex_holds_uncertainty_and_flags(tmp_path: Path) -> None:
    run = tmp_path / "sure"
    run.mkdir()
    held = json.loads((RESULTS / "uncertainty-cifar10-linf-cpu-60m.json").read_text())
    (run / "result.json").write_text(json.dumps(held))
    text = hf.export(run, tmp_path / "u.md", annex=True).files[0].read_text()
    assert statuses(text)["15(4)"] == "measured in part" and "Mean accuracy 67.7 %" in text
    assert "calibration error 4.3 %" in text
    fired = named_evil(tmp_path / "run")
    text = hf.export(fired, tmp_path / "f.md", annex=True).files[0].read_text()
    assert "its figures may be too good" in text and "<script" not in text and "\x1b" not in text
    with pytest.raises(InputError, match="of different models: an annex is of one"):
        hf.export([fired, RESULTS / "certificates-gaussian"], tmp_path / "x.md", annex=True)
    with pytest.raises(InputError, match="an annex is of evaluations"):
        hf.export(training_run(tmp_path / "t"), tmp_path / "x.md", annex=True)


def test_every_example_of_the_page_runs(judged: Path, tmp_path: Path, monkeypatch) -> None:
    """`docs/results.md`, word for word, in a folder where its runs are."""
    monkeypatch.chdir(tmp_path)
    for name in ("first", "second", "third"):
        shutil.copytree(judged, tmp_path / "runs" / name)
    page = (ROOT / "docs" / "results.md").read_text()
    written = [line for line in in_markdown(page) if " RUN" in line or "runs/first" in line]
    ran = []
    for line in written:
        words = [
            "runs/first" if word == "RUN" else word for word in shlex.split(line, comments=True)
        ]
        if words[1] in ("compare", "require", "export"):
            ran.append(words[1])
            assert command(monkeypatch, *words[1:]) in ((0, 3) if words[1] == "require" else (0,))
    assert {name: ran.count(name) for name in ran} == {"compare": 2, "require": 1, "export": 6}
    for name in (
        "comparison.html", "robustness.xml", "images/index.csv", "points.npz", "verdicts.csv",
        "verdicts.summary.csv", "table.tex", "MODEL/README.md", "annex.md",
    ):  # fmt: skip
        assert (tmp_path / name).is_file(), name
