"""Images that are not in memory are judged as those that are: image by image, and whatever happens
on the way."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import models
import numpy as np
import pytest
import torch
from command_line import command
from data_files import image_folder
from test_workers import team
from torch import nn

import holdfast as hf
from holdfast import data, stored
from holdfast.attacks import APGD, PGD, RayS, Square, Stage, Suite
from holdfast.data import LazyImages, folder
from holdfast.defences import chain
from holdfast.runs.identity import digest
from holdfast.search import StoredPoints
from holdfast.search import scheduler as search
from holdfast.stored import StoredImages

N, CLASSES = 41, 5
SUITE = Suite(
    "quick",
    (
        Stage(PGD(steps=2), restarts=2),
        Stage(APGD(steps=6, loss="dlr", targeted=True), targets=2),
        Stage(Square(queries=10)),
    ),
)
THREAT = hf.Threat("linf", 0.02)


def problem() -> tuple[nn.Module, np.ndarray, torch.Tensor]:
    model = models.Net(classes=CLASSES, seed=2, scale=12.0)
    pixels = (models.images(N, seed=2) * 255).round().byte().numpy()
    labels = models.answers(model, data.to_tensor(pixels))
    labels[2] = (labels[2] + 1) % CLASSES
    return model, pixels, labels


@pytest.fixture
def never_in_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stored, "IN_MEMORY", 0)


def evaluated(images: Any, **options: Any) -> hf.Evaluation:
    model, _, labels = problem()
    options = {"suite": SUITE, "batch_size": 8, "precision": "original"} | options
    return hf.evaluate(options.pop("model", model), images, labels, THREAT, **options)


def same(ours: hf.Evaluation, theirs: hf.Evaluation) -> None:
    assert isinstance(ours.adversarial, StoredPoints)
    assert isinstance(theirs.adversarial, torch.Tensor)
    assert [asdict(verdict) for verdict in ours.verdicts] == [
        asdict(verdict) for verdict in theirs.verdicts
    ]
    assert torch.equal(ours.adversarial[:], theirs.adversarial)
    assert torch.equal(ours.broken, theirs.broken) and ours.identity == theirs.identity
    assert ours.curve == theirs.curve and ours.draws == theirs.draws


class Held:
    """What is neither an array nor lazy, but is indexed by a number."""

    def __init__(self, pixels: np.ndarray):
        self.pixels, self.shape, self.dtype = pixels, pixels.shape, pixels.dtype

    def __len__(self) -> int:
        return len(self.pixels)

    def __getitem__(self, row: int) -> np.ndarray:
        assert type(row) is int
        return self.pixels[row]


def mapped(pixels: np.ndarray, tmp_path: Path) -> np.memmap:
    """From a file whose channels come last, as files have them."""
    np.save(tmp_path / "held.npy", pixels.transpose(0, 2, 3, 1))
    return np.load(tmp_path / "held.npy", mmap_mode="r").transpose(0, 3, 1, 2)


def lazy(pixels: np.ndarray, decode: Callable[[int], Any] | None = None) -> LazyImages:
    return LazyImages(decode or pixels.__getitem__, len(pixels), pixels.shape[1:])


# --- images -----------------------------------------------------------------------------------


def test_they_are_indexed_as_a_tensor_is(tmp_path: Path) -> None:
    _, pixels, _ = problem()
    tensor = data.to_tensor(pixels)
    for source in (pixels, torch.from_numpy(pixels), lazy(pixels), Held(pixels),
                   mapped(pixels, tmp_path)):  # fmt: skip
        held = StoredImages(source)
        assert held.shape == tensor.shape and len(held) == N and held.dtype == torch.float32
        for rows in (torch.tensor([3, 0, 3]), slice(5, 9), [1, -1], tensor[:, 0, 0, 0] > 0.5, 7,
                     torch.tensor(4), slice(None), torch.zeros(0).long()):  # fmt: skip
            assert torch.equal(held[rows], tensor[rows])
            assert held[rows].dtype == torch.float32
        assert torch.equal(torch.stack(list(held)), tensor)
        part = held.part(torch.tensor([4, 2, 9])).part([2, 0])
        assert torch.equal(part[:], tensor[[9, 4]]) and len(part) == 2
        assert digest(held) == digest(tensor) != digest(held.part([0]))
        assert stored.in_memory(held).equal(tensor)
        doubled = stored.in_parts(lambda x, y: (x + y).flatten(1).sum(1), held, tensor)
        assert torch.equal(doubled, (2 * tensor).flatten(1).sum(1))


def test_pages_of_a_mapped_file_are_let_go(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if not Path("/proc/self/statm").exists():
        pytest.skip("no /proc")

    def shared() -> int:
        return int(Path("/proc/self/statm").read_text().split()[2]) * os.sysconf("SC_PAGE_SIZE")

    monkeypatch.setattr(stored, "_FORGOTTEN", 2**20)
    np.save(tmp_path / "many.npy", np.zeros((2000, 3, 64, 64), np.uint8))
    held = StoredImages(np.load(tmp_path / "many.npy", mmap_mode="r"))
    before, most = shared(), 0
    for rows in torch.arange(2000).split(50):
        assert not held[rows].any()
        most = max(most, shared() - before)
    assert most < 6 * 2**20 < held.shape.numel() / 2  # bytes


def test_what_is_small_is_taken_into_memory() -> None:
    _, pixels, labels = problem()
    for images in (lazy(pixels), Held(pixels), pixels):
        x, _ = hf.inputs.checked_stored_data(images, labels)
        assert isinstance(x, torch.Tensor) and torch.equal(x, data.to_tensor(pixels))
    assert isinstance(data.model_images(pixels), torch.Tensor)


@pytest.mark.usefixtures("never_in_memory")
def test_what_is_large_is_not() -> None:
    _, pixels, labels = problem()
    for images in (pixels, torch.from_numpy(pixels), lazy(pixels), Held(pixels)):
        x, _ = hf.inputs.checked_stored_data(images, labels)
        assert isinstance(x, StoredImages)
        assert isinstance(hf.inputs.checked_data(images, labels)[0], torch.Tensor)
    split = data.Split(lazy(pixels), np.arange(N).astype(str), labels.numpy(), "pixels")
    assert isinstance(hf.inputs.checked_stored_data(split)[0], StoredImages)
    floats = data.to_tensor(pixels)
    assert hf.inputs.checked_stored_data(floats, labels)[0].data_ptr() == floats.data_ptr()
    with pytest.raises(hf.InputError, match=r"look like \(N, H, W, C\)"):
        hf.inputs.checked_stored_data(pixels.transpose(0, 2, 3, 1), labels)
    with pytest.raises(hf.InputError, match="labels must have shape"):
        hf.inputs.checked_stored_data(pixels, labels[1:])


# --- verdicts ---------------------------------------------------------------------------------


@pytest.mark.usefixtures("never_in_memory")
@pytest.mark.parametrize("keep", [True, False])
def test_verdicts_are_those_in_memory(tmp_path: Path, keep: bool) -> None:
    _, pixels, _ = problem()
    out = (lambda name: tmp_path / name) if keep else (lambda name: None)
    options: dict[str, Any] = {"curve": True}
    expected = evaluated(data.to_tensor(pixels), run=out("memory"), **options)
    assert {v.attack for v in expected.verdicts} >= {"", "clean", "pgd"}
    sources = {"lazy": lazy(pixels), "mapped": mapped(pixels, tmp_path), "bytes": pixels}
    for name, images in sources.items():
        found = evaluated(images, run=out(name), **options)
        same(found, expected)
        if keep:
            same(evaluated(images, run=out(name), **options), expected)  # read, not run again
            for file in ("verdicts.csv", "examples.safetensors"):
                assert (tmp_path / name / file).read_bytes() == (
                    tmp_path / "memory" / file
                ).read_bytes()


@pytest.mark.usefixtures("never_in_memory")
@pytest.mark.parametrize(
    "options",
    [
        {"suite": "minimum"},
        {"suite": Suite("rays", (Stage(RayS(queries=40)),)), "goal": "target", "targets": "random"},
        {"suite": "black-box", "queries": 30},
        {"until": 0.2},
    ],
    ids=["closest", "from an image of the goal", "queries", "sample"],
)
def test_so_they_are_in_every_kind_of_search(options: dict[str, Any], tmp_path: Path) -> None:
    _, pixels, _ = problem()
    expected = evaluated(data.to_tensor(pixels), **options)
    found = evaluated(lazy(pixels), run=tmp_path / "run", **options)
    same(found, expected)
    assert torch.equal(found.adversarial[[0, -1]], expected.adversarial[[0, -1]])
    same(evaluated(lazy(pixels), run=tmp_path / "run", **options), expected)


@pytest.mark.usefixtures("never_in_memory")
def test_so_they_are_of_a_random_model_and_of_moves() -> None:
    model, pixels, labels = problem()
    noisy = chain(model, ["noise:sigma=0.02"])
    options: dict[str, Any] = {"suite": SUITE, "model": noisy}
    same(evaluated(lazy(pixels), **options), evaluated(data.to_tensor(pixels), **options))
    moves = hf.Threat("spatial", 1, degrees=20, pixels=1)
    results = [
        hf.evaluate(model, images, labels, moves, "spatial", precision="original", batch_size=16)
        for images in (lazy(pixels), data.to_tensor(pixels))
    ]
    same(*results)


@pytest.mark.usefixtures("never_in_memory")
def test_points_outlive_the_run_and_know_their_shape(tmp_path: Path) -> None:
    _, pixels, _ = problem()
    expected = evaluated(data.to_tensor(pixels)).adversarial
    for out in (None, tmp_path / "run"):
        points = evaluated(lazy(pixels), run=out).adversarial
        assert points.shape == expected.shape and len(points) == N
        assert torch.equal(points[3], expected[3]) and torch.equal(points[-2:], expected[-2:])
        assert torch.equal(torch.stack(list(points)), expected)
        assert np.array_equal(np.asarray(points), expected.numpy())
    (tmp_path / "run/journal.sqlite").unlink()
    with pytest.raises(hf.InputError, match=r"journal .*journal\.sqlite cannot be used"):
        points[:]


@pytest.mark.usefixtures("never_in_memory")
def test_they_are_judged_on_another_model() -> None:
    model, pixels, labels = problem()
    other, tensor = models.Net(classes=CLASSES, seed=3, scale=12.0), data.to_tensor(pixels)
    given = [evaluated(images) for images in (lazy(pixels), tensor)]
    judged = [
        hf.judge(other, images, labels, found, THREAT)
        for images, found in zip((lazy(pixels), tensor), given, strict=True)
    ]
    assert judged[0].verdicts == judged[1].verdicts
    over = [
        hf.judge(other, images, labels, threat=THREAT, source=model, suite=SUITE)
        for images in (lazy(pixels), tensor)
    ]
    assert over[0].verdicts == over[1].verdicts and over[0].identity == over[1].identity


@pytest.mark.usefixtures("never_in_memory")
def test_they_are_certified_alike(tmp_path: Path) -> None:
    _, pixels, labels = problem()
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(pixels[0].size, CLASSES))
    rows = []
    for name, images in (("lazy", lazy(pixels)), ("memory", data.to_tensor(pixels))):
        hf.certify(model, images, labels, n=50, eps=0.01, run=tmp_path / name, device="cpu")
        told = (tmp_path / name / "certificates.csv").read_text().splitlines()
        rows.append([line.split(",")[:5] for line in told])  # without seconds and checksum
        key = json.loads((tmp_path / name / "request.json").read_text())["identity"]
        rows.append(key)
    assert rows[:2] == rows[2:]


@pytest.mark.usefixtures("never_in_memory")
def test_a_sample_is_exported_alike(tmp_path: Path) -> None:
    """Of a run on a sample the journal's numbers are not the rows of what is exported."""
    _, pixels, labels = problem()
    run = evaluated(lazy(pixels), until=0.25, run=tmp_path / "run")
    assert run.n < N
    for name, limit in (("lazy", 0), ("memory", 2**29)):
        stored.IN_MEMORY = limit  # put back by the fixture
        hf.export(tmp_path / "run", tmp_path / f"{name}.npz", data=(data.to_tensor(pixels), labels))
    held = np.load(tmp_path / "lazy.npz"), np.load(tmp_path / "memory.npz")
    assert all(np.array_equal(held[0][key], held[1][key]) for key in held[0].files)
    assert np.array_equal(held[0]["adversarial"], np.asarray(run.adversarial))


# --- what happens on the way ------------------------------------------------------------------


@pytest.mark.usefixtures("never_in_memory")
def test_a_picture_damaged_midway_loses_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, pixels, _ = problem()
    asked: list[int] = []
    broken = False

    def decode(row: int) -> np.ndarray:
        asked.append(row)
        if broken and row == 30:
            raise hf.InputError("pictures/30.png: no readable image (it is empty)")
        return pixels[row]

    def images() -> LazyImages:
        return LazyImages(decode, N, pixels.shape[1:], cache=0)

    real, steps = search.Scheduler._step, 0

    def step(self: Any, batch: Any) -> None:
        nonlocal broken, steps
        steps += 1
        broken = broken or steps == 12
        real(self, batch)

    monkeypatch.setattr(search.Scheduler, "_step", step)
    with pytest.raises(hf.InputError, match=r"^pictures/30\.png: no readable image"):
        evaluated(images(), run=tmp_path / "run")
    assert steps >= 12 and not (tmp_path / "run/result.json").exists()
    with pytest.raises(hf.InputError, match=r"^pictures/30\.png"):
        evaluated(images(), run=tmp_path / "run")
    broken, steps = False, 100
    found = evaluated(images(), run=tmp_path / "run")
    again, steps = steps, 100
    same(found, evaluated(data.to_tensor(pixels)))
    assert 100 < again < steps  # what was judged is not judged again


@pytest.mark.usefixtures("never_in_memory")
def test_a_picture_that_never_was_one_is_named_before_anything_is_written(tmp_path: Path) -> None:
    _, pixels, _ = problem()

    def decode(row: int) -> np.ndarray:
        if row == N - 1:
            raise hf.InputError("pictures/last.png: no readable image")
        return pixels[row]

    with pytest.raises(hf.InputError, match=r"pictures/last\.png"):
        evaluated(lazy(pixels, decode), run=tmp_path / "run")
    assert not (tmp_path / "run").exists() or not list((tmp_path / "run").iterdir())


def test_a_folder_on_the_command_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same verdicts, to the last digit, and the same exported pictures."""
    image_folder(tmp_path / "pets", ("cat", "dog"), n=30)
    (tmp_path / "net.py").write_text(
        "import torch\n\n\ndef build():\n    torch.manual_seed(0)\n    return torch.nn.Sequential("
        "torch.nn.Flatten(), torch.nn.Linear(192, 2))\n"
    )
    sys.path.insert(0, str(tmp_path))
    try:
        for name in ("memory", "lazy"):
            if name == "lazy":
                monkeypatch.setattr(stored, "IN_MEMORY", 0)
                monkeypatch.setattr(folder, "IN_MEMORY", 0)
            assert command(
                monkeypatch, "evaluate", "net:build", "--data", tmp_path / "pets", "--split",
                "train", "--suite", "swift", "--eps", "1/255", "--quiet", "--batch-size", 16,
                "--out", tmp_path / name,
            ) == 0  # fmt: skip
            assert command(
                monkeypatch, "export", tmp_path / name, "--to", tmp_path / f"{name}.npz", "--data",
                tmp_path / "pets", "--model", "net:build",
            ) == 0  # fmt: skip
    finally:
        sys.path.remove(str(tmp_path))
        sys.modules.pop("net", None)
    one, other = ((tmp_path / name / "verdicts.csv").read_text() for name in ("memory", "lazy"))
    assert one == other
    held = [np.load(tmp_path / f"{name}.npz") for name in ("memory", "lazy")]
    assert all(np.array_equal(held[0][key], held[1][key]) for key in held[0].files)
    asked = json.loads((tmp_path / "lazy/request.json").read_text())["asked"]
    assert "sha256 of the files" in asked["data"]["pixels"]


# --- several processes ------------------------------------------------------------------------


def told(images: Any, out: Path | None) -> dict[str, Any]:
    result = evaluated(images, run=out)
    points = stored.in_memory(result.adversarial)
    return {
        "rows": [asdict(verdict) for verdict in result.verdicts],
        "points": points.numpy().tobytes().hex(),
        "identity": result.identity,
        "stored": isinstance(result.adversarial, StoredPoints),
    }


def scenarios(place: Path) -> dict[str, Any]:
    torch.set_num_threads(1)
    _, pixels, _ = problem()
    found: dict[str, Any] = {"memory": [{"result": told(data.to_tensor(pixels), None)}]}
    stored.IN_MEMORY = 0
    images = lazy(pixels)
    images[np.arange(4)]  # threads that a fork does not have
    for name, out in (("two", place / "two"), ("two without a folder", None)):
        found[name] = team(place, 2, lambda rank, out=out: told(images, out))
    search.CHECKPOINT_SECONDS, search.CHECKPOINT_SHARE = 0.0, 1e9
    chance, found["kills"] = random.Random(1), 0
    while found["kills"] < 10:
        size = 1 + found["kills"] % 2
        doomed, last = chance.randrange(size), chance.randrange(2, 8)
        done = team(
            place, size, lambda rank: told(images, place / "killed"),
            lambda rank, d=doomed, k=last: k if rank == d else None,
        )  # fmt: skip
        if done is not None:
            break
        found["kills"] += 1
    found["killed"] = team(place, 2, lambda rank: told(images, place / "killed"))
    return found


if __name__ == "__main__":
    told_by = scenarios(Path(sys.argv[1]))
    (Path(sys.argv[1]) / "told.json").write_text(json.dumps(told_by))


def test_two_processes_and_killed_ones_give_the_verdicts_of_one(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, __file__, str(tmp_path)],
        capture_output=True,
        text=True,
        timeout=570,
        env={**os.environ, "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stderr[-3000:]
    found = json.loads((tmp_path / "told.json").read_text())
    (memory,) = found["memory"]
    expected = memory["result"] | {"stored": True}
    assert found["kills"] >= 4
    for said in (*found["two"], *found["killed"]):
        assert said.get("error") is None and said["result"] == expected
    for said in found["two without a folder"]:
        assert said.get("error") is None
        assert said["result"] | {"stored": True} == expected
