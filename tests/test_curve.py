"""The security curve is true: it passes through the verdict, and is exact where that is known."""

from __future__ import annotations

import numpy as np
import pytest
from linear_classifiers import linear

import holdfast as hf
from holdfast.attacks import FGSM


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
