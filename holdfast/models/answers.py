"""What models answer, and how logits are read from it.

An answer may be an object, a tuple or a dictionary; its numbers may be probabilities, one number
an image, or lie in a grid of one point. `recognised` finds out what it is, and `Form` reads it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import InputError
from ..types import Images

LOGITS, PROBABILITIES = "logits", "probabilities"  # what a model's numbers may be
LEAST = torch.finfo(torch.float32).tiny  # in place of a probability of 0, which has no logarithm
ROUNDING = 1e-2  # how far numbers may lie outside [0, 1] and still be probabilities
DEPTH = 4  # how deep in an answer logits are looked for

Key = str | int
Path = tuple[Key, ...]


@dataclass(frozen=True)
class Form:
    """How a model takes images and gives logits.

    Attributes:
        channels_last: it takes images as (N, H, W, C).
        dtype: what it takes them in; None: as they come.
        path: where its numbers are in its answer: keys, indices or attributes.
        spatial: they are (N, K, 1, 1), or (N, 1, 1, K) where channels come last.
        single: they are one number an image, of shape (N,) or (N, 1): a binary classifier's.
        probabilities: they are probabilities, of which the logarithm is taken.
    """

    channels_last: bool = False
    dtype: torch.dtype | None = None
    path: Path = ()
    spatial: bool = False
    single: bool = False
    probabilities: bool = False

    def images(self, images: Images) -> Tensor:
        """Images as the model takes them."""
        if self.channels_last:
            images = images.permute(0, 2, 3, 1)
        return images if self.dtype is None else images.to(self.dtype)

    def logits(self, answer: Any) -> Any:
        """Logits from an answer; an answer that needs no reading is returned as it is.

        Raises:
            InputError: an answer of another form than the first one; numbers that are no
                probabilities.
        """
        try:
            for key in self.path:
                answer = _inside(answer, key)
        except (KeyError, IndexError, AttributeError, TypeError):
            raise InputError(
                f"the model answered {_place(self.path)} before, and a {type(answer).__name__} "
                "without it now"
            ) from None
        if self.spatial:
            answer = answer.flatten(1)
        if self.probabilities:
            return self._logarithms(answer)
        if self.single:
            z = answer.reshape(-1, 1)
            return torch.cat([torch.zeros_like(z), z], 1)
        return answer

    def _logarithms(self, p: Tensor) -> Tensor:
        _check_probabilities(p)
        p = p if p.dtype == torch.float64 else p.float()
        if self.single:
            p = p.reshape(-1, 1)
            p = torch.cat([1 - p, p], 1)
        return p.clamp_min(LEAST).log()

    def said(self, answer: Any = None) -> tuple[str, ...]:
        """What was recognised, one line each; `answer`: the one it was recognised on."""
        lines = []
        if self.channels_last:
            lines.append("the model takes images as (N, H, W, C), and gets them so")
        if self.path:
            kind = "" if answer is None else f" ({type(answer).__name__})"
            lines.append(f"of the model's answer{kind} {_place(self.path)} is taken")
        if self.spatial:
            lines.append("the model's logits lie in a grid of one point, which is flattened")
        if self.single:
            numbers = "(1 - p, p)" if self.probabilities else "(0, z)"
            line = f"the model answers one number an image: a binary classifier, {numbers}"
            if not self.probabilities and answer is not None and _between(self, answer):
                line += f"; all of them lie in [0, 1]: are they {PROBABILITIES}?"
            lines.append(line)
        return tuple(lines)


PLAIN = Form()


class Formed(nn.Module):
    """A model that is asked in its own form: images in [0, 1] → logits. Copies are made of it."""

    def __init__(self, model: Any, form: Form):
        super().__init__()
        self.model, self.form = model, form

    def forward(self, images: Images) -> Tensor:
        return self.form.logits(self.model(self.form.images(images)))


def recognised(answer: Any, count: int, form: Form = PLAIN) -> Form:
    """The form of an answer to `count` images; what is already known of it stands.

    Where several parts of an answer may be logits, `logits` is taken, else the first one of shape
    (N, K), else the first one that can be read at all.

    Example:
        >>> recognised({"features": torch.zeros(4, 7, 7), "head": torch.zeros(4, 10)}, 4).path
        ('head',)
        >>> recognised(torch.zeros(4), 4).single
        True
    """
    found = list(_tensors(answer, (), count))
    named = [item for item in found if item[0] and item[0][-1] == LOGITS]
    for path, tensor in [*named, *(i for i in found if _is_rows(i[1], count)), *found]:
        shaped = _shaped(tensor, count)
        if shaped is not None:
            return replace(form, path=path, spatial=shaped[0], single=shaped[1])
    return form


def opened(answer: Any, count: int) -> Any:
    """The numbers in an answer that is an object, a tuple or a dictionary; others as they are."""
    form = recognised(answer, count)
    for key in form.path:
        answer = _inside(answer, key)
    return answer


def _shaped(tensor: Tensor, count: int) -> tuple[bool, bool] | None:
    """Whether an answer is spatial, and one number an image; None where it is no logits."""
    spatial = tensor.ndim == 4 and (
        tuple(tensor.shape[2:]) == (1, 1) or tuple(tensor.shape[1:3]) == (1, 1)
    )
    classes = tensor.numel() // max(len(tensor), 1) if spatial else tensor.shape[-1]
    if tensor.is_complex() or len(tensor) != count:
        return None
    if tensor.ndim == 1:
        return (False, True) if tensor.is_floating_point() and not _like_labels(tensor) else None
    if tensor.ndim == 2 or spatial:
        return (spatial, classes == 1) if classes else None
    return None


def _like_labels(tensor: Tensor) -> bool:
    """Whether numbers are whole and some lie above 1: classes, it seems, and not logits."""
    tensor = tensor.detach()
    whole = bool((tensor == tensor.round()).all())
    return whole and bool((tensor >= 0).all()) and bool((tensor > 1).any())


def _is_rows(tensor: Tensor, count: int) -> bool:
    return tensor.ndim == 2 and tensor.shape[0] == count and tensor.shape[1] > 1


def _tensors(answer: Any, path: Path, count: int) -> Iterator[tuple[Path, Tensor]]:
    """The tensors in an answer that have a row an image, in its order, each with its path."""
    if isinstance(answer, Tensor):
        if answer.ndim and len(answer) == count:
            yield path, answer
    elif len(path) < DEPTH:
        for key, part in _parts(answer):
            yield from _tensors(part, (*path, key), count)


def _parts(answer: Any) -> list[tuple[Key, Any]]:
    if isinstance(answer, Mapping):
        return list(answer.items())
    if isinstance(answer, tuple):
        return list(enumerate(answer))
    if isinstance(answer, list):  # a row an image, as a list has them, is none of one's own
        return [(i, part) for i, part in enumerate(answer) if getattr(part, "ndim", 2) > 1]
    held = dict(getattr(answer, "__dict__", {}))
    for name in getattr(type(answer), "__slots__", ()):
        if isinstance(name, str) and hasattr(answer, name):
            held[name] = getattr(answer, name)
    if isinstance(getattr(answer, LOGITS, None), Tensor):  # a property, perhaps
        held[LOGITS] = getattr(answer, LOGITS)
    return list(held.items())


def _inside(answer: Any, key: Key) -> Any:
    if isinstance(answer, Mapping | tuple | list) or isinstance(key, int):
        return answer[key]
    return getattr(answer, key)


def _place(path: Path) -> str:
    """A path as it is written: `logits`, `1`, `head.0`."""
    return repr(".".join(map(str, path)))


def _between(form: Form, answer: Any) -> bool:
    numbers = answer
    for key in form.path:
        numbers = _inside(numbers, key)
    numbers = numbers.detach()
    return bool(((numbers >= 0) & (numbers <= 1)).all())


@torch.fx.wrap
def _check_probabilities(p: Tensor) -> None:
    """InputError where numbers are no probabilities; NaN is let through, as no answer."""
    with torch.no_grad():
        outside = (p < -ROUNDING) | (p > 1 + ROUNDING)
        if bool(outside.any()):
            raise InputError(
                f"the model's outputs are said to be {PROBABILITIES}, and it answers "
                f"{float(p[outside].flatten()[0]):.4g}: they are {LOGITS}, it seems"
            )
