"""Every check of input: what a caller hands over is right, or one line says what is wrong.

What has one meaning only is taken: NumPy arrays, lists, 8-bit images, one-hot labels, data sets and
loaders, a pair as a threat model. Of anything else one line says what is wrong, and the right call.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from numbers import Real
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int64
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, IterableDataset

from .errors import InputError
from .stored import ModelImages, NotInMemory, StoredImages, in_memory, is_bytes, is_large
from .threat import Threat
from .types import Images


def check_images(images: Tensor, name: str = "images") -> None:
    """Float32 (N, C, H, W), N ≥ 1, finite, in [0, 1]; InputError saying which image is not."""
    if not isinstance(images, Tensor):
        raise InputError(f"{name} must be a torch.Tensor, not {type(images).__name__}")
    if images.dtype != torch.float32:
        raise InputError(f"{name} must be float32 in [0, 1], not {images.dtype}")
    if images.ndim != 4:
        raise InputError(f"{name} must have shape (N, C, H, W), not {tuple(images.shape)}")
    if not images.numel():
        raise InputError(f"{name} is empty: {tuple(images.shape)}")
    flat = images.flatten(1)
    for fault, bad in (
        ("holds NaN or infinite values", _not_finite(flat)),
        ("has values outside [0, 1]", (flat.amin(1) < 0) | (flat.amax(1) > 1)),
    ):
        if bool(bad.any()):
            first, hint = int(bad.nonzero()[0]), ""
            if "outside" in fault:
                low, high = float(flat.amin()), float(flat.amax())
                if low >= 0 and 2 < high <= 255:
                    hint = ": divide by 255"
                elif low < 0:
                    hint = ": normalisation belongs inside the model"
            raise InputError(
                f"{name}[{first}] {fault} ({int(bad.sum())} of {len(images)} do){hint}"
            )


LARGEST = 2**31 - 1


def whole_number(name: str, value: Any, low: int = 1, high: int = LARGEST) -> int:
    """`value`, if it is a whole number from `low` to `high`.

    Raises:
        InputError: it is not; the message begins with `name`.

    Example:
        >>> whole_number("jpeg: quality", 75, 1, 100)
        75
    """
    if not isinstance(value, int) or isinstance(value, bool) or not low <= value <= high:
        limits = f"of at least {low}" if high == LARGEST else f"from {low} to {high}"
        raise InputError(f"{name} must be a whole number {limits}, not {value!r}")
    return value


def real_number(
    name: str,
    value: Any,
    *,
    above: float = -math.inf,
    at_least: float = -math.inf,
    at_most: float = math.inf,
) -> float:
    """`value`, if it is a finite number above `above`, at least `at_least`, at most `at_most`.

    Raises:
        InputError: it is not; the message begins with `name`.

    Example:
        >>> real_number("smoothing: sigma", 0.25, above=0)
        0.25
    """
    real = isinstance(value, Real) and not isinstance(value, bool)
    if not (real and math.isfinite(value) and above < value and at_least <= value <= at_most):
        bounds = (("above", above), ("at least", at_least), ("at most", at_most))
        limits = " and ".join(f"{word} {x:g}" for word, x in bounds if math.isfinite(x))
        raise InputError(f"{name} must be a number {limits or 'that is finite'}, not {value!r}")
    return float(value)


def _not_finite(flat: Tensor) -> Tensor:
    """Which rows hold NaN or infinities, without copies of all of them at once."""
    return ~torch.cat([torch.isfinite(part).all(1) for part in flat.split(128)])


def _place(first: int | Tensor, row: int) -> int:
    return int(first[row]) if isinstance(first, Tensor) else first + row


def check_labels(
    labels: Tensor,
    count: int,
    classes: int | None = None,
    first: int | Tensor = 0,
    name: str = "labels",
) -> None:
    """Int64 (count,), in [0, classes); InputError saying which label is not.

    Args:
        first: where these labels begin among all, or the place of each, for the message.
    """
    if not isinstance(labels, Tensor) or labels.dtype != torch.int64:
        kind = labels.dtype if isinstance(labels, Tensor) else type(labels).__name__
        raise InputError(f"{name} must be an int64 torch.Tensor, not {kind}")
    if labels.shape != (count,):
        raise InputError(f"{name} must have shape ({count},), not {tuple(labels.shape)}")
    bad = labels < 0 if classes is None else (labels < 0) | (labels >= classes)
    if bool(bad.any()):
        place = int(bad.nonzero()[0])
        top = "" if classes is None else f"; the model has {classes} classes"
        raise InputError(
            f"{name}[{_place(first, place)}] is {int(labels[place])}, out of range{top}"
        )


def check_logits(logits: Tensor, count: int, labels: Tensor, first: int | Tensor = 0) -> Tensor:
    """The model's answer as float32 (count, K) with K above every label, finite.

    Args:
        first: where these images begin among all, or the place of each, for the message.

    Raises:
        InputError: another shape, NaN or infinities, or fewer classes than the labels need.
    """
    if not isinstance(logits, Tensor):
        raise InputError(f"the model returned a {type(logits).__name__}, not a tensor of logits")
    if logits.ndim != 2 or logits.shape[0] != count or logits.shape[1] < 2:
        raise InputError(
            f"the model returned shape {tuple(logits.shape)} for {count} images; "
            "logits must be (N, K) with K ≥ 2"
        )
    check_labels(labels, count, logits.shape[1], first)
    bad = ~torch.isfinite(logits).all(1)
    if bool(bad.any()):
        raise InputError(
            "the model returned NaN or infinite logits for image "
            f"{_place(first, int(bad.nonzero()[0]))}"
        )
    return logits.float()


IMAGE_KEYS = ("images", "image", "pixel_values", "img", "x")
LABEL_KEYS = ("labels", "label", "targets", "target", "y", "fine_label")
LOADED_AT_ONCE = 256  # images


def checked_data(images: Any, labels: Any = None) -> tuple[Images, Int64[Tensor, " n"]]:
    """Images and labels, checked; all of them in memory."""
    x, y = checked_stored_data(images, labels)
    return in_memory(x), y


def checked_stored_data(images: Any, labels: Any = None) -> tuple[ModelImages, Int64[Tensor, " n"]]:
    """Images and labels, checked.

    Args:
        images: (N, C, H, W), a tensor, an array or lists: floats in [0, 1], or 8-bit integers from
            0 to 255, which are divided by 255. Of 8 bits it may also be whatever has a `shape` and
            a `dtype` and is indexed like an array: a `numpy.memmap`, `holdfast.data.LazyImages`.
            Or images and labels in one: a `DataLoader`, a
            `Dataset`, a split of `holdfast.data`; then `labels` is None.
        labels: (N,) whole numbers of any type, or (N, K) one-hot.

    Returns:
        float32 (N, C, H, W) in [0, 1], and int64 (N,). 8-bit images that would fill more than
        512 MiB are not in memory: they are read when they are indexed.

    Raises:
        InputError: anything else.
    """
    if _holds_both(images):
        if labels is not None:
            raise InputError(
                f"the {type(images).__name__} brings its own labels: leave labels out, or give "
                "images as a tensor"
            )
        images, labels = _both(images)
    if hasattr(images, "train") and hasattr(images, "test"):  # a data set of Holdfast's
        raise InputError(
            f"the images are {_article(images)}: give one of its splits, as in data.test"
        )
    if labels is None:
        raise InputError("labels are missing: give int64 (N,), the true class of every image")
    x = _stored(images)
    if not isinstance(x, NotInMemory):
        x = checked_images(images if x is None else x)
    y = checked_labels(labels, len(x))
    return x, y


def _stored(images: Any) -> ModelImages | None:
    """Images that need not be in memory, or those that are brought there because they are few;
    None for what is in memory already."""
    if isinstance(images, NotInMemory):
        return images
    few = not is_large(images)
    if not is_bytes(images) or (few and isinstance(images, np.ndarray | Tensor)):
        return None
    _check_order(images)
    held = StoredImages(images)
    return held[:] if few else held


def _check_order(images: Any, name: str = "images") -> None:
    """InputError where the channels of (N, …) images seem to come last."""
    shape = tuple(images.shape)
    if len(shape) == 4 and shape[1] not in (1, 2, 3, 4) and shape[3] in (1, 3, 4):
        raise InputError(
            f"{name} of shape {shape} look like (N, H, W, C): permute(0, 3, 1, 2) makes "
            "(N, C, H, W) of them"
        )


def checked_images(images: Any, name: str = "images") -> Float[Tensor, "n c h w"]:
    """Images alone, checked; as in `taken`."""
    x = _tensor(images, name).detach()
    if x.dtype == torch.uint8:
        x = x.float().div_(255)
    elif x.is_floating_point():
        x = x.float()
    else:
        raise InputError(f"{name} are {_kind(x)}: give floats in [0, 1], or uint8 from 0 to 255")
    _check_order(x, name)
    check_images(x, name)
    return x


def checked_labels(
    labels: Any, count: int, name: str = "labels", classes: int | None = None
) -> Int64[Tensor, " n"]:
    """Labels alone, checked; as in `taken`."""
    y = _tensor(labels, name).detach()
    if y.is_complex() or (
        y.is_floating_point() and not bool((torch.isfinite(y) & (y == y.round())).all())
    ):
        raise InputError(f"{name} must be whole numbers, the class of every image")
    if y.ndim == 2 and len(y) == count and y.shape[1] > 1:
        if not bool(((y == 0) | (y == 1)).all()) or not bool((y.sum(1) == 1).all()):
            raise InputError(
                f"{name} have shape {tuple(y.shape)}: give (N,), or one-hot rows of one 1 and 0s"
            )
        y = y.long().argmax(1)
    elif y.ndim == 2 and y.shape == (count, 1):
        y = y.squeeze(1)
    y = y.long()
    check_labels(y, count, classes, name=name)
    return y


def _kind(x: Tensor) -> str:
    return str(x.dtype).removeprefix("torch.")


def _tensor(values: Any, name: str) -> Tensor:
    if isinstance(values, Tensor):
        return values
    if isinstance(values, str | bytes | Mapping) or not isinstance(values, Iterable):
        raise InputError(f"{name} must be a tensor, an array or a list, not {_article(values)}")
    try:
        if isinstance(values, list | tuple) and values and isinstance(values[0], Tensor):
            return torch.stack([part.detach().cpu() for part in values])
        array = np.asarray(values)
        if array.dtype == object or array.dtype.kind not in "biufc":
            raise InputError(
                f"{name} hold {array.dtype if array.dtype != object else 'rows of unequal shape'}: "
                "give numbers, every image in the same shape"
            )
        if array.dtype.kind == "u" and array.dtype != np.uint8:  # torch knows few of these
            array = array.astype(np.int64)
        return torch.from_numpy(np.array(array, dtype=array.dtype.newbyteorder("=")))
    except InputError:
        raise
    except (ValueError, TypeError, RuntimeError) as error:
        raise InputError(
            f"{name} cannot be read as one array: {' '.join(str(error).split())[:200]}"
        ) from None


def _article(value: Any) -> str:
    name = type(value).__name__
    return f"{'an' if name[0] in 'AEIOaeio' else 'a'} {name}"


def _holds_both(images: Any) -> bool:
    return isinstance(images, DataLoader | Dataset) or (
        hasattr(images, "images") and hasattr(images, "labels")
    )


def _both(source: Any) -> tuple[Any, Any]:
    """The images and the labels that a loader or a data set holds."""
    if not isinstance(source, DataLoader | Dataset):
        return source.images, source.labels
    name = type(source).__name__
    if isinstance(source, Dataset):
        if not isinstance(source, IterableDataset) and not hasattr(source, "__len__"):
            raise InputError(f"the {name} has no length: give a DataLoader, or tensors")
        source = DataLoader(source, batch_size=LOADED_AT_ONCE)
    parts = []
    try:
        for batch in source:
            parts.append(_pair(batch, name))
    except InputError:
        raise
    except Exception as error:  # the caller's own code, or what cannot be put together
        what = " ".join(f"{type(error).__name__}: {error}".split())
        raise InputError(
            f"the {name} cannot be read: {what[:200]}; its items must be pairs of an image tensor "
            "and a label (torchvision: transform=ToTensor())"
        ) from None
    if not parts:
        raise InputError(f"the {name} is empty")
    images, labels = zip(*parts, strict=True)
    if not all(isinstance(part, Tensor) for part in (*images, *labels)):
        raise InputError(f"the {name} must give tensors (torchvision: transform=ToTensor())")
    try:
        return torch.cat(images), torch.cat(labels)
    except RuntimeError as error:
        raise InputError(f"the {name}'s batches do not fit together: {error}") from None


def _pair(batch: Any, name: str) -> tuple[Any, Any]:
    if isinstance(batch, Mapping):
        found = [[batch[k] for k in keys if k in batch] for keys in (IMAGE_KEYS, LABEL_KEYS)]
        if all(found):
            return found[0][0], found[1][0]
        raise InputError(f"the {name} gives {', '.join(map(str, batch))}: images and labels wanted")
    if isinstance(batch, list | tuple) and len(batch) >= 2:
        return batch[0], batch[1]
    raise InputError(f"the {name} gives images without labels: give pairs of images and labels")


def checked_threat(threat: Any) -> Threat:
    """A threat model, or what says plainly which: a pair `("linf", 8 / 255)`, or what
    `Threat.describe` gives.

    Raises:
        InputError: anything else, with the right call.
    """
    right = 'write holdfast.Threat("linf", 8 / 255)'
    if isinstance(threat, Threat):
        return threat
    if isinstance(threat, Mapping):
        try:
            return Threat(**threat)
        except TypeError:
            raise InputError(
                f"the threat model has the keys {', '.join(threat)}: {right}"
            ) from None
    if isinstance(threat, list | tuple) and len(threat) == 2 and isinstance(threat[0], str):
        return Threat(*threat)
    if isinstance(threat, str):
        raise InputError(f"the threat model {threat!r} has no radius: {right}")
    if threat is None:
        raise InputError(f"the threat model is missing: {right}")
    raise InputError(f"the threat model is {_article(threat)} ({str(threat)[:40]}): {right}")


def checked_device(device: str | int | torch.device | None) -> torch.device:
    """A device that tensors can be made on; None: the GPU where there is one, else the CPU.

    Raises:
        InputError: no device of that name, or this machine has none.
    """
    if device is None:
        device = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        return torch.empty(0, device=device).device
    except Exception as error:  # torch has many words for what is not there, some 7,000 long
        reason = " ".join(str(error).split())
        known = f"this machine has {', '.join(present())}"
        if "Expected one of" in reason or "Invalid device string" in reason:
            reason = "torch knows no such device"
        elif isinstance(error, NotImplementedError | ImportError) or len(reason) > 80:
            reason = "it is not there"
        raise InputError(f"device {str(device)!r} cannot be used: {reason}; {known}") from None


def present() -> list[str]:
    """The devices of this machine, by torch's names."""
    found = ["cpu", *(f"cuda:{i}" for i in range(torch.cuda.device_count()))]
    if torch.backends.mps.is_available():
        found.append("mps")
    if hasattr(torch, "xpu") and torch.xpu.is_available():
        found.append("xpu")
    return found
