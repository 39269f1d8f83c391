"""Every verb works on large images a batch at a time, and comes to the same as in memory."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import models
import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import nn

import holdfast as hf
from holdfast import data, stored
from holdfast.data.given import read_given
from holdfast.errors import InputError
from holdfast.models import build
from holdfast.runs.parts import Stages
from holdfast.runs.progress import ProgressLine
from holdfast.search import StoredPoints
from holdfast.stored import Chosen, ImageFile, Made, NotInMemory, StoredImages
from holdfast.uncertainty.run import figures, measurements

N, AT_MOST, CLASSES = 300, 256, 4  # images; those that may be asked for at once
SHAPE = (3, 8, 8)
THREAT = hf.Threat("linf", 0.03)


def net(seed: int = 2) -> nn.Module:
    """A network whose last layer has features."""
    body, head = models.Net(CLASSES, SHAPE, seed, scale=9.0), nn.Linear(CLASSES, CLASSES)
    with torch.no_grad():
        head.weight.copy_(torch.eye(CLASSES))
        head.bias.zero_()
    return nn.Sequential(body, head).eval()


def drawn(n: int = N, seed: int = 2) -> tuple[np.ndarray, torch.Tensor]:
    """Pixels, and the labels that the model gives them, but for every ninth."""
    pixels = (models.images(n, SHAPE, seed) * 255).round().byte()
    labels = models.answers(net(), pixels.float() / 255)
    labels[::9] = (labels[::9] + 1) % CLASSES
    return pixels.numpy(), labels


def unread(pixels: np.ndarray) -> data.LazyImages:
    return data.LazyImages(pixels.__getitem__, len(pixels), pixels.shape[1:])


@contextmanager
def large(patch: pytest.MonkeyPatch) -> Iterator[list[int]]:
    """Inside, no images are few enough for memory, and asking for all at once is an error. Gives
    how many were asked for, each time."""
    asked: list[int] = []

    def watched(kind: type[NotInMemory]) -> None:
        real = kind._read

        def read(self: Any, numbers: np.ndarray) -> torch.Tensor:
            asked.append(len(numbers))
            assert len(numbers) <= AT_MOST, f"{len(numbers)} images at once"
            return real(self, numbers)

        context.setattr(kind, "_read", read)

    with patch.context() as context:
        context.setattr(stored, "IN_MEMORY", 0)
        for kind in (StoredImages, StoredPoints, ImageFile, Chosen, Made):
            watched(kind)
        yield asked


def both(
    patch: pytest.MonkeyPatch, work: Callable[[Any, str], Any], pixels: np.ndarray
) -> tuple[Any, Any]:
    """What the work comes to, of images in memory and of images that are not."""
    held = work(data.to_tensor(pixels), "held")
    with large(patch) as asked:
        found = work(unread(pixels), "unread")
    assert asked and sum(asked) >= N
    return held, found


# -- images that are not in memory ----


def test_images_in_a_file_are_indexed_and_assigned_as_a_tensor_is(tmp_path: Path) -> None:
    tensor, held = torch.zeros(9, 2, 3, 4), ImageFile((9, 2, 3, 4))
    other = torch.rand(9, 2, 3, 4)
    for rows in (torch.tensor([3, 0]), slice(5, 8), [8], tensor[:, 0, 0, 0] > 1):
        tensor[rows] = other[rows]
        held[rows] = other[rows]
        assert torch.equal(held[:], tensor)
    held.part([4, 8])[[1]] = other[:1]  # the last image, by its place among two
    assert torch.equal(held[8], other[0]) and not held[4].any()
    path = tmp_path / "images.f32"
    path.write_bytes(other.numpy().tobytes())
    assert torch.equal(ImageFile(other.shape, path).part([7, 2])[:], other[[7, 2]])
    with pytest.raises(OSError, match="864 bytes, not 768"):
        ImageFile((8, 2, 3, 4), path)


def test_chosen_and_made_images() -> None:
    one, other = torch.rand(2, 6, 1, 2, 2)
    which = torch.tensor([0, 1, 1, 0, 1, 0])
    chosen = Chosen([one, other], which)
    wanted = torch.where(which.bool().view(-1, 1, 1, 1), other, one)
    assert torch.equal(chosen[:], wanted) and torch.equal(chosen.part([4, 1])[[1]], wanted[[1]])
    made = Made(lambda rows: wanted[rows] * 2, wanted.shape)
    assert torch.equal(made[2], wanted[2] * 2) and torch.equal(made[[]], wanted[:0])


def test_a_part_of_a_run_keeps_images_in_a_file_of_their_own(tmp_path: Path) -> None:
    images = ImageFile((5, 1, 2, 2))
    images[:] = torch.rand(5, 1, 2, 2)
    quiet = ProgressLine("", enabled=False)

    def work(_: Any) -> tuple[dict[str, Any], dict[str, Any]]:
        return {"n": 5}, {"images": images, "labels": torch.arange(5)}

    def never(_: Any) -> tuple[dict[str, Any], dict[str, Any]]:
        raise AssertionError("it is done")

    for asked in (work, never):
        done = Stages(tmp_path, quiet, {}).do("one", asked)
        assert isinstance(done.tensors["images"], ImageFile) and done.figures == {"n": 5}
        assert torch.equal(done.tensors["images"][:], images[:])
        assert done.tensors["labels"].tolist() == [0, 1, 2, 3, 4]
    file = tmp_path / "stages" / "one.images.f32"
    content = bytearray(file.read_bytes())
    for damaged in (bytes([content[0] ^ 1]) + content[1:], content[:-4], None):
        file.unlink() if damaged is None else file.write_bytes(damaged)
        with pytest.raises(InputError, match=r"one.*(is damaged|does not exist)"):
            Stages(tmp_path, quiet, {}).do("one", never)


# -- certify ----


def test_certify(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pixels, labels = drawn()

    def work(images: Any, name: str) -> Any:
        return hf.certify(
            net(), images, labels, sigma=0.1, n0=8, n=60, eps=0.1, run=tmp_path / name
        )

    held, found = both(monkeypatch, work, pixels)
    rows = [[replace(row, seconds=0.0) for row in each.rows] for each in (held, found)]
    assert rows[0] == rows[1] and held.identity == found.identity
    assert 0 < held.certified[0].certified_accuracy < 1


# -- mix ----


@pytest.mark.parametrize("kept", [True, False])
def test_mix(kept: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pixels, _ = drawn()
    small = {"width": 4, "classes": CLASSES, "mean": [0.5] * 3, "std": [0.5] * 3}
    pair = [build("small-cnn", small) if kept else net(seed) for seed in (1, 2)]
    for seed, model in enumerate(pair if kept else []):
        torch.manual_seed(seed)
        for weight in model.parameters():
            nn.init.normal_(weight, std=0.3)
        model.card = {"architecture": "small-cnn", "arguments": small}
    labels = models.answers(pair[1].eval(), data.to_tensor(pixels))

    def work(images: Any, name: str) -> Any:
        return hf.mix(
            *pair, images, labels, THREAT, cost=0.5, steps=3, rounds=2,
            run=tmp_path / name if kept else None,
        )  # fmt: skip

    held, found = both(monkeypatch, work, pixels)
    assert held.choice == found.choice
    if kept:
        result = [
            json.loads((tmp_path / n / "result.json").read_text()) for n in ("held", "unread")
        ]
        assert result[0]["identity"] == result[1]["identity"]
        assert not (tmp_path / "unread" / "stages").exists()
    else:
        assert held.choice.attacks > 1 and held.choice.robust_alone.standing < 1


# -- judge ----


def adversarial(pixels: np.ndarray) -> torch.Tensor:
    """Some break the model, some lie outside ball or box, one is no number."""
    x = data.to_tensor(pixels)
    way = torch.rand(x.shape, generator=torch.Generator().manual_seed(5)) - 0.5
    points = (x + 0.06 * way).clamp(0, 1)
    points[:40] = (x[:40] + 0.1 * way[:40].sign()).clamp(0, 1)
    points[40, 0, 0, 0], points[41, 0, 0, 0] = torch.nan, 1.2
    return points


def same(ours: hf.Evaluation, theirs: hf.Evaluation) -> None:
    assert isinstance(ours.adversarial, NotInMemory)
    assert isinstance(theirs.adversarial, torch.Tensor)
    assert [asdict(v) for v in ours.verdicts] == [asdict(v) for v in theirs.verdicts]
    assert torch.equal(ours.adversarial[:], theirs.adversarial)
    assert ours.given == theirs.given and ours.identity == theirs.identity
    for one, other in zip(ours.flags, theirs.flags, strict=True):
        assert one == other
    assert 0 < theirs.robust_accuracy < 1


@pytest.mark.parametrize("clip", [False, True])
def test_judge(clip: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pixels, labels = drawn()
    np.save(tmp_path / "given.npy", adversarial(pixels).numpy())

    def work(images: Any, name: str) -> Any:
        return hf.judge(
            net(), images, labels, tmp_path / "given.npy", THREAT, clip=clip, run=tmp_path / name
        )

    held, found = both(monkeypatch, work, pixels)
    same(found, held)
    for file in ("verdicts.csv", "given.csv", "examples.safetensors"):
        ours, theirs = ((tmp_path / name / file).read_bytes() for name in ("unread", "held"))
        assert ours == theirs, file


def test_judge_by_another_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pixels, labels = drawn()

    def work(images: Any, name: str) -> Any:
        return hf.judge(
            net(), images, labels, THREAT, source=net(3), suite="fgsm", run=tmp_path / name
        )

    held, found = both(monkeypatch, work, pixels)
    same(found, held)
    assert found.transfer == held.transfer and held.transfer.broke_source > 0


KINDS = ("npy", "float16.npy", "turned.npy", "npz", "packed.npz", "safetensors", "folder",
         "bytes.npy", "floats to 255.npy", "fortran.npy")  # fmt: skip


def written(kind: str, folder: Path, points: torch.Tensor) -> Path:
    """A file of adversarial images, as people write them."""
    from PIL import Image

    path, values = folder / f"given.{kind}", points.numpy()
    levels = (points * 255).round().byte().numpy()
    if kind == "folder":
        path.mkdir()
        for number, image in enumerate(levels):
            Image.fromarray(np.moveaxis(image, 0, -1)).save(path / f"{number:03}.png")
    elif kind.endswith("packed.npz"):
        np.savez_compressed(path, adversarial=levels, labels=np.arange(len(levels)) % CLASSES)
    elif kind.endswith("npz"):
        np.savez(path, adversarial=values, index=np.arange(len(levels))[::-1])
    elif kind.endswith("safetensors"):
        save_file({"labels": torch.arange(len(points)), "adversarial": points.double()}, path)
    else:
        np.save(path, {
            "float16.npy": values.astype(np.float16),
            "turned.npy": np.ascontiguousarray(np.moveaxis(values, 1, -1)),
            "bytes.npy": levels,
            "floats to 255.npy": values * 255,
            "fortran.npy": np.asfortranarray(values),
        }.get(kind, values))  # fmt: skip
    return path


@pytest.mark.parametrize("kind", KINDS)
def test_files_of_adversarial_images(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    points = models.images(N, SHAPE, seed=4)
    path = written(kind, tmp_path, points)
    held = read_given(path, SHAPE, N)
    assert isinstance(held.images, torch.Tensor)
    with large(monkeypatch):
        found = read_given(path, SHAPE, N)
        assert isinstance(found.images, NotInMemory) and found.told == held.told
        parts = [found.images[rows] for rows in torch.arange(N).split(100)]
        assert len(found.first(120, 120).images) in (120, N - 180)
    assert torch.equal(torch.cat(parts), held.images)
    for name in ("index", "labels"):
        ours, theirs = getattr(found, name), getattr(held, name)
        assert theirs is None if ours is None else torch.equal(ours, theirs)


def test_a_file_that_ends_too_early_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = written("npy", tmp_path, models.images(N, SHAPE, seed=4))
    with large(monkeypatch):
        found = read_given(path, SHAPE, N)
        path.write_bytes(path.read_bytes()[:-9])
        with pytest.raises(InputError, match=r"npy.*ends too early"):
            found.images[[N - 1]]


# -- uncertainty ----


@pytest.mark.parametrize("kept", [True, False])
def test_uncertainty(kept: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("STEPS", "UNAWARE_STEPS", "SET_STEPS", "CURVE_STEPS", "OOD_STEPS", "ROBUST_STEPS"):
        monkeypatch.setattr(measurements, name, 2)
    monkeypatch.setattr(measurements, "CURVE_IMAGES", 10)
    monkeypatch.setattr(figures, "RESAMPLES", 3)
    monkeypatch.setattr("holdfast.uncertainty.measure_uncertainty.OTHERS", 6)
    pixels, labels = drawn()
    more, known = drawn(N, seed=7)

    def work(images: Any, name: str) -> Any:
        calibration = data.to_tensor(more) if isinstance(images, torch.Tensor) else unread(more)
        return hf.measure_uncertainty(
            net(), images, labels, calibration=(calibration, known), attack="fgsm", threat=THREAT,
            ood=["noise"], run=tmp_path / name if kept else None,
        )  # fmt: skip

    held, found = (result.to_dict() for result in both(monkeypatch, work, pixels))
    for result in (held, found):
        for changes in ("seconds", "stages", "finished", "attacks", "files"):
            result.pop(changes, None)
    assert held == found
    if kept:
        for file in ("images.csv", "metrics.csv"):
            ours, theirs = ((tmp_path / name / file).read_text() for name in ("unread", "held"))
            assert lines(ours) == lines(theirs), file


def lines(table: str) -> list[str]:
    return [line for line in table.splitlines() if "seconds" not in line]
