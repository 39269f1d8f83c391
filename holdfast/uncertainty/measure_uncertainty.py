"""`measure_uncertainty`: from a model and tensors to how sure it is, and whether that holds."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from .. import draws
from ..attacks.suites import suite_named
from ..data import out_of_distribution as other_images
from ..distributed import own_device
from ..errors import InputError
from ..evaluation.cards import threat_of
from ..inputs import checked_device, checked_stored_data, checked_threat
from ..models.modes import evaluating
from ..models.wrapper import standard_defaults, wrapped
from ..runs.records import UncertaintyRecord
from ..stored import NotInMemory, part
from ..threat import Threat
from ..types import Images, Model
from .conformal import robust_alpha
from .inputs import check_every_class, checked_share
from .run.measure import measure
from .run.request import LabelledImages, Request

OTHERS = 300  # images of each out-of-distribution kind


def measure_uncertainty(
    model: Model,
    images: Images | NotInMemory,
    labels: Int64[Tensor, " n"] | None = None,
    *,
    calibration: Any,
    attack: str = "swift",
    threat: Threat | None = None,
    training: Any = None,
    ensemble: Sequence[Model] = (),
    ood: Sequence[str | Path] = ("noise", "textures", "digits"),
    human: Float[Tensor, "n k"] | None = None,
    classes: Sequence[str] | None = None,
    alpha: float = 0.1,
    risk: float = 0.05,
    coverage: float = 0.8,
    radius: float = 0.125,
    sigma: float = 0.125,
    seed: int = 0,
    device: str | None = None,
    run: Path | str | None = None,
    progress: bool = False,
    described: dict[str, Any] | None = None,
) -> UncertaintyRecord:
    """Measure how sure a model is, and whether that can be believed.

    Calibration, abstaining, conformal sets and detectors are measured on clean, corrupted,
    out-of-distribution and attacked images. There are attacks on each of them, by an attacker who
    knows it.

    Args:
        model: images to logits (N, K), which PyTorch can differentiate.
        images: float32 (N, C, H, W) in [0, 1], or whatever else `holdfast.evaluate` takes; what is
            measured and attacked.
        labels: int64 (N,), the true classes.
        calibration: a pair (images, labels), or whatever else brings both: images that the model
            was not trained on, and none of `images`. A random half fits calibrators, the other
            half calibrates thresholds and conformal sets.
        attack: the suite that attacks predictions, by its name in `holdfast.attacks.SUITES`.
        threat: what attacks may do; by default what the model was trained for, else L∞ 8/255.
        training: a pair like `calibration` of training images, whose features detectors compare
            with; by default the half that fits calibrators.
        ensemble: further models, which form a deep ensemble with this one.
        ood: out-of-distribution images: `noise`, `textures`, `digits`, or folders (see
            `holdfast.data.out_of_distribution.load`).
        human: float (N, K), the share of people who chose each class for each of `images`.
        classes: names of the classes; by default those on the model's card, else 0, 1, …
        alpha: share of conformal sets that may miss the true class.
        risk: share of wrong predictions that abstaining promises to stay below.
        coverage: share of images that abstaining promises to predict.
        radius: of robust conformal sets, L2, in image units.
        sigma: standard deviation of the noise of robust conformal sets, in image units.
        seed: of all random draws.
        device: where to work; by default the GPU where there is one.
        run: a folder for steps and result; the same call goes on where it was interrupted.
        progress: show a progress bar (plain lines where there is no terminal).
        described: for `result.json`: what the model and the data are.

    Returns:
        what `result.json` holds.

    Raises:
        InputError: options out of range; bad images or labels; too few calibration images; a model
            whose logits are not finite, or that cannot be differentiated; a folder that holds
            another run.

    Example:
        >>> import torch, holdfast as hf
        >>> model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(48, 2))
        >>> x, y = torch.rand(60, 3, 4, 4), torch.arange(60) % 2
        >>> found = hf.measure_uncertainty(
        ...     model, x[:10], y[:10], calibration=(x[10:], y[10:]), attack="fgsm", ood=["noise"]
        ... )
        >>> found.n, found.suite
        (10, 'fgsm')
    """
    checked_share("alpha", alpha)
    checked_share("risk", risk)
    checked_share("coverage", coverage)
    robust_alpha(alpha, radius, sigma)
    card = getattr(model, "card", {})
    threat = threat_of(None, None, card) if threat is None else checked_threat(threat)
    suite = suite_named(attack).tuned(threat)
    for stage in suite.stages:
        stage.attack.check_norm(threat)
    test = _labelled(images, labels)
    fitting, calibrating = _halves(_labelled(*_both("calibration", calibration)), alpha, seed)
    known = fitting if training is None else _labelled(*_both("training", training))
    where = checked_device(own_device(checked_device(device)))
    for each in (model, *ensemble):
        if isinstance(each, torch.nn.Module):
            each.to(where)
    if classes is None:
        classes = card.get("classes") or _numbered(model, test, where)
    for half in (fitting, calibrating):
        check_every_class(half.labels.numpy(), len(classes))
    c, h, w = test.images.shape[1:]
    request = Request(
        model=model,
        members=list(ensemble),
        threat=threat,
        suite=suite,
        test=test,
        fitting=fitting,
        calibration=calibrating,
        more_test=test,
        more_calibration=calibrating,
        training=known,
        classes=tuple(classes),
        out_of_distribution=[
            other_images.load(source, (c, h, w), OTHERS, seed=seed) for source in dict.fromkeys(ood)
        ],
        human=None if human is None else torch.as_tensor(human),
        alpha=alpha,
        risk=risk,
        coverage=coverage,
        radius=radius,
        sigma=sigma,
        seed=seed,
        device=where,
    )
    folder = None if run is None else Path(run)
    return measure(request, folder, described=described, progress=progress)


def _both(name: str, pair: Any) -> tuple[Any, Any]:
    """Images and labels of a pair, or of what brings both."""
    if not isinstance(pair, tuple | list):
        if pair is None:
            raise InputError(f"{name} must be a pair (images, labels), not None")
        return pair, None
    if len(pair) != 2:
        raise InputError(f"{name} must be a pair (images, labels), not {len(pair)} things")
    return pair[0], pair[1]


def _labelled(images: Any, labels: Any) -> LabelledImages:
    """Images and labels, checked, on the CPU."""
    with standard_defaults():
        x, y = checked_stored_data(images, labels)
    return LabelledImages(x.to("cpu"), y.cpu(), torch.arange(len(y)))


def _halves(
    images: LabelledImages, alpha: float, seed: int
) -> tuple[LabelledImages, LabelledImages]:
    """The fitting and the calibration split: random halves, however the images are sorted.

    Raises:
        InputError: too few images for conformal sets at `alpha`.
    """
    seeds = draws.item_seeds(seed, "split", "calibration", images.items)
    order = draws.uniform(seeds, 0).argsort(stable=True)
    fitting, calibrating = (
        LabelledImages(part(images.images, rows), images.labels[rows], rows)
        for rows in (order[: len(order) // 2], order[len(order) // 2 :])
    )
    if len(calibrating) * alpha < 1 or not len(fitting):
        raise InputError(
            f"{len(images)} calibration images are too few for alpha = {alpha}: give at least "
            f"{2 * math.ceil(1 / alpha)}, because one half of them fits calibrators"
        )
    return fitting, calibrating


def _numbered(model: Model, test: LabelledImages, device: torch.device) -> list[str]:
    """A name for each of the model's classes."""
    wrapped_model = wrapped(model)
    with torch.no_grad(), evaluating(wrapped_model):
        logits = wrapped_model(test.floats[:1].to(device))
    return [str(k) for k in range(logits.shape[1])]
