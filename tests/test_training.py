"""The loop: repeatable, resumable after any kill, on time, and honest when something goes wrong."""

from __future__ import annotations

import csv
import dataclasses
import errno
import json
import multiprocessing
import os
import pickle
import random
import shutil
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from lightning_fabric import Fabric
from safetensors.torch import load_file, save_file

import holdfast as hf
from holdfast import data
from holdfast.data.base import DataSet, Split
from holdfast.errors import HoldfastError, InputError
from holdfast.runs import files
from holdfast.runs.progress import ProgressLine
from holdfast.training import train
from holdfast.training import trainer as training_loop
from holdfast.training.job import TrainingJob
from holdfast.training.objectives import Loss
from holdfast.training.objectives.cross_entropy import NFGSM
from holdfast.training.recipe import Recipe, recipe_from
from holdfast.training.validation import Validator, collapsed

PER_EPOCH = 3  # steps
PARTS = ("train", "validation")


def tiny(**changes: Any) -> Recipe:
    """Three steps of 16 images an epoch, on a network of a few hundred weights."""
    return recipe_from(
        {
            "model": {"architecture": "small-cnn", "arguments": {"width": 3}},
            "threat": {"eps": "0.1"},
            "augment": {"crop_padding": 1},
            "validation": {"images": 20, "steps": 2},
            "batch_size": 16,
            "epochs": 2,
            "averaging": 0.9,
            "precision": "float32",
            **changes,
        }
    )


class WithoutTest(DataSet):
    """A data set whose test images must not be looked at."""

    def __getattribute__(self, name: str) -> Any:
        assert name != "test", "training looked at the test images"
        return super().__getattribute__(name)


def first(split: Split, n: int) -> Split:
    return Split(split.images[:n], split.filenames[:n], split.labels[:n], split.pixels)


def digits(images: int = 50) -> DataSet:
    """50 of the digits, which leave two over after three batches, and 24 for validation."""
    whole = data.load("digits")
    train, held_out = first(whole.train, images), first(whole.validation, 24)
    return WithoutTest("digits", whole.classes, train, held_out, held_out)


def trainer(run: Path, recipe: Recipe | None = None, seed: int = 0) -> training_loop.Trainer:
    fabric = Fabric(accelerator="cpu", devices=1, precision="32-true")
    return training_loop.Trainer(TrainingJob(recipe or tiny(), digits(), run, fabric, seed))


def weights(run: Path) -> dict[str, torch.Tensor]:
    return load_file(run / "model" / "model.safetensors")


def same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


def figures(run: Path) -> list[dict[str, str]]:
    """The rows of metrics.csv without what depends on the clock."""
    with open(run / "metrics.csv", newline="") as table:
        rows = list(csv.DictReader(table))
    timed = ("seconds", "images_per_second")
    return [{k: v for k, v in row.items() if k not in timed} for row in rows]


def outcome(run: Path) -> dict[str, Any]:
    """result.json without what depends on the clock."""
    result = json.loads((run / "result.json").read_text())
    timed = ("seconds", "images_per_second", "finished", "files", "seal")
    return {k: v for k, v in result.items() if k not in timed}


def contents(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if not p.is_dir()}


def one_line(error: pytest.ExceptionInfo) -> str:
    assert "\n" not in str(error.value)
    return str(error.value)


# -- what a run leaves --------------------------------------------------------------------------


@pytest.fixture(scope="module")
def finished(tmp_path_factory) -> tuple[Path, hf.training.TrainingResult]:
    """A whole run that looked at no test image."""
    run = tmp_path_factory.mktemp("training") / "run"
    return run, train(tiny(), digits(), run, seed=3, device="cpu")


def test_two_runs_are_the_same_bit_for_bit(finished, tmp_path):
    run, _ = finished
    torch.manual_seed(99)  # what the surrounding program draws must not matter
    train(tiny(), digits(), tmp_path / "again", seed=3, device="cpu")
    assert same(weights(run), weights(tmp_path / "again"))
    assert figures(run) == figures(tmp_path / "again")
    train(tiny(), digits(), tmp_path / "other", seed=4, device="cpu")
    assert not same(weights(run), weights(tmp_path / "other"))


def test_the_result_agrees_with_the_rows_the_card_and_the_model(finished):
    run, result = finished
    rows, written = figures(run), json.loads((run / "result.json").read_text())
    card = json.loads((run / "model" / "card.json").read_text())
    assert [int(row["step"]) for row in rows] == [PER_EPOCH, 2 * PER_EPOCH]
    assert [float(row["epoch"]) for row in rows] == [1, 2]
    assert written["steps"] == result.steps == 2 * PER_EPOCH
    assert written["epochs"] == result.epochs == 2
    assert written["status"] == "complete"
    assert written["seconds"] == result.seconds > 0

    def worth(row):
        return float(row["validation_accuracy"]) + float(row["validation_pgd_accuracy"])

    best = max(rows, key=lambda row: (worth(row), int(row["step"])))
    assert written["best_epoch"] == float(best["epoch"])
    assert written["validation"] == result.validation
    assert result.validation["pgd_accuracy"] == float(best["validation_pgd_accuracy"])
    assert result.validation["n"] == 20
    held_out = card["figures"]["validation"]
    assert {k: held_out[k] for k in result.validation} == result.validation
    assert card["threat"] == {"norm": "linf", "eps": 0.1}
    assert recipe_from(card["recipe"]) == tiny()
    assert written["identity"] == json.loads((run / "request.json").read_text())["identity"]

    validation = digits().validation
    images = data.to_tensor(validation.images)[:20]
    with torch.no_grad():
        right = result.model(images).argmax(1) == torch.from_numpy(validation.labels[:20])
    assert float(right.float().mean()) == pytest.approx(result.validation["standard_accuracy"])
    assert not result.model.training
    assert not any(module.training for module in result.model.modules())
    assert {p.name for p in run.iterdir()} == {
        "request.json",
        "result.json",
        "metrics.csv",
        "model",
        "checkpoints",
    }


def test_the_kept_weights_have_the_statistics_of_their_own(finished):
    """Batch-norm statistics of the kept average are those of attacked images seen through it."""
    run, result = finished
    norm = result.model.body[1]
    assert not torch.equal(norm.running_var, torch.ones_like(norm.running_var))
    again = trainer(run, seed=3)
    again.average.model.load_state_dict(result.model.state_dict())
    again._fit_statistics()
    assert torch.equal(again.average.model.body[1].running_mean, norm.running_mean)
    assert torch.equal(again.average.model.body[7].running_var, result.model.body[7].running_var)
    assert not again.average.model.training


def test_the_same_command_again_changes_nothing(finished, capsys):
    run, result = finished
    before = contents(run)
    again = train(tiny(), digits(), run, seed=3, device="cpu", progress=True)
    assert contents(run) == before
    assert f"{run} was finished on " in capsys.readouterr().err
    assert again.validation == result.validation
    assert again.steps == result.steps


@pytest.mark.parametrize(
    ("change", "seed", "names"),
    [({"epochs": 1}, 3, "epochs"), ({"objective": {"name": "pgd"}}, 3, "pgd"), ({}, 4, "seed")],
)
def test_another_run_in_the_folder_is_refused(finished, change, seed, names):
    run, _ = finished
    before = contents(run)
    with pytest.raises(InputError, match="another run") as error:
        train(tiny(**change), digits(), run, seed=seed, device="cpu")
    assert names in one_line(error)
    with pytest.raises(InputError, match="another run"):
        train(tiny(), digits(48), run, seed=3, device="cpu")  # other images
    assert contents(run) == before


@pytest.mark.parametrize("part", ["train", "validation"])
@pytest.mark.parametrize("what", ["images", "labels"])
def test_a_run_is_known_by_what_it_trains_on_and_what_chooses_its_weights(finished, part, what):
    run, _ = finished
    whole = digits()
    split = getattr(whole, part)
    changed = getattr(split, what).copy()
    changed.flat[5] = (int(changed.flat[5]) + 1) % 10
    other = dataclasses.replace(split, **{what: changed})
    seen, held_out = (other if part == name else getattr(whole, name) for name in PARTS)
    data = WithoutTest("digits", whole.classes, seen, held_out, whole.validation)
    with pytest.raises(InputError, match="another run"):
        train(tiny(), data, run, seed=3, device="cpu")


def test_train_reads_a_recipe_file_and_embedded_data(tmp_path):
    file = tmp_path / "recipe.yaml"
    file.write_text("model: {architecture: small-cnn, arguments: {width: 2}}\nprecision: float32")
    result = hf.train(
        file,
        "digits",
        tmp_path / "run",
        changes=["epochs=1", "batch_size=600", "validation.steps=1", "validation.images=10"],
        device="cpu",
    )
    assert result.steps == 1  # 1,197 images make one whole batch of 600
    assert not result.model.training


@pytest.mark.parametrize(
    "name",
    ["standard", "n-fgsm", "pgd", "trades", "mart", "gat", "nuat", "ikl", "dajat"],
)
def test_every_objective_trains_in_bfloat16(tmp_path, name):
    recipe = tiny(
        model={
            "architecture": "preact-resnet",
            "arguments": {"depth": 4, "stages": 1, "width": 4, "stem_stride": 2},
        },
        objective={
            "name": name,
            "arguments": {"steps": 2} if name in ("pgd", "trades", "mart", "ikl", "dajat") else {},
        },
        optimiser={"clip_gradient": 1.0},
        validation={"images": 20, "steps": 2, "every": 0.5},
        precision="bf16",
        epochs=1,
    )
    start = trainer(tmp_path / "start", recipe).tensors()
    result = train(recipe, digits(), tmp_path / "run", device="cpu")
    assert [int(row["step"]) for row in figures(tmp_path / "run")] == [2, 3]
    # Images of one channel are normalised by what the training images measure.
    pixels = digits().train.images / 255
    arguments = json.loads((tmp_path / "run" / "model" / "card.json").read_text())["arguments"]
    assert arguments["mean"] == pytest.approx([pixels.mean()], abs=1e-4)
    assert arguments["std"] == pytest.approx([pixels.std()], abs=1e-4)
    for key, value in result.model.named_parameters():
        assert value.dtype == torch.float32
        assert value.isfinite().all()
        assert not torch.equal(value, start[f"model.{key}"])


def test_a_run_with_a_helper_is_known_by_its_weights(finished, tmp_path):
    helper = tmp_path / "helper"
    shutil.copytree(finished[0] / "model", helper)
    hat = {"name": "hat", "arguments": {"helper": str(helper), "steps": 2}}
    recipe = tiny(objective=hat, epochs=1)
    first = train(recipe, digits(), tmp_path / "run", device="cpu")
    assert train(recipe, digits(), tmp_path / "run", device="cpu").steps == first.steps
    other = train(tiny(epochs=1), digits(), tmp_path / "other", seed=9, device="cpu")
    shutil.rmtree(helper)
    shutil.copytree(other.run / "model", helper)
    with pytest.raises(InputError, match="another run"):
        train(recipe, digits(), tmp_path / "run", device="cpu")


# -- bad input ----------------------------------------------------------------------------------


def coloured() -> DataSet:
    images = np.zeros((20, 3, 8, 8), np.uint8)
    split = Split(images, np.arange(20).astype(str), np.arange(20) % 10, "made up")
    return DataSet("coloured", tuple("0123456789"), split, split, split)


@pytest.mark.parametrize(
    ("recipe", "given", "device", "hint"),
    [
        (tiny(batch_size=51), digits, "cpu", "batch_size 51 .* 50 images"),
        (tiny(model={"architecture": "preact-resnets"}), digits, "cpu", "'preact-resnet'"),
        (tiny(model={"architecture": "small-cnn", "arguments": {"wide": 1}}), digits, "cpu", "wid"),
        (
            tiny(model={"architecture": "small-cnn", "arguments": {"classes": 4}}),
            digits,
            "cpu",
            "4 classes, the data 10",
        ),
        (tiny(), coloured, "cpu", "normalises another number of channels"),
        (tiny(), digits, "banana", "banana"),
    ],
)
def test_what_does_not_fit_is_refused_before_anything_is_written(
    tmp_path, recipe, given, device, hint
):
    with pytest.raises(InputError, match=hint) as error:
        train(recipe, given(), tmp_path / "run", device=device)
    one_line(error)
    assert not (tmp_path / "run").exists()


def test_a_loss_that_explodes_is_one_line_and_frees_the_folder(tmp_path):
    wild = tiny(optimiser={"learning_rate": 1e30})
    with pytest.raises(HoldfastError, match=r"became .* at step") as error:
        train(wild, digits(), tmp_path / "run", device="cpu")
    assert not isinstance(error.value, InputError)
    assert "learning_rate" in one_line(error)
    assert contents(tmp_path / "run") == {}
    train(tiny(epochs=1), digits(), tmp_path / "run", device="cpu")


def test_a_loss_that_becomes_nan_later_leaves_the_last_checkpoint(tmp_path, monkeypatch):
    run = tmp_path / "run"
    monkeypatch.setattr(training_loop, "CHECKPOINT_SECONDS", -1)
    doomed = trainer(run)
    objective, calls = doomed.objective, []

    def poisoned(*arguments):
        calls.append(1)
        loss = objective(*arguments)
        return loss if len(calls) < 3 else Loss(loss.value * torch.nan, loss.logits)

    doomed.objective = poisoned
    poisoned.attacked, poisoned.caution = objective.attacked, 0
    poisoned.state, poisoned.restore = objective.state, objective.restore
    with (
        pytest.raises(HoldfastError, match="became nan at step 2"),
        ProgressLine("", False) as line,
    ):
        doomed.fit(line)
    after = trainer(run)
    assert after.restore("latest")
    assert after.schedule.steps == 2
    assert all(t.isfinite().all() for t in after.tensors().values())


def test_weights_that_become_nan_are_never_saved(tmp_path, monkeypatch):
    monkeypatch.setattr(training_loop, "CHECKPOINT_SECONDS", -1)
    doomed = trainer(tmp_path)
    step = doomed._step

    def poisoning():
        rate = step()
        if doomed.schedule.steps == 1:
            with torch.no_grad():
                next(doomed.model.parameters()).view(-1)[0] = torch.inf
        return rate

    doomed._step = poisoning
    with pytest.raises(HoldfastError, match="NaN or infinite"), ProgressLine("", False) as line:
        doomed.fit(line)
    after = trainer(tmp_path)
    assert after.restore("latest")
    assert after.schedule.steps == 1


# -- time ---------------------------------------------------------------------------------------


class Machine:
    """A made-up clock: steps, validations and checkpoints take the seconds they are said to."""

    def __init__(self, patch: pytest.MonkeyPatch, step: float, validation: float, save: float):
        self.now = 0.0
        patch.setattr(training_loop, "time", self)
        for name, seconds in (("_step", step), ("_validate", validation), ("save", save)):
            method = self.taking(seconds, getattr(training_loop.Trainer, name))
            patch.setattr(training_loop.Trainer, name, method)

    def taking(self, seconds: float, function: Callable) -> Callable:
        def timed(*arguments, **named):
            self.now += seconds
            return function(*arguments, **named)

        return timed

    def monotonic(self) -> float:
        return self.now


def test_a_budget_is_kept_with_validations_and_checkpoints(tmp_path, monkeypatch):
    machine = Machine(monkeypatch, step=1.0, validation=4.0, save=0.5)
    recipe = tiny(budget="1m", validation={"images": 20, "steps": 1, "every": 4})
    result = train(recipe, digits(), tmp_path, device="cpu")
    assert 58 <= machine.now <= 62
    assert result.seconds == pytest.approx(machine.now, abs=0.6)
    rows = figures(tmp_path)
    assert float(rows[-1]["learning_rate"]) < 0.06 * 0.1
    assert [int(row["step"]) for row in rows[:-1]] == [12 * k for k in range(1, len(rows))]
    assert int(rows[-1]["step"]) == result.steps > 30


@pytest.mark.parametrize(("batch_size", "seconds", "budget"), [(4, 10.0, "60s"), (16, 10.0, "25s")])
def test_a_budget_too_short_for_an_epoch_frees_the_folder(
    tmp_path, monkeypatch, batch_size, seconds, budget
):
    machine = Machine(monkeypatch, seconds, 1.0, 0.1)
    recipe = tiny(batch_size=batch_size, budget=budget)
    with pytest.raises(InputError, match=f"budget {budget} is too short") as error:
        train(recipe, digits(), tmp_path / "run", device="cpu")
    assert f"about {'2:00' if batch_size == 4 else '0:30'}" in one_line(error)
    assert machine.now <= 50  # it was noticed within the first steps
    assert contents(tmp_path / "run") == {}


# -- kills --------------------------------------------------------------------------------------


class Fuse:
    """Kills its own process (SIGKILL) at the k-th of the moments that a run passes through.

    Moments are: before and after each step, and, for each file written, half-way through its
    bytes, before they reach the disk, and before and after the file takes its name.
    """

    def __init__(self, burns_at: int, log: Path):
        self.burns_at, self.log, self.passed = burns_at, log, 0
        self.around(training_loop.Trainer, "_step", "step", after=True)
        self.around(files.os, "fsync", "flush")
        self.around(files.os, "replace", "rename", after=True)
        fdopen = os.fdopen

        def half_written(handle, mode):
            file = fdopen(handle, mode)
            write = file.write

            def halves(content):
                write(content[: len(content) // 2])
                file.flush()
                self.moment("write")
                return write(content[len(content) // 2 :])

            return Slow(file, halves)

        files.os.fdopen = half_written

    def around(self, owner: Any, name: str, word: str, after: bool = False) -> None:
        function = getattr(owner, name)

        def wrapped(*arguments):
            self.moment(word)
            result = function(*arguments)
            if after:
                self.moment(f"{word}ed")
            return result

        setattr(owner, name, wrapped)

    def moment(self, word: str) -> None:
        self.passed += 1
        if self.passed == self.burns_at:
            with open(self.log, "a") as log:
                log.write(word + "\n")
            os.kill(os.getpid(), signal.SIGKILL)


class Slow:
    """A file whose `write` is another."""

    def __init__(self, file: Any, write: Callable):
        self.file, self.write = file, write

    def __enter__(self):
        return self

    def __exit__(self, *error):
        return self.file.__exit__(*error)

    def __getattr__(self, name: str):
        return getattr(self.file, name)


# With everything that a resumed run has to go on with: augmentation that rises, mixed labels, an
# average whose memory grows, a rate that is held.
KILLED = tiny(
    epochs=4,
    objective={"name": "n-fgsm", "eps_warmup": 0.3, "arguments": {"label_smoothing": 0.2}},
    augment={
        **{"crop_padding": 0, "crop_shift": 3, "colour": 0.5, "erase": 0.5},
        **{"cutmix": 0.4, "mixup": 0.4, "warmup": 0.5},
    },
    optimiser={"hold": 0.5, "floor": 0.1},
    averaging_share=0.2,
)


def run_to_the_end_or(burns_at: int, run: Path, log: Path) -> None:
    torch.set_num_threads(1)
    training_loop.CHECKPOINT_SECONDS = -1  # a checkpoint after every step
    Fuse(burns_at, log)
    train(KILLED, digits(), run, seed=1, device="cpu")


@pytest.fixture(scope="module")
def in_a_process() -> Iterator[Callable[..., int | None]]:
    """Runs a function in a process forked from one that has imported everything and run nothing."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(
        ["holdfast.training", "lightning_fabric", "sklearn.datasets", "pytest"]
    )

    def run(function: Callable, *arguments) -> int | None:
        process = context.Process(target=function, args=arguments)
        process.start()
        process.join(300)
        return process.exitcode

    yield run


def test_ten_kills_change_nothing(tmp_path, in_a_process):
    log, run, whole = tmp_path / "log", tmp_path / "killed", tmp_path / "whole"
    assert in_a_process(run_to_the_end_or, 0, whole, log) == 0
    chance = random.Random(4)
    for kill in range(10):
        if kill == 5:  # also without the newest checkpoint: from the last validation
            (run / "checkpoints" / "latest.safetensors").unlink(missing_ok=True)
        code = in_a_process(run_to_the_end_or, chance.randint(1, 24), run, log)
        assert code == -signal.SIGKILL
    assert in_a_process(run_to_the_end_or, 0, run, log) == 0
    moments = log.read_text().split()
    assert len(moments) == 10
    assert {"write", "flush"} <= set(moments)  # some while a file was being written
    assert same(weights(whole), weights(run))
    for name in ("latest", "good"):
        file = f"checkpoints/{name}.safetensors"
        assert same(load_file(whole / file), load_file(run / file))
    assert figures(run) == figures(whole)
    assert outcome(run) == outcome(whole)
    assert contents(whole).keys() == contents(run).keys()  # no temporaries are left


def test_a_kill_before_the_request_was_written_does_not_block_the_folder(tmp_path):
    run = tmp_path / "run"
    run.mkdir()
    (run / f".request.json.x1{files.PARTIAL}").write_bytes(b'{"sch')
    train(tiny(epochs=1), digits(), run, device="cpu")
    (run / "model" / f".card.json.x2{files.PARTIAL}").write_bytes(b"{")
    train(tiny(epochs=1), digits(), run, device="cpu")
    assert not list(run.rglob(f"*{files.PARTIAL}"))


# -- checkpoints --------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def checkpoint(finished) -> bytes:
    run, _ = finished
    return (run / "checkpoints" / "latest.safetensors").read_bytes()


class Trap:
    def __init__(self, path: str):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (self.path,)


def damages(content: bytes) -> dict[str, bytes]:
    header = 8 + int.from_bytes(content[:8], "little")
    middle = (header + len(content)) // 2

    def flipped(at: int, bit: int = 6) -> bytes:
        return content[:at] + bytes([content[at] ^ (1 << bit)]) + content[at + 1 :]

    return {
        "empty": b"",
        "one byte": content[:1],
        "header only": content[:header],
        "truncated": content[:-10],
        "longer": content + b"\0",
        "bit in a weight": flipped(middle),
        "lowest bit of the last byte": flipped(len(content) - 1, 0),
        "bit in the header": flipped(header // 2),
        "first byte": flipped(0),
        "text": b"once upon a time",
        "no progress": content.replace(b"progress", b"regressp", 1),
    }


@pytest.mark.parametrize("damage", damages(bytes(99)).keys())
def test_a_damaged_checkpoint_is_refused_and_left_as_it_is(tmp_path, checkpoint, damage):
    broken = damages(checkpoint)[damage]
    assert broken != checkpoint
    file = tmp_path / "checkpoints" / "latest.safetensors"
    file.parent.mkdir()
    file.write_bytes(broken)
    with pytest.raises(InputError, match="damaged") as error:
        trainer(tmp_path, seed=3).restore("latest")
    assert str(file) in one_line(error)
    assert file.read_bytes() == broken


def test_a_pickle_in_place_of_a_checkpoint_is_never_loaded(tmp_path):
    trap, file = tmp_path / "ran", tmp_path / "checkpoints" / "latest.safetensors"
    file.parent.mkdir()
    for write in (lambda value: pickle.dumps(value), lambda value: zipped(value, tmp_path)):
        file.write_bytes(write(Trap(str(trap))))
        with pytest.raises(InputError, match="damaged"):
            trainer(tmp_path).restore("latest")
        assert not trap.exists()


def zipped(value: Any, folder: Path) -> bytes:
    torch.save(value, folder / "pickled.pt")
    return (folder / "pickled.pt").read_bytes()


def test_a_checkpoint_of_another_architecture_is_refused_through_the_front_door(tmp_path):
    wider = tiny(model={"architecture": "small-cnn", "arguments": {"width": 4}})
    run = tmp_path / "run"
    train(tiny(epochs=1), digits(), run, device="cpu")
    wide = trainer(tmp_path / "other", wider)
    wide.save("latest")
    file = run / "checkpoints" / "latest.safetensors"
    file.write_bytes((tmp_path / "other" / "checkpoints" / "latest.safetensors").read_bytes())
    (run / "result.json").unlink()  # what is finished is read, and needs no checkpoint
    before = contents(run)
    with pytest.raises(InputError, match="another architecture") as error:
        train(tiny(epochs=1), digits(), run, device="cpu")
    assert str(file) in one_line(error)
    assert contents(run) == before


def test_foreign_tensors_are_no_checkpoint(tmp_path):
    file = tmp_path / "checkpoints" / "latest.safetensors"
    file.parent.mkdir()
    for metadata in (None, {"progress": "[]"}, {"progress": "{}"}, {"progress": "{"}):
        save_file({"a": torch.zeros(2)}, file, metadata)
        with pytest.raises(InputError, match="damaged"):
            trainer(tmp_path).restore("latest")


@pytest.mark.parametrize(
    ("fault", "room", "victim"),
    [
        ("fdopen", 9, "latest.safetensors"),
        ("replace", 11, "card.json"),
        ("fsync", 12, "good.safet"),
    ],
)
def test_a_disk_that_fills_up_leaves_the_last_checkpoint(
    tmp_path, monkeypatch, fault, room, victim
):
    """The disk takes `room` files: the request, five checkpoints, a validation and more."""
    monkeypatch.setattr(training_loop, "CHECKPOINT_SECONDS", -1)
    # How often it is written depends on the clock; that it cannot be is no error.
    monkeypatch.setattr(ProgressLine, "_write", lambda *_, **__: None)
    run, recipe = tmp_path / "run", tiny(epochs=3)
    real, before = getattr(os, fault), {}

    def full(*arguments):
        nonlocal room
        room -= 1
        if room < 0:
            before.update(contents(run))
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return real(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(files.os, fault, full)
        with pytest.raises(InputError, match=f"{victim}.*No space left on device") as error:
            train(recipe, digits(), run, seed=3, device="cpu")
    one_line(error)
    passing = (files.PARTIAL, "lock")  # what is there only while the run goes on
    whole = {name: content for name, content in before.items() if not name.endswith(passing)}
    assert contents(run) == whole
    after = trainer(run, recipe, seed=3)
    assert after.restore("latest")
    assert after.schedule.steps > PER_EPOCH
    train(recipe, digits(), run, seed=3, device="cpu")
    train(recipe, digits(), tmp_path / "whole", seed=3, device="cpu")
    assert same(weights(run), weights(tmp_path / "whole"))


def test_momentum_and_average_survive(tmp_path):
    one = trainer(tmp_path)
    for _ in range(2):
        one.schedule.advance(0.1)
        one._step()
    one.save("latest")
    two = trainer(tmp_path)
    assert two.restore("latest")
    assert same(one.tensors(), two.tensors())
    assert any(key.startswith("momentum.") for key in one.tensors())
    assert two.average.steps == one.average.steps == 2
    for a, b in zip(one.model.parameters(), two.model.parameters(), strict=True):
        assert a.stride() == b.stride()
        buffers = [t.optimiser.state[p]["momentum_buffer"] for t, p in ((one, a), (two, b))]
        assert buffers[1].shape == a.shape
    assert one._step() == two._step()
    assert same(one.tensors(), two.tensors())


# -- collapse -----------------------------------------------------------------------------------


class Played:
    """Replaces what validations measure: (average PGD, live FGSM, live PGD), one after another; the
    averaged weights' PGD accuracy on training images is `known`."""

    def __init__(
        self, patch: pytest.MonkeyPatch, *measured: tuple[float, float, float], known: float = 0.5
    ):
        def in_turn():
            for average, fgsm, pgd in measured:
                yield {"standard": 0.9, "fgsm": average, "pgd": average}
                yield {"standard": 0.9, "fgsm": known, "pgd": known}
                yield {"standard": 0.9, "fgsm": fgsm, "pgd": pgd}

        turns = in_turn()
        patch.setattr(Validator, "accuracies", lambda validator, *_: next(turns))


HEALTHY, COLLAPSED = (0.5, 0.55, 0.5), (0.4, 0.9, 0.02)


def test_a_collapse_is_noticed_and_survived(tmp_path, monkeypatch):
    Played(monkeypatch, HEALTHY, COLLAPSED, (0.55, 0.6, 0.5))
    seen = []
    after = training_loop.Trainer._after_validation

    def watched(self, row, line):
        after(self, row, line)
        tensors = {name: tensor.clone() for name, tensor in self.tensors().items()}
        seen.append((tensors, self.objective.caution, self.schedule.progress))

    monkeypatch.setattr(training_loop.Trainer, "_after_validation", watched)
    result = train(tiny(epochs=3), digits(), tmp_path, device="cpu")
    assert [caution for _, caution, _ in seen] == [0, 1, 1]
    assert same(seen[0][0], seen[1][0])  # weights, average and momentum went back …
    assert seen[1][2] == pytest.approx(2 / 3)  # … and the schedule did not
    assert not same(seen[1][0], seen[2][0])
    (event,) = result.events
    assert event["kind"] == "catastrophic-overfitting"
    assert event["epoch"] == 2
    assert "90.0%" in event["detail"]
    assert "2.0%" in event["detail"]
    written = json.loads((tmp_path / "result.json").read_text())
    assert written["events"] == result.events
    assert written["best_epoch"] == 3
    assert result.validation["pgd_accuracy"] == 0.55
    assert all(t.isfinite().all() for t in weights(tmp_path).values())


@pytest.mark.parametrize(
    ("fgsm", "pgd", "told"),
    [
        (0.9, 0.02, True),
        (0.5, 0.29, True),
        (0.9, 0.31, False),  # most of the best PGD accuracy is still there
        (0.15, 0.02, False),  # FGSM accuracy is gone too: it is not overfitting to one step
    ],
)
def test_what_counts_as_a_collapse(fgsm, pgd, told):
    row = {"live_fgsm_accuracy": fgsm, "live_pgd_accuracy": pgd}
    assert not collapsed(row, best_live=0.0)  # nothing was reached before
    assert collapsed(row, best_live=0.5) is told


def test_caution_survives_a_resume(tmp_path, monkeypatch):
    Played(monkeypatch, HEALTHY, COLLAPSED)
    train(tiny(), digits(), tmp_path, device="cpu")
    again = trainer(tmp_path)
    assert again.restore("latest")
    assert again.objective.caution == 1
    assert len(again.history.events) == 1


@pytest.mark.parametrize("train_on", ["train", "train+validation"])
def test_a_collapse_at_the_very_end_keeps_the_last_good_weights(tmp_path, monkeypatch, train_on):
    Played(monkeypatch, HEALTHY, COLLAPSED)
    result = train(tiny(train_on=train_on), digits(), tmp_path, device="cpu")
    assert len(result.events) == 1
    assert result.validation["pgd_accuracy"] == 0.5
    assert json.loads((tmp_path / "result.json").read_text())["best_epoch"] == 1


def test_eps_grows_to_the_threat_models_and_stays_there(tmp_path, monkeypatch):
    seen: list[float] = []
    given = NFGSM.attacked

    def attacked(self, model, batch, threat):
        seen.append(threat.eps)
        return given(self, model, batch, threat)

    monkeypatch.setattr(NFGSM, "attacked", attacked)
    recipe = tiny(
        objective={"name": "n-fgsm", "eps_warmup": 0.5}, epochs=4, validation={"every": 100}
    )
    result = train(recipe, digits(), tmp_path / "run")
    steps = 4 * PER_EPOCH
    # After the steps come the images that batch-norm statistics of the kept weights are from.
    trained, measured = seen[:steps], seen[steps:]
    grown = [0.1 * max(0.01, min(1.0, k / (steps / 2))) for k in range(steps)]
    assert trained == pytest.approx(grown)
    assert measured and measured == pytest.approx([0.1] * len(measured))
    assert result.model.card["threat"]["eps"] == 0.1


def test_standard_training_has_no_robustness_to_lose(tmp_path, monkeypatch):
    Played(monkeypatch, HEALTHY, COLLAPSED)
    recipe = tiny(objective={"name": "standard"})
    assert train(recipe, digits(), tmp_path, device="cpu").events == []


def test_the_best_weights_are_kept_even_if_later_ones_are_worse(tmp_path, monkeypatch):
    Played(monkeypatch, (0.3, 0.3, 0.3), (0.5, 0.5, 0.5), (0.4, 0.4, 0.4))
    result = train(tiny(epochs=3), digits(), tmp_path, device="cpu")
    assert result.validation["pgd_accuracy"] == 0.5
    assert json.loads((tmp_path / "result.json").read_text())["best_epoch"] == 2


def test_train_and_validation_keeps_the_last_weights(tmp_path, monkeypatch):
    Played(monkeypatch, (0.9, 0.9, 0.9), (0.5, 0.8, 0.8))
    recipe = tiny(train_on="train+validation")
    result = train(recipe, digits(), tmp_path, device="cpu")
    assert result.steps == 2 * ((50 + 24) // 16)
    assert result.validation["pgd_accuracy"] == 0.5
    last = load_file(tmp_path / "checkpoints" / "latest.safetensors")
    kept = weights(tmp_path)
    assert all(torch.equal(last[f"average.{k}"], kept[k]) for k in kept)
    card = json.loads((tmp_path / "model" / "card.json").read_text())
    assert card["trained_on"] == "train+validation"
    assert card["figures"]["validation"]["measured"] == (
        "first validation images (which are trained on), PGD-2"
    )


def test_some_validation_images_can_be_held_back_and_choose_the_weights(tmp_path, monkeypatch):
    Played(monkeypatch, (0.5, 0.6, 0.6), (0.4, 0.6, 0.6))
    data = digits()
    recipe = tiny(train_on="train+validation-10", validation={"every": 1, "images": 10, "steps": 2})
    result = train(recipe, data, tmp_path, device="cpu")
    assert result.steps == 2 * ((50 + 14) // 16)
    assert json.loads((tmp_path / "result.json").read_text())["best_epoch"] == 1
    split = data.split("train+validation-10")
    np.testing.assert_array_equal(split.images[50:], data.validation.images[10:])
    np.testing.assert_array_equal(split.labels[50:], data.validation.labels[10:])
    for asked, message in (("train+validation-24", "only 24"), ("train+validation-4", "only 4")):
        with pytest.raises(InputError, match=message):
            train(tiny(train_on=asked), data, tmp_path / "other", device="cpu")
    with pytest.raises(InputError, match="train_on"):
        tiny(train_on="train+validation-0")


def test_learning_by_heart_is_said_once(tmp_path, monkeypatch, capsys):
    Played(monkeypatch, *[(0.44, 0.5, 0.5)] * 3, known=0.57)
    result = train(tiny(epochs=3), digits(), tmp_path, device="cpu", progress=True)
    (event,) = result.events
    assert event["kind"] == "memorising" and event["epoch"] == 1
    said = "learns by heart: PGD accuracy 57% on training images, 44% on others"
    assert event["detail"] == said
    shown = capsys.readouterr()
    assert (shown.out + shown.err).count(said) == 1
    with (tmp_path / "metrics.csv").open() as file:
        assert [row["train_pgd_accuracy"] for row in csv.DictReader(file)] == ["0.57"] * 3


def test_a_small_gap_is_no_event(tmp_path, monkeypatch):
    Played(monkeypatch, *[(0.44, 0.5, 0.5)] * 2, known=0.53)
    assert train(tiny(epochs=2), digits(), tmp_path, device="cpu").events == []


def test_images_are_mixed_only_for_objectives_that_can(tmp_path):
    with pytest.raises(InputError, match="objective 'interval' cannot be combined"):
        tiny(objective={"name": "interval"}, augment={"crop_padding": 0, "cutmix": 0.5})
