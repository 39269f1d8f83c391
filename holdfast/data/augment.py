"""Random crops, flips, colours and erasing of a whole batch at once, on the device that holds it.

`crop_shift`, `colour` and `erase` together are IDBH (Li & Spratling, "Data augmentation alone can
improve adversarial training", ICLR 2023): its weak form is `crop_shift: 10, colour: 1, erase: 0.5`,
its strong form erases always.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from fractions import Fraction
from typing import Literal, NamedTuple, get_args

import torch
from jaxtyping import Bool, Float, Int64, UInt8
from scipy import special
from torch import Tensor
from torch.nn import functional

from .. import draws
from ..errors import InputError
from . import trivial_augment as operations

# IDBH's "colour-biased" operations, one of which is drawn for an image: how often, the range of its
# strength in units of `trivial_augment`, and whether a sign is drawn besides.
_COLOUR_AND_SHAPE: tuple[tuple[operations.Operation, float, float, float, bool], ...] = (
    (operations.colour, 1 / 8, -1.0, 1.0, False),  # 0.1 to 1.9 times the distance from grey
    (operations.brightness, 1 / 8, -5 / 9, 1.0, False),  # 0.5 to 1.9 times as bright
    (operations.contrast, 1 / 8, -5 / 9, 1.0, False),
    (operations.sharpness, 1 / 8, -1.0, 1.0, False),
    (operations.autocontrast, 1 / 8, 0.0, 0.0, False),
    (operations.equalise, 1 / 8, 0.0, 0.0, False),
    (operations.shear_x, 1 / 16, 1 / 6, 1 / 2, True),  # by 0.05 to 0.15
    (operations.shear_y, 1 / 16, 1 / 6, 1 / 2, True),
    (operations.rotate, 1 / 8, 1 / 30, 1 / 3, True),  # by 1 to 10 degrees
)
# Of a rectangle that is erased (Zhong et al., "Random erasing data augmentation", AAAI 2020).
_ERASED_SHARE = (0.02, 0.33)
_ERASED_RATIO = (0.3, 3.3)  # of its height to its width

Flip = Literal["random", "alternating", "none"]
PadMode = Literal["zeros", "reflect"]


@dataclass(frozen=True)
class Augment:
    """Shifts each image by a random crop of its padded self, and mirrors it left to right.

    What is drawn for an image depends on (seed, epoch, item) alone, so the same image gets the
    same crop whatever else is in the batch, on any device, and after a resume.

    Attributes:
        crop_padding: pixels by which the image is padded on each side before the crop; each of
            the (2·crop_padding + 1)² shifts is equally likely. 0 leaves images in place.
        flip: `random` mirrors with probability 1/2; `alternating` draws for the first epoch and
            then mirrors an image in every second epoch, so that two epochs in a row always show
            both sides (Jordan, "94% on CIFAR-10 in 3.29 seconds on a single GPU", 2024); `none`.
        pad_mode: what the padding holds, `zeros` or the image `reflect`ed at its border pixel.
        crop_shift: in place of `crop_padding`: up to so many rows and columns, both together, are
            cut off, and what is left is put at a random place of a black image (IDBH's
            crop-shift).
        colour: probability that one of eight operations on colours or shape is applied (IDBH).
        erase: probability that a random rectangle, 2 to 33 % of the image, becomes black
            (Zhong et al., "Random erasing data augmentation", AAAI 2020).
        cutmix: probability that a rectangle of another image takes the place of the image's own
            (Yun et al., "CutMix", ICCV 2019); labels are mixed by area. See `mixing`.
        mixup: probability that the image is blended with another one (Zhang et al., "mixup:
            beyond empirical risk minimization", ICLR 2018); labels are mixed alike.
        mix_alpha: both draw the image's own share from Beta(mix_alpha, mix_alpha).

    Raises:
        InputError: a number out of its range, an unknown `flip` or `pad_mode`, or `crop_shift`
            beside a `crop_padding`.

    Example:
        >>> images = torch.zeros(8, 3, 32, 32, dtype=torch.uint8)
        >>> Augment(crop_padding=4)(images, torch.arange(8), epoch=0, seed=0).shape
        torch.Size([8, 3, 32, 32])
    """

    crop_padding: int = 4
    flip: Flip = "random"
    pad_mode: PadMode = "zeros"
    crop_shift: int = 0
    colour: float = 0.0
    erase: float = 0.0
    cutmix: float = 0.0
    mixup: float = 0.0
    mix_alpha: float = 1.0

    def __post_init__(self) -> None:
        if self.crop_padding < 0:
            raise InputError(f"crop_padding must be 0 or more pixels, not {self.crop_padding}")
        if self.crop_shift < 0:
            raise InputError(f"crop_shift must be 0 or more pixels, not {self.crop_shift}")
        if self.crop_shift and self.crop_padding:
            raise InputError("crop_shift takes the place of crop_padding: set crop_padding to 0")
        for name in ("colour", "erase", "cutmix", "mixup"):
            if not 0 <= getattr(self, name) <= 1:
                raise InputError(f"{name} is a probability, 0 to 1, not {getattr(self, name)}")
        if self.cutmix + self.mixup > 1:
            raise InputError("an image is mixed in one way at most: cutmix + mixup must be below 1")
        if not 0 < self.mix_alpha < math.inf:
            raise InputError(f"mix_alpha must be above 0, not {self.mix_alpha}")
        for name, choices in (("flip", get_args(Flip)), ("pad_mode", get_args(PadMode))):
            if getattr(self, name) not in choices:
                raise InputError(
                    f"{name} {getattr(self, name)!r} is unknown; it is one of {', '.join(choices)}"
                )

    def __call__(
        self,
        images: UInt8[Tensor, "n c h w"],
        item_index: Int64[Tensor, " n"],
        epoch: int,
        seed: int,
        strength: float = 1.0,
    ) -> UInt8[Tensor, "n c h w"]:
        """One augmented view of each image.

        Args:
            images: on any device.
            item_index: which item of the data set each image is.
            epoch: from 0.
            seed: the run's seed.
            strength: 0 to 1, a factor of `crop_shift` and of the probabilities.

        Raises:
            InputError: images too small to be reflected by the padding, or for `crop_shift`.
        """
        n, channels, height, width = images.shape
        p = self.crop_padding
        if self.pad_mode == "reflect" and p >= min(height, width):
            raise InputError(f"crop_padding {p} is too much to reflect in {height}×{width} images")
        seeds = draws.item_seeds(seed, "augment", item_index.cpu()).to(images.device)
        draw = draws.uniform(seeds, epoch + 1, (3, 1))  # draw 0 is the same in every epoch
        corner = (draw[:, :2] * (2 * p + 1)).long()
        rows, columns = (
            corner[:, axis] + torch.arange(length, device=images.device)
            for axis, length in enumerate((height, width))
        )
        # What is drawn besides, from a stream of its own: crops and flips stay what they were.
        more = draws.item_seeds(seed, "augment further", item_index.cpu()).to(images.device)
        further = draws.uniform(more, epoch, (_FURTHER,))
        seen = None
        if self.crop_shift:
            rows, columns, seen = self._shifted(height, width, further[:, :6], strength)
        elif self.pad_mode == "zeros":
            images = functional.pad(images, (p, p, p, p))
        else:
            rows, columns = _reflected(rows - p, height), _reflected(columns - p, width)
        if self.flip != "none":
            mirrored = draw[:, 2] < 0.5
            if self.flip == "alternating":
                mirrored = (draws.uniform(seeds, 0, (1,)) < 0.5) ^ (epoch % 2 == 1)
            columns = torch.where(mirrored, columns.flip(1), columns)
            if seen is not None:
                seen = torch.where(mirrored[:, :, None], seen.flip(2), seen)
        place = (rows[:, :, None] * images.shape[3] + columns[:, None, :]).flatten(1)
        views = images.flatten(2).gather(2, place[:, None].expand(-1, channels, -1))
        views = views.view(n, channels, height, width)
        if seen is not None:
            views = views * seen[:, None]
        if self.colour:
            views = _coloured(views, further[:, 6:10], self.colour * strength)
        if self.erase:
            views = views * _kept(height, width, further[:, 10:15], self.erase * strength)[:, None]
        return views

    def in_words(self) -> list[tuple[str, str]]:
        """Each operation that is in use, in the order of its application: its name, and how often
        and how much.

        Example:
            >>> Augment(crop_padding=2, erase=0.5).in_words()  # doctest: +NORMALIZE_WHITESPACE
            [('random crop', 'shifts by up to 2 pixels, black outside'),
             ('mirror', 'probability 0.5'), ('random erasing', 'probability 0.5')]
        """
        said = []
        if self.crop_shift:
            said.append(("crop-shift", f"cuts up to {self.crop_shift} rows and columns"))
        elif self.crop_padding:
            outside = "black" if self.pad_mode == "zeros" else "mirrored"
            pixels = "1 pixel" if self.crop_padding == 1 else f"{self.crop_padding} pixels"
            said.append(("random crop", f"shifts by up to {pixels}, {outside} outside"))
        if self.flip != "none":
            every = "every second epoch" if self.flip == "alternating" else "probability 0.5"
            said.append(("mirror", every))
        if self.colour:
            said.append(("colour or shape", f"probability {self.colour:g}, then one of"))
            said += [
                (f"  {operation.__name__.replace('_', ' ')}", f"{Fraction(part)}")
                for operation, part, *_ in _COLOUR_AND_SHAPE
            ]
        if self.erase:
            said.append(("random erasing", f"probability {self.erase:g}"))
        share = f"share from Beta({self.mix_alpha:g}, {self.mix_alpha:g})"
        if self.cutmix:
            said.append(("CutMix", f"probability {self.cutmix:g}, {share}"))
        if self.mixup:
            said.append(("mixup", f"probability {self.mixup:g}, {share}"))
        return said

    def _shifted(
        self, height: int, width: int, draw: Float[Tensor, "n 6"], strength: float
    ) -> tuple[Int64[Tensor, "n h"], Int64[Tensor, "n w"], Bool[Tensor, "n h w"]]:
        """The rows and columns that a crop-shift shows, and where it shows any."""
        if self.crop_shift >= min(height, width):
            raise InputError(
                f"crop_shift {self.crop_shift} leaves nothing of {height}×{width} images"
            )
        lost = (draw[:, 0] * (self.crop_shift * strength + 1)).floor()
        fewer_columns = (draw[:, 1] * (lost + 1)).floor()
        places, inside = [], []
        for length, fewer, cut, put in (
            (height, lost - fewer_columns, draw[:, 2], draw[:, 3]),
            (width, fewer_columns, draw[:, 4], draw[:, 5]),
        ):
            cut_from, put_to = ((share * (fewer + 1)).floor().long() for share in (cut, put))
            place = torch.arange(length, device=draw.device) - put_to[:, None]
            inside.append((place >= 0) & (place < length - fewer.long()[:, None]))
            places.append((place + cut_from[:, None]).clamp(0, length - 1))
        return places[0], places[1], inside[0][:, :, None] & inside[1][:, None, :]

    def mixing(
        self,
        item_index: Int64[Tensor, " n"],
        count: int,
        epoch: int,
        seed: int,
        strength: float = 1.0,
    ) -> Mixing | None:
        """Which other item each one is mixed with, and how; None if `cutmix` and `mixup` are 0.

        Args:
            item_index: on the CPU; as in a call.
            count: how many items the data set has, one of which is the other one.
        """
        if not (self.cutmix or self.mixup):
            return None
        seeds = draws.item_seeds(seed, "mix", item_index)
        draw = draws.uniform(seeds, epoch, (5,))
        cut = draw[:, 0] < self.cutmix * strength
        blended = ~cut & (draw[:, 0] < (self.cutmix + self.mixup) * strength)
        own = draw[:, 1]
        if self.mix_alpha != 1:
            quantiles = special.betaincinv(self.mix_alpha, self.mix_alpha, own.double().numpy())
            own = torch.from_numpy(quantiles).float()
        own = torch.where(cut | blended, own, torch.ones(()))
        return Mixing((draw[:, 2] * count).long(), own, cut, draw[:, 3:])


class Mixing(NamedTuple):
    """How each image of a batch is mixed with another one; on the CPU.

    Attributes:
        others: which item the other image is.
        own: the share of the image itself, 1 where it is left alone.
        cut: whether the other one comes as a rectangle (CutMix) or all over (mixup).
        centre: of that rectangle, row and column as shares of height and width.
    """

    others: Int64[Tensor, " n"]
    own: Float[Tensor, " n"]
    cut: Bool[Tensor, " n"]
    centre: Float[Tensor, "n 2"]

    def __call__(
        self, images: UInt8[Tensor, "n c h w"], others: UInt8[Tensor, "n c h w"]
    ) -> tuple[UInt8[Tensor, "n c h w"], Float[Tensor, " n"]]:
        """The mixed images, and the share of each image's own label, on the images' device."""
        height, width = images.shape[2:]
        own, cut = self.own.to(images.device), self.cut.to(images.device)
        centre = self.centre.to(images.device)
        theirs = cut[:, None, None]
        for axis, length in enumerate((height, width)):
            half = (1 - own).sqrt() * length / 2
            middle = centre[:, axis] * length
            first, last = (middle - half).round(), (middle + half).round()
            place = torch.arange(length, device=images.device)
            inside = (place >= first[:, None]) & (place < last[:, None])
            theirs = theirs & (inside[:, :, None] if axis == 0 else inside[:, None, :])
        weight = torch.where(cut, 1 - theirs.flatten(1).float().mean(1), own)
        blend = torch.where(cut, torch.ones_like(own), own)[:, None, None, None]
        mixed = (others + blend * (images.float() - others)).round().to(torch.uint8)
        return torch.where(theirs[:, None], others, mixed), weight


_FURTHER = 15  # draws an image besides those of crop and flip


def _coloured(
    images: UInt8[Tensor, "n c h w"], draw: Float[Tensor, "n 4"], probability: float
) -> UInt8[Tensor, "n c h w"]:
    """One operation of IDBH on each image that is drawn for it, rounded to whole grey levels."""
    table = torch.tensor([row[1:] for row in _COLOUR_AND_SHAPE], device=images.device)
    # The last boundary is left out: rounding must not put a draw beyond the last operation.
    choice = torch.bucketize(draw[:, 1].contiguous(), table[:-1, 0].cumsum(0), right=True)
    low, high, signed = table[choice, 1:].unbind(1)
    strength = low + draw[:, 2] * (high - low)
    strength = torch.where((signed > 0) & (draw[:, 3] < 0.5), -strength, strength)
    choice = torch.where(draw[:, 0] < probability, choice, -1)
    sign = torch.where(strength < 0, -1.0, 1.0)
    made = operations.operated(
        images.float() / 255, [row[0] for row in _COLOUR_AND_SHAPE], choice, strength.abs(), sign
    )
    return (made * 255).round().to(torch.uint8)


def _kept(
    height: int, width: int, draw: Float[Tensor, "n 5"], probability: float
) -> Bool[Tensor, "n h w"]:
    """False inside the rectangle that random erasing blackens."""
    area = height * width * (_ERASED_SHARE[0] + draw[:, 1] * (_ERASED_SHARE[1] - _ERASED_SHARE[0]))
    low, high = map(math.log, _ERASED_RATIO)
    ratio = (low + draw[:, 2] * (high - low)).exp()
    erased = (draw[:, 0] < probability)[:, None, None]
    for axis, (length, side) in enumerate(((height, area * ratio), (width, area / ratio))):
        size = side.sqrt().round().clamp(1, length)
        first = (draw[:, 3 + axis] * (length - size + 1)).floor()
        place = torch.arange(length, device=draw.device)
        inside = (place >= first[:, None]) & (place < (first + size)[:, None])
        erased = erased & (inside[:, :, None] if axis == 0 else inside[:, None, :])
    return ~erased


def _reflected(place: Tensor, length: int) -> Tensor:
    """Positions beyond either end, mirrored at the end's own pixel."""
    last = length - 1
    return last - (last - place.abs()).abs()
