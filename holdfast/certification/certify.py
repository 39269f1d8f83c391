"""`certify`: from a model and images to certified accuracy, by the certificate that fits."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from jaxtyping import Int64
from torch import Tensor, nn

from ..distributed import own_device
from ..errors import InputError
from ..evaluation.cards import threat_of
from ..inputs import checked_device, checked_stored_data, real_number, whole_number
from ..models.black_box import innermost
from ..models.wrapper import standard_defaults, wrapped
from ..stored import NotInMemory
from ..threat import Threat
from ..types import Images
from .run import Certification, IntervalBounds, Method, Smoothing, certify_by
from .smoothing import Smoothed

RADII = (0.0, 0.25, 0.5)  # of smoothing, in image units
SHARES = (0.0, 0.5, 1.0)  # of interval bounds, in ε
NOISY, NOISE = ("gaussian", "smoothadv"), 0.25  # objectives, and their usual σ
PASSES = 50_000  # forward passes of a chunk, after which rows may be written


def certify(
    model: nn.Module,
    images: Images | NotInMemory,
    labels: Int64[Tensor, " n"] | None = None,
    *,
    sigma: float | None = None,
    n0: int = 100,
    n: int = 10_000,
    alpha: float = 0.001,
    radii: Sequence[float] | None = None,
    eps: str | float | None = None,
    batch_size: int = 512,
    seed: int = 0,
    device: str | None = None,
    run: Path | str | None = None,
    progress: bool = False,
    classes: Sequence[str] | None = None,
    described: dict[str, Any] | None = None,
) -> Certification:
    """Certify a model's predictions: inside a radius around each image, no attack changes them.

    With `sigma`, by randomised smoothing (L2; Cohen et al., ICML 2019): what is certified is the
    model under noise, not the model alone. Without, by interval bounds (L∞; Gowal et al., ICCV
    2019), for networks made for it, such as `interval-cnn`. Each image is attacked too, so the
    true robust accuracy lies between the certified and the attacked one.

    Args:
        model: images to logits (N, K).
        images: float32 (N, C, H, W) in [0, 1], or whatever else `holdfast.evaluate` takes.
        labels: int64 (N,), the true classes.
        sigma: standard deviation of smoothing's noise, in image units.
        n0: noisy samples of each image that choose the prediction.
        n: noisy samples of each image that certify it.
        alpha: the chance, for each image, that its certificate is wrong.
        radii: where certified accuracy is reported, in image units; by default 0, 0.25 and 0.5
            with smoothing, and 0, ε/2 and ε with interval bounds.
        eps: radius of the attack, in image units; by default the one that the model was trained
            for, else 0.5 in L2 and 8/255 in L∞.
        batch_size: images in a pass of the model; it changes no certificate.
        seed: of all random draws.
        device: where to work; by default the GPU where there is one.
        run: a folder for rows and result; the same call goes on where it was interrupted.
        progress: show a progress bar (plain lines where there is no terminal).
        classes: names of the classes that the data has.
        described: for `result.json`: what the model and the data are.

    Returns:
        certified accuracies with 95 % intervals, and a row an image.

    Raises:
        InputError: options out of range; bad images or labels; a model that fails on them, or
            with layers that intervals cannot be carried through; a folder that holds another run.

    Example:
        >>> import torch, holdfast as hf
        >>> model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(4, 2))
        >>> images, labels = torch.rand(3, 1, 2, 2), torch.tensor([0, 1, 1])
        >>> hf.certify(model, images, labels, sigma=0.25, n=100).n
        3
    """
    if not isinstance(model, nn.Module) or not isinstance(innermost(model), nn.Module):
        wrapped(model)  # a name, a folder and the like have messages of their own
        raise InputError("the model is no torch.nn.Module, so nothing is known of its weights")
    with standard_defaults():
        images, labels = checked_stored_data(images, labels)
    whole_number("smoothing: n0", n0, 1)
    whole_number("smoothing: n", n, 1)
    real_number("smoothing: alpha", alpha, above=0, at_most=0.5)
    whole_number("batch_size", batch_size)
    where = checked_device(own_device(checked_device(device)))
    card = getattr(model, "card", {})
    model = wrapped(model)
    model.to(where)
    method: Method
    if sigma is None:
        threat = threat_of("linf", eps, card)
        method, chunk = IntervalBounds(model, threat, seed=seed), batch_size
        radii = [share * threat.eps for share in SHARES] if radii is None else radii
    else:
        threat = threat_of("l2", eps, card)
        smoothed = Smoothed(model, sigma, batch_size=batch_size, seed=seed)
        method = Smoothing(smoothed, threat, n0=n0, n=n, alpha=alpha, seed=seed)
        chunk = min(max(1, PASSES // n), 100)
        radii = RADII if radii is None else radii
    with tempfile.TemporaryDirectory() as nowhere:
        return certify_by(
            method,
            model,
            images.to(where),
            labels,
            Path(nowhere) / "run" if run is None else Path(run),
            radii=radii,
            chunk=chunk,
            described=described,
            classes=classes,
            progress=progress,
            note=trained_otherwise(card, sigma, None if sigma is not None else threat),
        )


def trained_otherwise(card: dict[str, Any], sigma: float | None, threat: Threat | None) -> str:
    """If a model was trained for another noise or radius than it is certified at, a line about it.

    Args:
        card: the model's; empty where nothing is known.
        sigma: of smoothing's noise; None for interval bounds.
        threat: of interval bounds.

    Returns:
        the line; empty if it was trained for the same, or nothing is known.

    Example:
        >>> card = {"recipe": {"objective": {"name": "gaussian", "arguments": {"sigma": 0.5}}}}
        >>> trained_otherwise(card, sigma=0.25, threat=None)
        'trained at σ = 0.5, certified at 0.25'
    """
    recipe = card.get("recipe")
    objective = recipe.get("objective") if isinstance(recipe, dict) else None
    if not isinstance(objective, dict):
        return ""
    name, arguments = objective.get("name"), objective.get("arguments")
    if sigma is not None:
        if name not in NOISY:
            return f"trained without noise ({name}), certified at σ = {sigma:g}"
        trained = (arguments if isinstance(arguments, dict) else {}).get("sigma", NOISE)
        return "" if trained == sigma else f"trained at σ = {trained}, certified at {sigma:g}"
    if name != "interval":
        return f"not trained for interval bounds ({name})"
    trained = card.get("threat")
    before = Threat(trained["norm"], trained["eps"]) if isinstance(trained, dict) else threat
    return "" if before == threat else f"trained at {before}, certified at {threat}"
