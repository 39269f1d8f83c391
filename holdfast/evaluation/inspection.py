"""What the suite `adaptive` needs to know of a model: how it may be looked at, and why."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from ..attacks import Square, Stage, Suite, adaptive
from ..attacks.base import Model
from ..attacks.suite import UNDEFENDED
from ..defences import onto, steps, undefended, views
from ..draws import fixed_draws, repeated_draws
from ..errors import InputError
from ..models.mixture import Mixture
from ..search import FastCopy, Level
from ..search.fast_copies import original
from .health import differentiable, gradients

Lanes = list[Level]


def reason(model: Model) -> str:
    """In words, why a model needs the suite `adaptive`; empty where others serve."""
    why = []
    if isinstance(undefended(model), Mixture):
        why.append("a mixture's gradients follow whichever of its parts is less sure")
    for step in steps(model):
        traits = ["draws random numbers"] if step.random else []
        traits += [] if step.differentiable else ["has no gradient of its own"]
        if traits:
            why.append(f"{step.spec} {' and '.join(traits)}")
    return "; ".join(why)


def suite_for(model: Model, bare: Model | None, random: bool, samples: int, norm: str) -> Suite:
    """The suite `adaptive` for this model; `bare` is the network behind its defences, if any."""
    seen = list(views(model))
    if bare is not None:
        seen.append(UNDEFENDED)
    return adaptive(seen, random=random, samples=samples, norm=norm)


def bare_network(model: Model, probe: Tensor) -> Model | None:
    """The network behind the defences; None without defences, or where it takes no images.

    Args:
        probe: images on the model's device.
    """
    network = undefended(model)
    if network is model:
        return None
    try:
        with torch.no_grad():
            network(probe[:2])
    except InputError:  # it wants the codes that a defence makes
        return None
    return network


def levels_by_view(
    model: Model, bare: Model | None, levels_of: Callable[[Model], Lanes]
) -> dict[str, Lanes]:
    """What the search looks at for each `Stage.view`, the model itself among them ("").

    Fast copies are made of the network behind the defences: defences compute in float32, and a
    random one answers as its fast copy does where both draw the same.
    """
    if bare is None:
        # A traced copy of a defence would lose the backward pass that it declares.
        of = (lambda view: [Level(original(view))]) if steps(model) else levels_of
        return {name: of(view) for name, view in {"": model, **views(model)}.items()}
    levels = levels_of(bare)

    def behind(view: Model) -> Lanes:
        network = undefended(view)
        return [
            Level(
                FastCopy(
                    onto(view, level.fast_copy.model), level.fast_copy.name, level.fast_copy.error
                ),
                level.near,
                level.slopes,
            )
            # A network that offers backward passes of its own has a fast copy for each of them.
            for level in (levels if network is bare else levels_of(network))
        ]

    found = {name: behind(view) for name, view in {"": model, **views(model)}.items()}
    return found | {UNDEFENDED: levels}


def told_of(model: Model) -> dict[str, Any]:
    """What `model` in a result says of the defences, in the order in which they see the image."""
    specs = [step.spec for step in steps(model)]
    return {"defences": specs} if specs else {}


def blind_views(model: Model, bare: Model | None, probe: Tensor, labels: Tensor) -> set[str]:
    """Which of them PyTorch cannot differentiate."""
    looked_at = {**views(model), "": model} | ({} if bare is None else {UNDEFENDED: bare})
    return {
        name
        for name, view in looked_at.items()
        if not differentiable(gradients(view, probe, labels))
    }


def without_blind(suite: Suite, blind: set[str]) -> Suite:
    """The suite without the stages that need gradients of what has none."""
    stages = suite.keeping(lambda s: s.view not in blind or not s.attack.needs_gradient)
    if any(s.attack.needs_gradient for s in stages) or stages == suite.stages:
        return replace(suite, stages=stages)
    name = f"{suite.name}, gradient-free part"
    return Suite(name, stages or (Stage(Square(queries=5000)),), suite.closest and bool(stages))


def frozen(model: Model, samples: int) -> Model:
    """The mean logits over `samples` draws that are the same for every image and every call.

    Health checks and curves search and count on it: they look for what an attack does with more
    steps or in a larger ball, not for what it does with luck.
    """

    def mean(images: Tensor) -> Tensor:
        seeds = torch.zeros(len(images), dtype=torch.int64)
        with fixed_draws(seeds), repeated_draws(samples):
            copies = model(images.repeat_interleave(samples, 0)).float()
        return copies.unflatten(0, (len(images), samples)).mean(1)

    return mean
