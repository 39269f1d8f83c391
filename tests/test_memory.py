"""Memory: an evaluation holds the images, the verdicts, and nothing else of their number."""

from __future__ import annotations

import os
import resource
import subprocess
import sys

import pytest
import torch

import holdfast as hf
from holdfast.attacks import FGSM, PGD, Square, Stage, Suite

SHAPE = (3, 32, 32)
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
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


if __name__ == "__main__":
    print(peak_bytes(int(sys.argv[1])))


@pytest.mark.slow
def test_memory_grows_with_images_and_verdicts_alone():
    peaks = {}
    for n in (FEW, MANY):
        done = subprocess.run(
            [sys.executable, __file__, str(n)],
            capture_output=True,
            text=True,
            timeout=550,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
        )
        assert done.returncode == 0, done.stderr[-3000:]
        peaks[n] = int(done.stdout)
    image_bytes = 4 * 3 * 32 * 32
    growth = (peaks[MANY] - peaks[FEW]) / (MANY - FEW)
    # The image, its adversarial image, 6 KB for its verdict and open business; 10 % of slack
    # for the allocator. A third copy of the images would not fit.
    assert growth <= 1.1 * (2 * image_bytes + 6000), growth
