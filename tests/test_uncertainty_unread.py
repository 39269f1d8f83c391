"""Of a large data set, `uncertainty` holds what it attacks; further images are read as needed."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from models import digits
from PIL import Image

import holdfast as hf
from holdfast.cli import uncertainty as command
from holdfast.data import folder as class_folders
from holdfast.data import images as decoding
from holdfast.models import build, save_checkpoint
from holdfast.runs.identity import digest
from holdfast.stored import part
from holdfast.uncertainty.batches import in_batches
from holdfast.uncertainty.run import measure as measuring
from holdfast.uncertainty.run.request import LabelledImages, Request, UnreadImages


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Digits as files, and a model of them."""
    place = tmp_path_factory.mktemp("pictures")
    held = hf.data.load("digits")
    for name, count in (("train", 100), ("validation", 200), ("test", 150)):
        split = getattr(held, name)
        for number in range(count):
            folder = place / "images" / name / str(split.labels[number])
            folder.mkdir(parents=True, exist_ok=True)
            Image.fromarray(split.images[number, 0]).save(picture := io.BytesIO(), "PNG")
            (folder / f"{number}.png").write_bytes(picture.getvalue())
    card = {"architecture": "small-cnn", "arguments": {"width": 8},
            "classes": [str(i) for i in range(10)]}  # fmt: skip
    model, _, _ = digits(10)
    network = build("small-cnn", {"width": 8})
    network.load_state_dict(model.state_dict())
    save_checkpoint(place / "model", network, card)
    return place


def asked(pictures: Path, monkeypatch: pytest.MonkeyPatch) -> Request:
    """What the command asks to be measured."""
    requests: list[Any] = []

    def measure(request: Request, *_: Any, **__: Any) -> None:
        requests.append(request)

    monkeypatch.setattr(measuring, "measure", measure)
    command.run(
        command.Options(
            str(pictures / "model"), pictures / "out", str(pictures / "images"), limit=5,
            calibration=120, alpha=0.2, quiet=True, grey=True,
        )
    )  # fmt: skip
    return requests[0]


def test_further_images_are_not_in_memory_and_give_the_same(pictures, monkeypatch):
    held = asked(pictures, monkeypatch)
    monkeypatch.setattr(class_folders, "IN_MEMORY", 0)
    read: list[int] = []
    real = decoding.LazyImages.__getitem__

    def counted(self: Any, rows: Any) -> Any:
        if not isinstance(rows, slice):
            read.append(np.size(rows))
        return real(self, rows)

    monkeypatch.setattr(decoding.LazyImages, "__getitem__", counted)
    unread = asked(pictures, monkeypatch)
    assert max(read) <= 100  # no split was read as a whole, but for the training images
    for name in ("test", "fitting", "calibration", "training"):  # so few are held
        assert isinstance(getattr(unread, name).images, torch.Tensor)
    for name in ("more_test", "more_calibration"):
        ours, theirs = getattr(unread, name), getattr(held, name)
        assert isinstance(ours.images, UnreadImages) and isinstance(theirs.images, torch.Tensor)
        assert len(ours) == len(theirs) >= 50
        further = ours[5:]
        assert isinstance(further.images, UnreadImages)
        assert torch.equal(further.floats, theirs[5:].floats)
        read.clear()
        ours_said, theirs_said = (
            in_batches(lambda x: x.mean((1, 2, 3)), each.images, batch_size=16)
            for each in (ours, theirs)
        )
        assert torch.equal(ours_said, theirs_said) and max(read) == 16
    # The run is the same one, however its images are held.
    for ours, theirs in zip(unread.splits, held.splits, strict=True):
        assert digest(ours.images, ours.labels) == digest(theirs.images, theirs.labels)
        assert torch.equal(ours.items, theirs.items)


def test_unread_images_are_indexed_as_a_tensor_is():
    everything = torch.arange(24, dtype=torch.uint8).view(6, 1, 2, 2)
    images = UnreadImages(decoding.LazyImages(lambda i: everything[i].numpy(), 6, (1, 2, 2)))
    assert images.shape == everything.shape and len(images) == 6
    for rows in (slice(1, 4), torch.tensor([4, 0]), np.array([True, False] * 3), slice(None)):
        wanted = everything[torch.as_tensor(rows) if isinstance(rows, np.ndarray) else rows]
        assert torch.equal(images[rows], wanted) and torch.equal(part(images, rows)[:], wanted)
    labelled = LabelledImages(images, torch.arange(6), torch.arange(6))
    assert torch.equal(labelled[2:4].held().images, everything[2:4])
