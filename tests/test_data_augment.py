"""Augmented views are true crops and flips, drawn evenly, and each item's own."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from holdfast.data import Augment
from holdfast.errors import InputError

P = 4


def coordinates(n: int, height: int = 12, width: int = 16) -> Tensor:
    """Images whose two channels say each pixel's own row and column, counted from 1."""
    rows = torch.arange(1, height + 1)[:, None].expand(height, width)
    columns = torch.arange(1, width + 1).expand(height, width)
    return torch.stack([rows, columns]).to(torch.uint8).expand(n, -1, -1, -1).clone()


def read_off(views: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """(row shift, column shift, mirrored) of each view of `coordinates`."""
    height, width = views.shape[2:]
    y, x = height // 2, width // 2  # never reached by the padding
    row = views[:, 0, y, x].long() - 1
    column, after = views[:, 1, y, x].long() - 1, views[:, 1, y, x + 1].long() - 1
    mirrored = after < column
    return row - y, column - torch.where(mirrored, width - 1 - x, x), mirrored


def expected(image: np.ndarray, dy: int, dx: int, mirrored: bool, mode: str) -> np.ndarray:
    """The crop, by slicing a padded copy."""
    padding = ((0, 0), (P, P), (P, P))
    padded = np.pad(image, padding, "constant" if mode == "zeros" else "reflect")
    height, width = image.shape[1:]
    crop = padded[:, P + dy : P + dy + height, P + dx : P + dx + width]
    return crop[:, :, ::-1] if mirrored else crop


@pytest.mark.parametrize("flip", ["random", "alternating", "none"])
@pytest.mark.parametrize("pad_mode", ["zeros", "reflect"])
@pytest.mark.parametrize("channels_last", [False, True])
def test_every_view_is_a_crop_of_the_padded_image(
    flip: str, pad_mode: str, channels_last: bool
) -> None:
    n, augment = 60, Augment(P, flip, pad_mode)  # type: ignore[arg-type]
    items = torch.arange(n)
    shifts = read_off(augment(coordinates(n), items, epoch=1, seed=5))
    images = torch.randint(0, 256, (n, 3, 12, 16), dtype=torch.uint8)
    if channels_last:
        images = images.to(memory_format=torch.channels_last)
    before = images.clone()
    views = augment(images, items, epoch=1, seed=5)
    assert views.dtype == torch.uint8 and views.shape == images.shape
    assert torch.equal(images, before)  # the data set is not written to
    for view, image, dy, dx, mirrored in zip(views, images, *shifts, strict=True):
        crop = expected(image.numpy(), int(dy), int(dx), bool(mirrored), pad_mode)
        np.testing.assert_array_equal(view.numpy(), crop)
    assert shifts[2].any() == (flip != "none")


@pytest.mark.parametrize("flip", ["random", "alternating"])
def test_all_shifts_and_both_sides_are_equally_likely(flip: str) -> None:
    n = 8100
    augment = Augment(P, flip)  # type: ignore[arg-type]
    dy, dx, mirrored = read_off(augment(coordinates(n), torch.arange(n), epoch=2, seed=0))
    counts = torch.bincount((dy + P) * (2 * P + 1) + dx + P, minlength=81)
    assert len(counts) == 81
    # χ² with 80 degrees of freedom: mean 80, standard deviation 12.6.
    chi_square = float(((counts - n / 81) ** 2 / (n / 81)).sum())
    assert 30 < chi_square < 145
    assert abs(mirrored.float().mean() - 0.5) < 4 * 0.5 / n**0.5
    # The side tells nothing about the shift.
    assert abs(torch.corrcoef(torch.stack([dx.float(), mirrored.float()]))[0, 1]) < 4 / n**0.5


def test_an_item_is_the_same_in_every_batch() -> None:
    images = torch.randint(0, 256, (32, 3, 8, 8), dtype=torch.uint8)
    items = torch.randperm(40_000)[:32]
    augment = Augment()
    together = augment(images, items, epoch=7, seed=3)
    order = torch.randperm(32)
    assert torch.equal(augment(images[order], items[order], 7, 3), together[order])
    alone = [augment(images[i : i + 1], items[i : i + 1], 7, 3) for i in range(32)]
    assert torch.equal(torch.cat(alone), together)


def test_seed_epoch_and_item_each_change_the_draw() -> None:
    images, items = coordinates(200), torch.arange(200)
    draws = [
        torch.stack(read_off(Augment()(images, items + first, epoch, seed)))
        for first, epoch, seed in ((0, 0, 0), (0, 1, 0), (0, 0, 1), (500, 0, 0))
    ]
    for i, a in enumerate(draws):
        for b in draws[i + 1 :]:
            agreement = (a == b).all(0).float().mean()
            assert agreement < 0.05  # by chance 1 in 162


def test_alternating_shows_both_sides_in_two_epochs() -> None:
    images, items = coordinates(400), torch.arange(400)
    sides = [read_off(Augment(P, "alternating")(images, items, e, 1))[2] for e in range(4)]
    assert torch.equal(sides[0], ~sides[1])
    assert torch.equal(sides[0], sides[2]) and torch.equal(sides[1], sides[3])
    random = [read_off(Augment(P, "random")(images, items, e, 1))[2] for e in range(2)]
    assert 0.4 < (random[0] == random[1]).float().mean() < 0.6


def test_without_padding_and_flip_nothing_changes() -> None:
    images = torch.randint(0, 256, (5, 1, 8, 8), dtype=torch.uint8)
    for pad_mode in ("zeros", "reflect"):
        augment = Augment(0, "none", pad_mode)  # type: ignore[arg-type]
        assert torch.equal(augment(images, torch.arange(5), 0, 0), images)


def test_an_empty_batch() -> None:
    empty = torch.zeros(0, 3, 8, 8, dtype=torch.uint8)
    assert Augment()(empty, torch.zeros(0, dtype=torch.int64), 0, 0).shape == (0, 3, 8, 8)


def test_wrong_settings() -> None:
    with pytest.raises(InputError, match="crop_padding"):
        Augment(-1)
    with pytest.raises(InputError, match="'mirror' is unknown; it is one of random"):
        Augment(flip="mirror")  # type: ignore[arg-type]
    with pytest.raises(InputError, match="'edge' is unknown"):
        Augment(pad_mode="edge")  # type: ignore[arg-type]
    with pytest.raises(InputError, match="8×8"):
        Augment(8, pad_mode="reflect")(
            torch.zeros(1, 1, 8, 8, dtype=torch.uint8), torch.tensor([0]), 0, 0
        )


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_gpu_draws_the_same() -> None:
    images = torch.randint(0, 256, (64, 3, 32, 32), dtype=torch.uint8)
    items = torch.arange(64)
    here = Augment()(images, items, 3, 0)
    there = Augment()(images.cuda(), items.cuda(), 3, 0)
    assert there.is_cuda and torch.equal(there.cpu(), here)


# -- IDBH: crop-shift, colours and shapes, erasing ------------------------------------------------


def test_crop_shift_shows_one_rectangle_of_the_image_somewhere_on_black() -> None:
    n, most = 400, 6
    images = coordinates(n)
    height, width = images.shape[2:]
    views = Augment(0, "none", crop_shift=most)(images, torch.arange(n), epoch=3, seed=1)
    lost = []
    for view in views:
        inside = view[0] > 0
        assert torch.equal(inside, view[1] > 0)
        rows, columns = inside.any(1).nonzero().flatten(), inside.any(0).nonzero().flatten()
        top, bottom, left, right = rows[0], rows[-1] + 1, columns[0], columns[-1] + 1
        assert inside[top:bottom, left:right].all()  # one whole rectangle
        shown = view[:, top:bottom, left:right].long()
        first = shown[:, 0, 0] - 1  # where in the image it comes from
        cut = images[0, :, first[0] :, first[1] :][:, : bottom - top, : right - left]
        assert torch.equal(shown, cut.long())
        lost.append(int(height - (bottom - top) + width - (right - left)))
    counts = torch.bincount(torch.tensor(lost), minlength=most + 1)
    assert len(counts) == most + 1 and counts.min() > 30  # 57 each are expected


def test_crop_shift_and_mirroring_together() -> None:
    images = coordinates(200)
    items = torch.arange(200)
    plain = Augment(0, "none", crop_shift=6)(images, items, 0, 0)
    both = Augment(0, "random", crop_shift=6)(images, items, 0, 0)
    mirrored = [torch.equal(b, p.flip(2)) for b, p in zip(both, plain, strict=True)]
    same = [torch.equal(b, p) for b, p in zip(both, plain, strict=True)]
    assert all(m or s for m, s in zip(mirrored, same, strict=True))
    assert 70 < sum(mirrored) < 130


def test_erasing_blackens_a_rectangle_as_often_as_asked() -> None:
    n = 600
    images = torch.full((n, 3, 32, 32), 200, dtype=torch.uint8)
    views = Augment(0, "none", erase=0.5)(images, torch.arange(n), epoch=0, seed=0)
    black = (views == 0).all(1)
    touched = black.flatten(1).any(1)
    assert abs(touched.float().mean() - 0.5) < 4 * 0.5 / n**0.5
    assert torch.equal(views[~touched], images[~touched])
    for mask in black[touched]:
        rows, columns = mask.any(1), mask.any(0)
        assert torch.equal(mask, rows[:, None] & columns)  # a rectangle
    shares = black[touched].flatten(1).float().mean(1)
    assert shares.min() > 0.01 and shares.max() < 0.36
    assert abs(shares.mean() - 0.175) < 0.02  # 2 to 33 %


def test_colours_and_shapes_change_some_images_and_stay_grey_levels() -> None:
    n = 400
    images = torch.randint(40, 200, (n, 3, 4, 4), dtype=torch.uint8)
    images = images.repeat_interleave(4, 2).repeat_interleave(4, 3)
    items = torch.arange(n)
    views = Augment(0, "none", colour=0.6)(images, items, 0, 0)
    changed = (views != images).flatten(1).any(1).float().mean()
    assert views.dtype == torch.uint8
    assert 0.45 < changed <= 0.65  # a few operations leave an image as it is
    assert torch.equal(
        Augment(0, "none", colour=0.6)(images[50:60], items[50:60], 0, 0), views[50:60]
    )
    assert not torch.equal(Augment(0, "none", colour=0.6)(images, items, 1, 0), views)


def test_further_augmentation_leaves_crops_and_flips_as_they_were() -> None:
    images = torch.randint(1, 256, (64, 3, 16, 16), dtype=torch.uint8)
    items = torch.arange(64)
    plain = Augment(2)(images, items, 4, 9)
    erased = Augment(2, erase=1.0)(images, items, 4, 9)
    assert torch.equal(erased, torch.where(erased == 0, 0, plain))
    assert not torch.equal(erased, plain)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"crop_shift": -1}, "crop_shift"),
        ({"crop_shift": 3}, "crop_padding"),
        ({"colour": 1.5}, "colour"),
        ({"erase": -0.1}, "erase"),
        ({"erase": float("nan")}, "erase"),
        ({"cutmix": 0.6, "mixup": 0.6}, "one way at most"),
        ({"mixup": 2}, "mixup"),
        ({"mix_alpha": 0}, "mix_alpha"),
    ],
)
def test_numbers_out_of_range_are_refused(arguments: dict, message: str) -> None:
    with pytest.raises(InputError, match=message):
        Augment(**arguments)


def test_a_crop_shift_that_leaves_nothing_is_refused() -> None:
    images = torch.zeros(2, 3, 8, 8, dtype=torch.uint8)
    with pytest.raises(InputError, match="crop_shift 8"):
        Augment(0, crop_shift=8)(images, torch.arange(2), 0, 0)


def mixed(n: int, **arguments: float) -> tuple[Tensor, Tensor, Tensor]:
    """White images with black ones mixed in: the images, the label's share, and which are mixed."""
    mixing = Augment(0, "none", **arguments).mixing(torch.arange(n), n, 0, 3)  # type: ignore
    assert mixing is not None
    white = torch.full((n, 1, 20, 30), 255, dtype=torch.uint8)
    images, own = mixing(white, torch.zeros_like(white))
    return images[:, 0], own, mixing.own < 1


def test_cutmix_puts_a_rectangle_of_the_other_image_there_and_labels_go_by_area() -> None:
    images, own, touched = mixed(800, cutmix=0.5)
    assert abs(touched.float().mean() - 0.5) < 4 * 0.5 / 800**0.5
    assert torch.equal(own[~touched], torch.ones(int((~touched).sum())))
    black = images == 0
    assert bool(((images == 255) | black).all())
    assert torch.allclose(own, 1 - black.flatten(1).float().mean(1))
    for mask in black[touched]:
        assert torch.equal(mask, mask.any(1)[:, None] & mask.any(0))
    # Uniform shares, of rectangles that are partly cut off at the border: less than half.
    assert 0.25 < black[touched].float().mean() < 0.45
    assert black[touched].flatten(1).any(1).float().mean() > 0.97


@pytest.mark.parametrize("alpha", [0.2, 1.0, 8.0])
def test_mixup_blends_by_a_share_of_the_beta_distribution(alpha: float) -> None:
    images, own, touched = mixed(2000, mixup=1.0, mix_alpha=alpha)
    assert touched.float().mean() > 0.97  # the smallest shares round to none
    assert torch.allclose(images.float() / 255, own[:, None, None].expand(-1, 20, 30), atol=0.003)
    expected = torch.distributions.Beta(alpha, alpha)
    assert abs(own.mean() - 0.5) < 4 * expected.stddev / 2000**0.5
    assert own.std() == pytest.approx(float(expected.stddev), rel=0.1)


def test_an_image_is_mixed_with_any_other_and_alike_in_every_batch() -> None:
    augment = Augment(0, "none", cutmix=0.5, mixup=0.5)
    items = torch.arange(300)
    whole = augment.mixing(items, 300, 2, 1)
    part = augment.mixing(items[40:50], 300, 2, 1)
    assert whole is not None and part is not None
    assert all(torch.equal(w[40:50], p) for w, p in zip(whole, part, strict=True))
    assert whole.others.min() < 10 and whole.others.max() > 290
    assert abs(whole.cut.float().mean() - 0.5) < 0.12
    assert Augment().mixing(items, 300, 2, 1) is None


def test_strength_rises_from_none_to_what_was_asked_for() -> None:
    augment = Augment(0, "none", crop_shift=6, colour=1.0, erase=1.0, cutmix=1.0)
    images = torch.randint(60, 200, (200, 3, 16, 16), dtype=torch.uint8)
    items = torch.arange(200)
    assert torch.equal(augment(images, items, 0, 0, strength=0.0), images)
    changed = [
        (augment(images, items, 0, 0, strength=s) != images).flatten(1).float().mean()
        for s in (0.25, 0.5, 1.0)
    ]
    assert 0 < changed[0] < changed[1] < changed[2]
    for strength, share in ((0.0, 0.0), (0.4, 0.4), (1.0, 1.0)):
        mixing = augment.mixing(items, 200, 0, 0, strength)
        assert mixing is not None
        assert abs(float(mixing.cut.float().mean()) - share) < 0.12
    assert not augment.mixing(items, 200, 0, 0, 0.0).cut.any()  # type: ignore[union-attr]
