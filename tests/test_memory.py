"""Memory: an evaluation holds the images, the verdicts, and nothing else of their number."""

from __future__ import annotations

import io
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from peak_memory import peak
from PIL import Image

import holdfast as hf
from holdfast import data, stored
from holdfast.attacks import FGSM, PGD, Square, Stage, Suite
from holdfast.data import folder as folder_reader

SHAPE = (3, 32, 32)
VERBS = ("judge", "judge --from")
FEW, MANY = 500, 4000


class Linear(torch.nn.Module):
    """Answers at once; its mistakes are as many as its hits."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.body = torch.nn.Linear(3 * 32 * 32, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.body(x.flatten(1))


def peak_bytes(n: int) -> int:
    torch.set_num_threads(1)
    model = Linear()
    images = torch.rand(n, *SHAPE)
    with torch.no_grad():
        labels = model(images).argmax(1)
    suite = Suite("quick", (Stage(FGSM()), Stage(PGD(steps=2)), Stage(Square(queries=2))))
    # Half of them stand to the end, half are broken: both kinds of verdict.
    result = hf.evaluate(
        model, images, labels, hf.Threat("linf", 0.003), suite, batch_size=128, precision="float32"
    )
    assert 0.2 < result.robust_accuracy < 0.8, result.robust_accuracy
    return peak() * 1024


class Large(torch.nn.Module):
    """A convolution with a stride, for images of 224 × 224."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.convolution = torch.nn.Conv2d(3, 8, 8, 8)
        self.head = torch.nn.Linear(8 * 28 * 28, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.convolution(x).relu().flatten(1))


def peak_bytes_of_files(n: int, folder: Path) -> int:
    """Of `n` JPEG files of 224 × 224, all of which an attack breaks."""
    torch.set_num_threads(1)
    rng = np.random.default_rng(0)
    for number in range(8):
        levels = rng.integers(0, 256, (14, 14, 3), dtype=np.uint8)
        picture = io.BytesIO()
        grown = Image.fromarray(levels).resize((224, 224), Image.Resampling.BICUBIC)
        grown.save(picture, "JPEG", quality=90)
        place = folder / "test" / f"class {number}"
        place.mkdir(parents=True)
        for copy in range(n // 8):
            (place / f"{copy}.jpg").write_bytes(picture.getvalue())
    stored.IN_MEMORY = folder_reader.IN_MEMORY = 0  # as of a folder of any size
    split, model = data.load(folder).test, Large().eval()
    assert isinstance(split.images, data.LazyImages)
    split.images._store.most = 100  # what is kept is the same for few and for many
    with torch.no_grad():
        labels = torch.cat(
            [
                model(data.to_tensor(split.images[np.arange(begin, begin + 50)])).argmax(1)
                for begin in range(0, n, 50)
            ]
        )
    threat = hf.Threat("linf", 0.01)
    result = hf.evaluate(model, split.images, labels, threat, "fgsm", 50, precision="original")
    assert result.n == n and result.robust_accuracy < 0.1
    assert not isinstance(result.adversarial, torch.Tensor)
    return peak() * 1024


def peak_bytes_of_verb(verb: str, n: int) -> int:
    """Of `n` images of 224 × 224 that are made when they are asked for."""
    torch.set_num_threads(1)
    stored.IN_MEMORY = 0  # as of any number
    rng = np.random.default_rng(0)
    base = rng.integers(0, 256, (8, 3, 224, 224), dtype=np.uint8)
    images = data.LazyImages(
        lambda i: np.roll(base[i % 8], i // 8, axis=2), n, (3, 224, 224), cache=2**24
    )
    model, threat = Large().eval(), hf.Threat("linf", 0.01)
    with torch.no_grad():
        labels = torch.cat(
            [
                model(data.to_tensor(images[np.arange(begin, begin + 50)])).argmax(1)
                for begin in range(0, n, 50)
            ]
        )
    labels[:100:10] = (labels[:100:10] + 1) % 10  # mistakes of every kind
    if verb == "judge":
        hf.judge(model, images, labels, images, threat, batch_size=50)
    else:
        hf.judge(model, images, labels, threat, source=Large().eval(), suite="fgsm", batch_size=50)
    return peak() * 1024


if __name__ == "__main__":
    if len(sys.argv) > 2 and sys.argv[1] in VERBS:
        print(peak_bytes_of_verb(sys.argv[1], int(sys.argv[2])))
    elif len(sys.argv) > 2:
        print(peak_bytes_of_files(int(sys.argv[1]), Path(sys.argv[2])))
    else:
        print(peak_bytes(int(sys.argv[1])))


def measured(*words: object) -> int:
    """What this file prints as a program."""
    done = subprocess.run(
        [sys.executable, __file__, *map(str, words)],
        capture_output=True,
        text=True,
        timeout=550,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return int(done.stdout.splitlines()[-1])


@pytest.mark.slow
def test_memory_grows_with_images_and_verdicts_alone():
    # What the allocator cannot give back differs from run to run, and only adds.
    peaks = {n: min(measured(n) for _ in range(3)) for n in (FEW, MANY)}
    image_bytes = 4 * 3 * 32 * 32
    growth = (peaks[MANY] - peaks[FEW]) / (MANY - FEW)
    # The image, its adversarial image, 6 KB for its verdict and open business; 10 % of slack
    # for the allocator. A third copy of the images would not fit.
    assert growth <= 1.1 * (2 * image_bytes + 6000), growth


@pytest.mark.slow
def test_memory_does_not_grow_with_images_that_are_decoded_as_they_are_asked_for(tmp_path: Path):
    few, many = (measured(n, tmp_path / str(n)) for n in (400, 2000))
    # 2,000 images of 224 × 224 are 0.3 GB of bytes, 1.2 GB as float32, and as much again attacked.
    assert many < 1.3 * 2**30, many
    # For each image its verdict, what the search knows of it, and nothing of 150 KB.
    assert (many - few) / 1600 < 30_000, (few, many)


@pytest.mark.slow
@pytest.mark.parametrize("verb", VERBS)
def test_memory_of_judge_does_not_grow_with_large_images(verb: str):
    few, many = (measured(verb, n) for n in (300, 1000))
    # An image of 224 × 224 has 150 KB as bytes, 602 KB as float32.
    assert (many - few) / 700 < 100_000, (few, many)
