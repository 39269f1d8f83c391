"""Metrics as a result file holds them: from logits and scores to JSON, with intervals.

A metric without a value is null, and never zero (detecting mistakes, where no prediction is wrong).
A metric with a 95 % interval is `{"value", "low", "high"}`. The interval of a fraction is Clopper &
Pearson's, that of a calibration error is `calibration_interval`'s, all others are bootstrapped over
images.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from ...data.corruptions import CORRUPTIONS
from ...errors import InputError
from ...intervals import clopper_pearson
from ...types import Labels, Logits
from .. import human as human_labels
from .. import metrics
from ..abstaining import ABSTAIN, Threshold, rates
from ..calibration import Calibrator
from ..calibration_intervals import calibration_interval
from ..conformal import SplitConformal, coverage_interval, report_sets
from ..detection import evaluate_detector
from ..scores import max_softmax
from .measurements import FALSE_POSITIVE_RATES
from .probed_model import wrong

RESAMPLES = 300  # bootstrap draws of an interval
POINTS = 60  # of a risk–coverage curve
BINS = 20  # of a histogram
SPLITS = 20  # random splits over which conformal coverage is measured

Figure = dict[str, float] | None


def finite_or_none(value: float | None) -> float | None:
    """A number as JSON holds it: null where it is not finite."""
    return None if value is None or not math.isfinite(value) else float(value)


def with_interval(metric: Callable[..., float], *arrays: Any, seed: int = 0) -> Figure:
    """A metric with its bootstrap interval; the value alone where too few draws have a value."""
    try:
        value = metric(*arrays)
    except InputError:
        return None
    if not math.isfinite(value):
        return None
    try:
        found = metrics.bootstrap(metric, *arrays, resamples=RESAMPLES, seed=seed)
    except InputError:
        return {"value": float(value)}
    if not (math.isfinite(found.low) and math.isfinite(found.high)):
        return {"value": float(value)}
    return {"value": found.value, "low": found.low, "high": found.high}


def calibration_error(probs: Tensor, labels: Labels, seed: int, **options: Any) -> Figure:
    """A calibration error with its interval; `by_chance` is what a calibrated model would measure.

    Args:
        options: `classwise`, `bins` and `binning` of `calibration_interval`.
    """
    found = calibration_interval(probs, labels, resamples=RESAMPLES, seed=seed, **options)
    return dict(found._asdict())


def _or_none(interval: Callable[[], metrics.Interval]) -> Figure:
    try:
        return dict(interval()._asdict())
    except InputError:
        return None


def fraction(flags: Bool[Tensor, " n"]) -> dict[str, float]:
    """The share of flags that are true, with its Clopper–Pearson interval."""
    count, n = int(flags.sum()), len(flags)
    low, high = clopper_pearson(count, n)
    return {"value": count / n, "low": low, "high": high}


# --- calibration, selective prediction, own mistakes --------------------------------------------


def prediction_metrics(logits: Logits, labels: Labels, seed: int) -> dict[str, Any]:
    """Accuracy, calibration, and how well `max_softmax` finds the wrong predictions."""
    probs, mistakes, scores = logits.double().softmax(1), wrong(logits, labels), max_softmax(logits)

    def of(metric: Callable[..., float], *arrays: Any) -> Figure:
        return with_interval(metric, *arrays, seed=seed)

    def found_negative(s: Any, w: Any) -> float:
        return metrics.aupr(s, w, of="negative")

    return {
        "accuracy": fraction(~mistakes),
        "confidence": {"value": float(probs.amax(1).mean())},
        "ece": calibration_error(probs, labels, seed),
        "ece_equal_mass": calibration_error(probs, labels, seed, binning="equal-mass"),
        "ece_classwise": calibration_error(probs, labels, seed, classwise=True),
        "nll": of(metrics.nll, probs, labels),
        "brier": of(metrics.brier_score, probs, labels),
        "aurc": of(metrics.aurc, scores, mistakes),
        "excess_aurc": of(metrics.excess_aurc, scores, mistakes),
        "risk_at_80_coverage": _or_none(
            lambda: metrics.risk_at_coverage_interval(scores, mistakes)
        ),
        "coverage_at_5_risk": _or_none(lambda: metrics.coverage_at_risk_interval(scores, mistakes)),
        "mistakes_auroc": of(metrics.auroc, scores, mistakes),
        "mistakes_aupr": of(metrics.aupr, scores, mistakes),
        "right_aupr": of(found_negative, scores, mistakes),
        "mistakes_fpr_at_95_tpr": of(metrics.fpr_at_tpr, scores, mistakes),
    }


def diagrams(logits: Logits, labels: Labels) -> dict[str, Any]:
    """The points of a reliability diagram and of a risk–coverage curve."""
    probs, mistakes, scores = logits.double().softmax(1), wrong(logits, labels), max_softmax(logits)
    diagram = metrics.reliability(probs, labels)
    points: dict[str, Any] = {
        "reliability": {
            "images": diagram.images.tolist(),
            "confidence": [finite_or_none(v) for v in diagram.confidence],
            "frequency": [finite_or_none(v) for v in diagram.frequency],
        },
        "risk_coverage": None,
    }
    try:
        curve = metrics.risk_coverage(scores, mistakes)
    except InputError:
        return points
    places = np.unique(np.linspace(0, len(labels) - 1, POINTS).round().astype(int))
    points["risk_coverage"] = {
        "coverage": curve.coverage[places].tolist(),
        "risk": curve.risk[places].tolist(),
    }
    return points


def calibrator_metrics(
    calibrators: Mapping[str, Calibrator], raw: Mapping[str, Logits], labels: Labels
) -> dict[str, Any]:
    """ECE, NLL and Brier score of every calibrator under every condition.

    Args:
        raw: uncalibrated logits, by condition.
    """
    return {
        name: {
            condition: {
                metric_name: finite_or_none(metric(calibrate(logits).double().softmax(1), labels))
                for metric_name, metric in (
                    ("ece", metrics.ece),
                    ("nll", metrics.nll),
                    ("brier", metrics.brier_score),
                )
            }
            for condition, logits in raw.items()
        }
        for name, calibrate in calibrators.items()
    }


def calibration_errors(
    calibrators: Mapping[str, Calibrator], raw: Logits, labels: Labels, seed: int
) -> dict[str, Any]:
    """ECE of every calibrator, with its interval."""
    return {
        name: calibration_error(calibrate(raw).double().softmax(1), labels, seed)
        for name, calibrate in calibrators.items()
    }


def confidence_change(before: Logits, after: Logits, labels: Labels) -> dict[str, Any]:
    """Mean confidence before and after an attack, of right and of wrong predictions."""
    was, now = (z.double().softmax(1).amax(1) for z in (before, after))
    mistakes = wrong(before, labels)
    return {
        "answers_changed": int((before.argmax(1) != after.argmax(1)).sum()),
        **{
            name: {
                "n": int(rows.sum()),
                "before": finite_or_none(float(was[rows].mean())) if bool(rows.any()) else None,
                "after": finite_or_none(float(now[rows].mean())) if bool(rows.any()) else None,
            }
            for name, rows in (("right", ~mistakes), ("wrong", mistakes))
        },
    }


# --- detection ----------------------------------------------------------------------------------


def detection_metrics(clean: Tensor, other: Tensor, seed: int) -> dict[str, Any]:
    """How well a score tells `other` images, which should score higher, from clean ones.

    Args:
        clean, other: scores (N,) and (M,).
    """
    scores = torch.cat([clean, other])
    positive = torch.arange(len(scores)) >= len(clean)

    def value(metric: Callable[[], float]) -> float | None:
        try:
            return finite_or_none(metric())
        except InputError:
            return None

    return {
        "n": len(other),
        "auroc": with_interval(metrics.auroc, scores, positive, seed=seed),
        "aupr": value(lambda: metrics.aupr(scores, positive)),
        "aupr_clean": value(lambda: metrics.aupr(scores, positive, of="negative")),
        "fpr_at_95_tpr": value(lambda: metrics.fpr_at_tpr(scores, positive)),
    }


def detector_metrics(
    calibration: Tensor,
    clean: Tensor,
    attacked: Tensor,
    attacked_logits: Logits,
    right: Bool[Tensor, " n"],
    labels: Labels,
    seed: int,
) -> dict[str, Any]:
    """A detector under one attack: detection metrics, and robust error at each false positive rate.

    Detection metrics tell adversarial images, whose prediction was right and is now wrong, from the
    same images before the attack.

    Args:
        calibration: scores of the calibration images, on which thresholds are chosen.
        clean, attacked: scores of the test images before and after the attack.
        attacked_logits: after the attack.
        right: whether the clean prediction is right.
    """
    mistakes = wrong(attacked_logits, labels)
    broken = mistakes & right
    robust_error: dict[str, Any] = {}
    for rate in FALSE_POSITIVE_RATES:
        try:
            outcome = evaluate_detector(calibration, clean, attacked, mistakes, rate)
        except InputError:
            robust_error[f"{rate:g}"] = None
            continue
        undetected = mistakes & (attacked <= outcome.threshold)
        robust_error[f"{rate:g}"] = {
            **fraction(undetected),
            "clean_rejected": outcome.clean_rejected,
            "threshold": outcome.threshold,
        }
    apart = None
    if bool(broken.any()):
        apart = detection_metrics(clean[broken], attacked[broken], seed)
    return {"told": apart, "robust_error": robust_error}


def histograms(scores: Mapping[str, Tensor]) -> dict[str, Any]:
    """Histograms of scores, as shares of the images, over the same bins.

    Args:
        scores: (N,) by kind: of the same images, clean and under each attack.
    """
    joined = torch.cat([s[s.isfinite()] for s in scores.values()]).double()
    low, high = (float(torch.quantile(joined, q)) for q in (0.005, 0.995))
    if not high > low:
        high = low + 1
    edges = np.linspace(low, high, BINS + 1)
    return {
        "edges": edges.tolist(),
        "shares": {
            name: (
                np.histogram(np.clip(s.double().numpy(), low, high), edges)[0] / max(len(s), 1)
            ).tolist()
            for name, s in scores.items()
        },
    }


# --- corruptions --------------------------------------------------------------------------------


def corruption_metrics(by_type: Mapping[str, Tensor], labels: Labels, seed: int) -> dict[str, Any]:
    """Accuracy and calibration by severity, and accuracy by corruption.

    Args:
        by_type: logits (5, N, K) of each corruption, at severities 1 to 5. Those that are none of
            the benchmark's 15 are in no mean.
    """
    beside = {name: z for name, z in by_type.items() if name not in CORRUPTIONS}
    by_type = {name: z for name, z in by_type.items() if name in CORRUPTIONS} or by_type
    rows = []
    for number in range(5):
        logits = torch.cat([z[number] for z in by_type.values()])
        repeated = labels.repeat(len(by_type))
        probs = logits.double().softmax(1)
        rows.append(
            {
                "severity": number + 1,
                "accuracy": float((~wrong(logits, repeated)).double().mean()),
                "confidence": float(probs.amax(1).mean()),
                "ece": metrics.ece(probs, repeated),
                "nll": finite_or_none(metrics.nll(probs, repeated)),
            }
        )

    def accuracies(group: Mapping[str, Tensor]) -> dict[str, list[float]]:
        return {
            name: [float((~wrong(z, labels)).double().mean()) for z in logits]
            for name, logits in group.items()
        }

    # An image's share of right answers over all corruptions: the intervals are over images.
    right = torch.stack([~wrong(z, labels) for logits in by_type.values() for z in logits])
    return {
        "n": len(labels),
        "mean_accuracy": with_interval(
            lambda r: float(r.mean()), right.double().mean(0), seed=seed
        ),
        "by_severity": rows,
        "by_type": accuracies(by_type),
        **({"beside": accuracies(beside)} if beside else {}),
    }


# --- conformal sets -----------------------------------------------------------------------------


def set_metrics(sets: Bool[np.ndarray, "n k"], labels: Labels) -> dict[str, Any]:
    """Coverage with its interval, sizes, and how many sets are empty or hold every class."""
    report = report_sets(sets, labels)
    covered = torch.from_numpy(sets[np.arange(len(labels)), labels.numpy()])
    return {
        "n": report.n,
        "coverage": fraction(covered),
        "mean_size": report.mean_size,
        "empty": report.empty,
        "trivial": report.trivial,
        "by_size": {
            str(size): {"sets": row.sets, "coverage": row.coverage}
            for size, row in report.by_size.items()
        },
    }


def random_splits(
    calibration: Logits,
    calibration_labels: Labels,
    test: Logits,
    labels: Labels,
    alpha: float,
    score: str,
    seed: int,
) -> dict[str, Any]:
    """Coverage over `SPLITS` random splits.

    Each calibrates on half of the calibration images, drawn at random, and measures coverage on
    half of the test images. The coverage of a split lies in the interval with probability 95 %.
    """
    calibrating, measuring = len(calibration) // 2, max(1, len(test) // 2)
    rng = np.random.default_rng(seed)
    coverages, sizes = [], []
    for number in range(SPLITS):
        own, other = (
            torch.from_numpy(rng.permutation(len(z))[:count])
            for z, count in ((calibration, calibrating), (test, measuring))
        )
        fitted = SplitConformal.fit(
            calibration[own].double().softmax(1),
            calibration_labels[own],
            alpha,
            score=score,
            seed=seed + number,
            items=own,
        )
        report = report_sets(fitted.sets(test[other].double().softmax(1), other), labels[other])
        coverages.append(report.coverage)
        sizes.append(report.mean_size)
    low, high = coverage_interval(alpha, calibrating, measuring)
    return {
        "coverages": coverages,
        "mean": float(np.mean(coverages)),
        "mean_size": float(np.mean(sizes)),
        "interval": [low, high],
        "inside": sum(low <= c <= high for c in coverages),
        "calibration": calibrating,
        "measured": measuring,
    }


def worst_sets(
    fitted: SplitConformal, candidates: list[Logits], labels: Labels, items: Tensor
) -> dict[str, Any]:
    """Coverage and size of the sets when an attacker picks the worst of several images.

    Args:
        candidates: logits (N, K) of each image that the attacker may pick.
    """
    sets = np.stack([fitted.sets(z.double().softmax(1), items) for z in candidates])
    rows = np.arange(len(labels))
    misses = ~sets[:, rows, labels.numpy()]
    return {
        "covered": set_metrics(sets[misses.argmax(0), rows], labels),
        "enlarged": set_metrics(sets[sets.sum(2).argmax(0), rows], labels),
    }


def sets_against_eps(
    fitted: SplitConformal,
    clean: Logits,
    miscovered: list[Logits],
    enlarged: list[Logits],
    eps: list[float],
    labels: Labels,
    items: Tensor,
) -> dict[str, Any]:
    """Coverage and mean size against ε, at radii that rise.

    What an attack does to an image at one radius, it can do at every larger one.

    Args:
        miscovered, enlarged: logits (N, K) under each attack, radius by radius.
    """
    n = len(miscovered[0])
    y, own, rows = labels[:n], items[:n], np.arange(n)
    start = fitted.sets(clean[:n].double().softmax(1), own)
    covered, size = start[rows, y.numpy()], start.sum(1)
    coverages, sizes = [float(covered.mean())], [float(size.mean())]
    for miss, more in zip(miscovered, enlarged, strict=True):
        lower = fitted.sets(miss.double().softmax(1), own)
        higher = fitted.sets(more.double().softmax(1), own)
        covered = covered & lower[rows, y.numpy()]
        size = np.maximum(size, higher.sum(1))
        coverages.append(float(covered.mean()))
        sizes.append(float(size.mean()))
    return {"n": n, "eps": [0.0, *eps], "coverage": coverages, "mean_size": sizes}


# --- abstaining ---------------------------------------------------------------------------------


def abstaining_metrics(
    threshold: Threshold, conditions: Mapping[str, Logits], labels: Labels
) -> dict[str, Any]:
    """Shares of right, wrong and withheld predictions, under each condition and under the worst.

    In `worst`, an attacker picks the condition for each image: best one that makes the prediction
    wrong, else one that makes the model abstain.
    """

    def predict(logits: Logits) -> Tensor:
        sure = max_softmax(logits) < threshold.value
        return torch.where(sure, logits.argmax(1), ABSTAIN)

    predictions = {name: predict(logits) for name, logits in conditions.items()}
    every = torch.stack(list(predictions.values()))
    harm = torch.where(every == labels, 0, torch.where(every == ABSTAIN, 1, 2))
    worst = every.gather(0, harm.argmax(0, keepdim=True)).squeeze(0)

    def shares(prediction: Tensor) -> dict[str, Any]:
        found = rates(prediction, labels)
        return {
            "right": found.right,
            "wrong": found.wrong,
            "abstained": found.abstained,
            "risk": finite_or_none(found.risk),
        }

    return {
        "promise": threshold.promise,
        "threshold": finite_or_none(threshold.value),
        "rates": {name: shares(prediction) for name, prediction in predictions.items()}
        | {"worst": shares(worst)},
    }


# --- people -------------------------------------------------------------------------------------


def human_metrics(
    human: Float[Tensor, "n k"],
    conditions: Mapping[str, Logits],
    clean: Logits,
    broken: Bool[Tensor, " n"],
    labels: Labels,
    seed: int,
) -> dict[str, Any]:
    """The model's uncertainty against people's, and whether attacks break ambiguous images first.

    Args:
        human: (N, K), the share of people who chose each class.
        conditions: logits (N, K) of clean and attacked images.
        clean: logits (N, K) of clean images.
        broken: whether the suite broke the prediction.
    """
    found: dict[str, Any] = {}
    for name, logits in conditions.items():
        try:
            compared = human_labels.compare(logits.double().softmax(1), human, max_softmax(logits))
        except InputError as error:
            found[name] = {"unavailable": str(error)}
            continue
        found[name] = {key: finite_or_none(value) for key, value in compared._asdict().items()}
    right = ~wrong(clean, labels)
    h = human.double()
    entropy = -(h * h.clamp_min(1e-12).log()).sum(1)
    return {
        "n": len(labels),
        "compared": found,
        # P(people are less sure of a broken image than of one that stands).
        "broken_first": with_interval(metrics.auroc, entropy[right], broken[right], seed=seed),
    }
