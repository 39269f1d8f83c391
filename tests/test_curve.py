"""The security curve is true: it passes through the verdict, and is exact where that is known."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from linear_classifiers import linear

import holdfast as hf
from holdfast.attacks import FGSM
from holdfast.evaluation.curve import MULTIPLES, security_curve
from holdfast.threat import Threat


@pytest.mark.parametrize(("norm", "eps"), [("linf", 0.03), ("l2", 0.1)])
def test_the_curve_of_a_linear_classifier_is_that_of_its_distances(norm, eps) -> None:
    model = linear(4, "free", count=12)
    result = hf.evaluate(
        model, model.images, model.labels, (norm, eps), "swift", curve=True, batch_size=16
    )
    distances = model.optimum(norm)
    assert result.curve is not None and result.curve.n == len(distances)
    for point in result.curve.points:
        exact = float((distances > point.eps).mean())
        # What lies within a hundredth of the radius may fall to either side.
        near = float((np.abs(distances - point.eps) < 0.01 * point.eps).mean())
        assert abs(point.robust_accuracy - exact) <= near + 1e-9, (point, exact)


@pytest.mark.parametrize("suite", ["swift", FGSM()])
def test_the_curve_passes_through_the_verdict(suite) -> None:
    model = linear(4, "free", count=12)
    result = hf.evaluate(
        model, model.images, model.labels, ("linf", 0.04), suite, curve=True, batch_size=16
    )
    at = {round(point.eps, 9): point.robust_accuracy for point in result.curve.points}
    assert at[0.0] == result.standard_accuracy
    assert at[0.04] == result.robust_accuracy
    values = [point.robust_accuracy for point in result.curve.points]
    assert values == sorted(values, reverse=True)


@pytest.mark.parametrize("norm", ["linf", "l2", "l1"])
@pytest.mark.parametrize("shown", ["nothing", "points just across", "points far across"])
def test_the_curve_asks_little_and_is_exact_whatever_was_found_before(norm, shown) -> None:
    """Of images that fall at known distances: from the verdict at ε alone, or from points too."""
    model = linear(4, "free", count=24)
    distances = torch.from_numpy(model.optimum(norm)).float()
    threat, asked = Threat(norm, float(distances.median())), [0]

    def counting(images: torch.Tensor) -> torch.Tensor:
        asked[0] += len(images)
        return model(images)

    beyond = {"nothing": 0.0, "points just across": 1.02, "points far across": 2.0}[shown]
    points = threat.project(
        hf.attacks.APGD(loss="margin", steps=60)(
            model, model.images, model.labels, threat.times(beyond or 1.0), seed=5
        ),
        model.images,
        distances * beyond,
    )
    known = torch.where(distances <= threat.eps, threat.eps, torch.inf)
    known = torch.where(model(model.images).argmax(1) == model.labels, known, 0.0)
    goals = torch.full_like(model.labels, -1)
    curve = security_curve(
        model, counting, model.images, model.labels, threat, 0, goals, known, points
    )
    right = int((known > 0).sum())
    for point, multiple in zip(curve.points[1:], MULTIPLES, strict=False):
        exact = int((distances > threat.eps * multiple).sum())
        off = (distances / threat.eps - multiple).abs()
        near = int((off < {"linf": 0.02, "l2": 0.02, "l1": 0.1}[norm] * multiple).sum())
        assert abs(round(point.robust_accuracy * len(distances)) - exact) <= near, (point, exact)
    runs = {"linf": 20, "l2": 20, "l1": 265}[norm]  # looks of a search whose image stands, at most
    assert asked[0] < (2 + 3 * (11 + runs)) * right
