"""The request of an evaluation: its input, checked once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Int64
from torch import Tensor, nn

from ..attacks import Attack, Stage, Suite, suite_named
from ..attacks.adaptive import NAME as ADAPTIVE
from ..attacks.adaptive import SAMPLES, adaptive
from ..attacks.black_box import NAME as BLACK_BOX
from ..attacks.black_box import black_box
from ..attacks.goal import OWN, UNTARGETED, checked_goal, own_targets
from ..defences import steps
from ..distributed import own_device
from ..errors import InputError
from ..inputs import checked_device, checked_stored_data, checked_threat, whole_number
from ..models.adapted import Adaptation, adapted
from ..models.answers import PROBABILITIES
from ..models.black_box import BlackBox, assume_classes, innermost, read_outputs
from ..models.http import HttpModel
from ..models.metered import Account, MeteredModel
from ..models.wrapper import standard_defaults, unwrapped, wrapped
from ..stored import ModelImages, part
from ..threat import Threat
from ..types import Model
from .limits import Limits

PRECISIONS = ("auto", "bf16", "float32", "original")


@dataclass(frozen=True)
class Request:
    """An evaluation to be done.

    Attributes:
        model: behind `WrappedModel`.
        images, labels: float32 (N, C, H, W) and int64 (N,), on the CPU; images that need not all
            be in memory.
        threat: what the attacker may do.
        suite: the stages that know the norm.
        unfitting: the stages of the suite that do not know it.
        samples: draws over which each iteration averages, where the suite is made for the model
            (`adaptive`); None elsewhere.
        batch_size: items searched at once; None: measured.
        device: where the evaluation works.
        home: where the model was handed over, and goes back to.
        precision: one of `PRECISIONS`.
        seed: of all random draws.
        goal: what counts as a success: `untargeted` or `target`.
        targets: with a goal: int64 (N,) on the CPU, or how they are chosen (`goal.KINDS`).
        unreaching: with a goal: the stages of the suite that cannot go for it.
        folder: the run folder; None: nothing is written.
        progress: whether a progress line is shown.
        curve: whether the security curve is measured.
        repair: whether gradients that the model hides are repaired.
        described: `model` and `data` for `result.json`.
        limits: what ends it before all images are judged; None: nothing.
        queries: the budget of queries an image; None: there is none.
        outputs: what an attacker may see of an answer, one of `OUTPUTS`; None: all.
    """

    model: nn.Module
    images: ModelImages
    labels: Tensor
    threat: Threat
    suite: Suite
    unfitting: tuple[Stage, ...]
    samples: int | None
    batch_size: int | None
    device: torch.device
    home: torch.device
    precision: str
    seed: int
    goal: str
    targets: Tensor | str | None
    unreaching: tuple[Stage, ...]
    folder: Path | None
    progress: bool
    curve: bool
    repair: bool
    described: dict[str, Any]
    limits: Limits | None = None
    queries: int | None = None
    outputs: str | None = None

    @property
    def account(self) -> Account | None:
        """Of the queries, where the model counts them."""
        return self.model.account if isinstance(self.model, MeteredModel) else None

    def part(self, rows: Int64[Tensor, " r"]) -> Request:
        """The request of some of the images alone."""
        targets = self.targets[rows] if isinstance(self.targets, Tensor) else self.targets
        images = part(self.images, rows)
        return replace(self, images=images, labels=self.labels[rows], targets=targets)

    @staticmethod
    def checked(
        model: Any,
        images: Any,
        labels: Any,
        threat: Any,
        suite: str | Suite | Attack | Sequence[Attack],
        *,
        batch_size: int | None = None,
        device: str | torch.device | None = None,
        precision: str = "auto",
        samples: int = SAMPLES,
        seed: int = 0,
        run: Path | str | None = None,
        progress: bool = False,
        curve: bool = False,
        repair: bool = True,
        described: dict[str, Any] | None = None,
        goal: str = UNTARGETED,
        targets: Any = None,
        limits: Limits | None = None,
        queries: int | None = None,
        outputs: str | None = None,
    ) -> Request:
        """A request of what a caller hands over; see `holdfast.evaluate`.

        Raises:
            InputError: one line on whatever is wrong.
        """
        if isinstance(labels, Threat) and threat is None:  # images that bring their labels
            labels, threat = None, labels
        threat = checked_threat(threat)
        if queries is not None:
            whole_number("queries", queries)
        numbers, outputs = read_outputs(outputs)
        if numbers == PROBABILITIES:
            model = adapted(model, Adaptation(outputs=numbers))
        if outputs is not None:
            model = BlackBox(model, outputs)
        whole_model = model = wrapped(model)
        with standard_defaults():
            images, labels = checked_stored_data(images, labels)
        threat.check_reach(images)
        if precision not in PRECISIONS:
            raise InputError(f"precision must be one of {', '.join(PRECISIONS)}, not {precision!r}")
        if batch_size is not None:
            whole_number("batch_size", batch_size)
        made_for_model = suite == ADAPTIVE
        goal = checked_goal(goal, targets)
        if targets is not None and not isinstance(targets, str):
            targets = _on_cpu(own_targets(targets, labels))
        if made_for_model:
            whole = adaptive(samples=samples, norm=threat.norm)
        elif suite == BLACK_BOX:
            whole = black_box(queries, threat.norm)
        else:
            whole = suite_named(suite)
        classes = len((described or {}).get("classes") or ()) or int(labels.max()) + 1
        assume_classes(model, max(2, classes))
        if queries is not None or outputs is not None or suite == BLACK_BOX or is_far(model):
            model = MeteredModel(model, labels, queries)
        whole = whole.tuned(threat)
        fitting = whole.fitting(threat)
        home = device_of(model)
        if home.type == "meta":
            raise InputError("the model has no weights: they are on torch's device meta")
        request = Request(
            model=model,
            images=_on_cpu(images) if isinstance(images, Tensor) else images,
            labels=_on_cpu(labels),
            threat=threat,
            suite=fitting,
            unfitting=whole.without(fitting),
            samples=samples if made_for_model else None,
            batch_size=batch_size,
            device=home if device is None else checked_device(own_device(device)),
            home=home,
            precision=precision,
            seed=seed,
            goal=goal,
            targets=targets,
            unreaching=(),
            folder=None if run is None else Path(run),
            progress=progress,
            curve=curve,
            repair=repair,
            limits=limits,
            described=_described(whole_model) | (described or {}),
            queries=queries,
            outputs=outputs,
        )
        return request.with_suite(fitting)

    @property
    def kind(self) -> str | None:
        """How the targets were chosen: a kind, `own`, or None without a goal."""
        return OWN if isinstance(self.targets, Tensor) else self.targets

    def with_suite(self, suite: Suite) -> Request:
        """The same with another suite, as far as that goes for the goal.

        Raises:
            InputError: none of its attacks does.
        """
        if self.kind is None:
            return replace(self, suite=suite)
        unreaching = suite.keeping(lambda stage: not stage.attack.reaches)
        return replace(self, suite=suite.reaching(self.kind), unreaching=unreaching)


def is_far(model: Model) -> bool:
    """Whether a model answers from elsewhere: it is a black box, whatever it is."""
    return isinstance(innermost(model), HttpModel)


def device_of(model: Model) -> torch.device:
    if isinstance(model, nn.Module):
        for tensor in (*model.parameters(), *model.buffers()):
            return tensor.device
    return torch.device("cpu")


def _on_cpu(tensor: Tensor) -> Tensor:
    """On the CPU, and one that can take part in gradients."""
    tensor = tensor.detach().cpu()
    with torch.inference_mode(False):
        return tensor.clone() if tensor.is_inference() else tensor


def _described(model: Any) -> dict[str, Any]:
    """`model` and `data` of a result where the caller does not describe them."""
    plain = unwrapped(model)
    specs = [step.spec for step in steps(plain)]
    name = getattr(plain, "__name__", type(plain).__name__)
    return {
        "model": {"name": name} | ({"defences": specs} if specs else {}),
        "data": {"pixels": "as handed to holdfast.evaluate"},
    }
