"""Images as people store them in arrays, as uint8 (N, C, H, W); and what was done, in words."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from jaxtyping import UInt8

from ..errors import InputError
from .images import IN_MEMORY, ImageArray, LazyImages

CHANNELS = (1, 3)
LARGEST_SIDE = 7_000  # pixels
TOGETHER = 2**24  # values looked at, or converted, at a time
GLANCE = 10  # images
EXACT = 0.02  # of a level: floats so close to levels were made from them
ABOVE = 1e-5  # by which float images in [0, 1] may be beyond


@dataclass(frozen=True)
class Layout:
    """Where an array of images keeps its channels, and how large they are.

    Attributes:
        order: `NCHW`, `NHWC`, or `NHW` for one channel.
        shape: (C, H, W).
    """

    order: str
    shape: tuple[int, int, int]


def layout(shape: tuple[int, ...], where: str) -> Layout:
    """How images lie in an array of that shape: the axis of 1 or 3 is the channels'.

    Raises:
        InputError: no shape of images with 1 or 3 channels. One line.

    Example:
        >>> layout((10, 32, 24, 3), "x").shape
        (3, 32, 24)
    """
    written = "×".join(map(str, shape[:8])) or "of a single number"
    found: Layout | None = None
    if len(shape) == 3:
        found = Layout("NHW", (1, shape[1], shape[2]))
    elif len(shape) == 4:
        last, first = shape[3] in CHANNELS, shape[1] in CHANNELS
        # Where both might be channels, the smaller axis is; N×H×W×C is what most files hold.
        if last and not (first and shape[1] < shape[3]):
            found = Layout("NHWC", (shape[3], shape[1], shape[2]))
        elif first:
            found = Layout("NCHW", (shape[1], shape[2], shape[3]))
    if found is None:
        hint = ": alpha is to be dropped" if len(shape) == 4 and 4 in (shape[1], shape[3]) else ""
        if len(shape) == 2:
            hint = ": rows of pixels are to be reshaped"
        raise InputError(
            f"{where}: shape {written} is none of images; N×H×W×C, N×C×H×W or N×H×W with 1 or 3"
            f" channels is{hint}"
        )
    if not 1 <= min(found.shape[1:]) <= max(found.shape[1:]) <= LARGEST_SIDE:
        raise InputError(f"{where}: shape {written} has sides that images do not have")
    return found


def images_of(values: np.ndarray, where: str) -> tuple[ImageArray, list[str]]:
    """Images of any usual type and layout; bytes that are right already are not copied.

    Args:
        values: uint8 or whole numbers from 0 to 255; floats in [0, 1], or up to 255. An array that
            is mapped from a file and has more than 512 MiB of pixels stays there, to be read when
            its images are asked for.
        where: the file and the array, to begin a line with.

    Returns:
        the images, uint8 (N, C, H, W), and one line each on what was done.

    Raises:
        InputError: another shape or type; NaN; values that are no pixels, such as normalised ones.

    Example:
        >>> images, told = images_of(np.full((2, 4, 4, 3), 0.2), "x")
        >>> images.shape, int(images[0, 0, 0, 0]), told
        ((2, 3, 4, 4), 51, ['x: N×H×W×C', 'x: float64 in [0, 1], whole levels of 1/255'])
    """
    found = layout(values.shape, where)
    told = [] if found.order == "NCHW" else [f"{where}: {'×'.join(found.order)}"]
    kind = str(values.dtype.newbyteorder("="))
    scale = 1
    if len(values) and values.dtype.kind == "f":
        scale, said = _float_scale(values, where)
        told.append(f"{where}: {kind} {said}")
    elif values.dtype.kind not in "iuf":
        raise InputError(f"{where}: {kind} are no pixels; give uint8, or floats in [0, 1]")
    elif len(values) and values.dtype != np.uint8:
        _check_whole(values, where)
        told.append(f"{where}: {kind} from 0 to 255")
    elif len(values) and values[:GLANCE].max() <= 1 and values.max() <= 1:
        told.append(f"{where}: no value above 1, which is black of 0 to 255")

    def levels(part: np.ndarray) -> UInt8[np.ndarray, "n c h w"]:
        if part.dtype.kind == "f":
            part = np.rint(np.asarray(part, np.float64) * scale).clip(0, 255)
        part = part.astype(np.uint8, copy=False)
        if found.order == "NHW":
            return part[:, None]
        return part.transpose(0, 3, 1, 2) if found.order == "NHWC" else part

    count = len(values)
    if count * math.prod(found.shape) > IN_MEMORY:
        return LazyImages(lambda row: levels(values[row : row + 1])[0], count, found.shape), told
    if values.dtype == np.uint8:
        return levels(values), told
    images = np.empty((count, *found.shape), np.uint8)
    for part in _parts(values):
        images[part] = levels(values[part])
    return images, told


def _parts(values: np.ndarray) -> list[slice]:
    each = max(1, TOGETHER // max(1, math.prod(values.shape[1:])))
    return [slice(at, at + each) for at in range(0, len(values), each)]


def _range(values: np.ndarray, where: str) -> tuple[float, float]:
    """The least and the largest value; InputError at the first that is not finite."""
    low, high = math.inf, -math.inf
    for part in _parts(values):
        piece = np.asarray(values[part])
        low, high = min(low, float(piece.min())), max(high, float(piece.max()))
        if not math.isfinite(low + high):
            bad = ~np.isfinite(piece.reshape(len(piece), -1)).all(1)
            raise InputError(
                f"{where}: image {part.start + int(bad.argmax())} holds NaN or infinity"
            )
    return low, high


def _check_whole(values: np.ndarray, where: str) -> None:
    low, high = _range(values, where)
    if low < 0 or high > 255:
        raise InputError(f"{where}: whole numbers from {low:g} to {high:g}; pixels are 0 to 255")


def _float_scale(values: np.ndarray, where: str) -> tuple[int, str]:
    """What floats are to be multiplied by to be levels from 0 to 255, and what they are."""
    low, high = _range(values, where)
    if low < -ABOVE or 1 + ABOVE < high <= 2 or high > 255 + ABOVE:
        hint = "; undo the normalisation, which belongs into the model" if low < 0 else ""
        raise InputError(
            f"{where}: floats from {low:.4g} to {high:.4g} are no pixels; give [0, 1], or 0 to"
            f" 255{hint}"
        )
    scale = 255 if high <= 1 + ABOVE else 1
    furthest = 0.0
    for part in _parts(values):
        piece = np.asarray(values[part], np.float64) * scale
        furthest = max(furthest, float(np.abs(piece - np.rint(piece)).max()))
    said = "in [0, 1]" if scale == 255 else "from 0 to 255, divided by 255"
    if furthest > EXACT:
        return scale, f"{said}, rounded to 8 bits (by {furthest / 255:.4f} at most)"
    return scale, f"{said}, whole levels of 1/255"
