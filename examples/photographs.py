"""A folder of photographs to fine-tune on: JPEG crops of three photographs, one folder a class.

    python examples/photographs.py --to runs/photographs

Training images are crops of the left part of each photograph, test images of the right part, so no
pixel is in both. The photographs come with scikit-learn and Matplotlib, which Holdfast needs
anyway; or, with `--photographs scikit-image`, with that library.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
from PIL import Image

PARTS = {"train": (0.0, 0.6), "test": (0.6, 1.0)}  # of the photograph's width
SIDE = 64  # pixels of a crop's file


def installed() -> dict[str, np.ndarray]:
    """Photographs (H, W, 3) that come with what Holdfast needs."""
    import matplotlib
    from sklearn.datasets import load_sample_image

    face = Path(matplotlib.get_data_path(), "sample_data", "grace_hopper.jpg")
    return {
        "flower": load_sample_image("flower.jpg"),
        "person": np.asarray(Image.open(face).convert("RGB")),
        "temple": load_sample_image("china.jpg"),
    }


def scikit_image() -> dict[str, np.ndarray]:
    """Photographs (H, W, 3) of scikit-image."""
    from skimage import data

    return {"astronaut": data.astronaut(), "cat": data.chelsea(), "coffee": data.coffee()}


def crops(photograph: np.ndarray, part: str, count: int, seed: int) -> list[Image.Image]:
    """Square crops of one part of a photograph, a quarter to half of its height wide."""
    draw = np.random.default_rng(seed)
    height, width, _ = photograph.shape
    first, last = (round(share * width) for share in PARTS[part])
    made = []
    for _ in range(count):
        side = int(draw.integers(height // 4, min(height // 2, last - first) + 1))
        top = int(draw.integers(0, height - side + 1))
        left = int(draw.integers(first, last - side + 1))
        crop = Image.fromarray(photograph[top : top + side, left : left + side])
        made.append(crop.resize((SIDE, SIDE), Image.Resampling.BICUBIC))
    return made


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--to", type=Path, required=True, help="the folder to write")
    parser.add_argument("--train", type=int, default=60, help="training images of each class")
    parser.add_argument("--test", type=int, default=30, help="test images of each class")
    parser.add_argument("--photographs", choices=["installed", "scikit-image"], default="installed")
    options = parser.parse_args()
    found = installed() if options.photographs == "installed" else scikit_image()
    for part in PARTS:
        for number, (name, photograph) in enumerate(found.items()):
            folder = options.to / part / name
            folder.mkdir(parents=True, exist_ok=True)
            seed = 2 * number + (part == "test")
            made = crops(photograph, part, getattr(options, part), seed)
            for index, crop in enumerate(made):
                crop.save(folder / f"{name}-{index:03d}.jpg", quality=92)
    print(f"{options.to}: {', '.join(found)}")


if __name__ == "__main__":
    main()
