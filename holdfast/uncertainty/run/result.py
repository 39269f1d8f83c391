"""Every figure of a run, from the outcomes of its steps. Nothing here runs a model."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from jaxtyping import Bool
from torch import Tensor

from ...errors import InputError
from ...runs.parts import Done
from ...types import Logits
from ..abstaining import Threshold, threshold_for_coverage, threshold_for_risk
from ..calibration import Calibrator, TemperatureScaling
from ..conformal import NONCONFORMITY_SCORES, SplitConformal
from ..scores import max_softmax
from . import figures
from .measurements import AWARE
from .probed_model import wrong
from .request import Request


@dataclass(frozen=True, eq=False)
class Findings:
    """All that a run has found out.

    Attributes:
        request: what was to be measured.
        temperature: the calibrator that all but the calibrators' own figures are measured with.
        calibrators: every calibrator, by name.
        logits: uncalibrated logits (N, K) of clean images, by split: `fitting`,
            `more_calibration`, `more_test`.
        suite: the outcome of `measurements.attack_predictions`.
        outcomes: those of the other steps, by name.
    """

    request: Request
    temperature: TemperatureScaling
    calibrators: Mapping[str, Calibrator]
    logits: Mapping[str, Logits]
    suite: Done
    outcomes: Mapping[str, Done]

    @property
    def scored(self) -> Mapping[str, Tensor]:
        """Logits and scores as `measurements.score_images` names them."""
        return self.outcomes["known"].tensors

    @property
    def detectors(self) -> list[str]:
        """Names of the detectors."""
        return self.outcomes["known"].figures["scores"]

    @property
    def evasions(self) -> dict[str, Done]:
        """Outcomes of `measurements.attack_detector`, by detector."""
        names = {name: f"evade-{name}" for name in AWARE}
        return {name: self.outcomes[s] for name, s in names.items() if s in self.outcomes}

    @cached_property
    def more_calibration(self) -> Logits:
        """Calibrated logits of `request.more_calibration`."""
        return self.temperature(self.logits["more_calibration"])

    @cached_property
    def more_test(self) -> Logits:
        """Calibrated logits of `request.more_test`."""
        return self.temperature(self.logits["more_test"])

    @property
    def calibration(self) -> Logits:
        """Calibrated logits of the calibration split."""
        return self.more_calibration[: len(self.request.calibration)]

    @cached_property
    def conditions(self) -> dict[str, Logits]:
        """Calibrated logits of the test images: clean, under the suite, and with their confidence
        attacked."""
        return {
            "clean": self.more_test[: len(self.request.test)],
            "suite": self.scored["suite/logits"],
            "miscalibrate": self.outcomes["miscalibrate"].tensors["logits"],
        }

    @cached_property
    def right(self) -> Bool[Tensor, " n"]:
        """Whether the prediction of each clean test image is right."""
        return ~wrong(self.conditions["clean"], self.request.test.labels)


def thresholds_of(
    request: Request, calibration: Logits
) -> tuple[dict[str, Threshold], dict[str, str]]:
    """Thresholds of abstaining, and for each that keeps no promise the reason.

    Args:
        calibration: calibrated logits of the calibration split.

    Returns:
        thresholds, and reasons, by what is promised: `coverage` or `risk`.
    """
    scores, mistakes = max_softmax(calibration), wrong(calibration, request.calibration.labels)
    thresholds: dict[str, Threshold] = {}
    reasons: dict[str, str] = {}
    for name, choose in (
        ("coverage", lambda: threshold_for_coverage(scores, request.coverage)),
        ("risk", lambda: threshold_for_risk(scores, mistakes, request.risk)),
    ):
        try:
            thresholds[name] = choose()
        except InputError as error:
            reasons[name] = str(error)
    return thresholds, reasons


def conformal_sets(
    request: Request, calibration: Logits, score: str, *, class_conditional: bool = False
) -> SplitConformal:
    """Split-conformal sets, from the calibrated logits of the calibration split."""
    return SplitConformal.fit(
        calibration.double().softmax(1),
        request.calibration.labels,
        request.alpha,
        score=score,
        class_conditional=class_conditional,
        seed=request.seed,
        items=request.calibration.items,
    )


def figures_of(found: Findings) -> dict[str, Any]:
    """Every figure of `result.json` that a model's outputs decide."""
    request, labels, conditions = found.request, found.request.test.labels, found.conditions
    temperature = found.temperature.temperature
    calibrators = {"none": lambda logits: logits, **found.calibrators}
    return {
        "temperature": temperature,
        "attacks": found.suite.figures["attacks"],
        "flags": found.suite.figures["flags"],
        "conditions": {
            name: figures.prediction_metrics(logits, labels, request.seed)
            for name, logits in conditions.items()
        },
        "calibration": figures.calibrator_metrics(
            calibrators,
            {name: logits * temperature for name, logits in conditions.items()},
            labels,
        ),
        "calibration_of_more": {
            "n": len(request.more_test),
            **figures.calibration_errors(
                calibrators, found.logits["more_test"], request.more_test.labels, request.seed
            ),
        },
        "confidence": {
            **figures.confidence_change(conditions["clean"], conditions["miscalibrate"], labels),
            "search": found.outcomes["miscalibrate"].figures["search"],
        },
        "drawings": {name: figures.diagrams(logits, labels) for name, logits in conditions.items()},
        "detectors": {name: _detector(found, name) for name in found.detectors},
        "foreign": _out_of_distribution(found),
        "corruptions": _corruptions(found),
        "sets": _sets(found),
        "robust_sets": _robust_sets(found),
        "abstaining": _abstaining(found),
        "human": None
        if request.human is None
        else figures.human_metrics(
            request.human,
            conditions,
            conditions["clean"],
            found.suite.tensors["broken"],
            labels,
            request.seed,
        ),
    }


def rows_of(found: Findings) -> list[dict[str, Any]]:
    """One row for each test image: predictions, confidences and scores, clean and attacked."""
    test = found.request.test
    columns: dict[str, list[Any]] = {
        "index": test.items.tolist(),
        "label": test.labels.tolist(),
        "broken": found.suite.tensors["broken"].int().tolist(),
    }
    for name, logits in found.conditions.items():
        columns[f"{name}_prediction"] = logits.argmax(1).tolist()
        columns[f"{name}_confidence"] = logits.double().softmax(1).amax(1).tolist()
    for name in found.detectors:
        for where in ("clean", "suite", "unaware"):
            columns[f"{where}_{name}"] = found.scored[f"{where}/{name}"].tolist()
        if name in found.evasions:
            columns[f"evading_{name}"] = found.evasions[name].tensors["scores"].tolist()
    return [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]


def _detector(found: Findings, name: str) -> dict[str, Any]:
    """One detector under the suite, and attacked by one who does not know it and one who does."""
    scored, labels = found.scored, found.request.test.labels
    calibration, clean = scored[f"calibration/{name}"], scored[f"clean/{name}"]
    broken = found.right & wrong(scored["suite/logits"], labels)
    shown = broken if bool(broken.any()) else torch.ones_like(broken)
    kinds = {kind: scored[f"{kind}/{name}"][shown] for kind in ("clean", "suite", "unaware")}

    def under_attack(scores: Tensor, logits: Logits) -> dict[str, Any]:
        return figures.detector_metrics(
            calibration, clean, scores, logits, found.right, labels, found.request.seed
        )

    result: dict[str, Any] = {
        attack: under_attack(scored[f"{attack}/{name}"], scored[f"{attack}/logits"])
        for attack in ("suite", "unaware")
    }
    result["aware"] = None
    if name in found.evasions:
        done = found.evasions[name]
        result["aware"] = under_attack(done.tensors["scores"], done.tensors["logits"])
        result["aware"]["search"] = done.figures
        kinds["evading"] = done.tensors["scores"][shown]
    result["histogram"] = figures.histograms(kinds)
    return result


def _out_of_distribution(found: Findings) -> dict[str, Any]:
    request, scored, result = found.request, found.scored, {}
    for number, other in enumerate(request.out_of_distribution):
        tensors = found.outcomes[f"foreign-{number}"].tensors
        name = other.name
        while name in result:  # two folders may have one name
            name += "′"
        result[name] = {
            "n": len(other.images),
            "pixels": other.pixels,
            "scores": {
                score: figures.detection_metrics(
                    scored[f"clean/{score}"], tensors[f"score/{score}"], request.seed
                )
                for score in found.detectors
            },
            "attacked": figures.detection_metrics(
                scored["clean/max-softmax"], max_softmax(tensors["attacked"]), request.seed
            ),
        }
    return result


def _corruptions(found: Findings) -> dict[str, Any]:
    request, published = found.request, found.request.corruptions
    outcomes = {name: found.outcomes[f"corruption-{name}"] for name in request.corruption_names}
    for done in outcomes.values():
        if "unavailable" in done.figures:
            return dict(done.figures)
    by_type = {name: done.tensors["logits"] for name, done in outcomes.items()}
    result = figures.corruption_metrics(by_type, request.corruption_labels, request.seed)
    if published is not None:
        result |= {"published": published.folder.name, "told": list(published.told)}
    return result


def _sets(found: Findings) -> dict[str, Any]:
    request, done = found.request, found.outcomes["sets"]
    labels, items, clean = request.test.labels, request.test.items, found.conditions["clean"]
    attacked = [*found.conditions.values(), done.tensors["miscover"], done.tensors["enlarge"]]
    missed, enlarged = (
        [done.tensors[f"{attack}/{number}"] for number in range(len(done.figures["eps"]))]
        for attack in ("miscover", "enlarge")
    )
    by_score = {}
    for name in NONCONFORMITY_SCORES:
        fitted = conformal_sets(request, found.calibration, name)
        by_score[name] = {
            "clean": figures.set_metrics(fitted.sets(clean.double().softmax(1), items), labels),
            "attacked": figures.worst_sets(fitted, attacked, labels, items),
            "splits": _random_splits(found, name),
            "against_eps": figures.sets_against_eps(
                fitted, clean, missed, enlarged, done.figures["eps"], labels, items
            ),
        }
    return {
        "promise": 1 - request.alpha,
        "calibration": len(request.calibration),
        "by_score": by_score,
        "class_conditional": _class_conditional_sets(found),
    }


def _random_splits(found: Findings, score: str) -> dict[str, Any]:
    request = found.request
    try:
        return figures.random_splits(
            found.more_calibration,
            request.more_calibration.labels,
            found.more_test,
            request.more_test.labels,
            request.alpha,
            score,
            request.seed,
        )
    except InputError as error:
        return {"unavailable": str(error)}


def _class_conditional_sets(found: Findings) -> dict[str, Any]:
    request, labels = found.request, found.request.test.labels
    try:
        fitted = conformal_sets(request, found.calibration, "lac", class_conditional=True)
    except InputError as error:
        return {"unavailable": str(error)}
    sets = fitted.sets(found.conditions["clean"].double().softmax(1), request.test.items)
    return figures.set_metrics(sets, labels) | {
        "by_class": {
            name: figures.set_metrics(sets[rows], labels[torch.from_numpy(rows)])["coverage"]
            for k, name in enumerate(request.classes)
            if (rows := (labels == k).numpy()).any()
        }
    }


def _robust_sets(found: Findings) -> dict[str, Any]:
    request, done = found.request, found.outcomes["robust-sets"]
    promise = {"promise": 1 - request.alpha, "radius": request.radius, "sigma": request.sigma}
    if "unavailable" in done.figures:
        return promise | done.figures
    return {
        **promise,
        "alpha_within": done.figures["alpha_within"],
        **{
            name: figures.set_metrics(sets.numpy(), request.test.labels[: len(sets)])
            for name, sets in done.tensors.items()
        },
    }


def _abstaining(found: Findings) -> dict[str, Any]:
    thresholds, reasons = thresholds_of(found.request, found.calibration)
    evaded = {f"past {name}": done.tensors["logits"] for name, done in found.evasions.items()}
    return {
        name: figures.abstaining_metrics(
            threshold, found.conditions | evaded, found.request.test.labels
        )
        for name, threshold in thresholds.items()
    } | {name: {"unavailable": reason} for name, reason in reasons.items()}
