"""Complex augmentation: one operation an image, the same whatever else is in the batch."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image, ImageEnhance, ImageOps

from holdfast import draws
from holdfast.data import trivial_augment as ta
from holdfast.data.trivial_augment import OPERATIONS, trivial_augment

SEEDS = draws.item_seeds(7, torch.arange(300))


def pictures(n: int = 300, channels: int = 3) -> torch.Tensor:
    """Smooth random pictures whose values are multiples of 1/255."""
    generator = torch.Generator().manual_seed(1)
    rough = torch.rand(n, channels, 4, 4, generator=generator)
    smooth = torch.nn.functional.interpolate(rough, (16, 16), mode="bicubic").clamp(0, 1)
    return (smooth * 255).round() / 255


def test_every_operation_occurs_and_stays_in_the_box():
    images = pictures()
    out = trivial_augment(images, SEEDS)
    assert out.shape == images.shape
    assert out.min() >= 0
    assert out.max() <= 1
    same = (out == images).flatten(1).all(1).float().mean()
    assert 1 / 30 < same < 1 / 5  # the identity is one of 14, and a few others do nothing
    choices = (draws.uniform(SEEDS, 1_000_000, (3,))[:, 0] * len(OPERATIONS)).long()
    assert len(choices.unique()) == len(OPERATIONS) == 14


def test_an_image_gets_the_same_whatever_the_batch_and_another_in_another_view():
    images = pictures()
    whole = trivial_augment(images, SEEDS, 1)
    part = trivial_augment(images[50:60], SEEDS[50:60], 1)
    assert torch.allclose(whole[50:60], part, atol=1e-6)
    assert not torch.allclose(whole[50:60], trivial_augment(images[50:60], SEEDS[50:60], 0))
    assert torch.equal(images, pictures())  # left as they were


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("operation", OPERATIONS, ids=lambda f: f.__name__)
def test_operations_do_something_in_proportion_to_their_strength(operation, channels):
    images, ones = pictures(20, channels), torch.ones(20)
    weak, strong = (
        operation(images, strength * ones, ones).clamp(0, 1) for strength in (0.05, 1.0)
    )
    change = [float((made - images).abs().mean()) for made in (weak, strong)]
    name = operation.__name__
    if name == "identity" or (name == "colour" and channels == 1):
        assert change[1] < 1e-6
    elif name in ("autocontrast", "equalise"):
        assert change[0] == change[1] > 0.01
    else:
        assert change[1] > 2 * change[0]
        assert change[1] > 0.01


def pil(images: torch.Tensor) -> list[Image.Image]:
    return [Image.fromarray((x * 255).byte().permute(1, 2, 0).numpy()) for x in images]


def back(made: list[Image.Image]) -> torch.Tensor:
    return torch.stack([torch.from_numpy(np.array(x)).permute(2, 0, 1) / 255 for x in made])


@pytest.mark.parametrize(
    ("ours", "theirs", "tolerance"),
    [
        (ta.brightness, lambda x: ImageEnhance.Brightness(x).enhance(1.45), 1.5),
        (ta.colour, lambda x: ImageEnhance.Color(x).enhance(1.45), 2),
        (ta.contrast, lambda x: ImageEnhance.Contrast(x).enhance(1.45), 2),
        (ta.autocontrast, ImageOps.autocontrast, 1.5),
        (ta.posterise, lambda x: ImageOps.posterize(x, 6), 0.5),
        (ta.solarise, lambda x: ImageOps.solarize(x, 128), 0.5),
    ],
    ids=lambda value: getattr(value, "__name__", None),
)
def test_colours_agree_with_pillow(ours, theirs, tolerance):
    images, half = pictures(10), torch.full((10,), 0.5)
    made = ours(images, half, torch.ones(10)).clamp(0, 1)
    expected = back([theirs(x) for x in pil(images)])
    assert (made - expected).abs().max() <= tolerance / 255


def test_equalising_spreads_the_levels_evenly_and_keeps_their_order():
    images = pictures(10) * 0.3 + 0.5
    images[0, 0] = 0.7  # one level only: left as it is
    made = ta.equalise(images, torch.ones(10), torch.ones(10))
    assert torch.equal(made[0, 0], images[0, 0])
    channels = [x.flatten(2)[1:].flatten(0, 1) for x in (images, made)]
    for before, after in zip(*channels, strict=True):
        assert after.min() == 0
        assert after.max() == 1
        assert (after[before.argsort()].diff() >= 0).all()
        assert abs(float(after.median()) - 0.5) < 0.1


def test_shifts_and_turns_are_where_they_should_be():
    images = torch.zeros(1, 1, 20, 20)
    images[0, 0, 10, 10] = 1
    right = ta.translate_x(images, torch.ones(1), -torch.ones(1))
    assert right[0, 0].argmax() == 10 * 20 + 16  # 0.3 of the width
    below = ta.translate_y(images, torch.ones(1), -torch.ones(1))
    assert below[0, 0].argmax() == 16 * 20 + 10
    bar = torch.zeros(1, 1, 21, 21)
    bar[0, 0, 10, :] = 1
    turned = ta.rotate(bar, torch.ones(1), torch.ones(1))[0, 0]
    heights = [float(turned[:, x].argmax()) for x in (4, 16)]
    slope = (heights[1] - heights[0]) / 12
    assert abs(abs(slope) - np.tan(np.pi / 6)) < 0.1
