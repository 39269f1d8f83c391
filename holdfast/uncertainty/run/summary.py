"""What a run found, told in figures; nothing here runs a model."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ...data.corruptions import CORRUPTIONS
from ...errors import InputError
from ...runs.parts import Done
from ..abstaining import Threshold, threshold_for_coverage, threshold_for_risk
from ..conformal import MISFITS, SplitConformal
from ..scores import max_softmax
from . import measurements as searches
from . import metrics as tables
from .probed import Question, Subject, wrong

Found = dict[str, Done]  # outcomes by stage


def thresholds_of(q: Question, held: Tensor) -> tuple[dict[str, Threshold], dict[str, str]]:
    """Thresholds of abstaining that keep their promises, and why the others cannot be given."""
    scores, mistakes = max_softmax(held), wrong(held, q.held.labels)
    kept: dict[str, Threshold] = {}
    refused: dict[str, str] = {}
    for name, make in (
        ("coverage", lambda: threshold_for_coverage(scores, q.coverage)),
        ("risk", lambda: threshold_for_risk(scores, mistakes, q.risk)),
    ):
        try:
            kept[name] = make()
        except InputError as error:
            refused[name] = str(error)
    return kept, refused


def plain_sets(q: Question, held: Tensor) -> dict[str, SplitConformal]:
    return {
        name: SplitConformal.fit(
            held.double().softmax(1),
            q.held.labels,
            q.alpha,
            score=name,
            seed=q.seed,
            items=q.held.items,
        )
        for name in MISFITS
    }


def figures_of(
    subject: Subject,
    scalings: dict[str, Any],
    z: dict[str, Tensor],
    suite: Done,
    found: Found,
) -> dict[str, Any]:
    """Every figure, from what was found; nothing here runs the model."""
    q, labels, items = subject.question, subject.question.test.labels, subject.question.test.items
    seen = found["known"].tensors
    held, clean = (subject.temperature(z[name]) for name in ("held", "test"))
    conditions = {
        "clean": clean,
        "suite": seen["suite/logits"],
        "miscalibrate": found["miscalibrate"].tensors["logits"],
    }
    raw = {name: logits * subject.temperature.temperature for name, logits in conditions.items()}
    methods = {"none": lambda logits: logits, **scalings}
    right = ~wrong(clean, labels)
    thresholds, refused = thresholds_of(q, held)
    evaded = {name: found[f"evade-{name}"] for name in searches.AWARE if f"evade-{name}" in found}
    drawn = {name: tables.drawings(logits, labels) for name, logits in conditions.items()}
    return {
        "temperature": subject.temperature.temperature,
        "attacks": suite.figures["attacks"],
        "flags": suite.figures["flags"],
        "conditions": {
            name: tables.answers(logits, labels, q.seed) for name, logits in conditions.items()
        },
        "calibration": tables.calibrators(methods, raw, labels),
        "calibration_of_more": {
            "n": len(q.more_test),
            **tables.calibration_errors(methods, z["more_test"], q.more_test.labels, q.seed),
        },
        "confidence": {
            **tables.confidence_moved(clean, conditions["miscalibrate"], labels),
            "search": found["miscalibrate"].figures["search"],
        },
        "drawings": drawn,
        "detectors": _detectors(q, found, evaded, right),
        "foreign": _foreign(q, found),
        "corruptions": _corruptions(q, found),
        "sets": _sets(subject, z, held, conditions, found, items),
        "robust_sets": _robust_sets(q, found["robust-sets"]),
        "abstaining": {
            **{
                name: tables.abstaining(
                    threshold,
                    conditions
                    | {f"past {n}": done.tensors["logits"] for n, done in evaded.items()},
                    labels,
                )
                for name, threshold in thresholds.items()
            },
            **{name: {"unavailable": reason} for name, reason in refused.items()},
        },
        "human": None
        if q.human is None
        else tables.beside_people(
            q.human, conditions, clean, suite.tensors["broken"], labels, q.seed
        ),
    }


def rows_of(
    subject: Subject, z: dict[str, Tensor], suite: Done, found: Found
) -> list[dict[str, Any]]:
    """One row an image: answers, confidences and scores, clean and attacked."""
    q, seen = subject.question, found["known"].tensors
    logits = {
        "clean": subject.temperature(z["test"]),
        "suite": seen["suite/logits"],
        "miscalibrate": found["miscalibrate"].tensors["logits"],
    }
    columns: dict[str, list[Any]] = {
        "index": q.test.items.tolist(),
        "label": q.test.labels.tolist(),
        "broken": suite.tensors["broken"].int().tolist(),
    }
    for name, z_ in logits.items():
        columns[f"{name}_prediction"] = z_.argmax(1).tolist()
        columns[f"{name}_confidence"] = z_.double().softmax(1).amax(1).tolist()
    for name in found["known"].figures["scores"]:
        for where in ("clean", "suite", "unaware"):
            columns[f"{where}_{name}"] = seen[f"{where}/{name}"].tolist()
        if f"evade-{name}" in found:
            columns[f"evading_{name}"] = found[f"evade-{name}"].tensors["scores"].tolist()
    return [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]


def _detectors(q: Question, found: Found, evaded: dict[str, Done], right: Tensor) -> dict[str, Any]:
    seen, labels = found["known"].tensors, q.test.labels
    told: dict[str, Any] = {}
    for name in found["known"].figures["scores"]:
        held, clean = (seen[f"{where}/{name}"] for where in ("held", "clean"))
        broken = right & wrong(seen["suite/logits"], labels)
        shown = broken if bool(broken.any()) else torch.ones_like(broken)
        kinds = {w: seen[f"{w}/{name}"][shown] for w in ("clean", "suite", "unaware")}
        told[name] = {
            who: tables.detector(
                held, clean, seen[f"{who}/{name}"], seen[f"{who}/logits"], right, labels, q.seed
            )
            for who in ("suite", "unaware")
        } | {"aware": None}
        if name in evaded:
            done = evaded[name]
            told[name]["aware"] = tables.detector(
                held, clean, done.tensors["scores"], done.tensors["logits"], right, labels, q.seed
            ) | {"search": done.figures}
            kinds["evading"] = done.tensors["scores"][shown]
        told[name]["histogram"] = tables.histograms(kinds)
    return told


def _foreign(q: Question, found: Found) -> dict[str, Any]:
    seen, told = found["known"].tensors, {}
    for number, foreign in enumerate(q.foreign):
        tensors = found[f"foreign-{number}"].tensors
        name = foreign.name
        while name in told:  # two folders may have one name
            name += "′"
        told[name] = {
            "n": len(foreign.images),
            "pixels": foreign.pixels,
            "scores": {
                score: tables.detected(seen[f"clean/{score}"], tensors[f"score/{score}"], q.seed)
                for score in found["known"].figures["scores"]
            },
            "attacked": tables.detected(
                seen["clean/max-softmax"], max_softmax(tensors["attacked"]), q.seed
            ),
        }
    return told


def _corruptions(q: Question, found: Found) -> dict[str, Any]:
    stages = {name: found[f"corruption-{name}"] for name in CORRUPTIONS}
    for done in stages.values():
        if "unavailable" in done.figures:
            return dict(done.figures)
    by_type = {name: done.tensors["logits"] for name, done in stages.items()}
    return tables.corrupted(by_type, q.test.labels, q.seed)


def _sets(
    subject: Subject,
    z: dict[str, Tensor],
    held: Tensor,
    conditions: dict[str, Tensor],
    found: Found,
    items: Tensor,
) -> dict[str, Any]:
    q, labels = subject.question, subject.question.test.labels
    done = found["sets"]
    attacked = [*conditions.values(), done.tensors["miscover"], done.tensors["enlarge"]]
    told: dict[str, Any] = {"promise": 1 - q.alpha, "calibration": len(q.held), "by_score": {}}
    more_held, more_test = (subject.temperature(z[f"more_{n}"]) for n in ("held", "test"))
    missed, enlarged = (
        [done.tensors[f"{goal}/{number}"] for number in range(len(done.figures["eps"]))]
        for goal in ("miscover", "enlarge")
    )
    for name, fitted in plain_sets(q, held).items():
        clean = fitted.sets(conditions["clean"].double().softmax(1), items)
        try:
            splits: dict[str, Any] = tables.random_splits(
                more_held,
                q.more_held.labels,
                more_test,
                q.more_test.labels,
                q.alpha,
                name,
                q.seed,
            )
        except InputError as error:
            splits = {"unavailable": str(error)}
        told["by_score"][name] = {
            "clean": tables.sets_told(clean, labels),
            "attacked": tables.worst_sets(fitted, attacked, labels, items),
            "splits": splits,
            "against_eps": tables.against_eps(
                fitted, conditions["clean"], missed, enlarged, done.figures["eps"], labels, items
            ),
        }
    try:
        by_class = SplitConformal.fit(
            held.double().softmax(1),
            q.held.labels,
            q.alpha,
            score="lac",
            class_conditional=True,
            seed=q.seed,
            items=q.held.items,
        )
        clean = by_class.sets(conditions["clean"].double().softmax(1), items)
        told["class_conditional"] = tables.sets_told(clean, labels) | {
            "by_class": {
                name: tables.sets_told(clean[rows], labels[torch.from_numpy(rows)])["coverage"]
                for k, name in enumerate(q.classes)
                if (rows := (labels == k).numpy()).any()
            }
        }
    except InputError as error:
        told["class_conditional"] = {"unavailable": str(error)}
    return told


def _robust_sets(q: Question, done: Done) -> dict[str, Any]:
    told: dict[str, Any] = {"promise": 1 - q.alpha, "radius": q.radius, "sigma": q.sigma}
    if "unavailable" in done.figures:
        return told | done.figures
    return told | {
        "alpha_within": done.figures["alpha_within"],
        **{
            name: tables.sets_told(sets.numpy(), q.test.labels[: len(sets)])
            for name, sets in done.tensors.items()
        },
    }
