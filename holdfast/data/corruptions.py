"""The 15 common corruptions at 5 severities, generated from the images themselves.

Hendrycks & Dietterich, "Benchmarking neural network robustness to common corruptions and
perturbations", ICLR 2019, with the severities of their CIFAR-10-C (images of 32 × 32 pixels).
The noise is this package's own (`holdfast.draws`), so an image corrupted twice with one seed is
the same, whatever the batch; all severities of a corruption share an image's draws, so severity 5
is the same fog as severity 1, only thicker. Figures are therefore comparable to published
CIFAR-10-C figures, not equal to them, and differ most for `frost`, which there pastes photographs
and here a drawn ice texture. The published files themselves are read by `read_published`.

The package `imagecorruptions` draws from NumPy's global generator, so what it makes of an image
depends on the images before it. Hence our own, on top of SciPy's filters and Pillow's JPEG.
"""

from __future__ import annotations

import io
import math
import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import scipy.ndimage
import scipy.special
import torch
import torch.nn.functional as F
from jaxtyping import Float, Float64, Int64, UInt8
from PIL import Image
from torch import Tensor

from .. import draws
from ..errors import InputError
from ..inputs import check_images
from ..types import Images
from .arrays import Header, Wrong, map_npy

Seeds = Int64[Tensor, " n"]

SEVERITIES = (1, 2, 3, 4, 5)


# --- what several corruptions are made of -------------------------------------------------------


def _separable(x: Images, rows: np.ndarray, columns: np.ndarray | None = None) -> Images:
    """The same linear map along both axes: (H', H) on the rows and (W', W) on the columns."""
    along_h = torch.from_numpy(rows)
    along_w = along_h if columns is None else torch.from_numpy(columns)
    return along_h @ x @ along_w.T


def _gaussian_matrix(size: int, sigma: float, truncate: float = 4) -> np.ndarray:
    """Gaussian smoothing of `size` pixels with the edge pixel repeated, as a (size, size) matrix.

    A linear filter applied to the identity is its own matrix.
    """
    return scipy.ndimage.gaussian_filter1d(
        np.eye(size), sigma, axis=0, mode="nearest", truncate=truncate
    )


def _gaussian_blur(x: Images, sigma: float, truncate: float = 4) -> Images:
    h, w = x.shape[-2:]
    return _separable(x, _gaussian_matrix(h, sigma, truncate), _gaussian_matrix(w, sigma, truncate))


def _zoom_matrix(size: int, factor: float) -> np.ndarray:
    """The middle of `size` pixels magnified by `factor` ≥ 1, linearly interpolated."""
    kept = math.ceil(size / factor)
    start = (size - kept) // 2
    magnified = scipy.ndimage.zoom(np.eye(size)[start : start + kept], (factor, 1), order=1)
    trim = (len(magnified) - size) // 2
    return magnified[trim : trim + size]


def _zoom(x: Images, factor: float) -> Images:
    return _separable(x, _zoom_matrix(x.shape[-2], factor), _zoom_matrix(x.shape[-1], factor))


def _motion_blur(x: Images, radius: int, sigma: float, degrees: Float[Tensor, " n"]) -> Images:
    """A one-sided Gaussian trail of 2·radius + 1 whole-pixel steps in each image's direction."""
    n, c, h, w = x.shape
    weights = np.exp(-(np.arange(2 * radius + 1) ** 2) / (2 * sigma**2))
    weights /= weights.sum()
    angle = torch.deg2rad(degrees.double())
    down, right = angle.sin(), angle.cos()
    y, x_ = torch.arange(h), torch.arange(w)
    flat, blurred = x.flatten(2), torch.zeros_like(x)
    for step, weight in enumerate(weights.tolist()):
        rows = (y + (step * down).round().long()[:, None]).clamp(0, h - 1)
        columns = (x_ + (step * right).round().long()[:, None]).clamp(0, w - 1)
        place = (rows[:, :, None] * w + columns[:, None, :]).view(n, 1, h * w)
        blurred += weight * flat.gather(2, place.expand(n, c, h * w)).view_as(x)
    return blurred


def _sample(x: Images, rows: Float[Tensor, "n h w"], columns: Float[Tensor, "n h w"]) -> Images:
    """x read at fractional pixel positions: bilinear, mirrored at the edges."""
    h, w = x.shape[-2:]
    grid = torch.stack([2 * columns / (w - 1) - 1, 2 * rows / (h - 1) - 1], dim=-1)
    return F.grid_sample(x, grid, padding_mode="reflection", align_corners=True)


def plasma(seeds: Seeds, height: int, width: int, decay: float) -> Float64[Tensor, "n h w"]:
    """A cloud in [0, 1] an item: diamond-square midpoint displacement on a torus.

    Fournier, Fussell & Carpenter, "Computer rendering of stochastic models", CACM 1982. Each
    halving of the grid adds noise decay² times weaker, so a small decay makes a rough cloud.
    """
    size = 1 << (max(height, width) - 1).bit_length()
    cloud = torch.zeros(len(seeds), size, size, dtype=torch.float64)
    step, amplitude, counter = size, 1.0, 0

    def displaced(total: Tensor) -> Tensor:
        nonlocal counter
        counter += 1
        return total / 4 + amplitude * (2 * draws.uniform(seeds, counter, total.shape[1:]) - 1)

    while step >= 2:
        half = step // 2
        corners = cloud[:, ::step, ::step]
        across, down = corners + corners.roll(-1, 2), corners + corners.roll(-1, 1)
        centres = displaced(across + across.roll(-1, 1))
        cloud[:, half::step, half::step] = centres
        cloud[:, ::step, half::step] = displaced(across + centres + centres.roll(1, 1))
        cloud[:, half::step, ::step] = displaced(down + centres + centres.roll(1, 2))
        step, amplitude = half, amplitude / decay**2
    low, high = cloud.amin((1, 2), keepdim=True), cloud.amax((1, 2), keepdim=True)
    return ((cloud - low) / (high - low))[:, :height, :width]


# --- the corruptions: images (float64, in [0, 1]), one seed an image, severity 1..5 --------------


def gaussian_noise(x: Images, seeds: Seeds, severity: int) -> Images:
    """Normal noise of standard deviation 0.04 to 0.10 on every value."""
    sigma = (0.04, 0.06, 0.08, 0.09, 0.10)[severity - 1]
    return x + sigma * draws.normal(seeds, 0, x.shape[1:])


def shot_noise(x: Images, seeds: Seeds, severity: int) -> Images:
    """Poisson counts of as many photons as the value, read at 256 levels, stands for."""
    photons = (500, 250, 100, 75, 50)[severity - 1]
    level = (x * 255).round().numpy()
    u = draws.uniform(seeds, 0, x.shape[1:]).double().numpy() + 2.0**-25
    # The inverse of 256 distribution functions in one search: row r holds r + P(count ≤ k).
    most = photons + 10 * math.isqrt(photons)
    mean = np.arange(256)[:, None] / 255 * photons
    table = np.arange(256)[:, None] + scipy.special.pdtr(np.arange(most + 1), mean)
    counts = np.searchsorted(table.ravel(), level + u) - level * (most + 1)
    return torch.from_numpy(counts / photons)


def impulse_noise(x: Images, seeds: Seeds, severity: int) -> Images:
    """A share of the components replaced, half by 0 and half by 1."""
    amount = (0.01, 0.02, 0.03, 0.05, 0.07)[severity - 1]
    u = draws.uniform(seeds, 0, x.shape[1:])
    return torch.where(u < amount / 2, 0.0, torch.where(u < amount, 1.0, x))


def defocus_blur(x: Images, seeds: Seeds, severity: int) -> Images:
    """A disk whose edge is softened by a 3 × 3 Gaussian."""
    radius, softening = ((0.3, 0.4), (0.4, 0.5), (0.5, 0.6), (1.0, 0.2), (1.5, 0.1))[severity - 1]
    reach = math.ceil(radius) + 1
    offsets = np.arange(-reach, reach + 1)
    disk = (offsets[:, None] ** 2 + offsets**2 <= radius**2).astype(np.float64)
    taps = np.exp(-(np.arange(-1, 2) ** 2) / (2 * softening**2))
    kernel = scipy.ndimage.convolve(disk / disk.sum(), np.outer(taps, taps) / taps.sum() ** 2)
    channels = x.shape[1]
    weight = torch.from_numpy(kernel).expand(channels, 1, *kernel.shape)
    return F.conv2d(F.pad(x, [reach] * 4, mode="reflect"), weight, groups=channels)


def glass_blur(x: Images, seeds: Seeds, severity: int) -> Images:
    """Each pixel is read from itself or a neighbour above and to the left, between two blurs.

    The published files swap nothing either: there, the second half of the swap reads back what
    the first half has just written.
    """
    sigma, rounds = ((0.05, 1), (0.25, 1), (0.4, 1), (0.25, 2), (0.4, 2))[severity - 1]
    n, c, h, w = x.shape
    x = _gaussian_blur(x, sigma)
    for round_ in range(rounds):
        up, left = draws.integers(seeds, round_, 2, (2, h, w)).unbind(1)
        rows = (torch.arange(h)[:, None] - up).clamp_min(0)
        columns = (torch.arange(w) - left).clamp_min(0)
        place = (rows * w + columns).view(n, 1, h * w).expand(n, c, h * w)
        x = x.flatten(2).gather(2, place).view_as(x)
    return _gaussian_blur(x, sigma)


def motion_blur(x: Images, seeds: Seeds, severity: int) -> Images:
    """A one-sided Gaussian trail in a random direction, within 45° of the horizontal."""
    radius, sigma = ((6, 1.0), (6, 1.5), (6, 2.0), (8, 2.0), (9, 2.5))[severity - 1]
    return _motion_blur(x, radius, sigma, 90 * draws.uniform(seeds, 0) - 45)


def zoom_blur(x: Images, seeds: Seeds, severity: int) -> Images:
    """The mean of the image and its magnifications, up to 5 % at severity 1 and 25 % at 5."""
    percents = range(5 * severity + 1)
    zoomed = sum(_zoom(x, 1 + percent / 100) for percent in percents)
    return (x + zoomed) / (len(percents) + 1)


def snow(x: Images, seeds: Seeds, severity: int) -> Images:
    """Flakes drawn out by the wind, over an image that has turned paler."""
    mean, sigma, size, least, radius, trail, kept = (
        (0.10, 0.2, 1.00, 0.60, 8, 3.0, 0.95),
        (0.10, 0.2, 1.00, 0.50, 10, 4.0, 0.90),
        (0.15, 0.3, 1.75, 0.55, 10, 4.0, 0.90),
        (0.25, 0.3, 2.25, 0.60, 12, 6.0, 0.85),
        (0.30, 0.3, 1.25, 0.65, 14, 12.0, 0.80),
    )[severity - 1]
    h, w = x.shape[-2:]
    flakes = _zoom(mean + sigma * draws.normal(seeds, 0, (1, h, w)).double(), size)
    flakes = torch.where(flakes < least, 0.0, flakes).clamp_max(1)
    flakes = _motion_blur(flakes, radius, trail, 90 * draws.uniform(seeds, 1) - 135)
    pale = torch.maximum(x, 1.5 * _grey(x) + 0.5)
    return kept * x + (1 - kept) * pale + flakes + flakes.flip(2, 3)


def _grey(x: Images) -> Float[Tensor, "n 1 h w"]:
    """Luma of ITU-R BT.601 for three channels, else the mean."""
    if x.shape[1] != 3:
        return x.mean(1, keepdim=True)
    return (x * x.new_tensor([0.299, 0.587, 0.114]).view(1, 3, 1, 1)).sum(1, keepdim=True)


def frost(x: Images, seeds: Seeds, severity: int) -> Images:
    """A pane of ice: bright veins along the level lines of two clouds, slightly blue."""
    kept, ice = ((1.0, 0.2), (1.0, 0.3), (0.9, 0.4), (0.85, 0.4), (0.75, 0.45))[severity - 1]
    h, w = x.shape[-2:]
    coarse, fine = (plasma(draws.item_seeds(0, seeds, i), h, w, 1.4) for i in range(2))
    veins = torch.maximum(1 - (4 * coarse - 2).abs(), 1 - (6 * fine - 3).abs()).clamp_min(0)
    texture = (0.35 + 0.45 * veins + 0.2 * fine)[:, None]
    tint = x.new_tensor([0.88, 0.95, 1.0] if x.shape[1] == 3 else [1.0]).view(1, -1, 1, 1)
    return kept * x + ice * texture * tint


def fog(x: Images, seeds: Seeds, severity: int) -> Images:
    """A cloud added, and the sum scaled back to the image's own brightest value."""
    density, decay = ((0.2, 3.0), (0.5, 3.0), (0.75, 2.5), (1.0, 2.0), (1.5, 1.75))[severity - 1]
    brightest = x.amax((1, 2, 3), keepdim=True)
    h, w = x.shape[-2:]
    cloud = plasma(seeds, h, w, decay)[:, None]
    return (x + density * cloud) * brightest / (brightest + density)


def brightness(x: Images, seeds: Seeds, severity: int) -> Images:
    """The V of HSV raised; hue and saturation stay, which is to scale all channels alike."""
    added = (0.05, 0.1, 0.15, 0.2, 0.3)[severity - 1]
    value = x.amax(1, keepdim=True)
    raised = (value + added).clamp_max(1)
    return torch.where(value > 0, x * raised / value.clamp_min(1e-12), raised)


def contrast(x: Images, seeds: Seeds, severity: int) -> Images:
    """75 to 15 % of each value's distance from its channel's mean is kept."""
    kept = (0.75, 0.5, 0.4, 0.3, 0.15)[severity - 1]
    mean = x.mean((2, 3), keepdim=True)
    return (x - mean) * kept + mean


def elastic_transform(x: Images, seeds: Seeds, severity: int) -> Images:
    """A random affine map, then a smooth random displacement; lengths are shares of the side.

    After Simard, Steinkraus & Platt, "Best practices for convolutional neural networks", 2003.
    """
    stretch, smooth, jitter = (
        (0.0, 0.0, 0.08),
        (0.05, 0.2, 0.07),
        (0.08, 0.06, 0.06),
        (0.1, 0.04, 0.05),
        (0.1, 0.03, 0.03),
    )[severity - 1]
    h, w = x.shape[-2:]
    side = min(h, w)
    rows, columns = torch.meshgrid(
        torch.arange(h, dtype=x.dtype), torch.arange(w, dtype=x.dtype), indexing="ij"
    )
    # The affine map is given by where three points go; the image is read where they came from.
    reach = side // 3
    points = x.new_tensor([[reach, reach], [reach, -reach], [-reach, -reach]])
    points = (points + x.new_tensor([h // 2, w // 2])).expand(len(x), 3, 2)
    moved = points + jitter * side * (2 * draws.uniform(seeds, 0, (3, 2)) - 1)
    back = torch.linalg.solve(F.pad(moved, (0, 1), value=1.0), points)  # (N, 3, 2)
    here = torch.stack([rows, columns, torch.ones_like(rows)], dim=-1)  # (H, W, 3)
    source = torch.einsum("hwi,nij->nhwj", here, back)
    warped = _sample(x, source[..., 0], source[..., 1])
    if stretch == 0:
        return warped
    shift = (2 * draws.uniform(seeds, 1, (2, h, w)) - 1).double()
    shift = stretch * side * _gaussian_blur(shift, smooth * side, truncate=3)
    return _sample(warped, rows + shift[:, 0], columns + shift[:, 1])


def pixelate(x: Images, seeds: Seeds, severity: int) -> Images:
    """Each pixel becomes the mean of its block, on a grid with a share of the pixels a side."""
    share = (0.95, 0.9, 0.85, 0.75, 0.65)[severity - 1]

    def block_means(size: int) -> np.ndarray:
        block = ((np.arange(size) + 0.5) * int(size * share) / size).astype(int)
        same = (block[:, None] == block).astype(np.float64)
        return same / same.sum(1, keepdims=True)

    return _separable(x, block_means(x.shape[-2]), block_means(x.shape[-1]))


def jpeg_compression(x: Images, seeds: Seeds, severity: int) -> Images:
    """Written as JPEG of quality 80 to 40, and read again."""
    quality = (80, 65, 58, 50, 40)[severity - 1]
    out = torch.empty_like(x)
    for i, image in enumerate((x * 255).round().byte()):
        pixels = image[0] if len(image) == 1 else image.permute(1, 2, 0)
        file = io.BytesIO()
        Image.fromarray(pixels.numpy()).save(file, "JPEG", quality=quality)
        decoded = torch.from_numpy(np.array(Image.open(file))) / 255
        out[i] = decoded if len(image) == 1 else decoded.permute(2, 0, 1)
    return out


CORRUPTIONS: dict[str, Callable[[Images, Seeds, int], Images]] = {
    function.__name__: function
    for function in (
        gaussian_noise,
        shot_noise,
        impulse_noise,
        defocus_blur,
        glass_blur,
        motion_blur,
        zoom_blur,
        snow,
        frost,
        fog,
        brightness,
        contrast,
        elastic_transform,
        pixelate,
        jpeg_compression,
    )
}


# Four more, published beside the benchmark's fifteen, and not generated here.
EXTRA_PUBLISHED = ("speckle_noise", "gaussian_blur", "spatter", "saturate")


def _check_name_and_severity(name: str, severity: int) -> None:
    if name not in CORRUPTIONS:
        raise InputError(
            f"corruption {name!r} is unknown; the corruptions are {', '.join(CORRUPTIONS)}"
        )
    if severity not in SEVERITIES:
        raise InputError(f"severity of {name} must be 1, 2, 3, 4 or 5, not {severity!r}")


def corrupt(
    images: Images,
    name: str,
    severity: int,
    *,
    seed: int = 0,
    items: Int64[Tensor, " n"] | None = None,
    batch_size: int = 500,
) -> Images:
    """Images with one corruption, rounded to 256 levels as a file would hold them.

    Args:
        images: float32 (N, C, H, W) in [0, 1], C 1 or 3, sides of at least 8 pixels.
        name: one of `CORRUPTIONS`.
        severity: 1 (light) to 5 (heavy), scaled for 32 × 32 pixels.
        seed: of all draws.
        items: the number of each image in its data set, to which its draws belong;
            None: 0 … N−1.
        batch_size: images held in float64 at a time; changes nothing else.

    Returns:
        float32 (N, C, H, W) in [0, 1], on the CPU; multiples of 1/255.

    Raises:
        InputError: unknown name or severity; images of another shape, or outside [0, 1].

    Example:
        >>> grey = torch.full((2, 3, 32, 32), 0.5)
        >>> bool((corrupt(grey, "gaussian_noise", 1) != corrupt(grey, "gaussian_noise", 5)).any())
        True
    """
    _check_name_and_severity(name, severity)
    check_images(images)
    if images.shape[1] not in (1, 3) or min(images.shape[2:]) < 8:
        raise InputError(
            f"images of shape {tuple(images.shape)} cannot be corrupted: "
            "they need 1 or 3 channels and sides of at least 8 pixels"
        )
    items = torch.arange(len(images)) if items is None else items.cpu()
    if len(items) != len(images):
        raise InputError(f"{len(items)} items for {len(images)} images: give one number an image")
    seeds = draws.item_seeds(seed, "corruption", name, items)
    corrupted = torch.empty(images.shape, dtype=torch.float32)
    for start in range(0, len(images), batch_size):
        part = slice(start, start + batch_size)
        # float64 inside: what batched kernels do to the last bit must not change a level.
        x = images[part].detach().cpu().double()
        x = CORRUPTIONS[name](x, seeds[part], severity)
        corrupted[part] = (x.clamp(0, 1) * 255).round().float() / 255
    return corrupted


def read_published(
    folder: str | Path, name: str, severity: int, *, classes: int = 10
) -> tuple[UInt8[Tensor, "10000 3 32 32"], Int64[Tensor, " 10000"]]:
    """One corruption and severity of the published CIFAR-10-C files, without running them.

    The folder holds `NAME.npy`, uint8 (50000, 32, 32, 3), severity s in rows (s − 1)·10,000 and
    on, and `labels.npy` (50000,) (https://zenodo.org/records/2535967; CIFAR-100-C is laid out
    alike). Images are in the order of the test split.

    Returns:
        images uint8 (10000, 3, 32, 32) and labels int64 (10000,).

    Raises:
        InputError: a file that is missing, damaged, pickled, or of another shape or type; labels
            out of range, or not the same for every severity.
    """
    _check_name_and_severity("fog" if name in EXTRA_PUBLISHED else name, severity)
    images = _read_array(Path(folder) / f"{name}.npy", (50_000, 32, 32, 3), "u1")
    file = Path(folder) / "labels.npy"
    labels = _read_array(file, (50_000,), "iu")
    if labels.min() < 0 or labels.max() >= classes:
        raise InputError(f"{file} holds values other than labels 0 … {classes - 1}")
    if (labels.reshape(5, 10_000) != labels[:10_000]).any():
        raise InputError(f"{file} differs between severities: images and labels are out of order")
    part = images[(severity - 1) * 10_000 : severity * 10_000]
    return (
        torch.from_numpy(np.ascontiguousarray(part.transpose(0, 3, 1, 2))),
        torch.from_numpy(labels[:10_000].astype(np.int64)),
    )


def _read_array(file: Path, shape: tuple[int, ...], types: str) -> np.ndarray:
    """An array of one of the types, `u1` or `iu` for any whole number."""

    def check(header: Header) -> None:
        if header.shape != shape:
            raise Wrong(f"has shape {header.shape}, not {shape}: it is not a CIFAR-10-C file")
        if header.dtype.kind not in types or (types == "u1" and header.dtype.itemsize != 1):
            wanted = "uint8" if types == "u1" else "whole numbers"
            raise Wrong(f"holds {header.dtype}, not {wanted}: download it again")

    if not os.path.lexists(file):
        raise InputError(
            f"{file} is missing: unpack CIFAR-10-C.tar there (zenodo.org/records/2535967)"
        )
    return map_npy(file, check)
