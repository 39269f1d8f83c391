"""`holdfast certify`: what the names on the command line stand for."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from .. import data as datasets
from ..certification.run import Certification, IntervalBounds, Method, Smoothing, certify
from ..certification.smoothing import Smoothed
from ..data.base import DataSet
from ..defences.base import real_number, whole_number
from ..errors import InputError
from ..evaluation.cards import check_classes, remark, threat_of, what_was_measured
from ..inputs import checked_device
from ..load import load
from ..threat import Threat

RADII = (0.0, 0.25, 0.5)  # of smoothing, in image units
SHARES = (0.0, 0.5, 1.0)  # of interval bounds, in ε
NOISY, NOISE = ("gaussian", "smoothadv"), 0.25  # objectives, and their usual σ
PASSES = 50_000  # of the model between two looks at the clock


def certify_command(
    model: str,
    data: str | DataSet,
    out: Path,
    *,
    sigma: float | None = None,
    n0: int = 100,
    n: int = 10_000,
    alpha: float = 0.001,
    radii: Sequence[float] | None = None,
    eps: str | float | None = None,
    limit: int | None = None,
    split: str = "test",
    pixels: str | None = None,
    batch_size: int = 512,
    size: int | None = None,
    seed: int = 0,
    device: str | None = None,
    progress: bool = False,
) -> Certification:
    """Certify a model's answers on a data set.

    Args:
        model: as `holdfast.load` takes it.
        sigma: of the noise, for randomised smoothing (L2); None for interval bounds (L∞), which
            need a network such as `interval-cnn`.
        n0, n, alpha: of smoothing; see `Smoothed.certify`.
        radii: where certified accuracy is reported; by default 0, 0.25 and 0.5, or 0, ε/2 and ε.
        eps: radius of the attack that bounds the true accuracy from above, by default what the
            model was trained for.

    Raises:
        InputError: options out of range; a model of other classes than the data, or of layers that
            intervals cannot be carried through; as `certify`.
    """
    network = load(model)
    if not isinstance(network, nn.Module):
        raise InputError(f"model {model} is no torch.nn.Module, so nothing is known of its weights")
    card = getattr(network, "card", {})
    dataset = data if isinstance(data, DataSet) else datasets.load(data, size=size)
    check_classes(model, card, dataset)
    if limit is not None and limit < 1:
        raise InputError(f"--limit must be at least 1, not {limit}")
    whole_number("smoothing", "n0", n0, 1)
    whole_number("smoothing", "n", n, 1)
    real_number("smoothing", "alpha", alpha, above=0, at_most=0.5)
    chosen = dataset.split(split)
    first = len(chosen) if limit is None else min(limit, len(chosen))
    remark(dataset, split, first, str(card.get("trained_on", "")))
    where = checked_device(device)
    network.to(where)
    method: Method
    if sigma is None:
        threat = threat_of("linf", eps, card)
        method, chunk = IntervalBounds(network, threat, seed=seed), batch_size
        radii = [share * threat.eps for share in SHARES] if radii is None else radii
    else:
        threat = threat_of("l2", eps, card)
        smoothed = Smoothed(network, sigma, batch_size=batch_size, seed=seed)
        method = Smoothing(smoothed, threat, n0=n0, n=n, alpha=alpha, seed=seed)
        chunk = min(max(1, PASSES // n), 100)
        radii = RADII if radii is None else radii
    return certify(
        method,
        network,
        datasets.to_tensor(chosen.images[:first]).to(where),
        torch.from_numpy(chosen.labels[:first].copy()),
        out,
        radii=radii,
        chunk=chunk,
        described=what_was_measured(model, network, dataset, split, first, pixels),
        classes=dataset.classes,
        progress=progress,
        note=trained_otherwise(card, sigma, None if sigma is not None else method.threat),
    )


def trained_otherwise(card: dict[str, Any], sigma: float | None, threat: Threat | None) -> str:
    """In a line, for what else a model was trained than its certificates ask; empty if for that.

    Args:
        card: the model's; what it does not say is not guessed.
        sigma: of smoothing's noise; None for interval bounds.
        threat: of interval bounds.
    """
    recipe = card.get("recipe")
    objective = recipe.get("objective") if isinstance(recipe, dict) else None
    if not isinstance(objective, dict):
        return ""
    name, arguments = objective.get("name"), objective.get("arguments")
    if sigma is not None:
        if name not in NOISY:
            return f"the model never saw noise in training ({name}), asked at σ = {sigma:g}"
        trained = (arguments if isinstance(arguments, dict) else {}).get("sigma", NOISE)
        return "" if trained == sigma else f"trained at σ = {trained}, asked at {sigma:g}"
    if name != "interval":
        return f"the model was not trained for interval bounds ({name})"
    told = card.get("threat")
    before = Threat(told["norm"], told["eps"]) if isinstance(told, dict) else threat
    return "" if before == threat else f"trained at {before}, asked at {threat}"
