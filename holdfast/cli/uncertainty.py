"""`holdfast uncertainty`: what the names on the command line stand for."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from .. import data as datasets
from .. import draws
from ..attacks.suites import SUITES, suite_named
from ..data import out_of_distribution as foreigners
from ..data.base import DataSet, Split
from ..errors import InputError
from ..evaluation.cards import (
    check_classes,
    remark,
    threat_of,
    unseen_validation,
    what_was_measured,
)
from ..inputs import checked_device
from ..load import load
from ..uncertainty.conformal import robust_alpha
from ..uncertainty.human import read_human
from ..uncertainty.inputs import checked_share
from ..uncertainty.run.measure import measure
from ..uncertainty.run.request import LabelledImages, Request

USUAL_SUITE = "swift" if "swift" in SUITES else "apgd"
CALIBRATION = 2000  # validation images: half for scalings, half for thresholds and sets
TRAINING = 2000  # training images whose features detectors know
FOREIGN = 300  # images of each other kind
MORE = 10  # images that are only looked at, for each that is attacked
COVERAGE = 0.8  # what abstaining promises to answer


def _drawn(split: Split, count: int, seed: int, name: str) -> LabelledImages:
    """Images of a split at random, in random order."""
    keys = draws.uniform(draws.item_seeds(seed, "split", name, torch.arange(len(split))), 0)
    rows = keys.argsort(stable=True)[:count]
    return LabelledImages(
        torch.from_numpy(split.images[rows.numpy()]),
        torch.from_numpy(split.labels[rows.numpy()]),
        rows,
    )


def _check_every_class(dataset: DataSet, part: LabelledImages, *, whole: bool) -> None:
    """InputError if a class is missing from a half of the calibration images."""
    absent = dataset.absent(part.labels.numpy())
    if absent:
        n = len(dataset.validation)
        do = (
            f"all {n} validation images are used already: give the validation split more of it"
            if whole
            else f"raise --calibration (the validation split has {n} images)"
        )
        raise InputError(
            f"one half of --calibration, {len(part)} validation images, has no image of class"
            f" {', '.join(absent[:5])}{', …' if len(absent) > 5 else ''}; {do}"
        )


def _checked(
    alpha: float, risk: float, radius: float, sigma: float, limit: int | None, calibration: int
) -> None:
    checked_share("alpha", alpha)
    checked_share("risk", risk)
    robust_alpha(alpha, radius, sigma)
    if radius <= 0:
        raise InputError(f"--radius must be above 0, not {radius}")
    if calibration < 2:
        raise InputError(f"--calibration must be at least 2, not {calibration}")
    if limit is not None and limit < 1:
        raise InputError(f"--limit must be at least 1, not {limit}")


def uncertainty_command(
    model: str,
    data: str,
    out: Path,
    *,
    attack: str | None = None,
    norm: str | None = None,
    eps: str | None = None,
    limit: int | None = None,
    calibration: int = CALIBRATION,
    alpha: float = 0.1,
    risk: float = 0.05,
    radius: float = 0.125,
    sigma: float = 0.125,
    ood: Sequence[str] = (),
    human: str | None = None,
    ensemble: Sequence[str] = (),
    pixels: str | None = None,
    size: int | None = None,
    seed: int = 0,
    device: str | None = None,
    progress: bool = True,
) -> dict[str, Any]:
    """Load, measure, write the run folder.

    Args:
        model, ensemble: as `holdfast.load` takes them.
        data: as `holdfast.data.load` takes it; everything is fitted on its validation split, and
            the test split is measured.
        attack: the suite that breaks labels; None: `swift` where there is one.
        limit: only the first test images.
        calibration: validation images used, half for scalings, half for thresholds and sets.
        alpha: share of conformal sets that may miss.
        risk: share of wrong answers that abstaining promises to stay below.
        radius, sigma: of the robust sets: the L2 radius of the promise, and the noise.
        ood: further foreign images, as `holdfast.data.out_of_distribution.load` takes them;
            `noise`,
            `textures`, and the digits where they are not the data itself, are always there.
        human: a file of human label distributions of the whole test split.
        pixels: what the pixels are, in words.

    Returns:
        what `result.json` holds.

    Raises:
        InputError: any of these is bad; one line.
    """
    _checked(alpha, risk, radius, sigma, limit, calibration)
    suite = suite_named(attack or USUAL_SUITE)
    network = load(model)
    members = [load(member) for member in ensemble]
    card = getattr(network, "card", {})
    threat = threat_of(norm, eps, card)
    for stage in suite.stages:
        stage.attack.check_norm(threat)
    dataset = datasets.load(data, size=size)
    check_classes(model, card, dataset)
    asked = zip((model, *ensemble), (network, *members), strict=True)
    validation = unseen_validation(
        dataset, {name: getattr(each, "card", {}) for name, each in asked}
    )
    test = dataset.test
    first = len(test) if limit is None else min(limit, len(test))
    remark(dataset, "test", first)
    shuffled = _drawn(validation, len(validation), seed, "validation")
    drawn = min(calibration, len(shuffled))
    fitting, calibrating = shuffled[: drawn // 2], shuffled[drawn // 2 : drawn]
    for part in (fitting, calibrating):
        _check_every_class(dataset, part, whole=drawn == len(shuffled))
    if len(calibrating) * alpha < 1:
        raise InputError(
            f"{len(calibrating)} calibration images are too few for alpha = {alpha}: "
            f"--calibration at least {2 * math.ceil(1 / alpha)}"
        )
    more = min(len(test), MORE * first)
    more_test = LabelledImages(
        torch.from_numpy(test.images[:more]),
        torch.from_numpy(test.labels[:more].copy()),
        torch.arange(more),
    )
    people = None
    if human is not None:
        read = read_human(human, test.labels, classes=len(dataset.classes))
        people = torch.from_numpy(read[:first])
    shape = test.images.shape[1:]
    usual = [*foreigners.GENERATED, *(["digits"] if dataset.name != "digits" else [])]
    where = checked_device(device)
    for each in (network, *members):
        if isinstance(each, torch.nn.Module):
            each.to(where)
    request = Request(
        model=network,
        members=members,
        threat=threat,
        suite=suite,
        test=more_test[:first],
        fitting=fitting,
        calibration=calibrating,
        more_test=more_test,
        more_calibration=shuffled[drawn // 2 : max(drawn, MORE * first)],
        training=_drawn(dataset.train, TRAINING, seed, "training"),
        classes=tuple(dataset.classes),
        out_of_distribution=[
            foreigners.load(source, shape, FOREIGN, seed=seed)
            for source in dict.fromkeys([*usual, *ood])
        ],
        human=people,
        alpha=alpha,
        risk=risk,
        coverage=COVERAGE,
        radius=radius,
        sigma=sigma,
        seed=seed,
        device=where,
    )
    described = what_was_measured(model, network, dataset, "test", first, pixels)
    return measure(request, out, described=described, progress=progress)
