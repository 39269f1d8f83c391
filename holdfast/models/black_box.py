"""A model of which an attacker sees nothing but answers."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn

from ..errors import InputError
from ..types import Images, Model
from .adapted import NUMBERS, Adapted
from .answers import opened
from .chain import Preprocessor, undefended
from .wrapper import WrappedModel, callable_model, unwrapped, wrapped

OUTPUTS = ("scores", "labels")  # what an attacker may see of an answer


def read_outputs(text: str | None) -> tuple[str | None, str | None]:
    """What a model's numbers are, and what an attacker sees of them; None where nothing is said.

    Args:
        text: `logits` or `probabilities`; `scores` or `labels`; or one of each, as in
            `probabilities,labels`.

    Raises:
        InputError: anything else.

    Example:
        >>> read_outputs("probabilities,labels"), read_outputs("scores")
        (('probabilities', 'labels'), (None, 'scores'))
    """
    words = [word.strip() for word in text.split(",")] if isinstance(text, str) else []
    if text is None:
        return None, None
    found = [[word for word in words if word in known] for known in (NUMBERS, OUTPUTS)]
    if not words or sum(map(len, found)) < len(words) or max(map(len, found)) > 1:
        raise InputError(
            f"outputs must be {' or '.join(NUMBERS)} (what the model's numbers are), "
            f"{' or '.join(OUTPUTS)} (what an attacker sees), or one of each, not {text!r}"
        )
    return next(iter(found[0]), None), next(iter(found[1]), None)


class BlackBox(nn.Module):
    """A model that shows no gradients, and only what it says to be its outputs.

    Args:
        model: anything callable with images (N, C, H, W). Tensors, arrays and lists are taken as
            answers.
        outputs: `scores`, (N, K); or `labels`: (N,) whole numbers, or (N, K) of which only the
            largest is shown.
        classes: how many there are, for answers of (N,); None: whoever knows the data says it.

    Raises (on a call):
        InputError: answers of another shape or kind, or a class that there is not.

    Example:
        >>> model = BlackBox(lambda x: x.sum((1, 2, 3)).gt(1).long().numpy(), "labels", classes=3)
        >>> model(torch.ones(2, 1, 2, 2))
        tensor([[0., 1., 0.],
                [0., 1., 0.]])
    """

    def __init__(self, model: Model, outputs: str = "scores", classes: int | None = None):
        super().__init__()
        if outputs not in OUTPUTS:
            raise InputError(f"outputs must be {' or '.join(OUTPUTS)}, not {outputs!r}")
        # Defences know what they are called with; all else may answer as it likes.
        if isinstance(model, WrappedModel):
            model = model.inner
        self.inner = wrapped(model) if isinstance(model, Preprocessor) else callable_model(model)
        self.outputs, self.classes = outputs, classes

    def forward(self, images: Images) -> Float[Tensor, "n k"]:
        with torch.no_grad():
            answer = _tensor(opened(self.inner(images), len(images)))
        if self.outputs == "scores":
            return answer
        if answer.ndim == 2 and answer.shape[1] > 1:
            nothing = answer.isnan().any(1) | (answer == torch.inf).any(1)
            return one_hot(answer.argmax(1), answer.shape[1]).masked_fill(
                nothing[:, None], torch.nan
            )
        return labels_as_scores(answer, len(images), self.classes, "the model")


def one_hot(labels: Tensor, classes: int) -> Float[Tensor, "n k"]:
    """1 at the label, 0 elsewhere; float32."""
    return nn.functional.one_hot(labels.long(), classes).float()


def labels_as_scores(
    answer: Tensor, count: int, classes: int | None, who: str
) -> Float[Tensor, "n k"]:
    """Predicted classes as one-hot rows.

    Args:
        answer: (N,) or (N, 1) whole numbers.
        count: N.
        classes: how many there are.
        who: answered, for the error.

    Raises:
        InputError: another shape, no whole numbers, a class below 0 or beyond the last.
    """
    shape = tuple(answer.shape)
    answer = answer.flatten()
    if shape not in ((count,), (count, 1)):
        raise InputError(f"{who} returned shape {shape} for {count} images; labels must be (N,)")
    if answer.is_complex() or (
        answer.is_floating_point() and not bool((answer == answer.round()).all())
    ):
        raise InputError(f"{who} returned labels that are no whole numbers")
    if classes is None:
        raise InputError(f"{who} returns labels only: say how many classes there are")
    wrong = (answer < 0) | (answer >= classes)
    if bool(wrong.any()):
        raise InputError(
            f"{who} answered class {int(answer[wrong][0])}, and there are {classes} classes, "
            "counted from 0"
        )
    return one_hot(answer, classes)


def _tensor(answer: Any) -> Tensor:
    if isinstance(answer, Tensor):
        return answer
    try:
        array = np.asarray(answer)
        if array.dtype.kind in "biuf":
            return torch.from_numpy(np.array(array, dtype=array.dtype.newbyteorder("=")))
    except (ValueError, TypeError):
        pass
    raise InputError(f"the model returned a {type(answer).__name__}, not an array of numbers")


def innermost(model: Any) -> Any:
    """What answers in the end, behind defences and all that only looks on or hides."""
    plain = undefended(unwrapped(model))
    if isinstance(plain, Adapted):
        return innermost(plain.model)
    return innermost(plain.inner) if isinstance(plain, BlackBox) else plain


def assume_classes(model: Any, classes: int) -> None:
    """Tell a model that answers labels only how many classes there are, if nobody has said so."""
    for part in _parts(model):
        if getattr(part, "classes", 0) is None:
            part.classes = classes


def _parts(model: Any) -> list[Any]:
    """The model and what stands behind it."""
    inner = model.model if isinstance(model, Adapted) else getattr(model, "inner", None)
    return [model, *([] if inner is None else _parts(inner))]
