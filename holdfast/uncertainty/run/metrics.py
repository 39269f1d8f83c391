"""From what the model said to figures: every metric, clean and under attack.

Figures are plain JSON. A metric without a value (none of the images is wrong, say) is null, never
zero; one that has an interval is `{"value", "low", "high"}`, 95 %: of counts by Clopper & Pearson,
of calibration errors by `calibration_interval`, of all else by bootstrap over images.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from ...errors import InputError
from ...intervals import clopper_pearson
from ...types import Labels, Logits
from .. import human as people
from .. import metrics
from ..abstaining import ABSTAIN, Threshold, rates
from ..calibration import Calibrator
from ..calibration_intervals import calibration_interval
from ..conformal import SplitConformal, coverage_interval, report_sets
from ..detection import verifier
from ..scores import max_softmax
from .measurements import FALSE_POSITIVES
from .probed import wrong

RESAMPLES = 300
POINTS = 60  # of a risk–coverage curve
BINS = 20  # of a histogram
SPLITS = 20

Figure = dict[str, float] | None


def plain(value: float | None) -> float | None:
    """A number as JSON holds it: null where it is not finite."""
    return None if value is None or not math.isfinite(value) else float(value)


def measured(metric: Callable[..., float], *arrays: Any, seed: int = 0) -> Figure:
    """A metric with its bootstrap interval; only its value where too few draws have one."""
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


def miscalibrated(probs: Tensor, labels: Labels, seed: int, **how: Any) -> Figure:
    """A calibration error with its interval, and what a calibrated model measures `by_chance`.

    Args:
        how: `classwise`, `bins`, `binning` of `calibration_interval`.
    """
    found = calibration_interval(probs, labels, resamples=RESAMPLES, seed=seed, **how)
    return dict(found._asdict())


def _or_none(found: Callable[[], metrics.Interval]) -> Figure:
    try:
        return dict(found()._asdict())
    except InputError:
        return None


def counted(flags: Bool[Tensor, " n"]) -> dict[str, float]:
    """A share with its Clopper–Pearson interval."""
    count, n = int(flags.sum()), len(flags)
    low, high = clopper_pearson(count, n)
    return {"value": count / n, "low": low, "high": high}


# --- calibration, selective prediction, own mistakes --------------------------------------------


def answers(logits: Logits, labels: Labels, seed: int) -> dict[str, Any]:
    """All metrics of one set of answers; the score behind ranks is the maximum softmax."""
    probs, mistakes, scores = logits.double().softmax(1), wrong(logits, labels), max_softmax(logits)

    def of(metric: Callable[..., float], *arrays: Any) -> Figure:
        return measured(metric, *arrays, seed=seed)

    def found_negative(s: Any, w: Any) -> float:
        return metrics.aupr(s, w, of="negative")

    return {
        "accuracy": counted(~mistakes),
        "confidence": {"value": float(probs.amax(1).mean())},
        "ece": miscalibrated(probs, labels, seed),
        "ece_equal_mass": miscalibrated(probs, labels, seed, binning="equal-mass"),
        "ece_classwise": miscalibrated(probs, labels, seed, classwise=True),
        "nll": of(metrics.negative_log_likelihood, probs, labels),
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


def drawings(logits: Logits, labels: Labels) -> dict[str, Any]:
    """What the diagrams of one set of answers are drawn from."""
    probs, mistakes, scores = logits.double().softmax(1), wrong(logits, labels), max_softmax(logits)
    diagram = metrics.reliability(probs, labels)
    drawn: dict[str, Any] = {
        "reliability": {
            "images": diagram.images.tolist(),
            "confidence": [plain(v) for v in diagram.confidence],
            "frequency": [plain(v) for v in diagram.frequency],
        },
        "risk_coverage": None,
    }
    try:
        curve = metrics.risk_coverage(scores, mistakes)
    except InputError:
        return drawn
    places = np.unique(np.linspace(0, len(labels) - 1, POINTS).round().astype(int))
    drawn["risk_coverage"] = {
        "coverage": curve.coverage[places].tolist(),
        "risk": curve.risk[places].tolist(),
    }
    return drawn


def calibrators(
    methods: Mapping[str, Calibrator], raw: Mapping[str, Logits], labels: Labels
) -> dict[str, Any]:
    """ECE, NLL and Brier score of every scaling under every condition."""
    return {
        method: {
            condition: {
                name: plain(metric(scale(logits).double().softmax(1), labels))
                for name, metric in (
                    ("ece", metrics.expected_calibration_error),
                    ("nll", metrics.negative_log_likelihood),
                    ("brier", metrics.brier_score),
                )
            }
            for condition, logits in raw.items()
        }
        for method, scale in methods.items()
    }


def calibration_errors(
    methods: Mapping[str, Calibrator], raw: Logits, labels: Labels, seed: int
) -> dict[str, Any]:
    """ECE of every scaling, with its interval."""
    return {
        method: miscalibrated(scale(raw).double().softmax(1), labels, seed)
        for method, scale in methods.items()
    }


def confidence_moved(before: Logits, after: Logits, labels: Labels) -> dict[str, Any]:
    """Mean confidence of right answers (pushed down) and of wrong ones (pushed up)."""
    was, now = (z.double().softmax(1).amax(1) for z in (before, after))
    mistakes = wrong(before, labels)
    return {
        "answers_changed": int((before.argmax(1) != after.argmax(1)).sum()),
        **{
            name: {
                "n": int(rows.sum()),
                "before": plain(float(was[rows].mean())) if bool(rows.any()) else None,
                "after": plain(float(now[rows].mean())) if bool(rows.any()) else None,
            }
            for name, rows in (("right", ~mistakes), ("wrong", mistakes))
        },
    }


# --- detection ----------------------------------------------------------------------------------


def detected(clean: Tensor, other: Tensor, seed: int) -> dict[str, Any]:
    """How well a score tells `other` images, which should score higher, from clean ones."""
    scores = torch.cat([clean, other])
    positive = torch.arange(len(scores)) >= len(clean)

    def value(metric: Callable[[], float]) -> float | None:
        try:
            return plain(metric())
        except InputError:
            return None

    return {
        "n": len(other),
        "auroc": measured(metrics.auroc, scores, positive, seed=seed),
        "aupr": value(lambda: metrics.aupr(scores, positive)),
        "aupr_clean": value(lambda: metrics.aupr(scores, positive, of="negative")),
        "fpr_at_95_tpr": value(lambda: metrics.fpr_at_tpr(scores, positive)),
    }


def detector(
    validation: Tensor,
    clean: Tensor,
    attacked: Tensor,
    attacked_logits: Logits,
    right: Bool[Tensor, " n"],
    labels: Labels,
    seed: int,
) -> dict[str, Any]:
    """A detector under one attack: told apart, and robust error at each false positive rate.

    Adversarial images are those that were right and are broken; they are told from the same
    images, clean.
    """
    mistakes = wrong(attacked_logits, labels)
    broken = mistakes & right
    robust_error: dict[str, Any] = {}
    for share in FALSE_POSITIVES:
        try:
            verdict = verifier(validation, clean, attacked, mistakes, share)
        except InputError:
            robust_error[f"{share:g}"] = None
            continue
        undetected = mistakes & (attacked <= verdict.threshold)
        robust_error[f"{share:g}"] = {
            **counted(undetected),
            "clean_rejected": verdict.clean_rejected,
            "threshold": verdict.threshold,
        }
    told = detected(clean[broken], attacked[broken], seed) if bool(broken.any()) else None
    return {"told": told, "robust_error": robust_error}


def histograms(scores: Mapping[str, Tensor]) -> dict[str, Any]:
    """How often each kind of image has which score, as shares on one scale.

    Args:
        scores: of the same images, clean and attacked: those that an attack breaks.
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


def corrupted(by_type: Mapping[str, Tensor], labels: Labels, seed: int) -> dict[str, Any]:
    """Accuracy and calibration by severity, and accuracy by type.

    Args:
        by_type: (5, N, K) logits of each corruption.
    """
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
                "ece": metrics.expected_calibration_error(probs, repeated),
                "nll": plain(metrics.negative_log_likelihood(probs, repeated)),
            }
        )
    by_name = {
        name: [float((~wrong(z, labels)).double().mean()) for z in logits]
        for name, logits in by_type.items()
    }
    # An image's share of right answers over all corruptions: the intervals are over images.
    right = torch.stack([~wrong(z, labels) for logits in by_type.values() for z in logits])
    return {
        "n": len(labels),
        "mean_accuracy": measured(lambda r: float(r.mean()), right.double().mean(0), seed=seed),
        "by_severity": rows,
        "by_type": by_name,
    }


# --- conformal sets -----------------------------------------------------------------------------


def sets_told(sets: Bool[np.ndarray, "n k"], labels: Labels) -> dict[str, Any]:
    """Coverage with its interval, sizes, and how many sets say nothing."""
    told = report_sets(sets, labels)
    held = torch.from_numpy(sets[np.arange(len(labels)), labels.numpy()])
    return {
        "n": told.n,
        "coverage": counted(held),
        "mean_size": told.mean_size,
        "empty": told.empty,
        "trivial": told.trivial,
        "by_size": {
            str(size): {"sets": row.sets, "coverage": row.coverage}
            for size, row in told.by_size.items()
        },
    }


def random_splits(
    held: Logits,
    held_labels: Labels,
    test: Logits,
    labels: Labels,
    alpha: float,
    score: str,
    seed: int,
) -> dict[str, Any]:
    """Coverage over random splits: half of the validation images calibrate, half of the test
    images are covered or not.

    The interval is where the coverage of one such split lies 95 times of 100.
    """
    calibration, measuring = len(held) // 2, max(1, len(test) // 2)
    rng = np.random.default_rng(seed)
    coverages, sizes = [], []
    for number in range(SPLITS):
        own, other = (
            torch.from_numpy(rng.permutation(len(z))[:count])
            for z, count in ((held, calibration), (test, measuring))
        )
        fitted = SplitConformal.fit(
            held[own].double().softmax(1),
            held_labels[own],
            alpha,
            score=score,
            seed=seed + number,
            items=own,
        )
        told = report_sets(fitted.sets(test[other].double().softmax(1), other), labels[other])
        coverages.append(told.coverage)
        sizes.append(told.mean_size)
    low, high = coverage_interval(alpha, calibration, measuring)
    return {
        "coverages": coverages,
        "mean": float(np.mean(coverages)),
        "mean_size": float(np.mean(sizes)),
        "interval": [low, high],
        "inside": sum(low <= c <= high for c in coverages),
        "calibration": calibration,
        "measured": measuring,
    }


def worst_sets(
    fitted: SplitConformal, candidates: list[Logits], labels: Labels, items: Tensor
) -> dict[str, Any]:
    """What is left of one kind of sets when the attacker picks, image by image.

    Args:
        candidates: logits of the images that the attacker may choose from.
    """
    sets = np.stack([fitted.sets(z.double().softmax(1), items) for z in candidates])
    rows = np.arange(len(labels))
    misses = ~sets[:, rows, labels.numpy()]
    return {
        "covered": sets_told(sets[misses.argmax(0), rows], labels),
        "enlarged": sets_told(sets[sets.sum(2).argmax(0), rows], labels),
    }


def against_eps(
    fitted: SplitConformal,
    clean: Logits,
    miscovered: list[Logits],
    enlarged: list[Logits],
    eps: list[float],
    labels: Labels,
    items: Tensor,
) -> dict[str, Any]:
    """Coverage and mean size against ε; an image lost at one radius is lost at every larger one."""
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


def abstaining(
    threshold: Threshold, conditions: Mapping[str, Logits], labels: Labels
) -> dict[str, Any]:
    """Right, wrong and abstained under each condition, and when the attacker picks image by image:
    a wrong answer rather than none, and none rather than a right one."""

    def said(logits: Logits) -> Tensor:
        sure = max_softmax(logits) < threshold.value
        return torch.where(sure, logits.argmax(1), ABSTAIN)

    given = {name: said(logits) for name, logits in conditions.items()}
    everything = torch.stack(list(given.values()))
    harm = torch.where(everything == labels, 0, torch.where(everything == ABSTAIN, 1, 2))
    worst = everything.gather(0, harm.argmax(0, keepdim=True)).squeeze(0)

    def told(answer: Tensor) -> dict[str, Any]:
        found = rates(answer, labels)
        return {
            "right": found.right,
            "wrong": found.wrong,
            "abstained": found.abstained,
            "risk": plain(found.risk),
        }

    return {
        "promise": threshold.promise,
        "threshold": plain(threshold.value),
        "rates": {name: told(answer) for name, answer in given.items()} | {"worst": told(worst)},
    }


# --- people -------------------------------------------------------------------------------------


def beside_people(
    human: Float[Tensor, "n k"],
    conditions: Mapping[str, Logits],
    clean: Logits,
    broken: Bool[Tensor, " n"],
    labels: Labels,
    seed: int,
) -> dict[str, Any]:
    """Model against human uncertainty, and whether attacks break ambiguous images first."""
    found: dict[str, Any] = {}
    for name, logits in conditions.items():
        try:
            compared = people.compare(logits.double().softmax(1), human, max_softmax(logits))
        except InputError as error:
            found[name] = {"unavailable": str(error)}
            continue
        found[name] = {key: plain(value) for key, value in compared._asdict().items()}
    right = ~wrong(clean, labels)
    h = human.double()
    entropy = -(h * h.clamp_min(1e-12).log()).sum(1)
    return {
        "n": len(labels),
        "compared": found,
        # P(people are less sure of a broken image than of one that stands).
        "broken_first": measured(metrics.auroc, entropy[right], broken[right], seed=seed),
    }
