"""What attackers, foreign images and corruptions do to a model: the heavy stages of a run.

Each function is one stage: it looks at images and gives back what the original model said, which
`tables` turns into figures.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ... import draws
from ...attacks.base import Model
from ...data.corruptions import SEVERITIES, corrupt
from ...data.out_of_distribution import Foreign
from ...evaluation.evaluate import evaluate
from ...evaluation.unaware import STEPS as UNAWARE_STEPS
from ...evaluation.unaware import unaware_points, unaware_seeds
from ...threat import Threat
from ..abstaining import Threshold
from ..attacks import Ascent, Found, Report, seek
from ..conformal import Noisy, RobustConformal, SplitConformal
from ..detection import threshold_at
from ..goals import Enlarge, Evade, Goal, LookFamiliar, Miscalibrate, Miscover
from .probed import Subject, wrong

STEPS = 15
AWARE = ("max-softmax", "mahalanobis")  # detectors that are attacked by one who knows them
FALSE_POSITIVES = (0.05, 0.5)
MULTIPLES = (0.25, 0.5, 1.0, 2.0)  # of ε, where coverage and set size are followed
SET_STEPS = 10  # these start from images that are attacked already
CURVE_IMAGES, CURVE_STEPS = 200, 6
FOREIGN_ATTACKED, FOREIGN_STEPS = 200, 10
ROBUST_STEPS, ROBUST_SAMPLES = 8, 2

Outcome = tuple[dict[str, Any], dict[str, Tensor]]


def between(report: Report, low: float, high: float) -> Report:
    """The report of a part of a stage, from share `low` of it to `high`."""
    return lambda share: report(low + (high - low) * share)


def break_labels(
    subject: Subject, run: Path | None, described: dict[str, Any], progress: bool
) -> Outcome:
    """The suite: where labels break, and the image that breaks each, or the strongest found.

    With a run folder, it is an evaluation of its own in its `attack`.
    """
    q = subject.question
    verdict = evaluate(
        q.model,
        q.test.floats,
        q.test.labels,
        q.threat,
        q.suite,
        device=q.device,
        seed=q.seed,
        run=None if run is None else run / "attack",
        progress=progress,
        described={**described, "classes": list(q.classes)},
    )
    summary = verdict.summary()
    kept = ("attacks", "flags", "forwards", "backwards", "precision")
    tensors = {"images": verdict.adversarial, "broken": verdict.broken}
    return {name: summary[name] for name in kept}, tensors


def climb_unaware(subject: Subject, report: Report) -> Outcome:
    """The images of an attacker who knows of no detector: PGD, which goes on after a success.

    The suite's images only just fool the model, which looks unsure of them for that reason alone.
    """
    q, parts = subject.question, []
    fast_copy = subject.fast_copy("calibrated", subject.model)
    for rows in torch.arange(len(q.test)).split(subject.batch_size):
        images, labels = (t[rows].to(q.device) for t in (q.test.floats, q.test.labels))
        seeds = unaware_seeds(q.seed, q.test.items[rows])
        with draws.fixed_draws(q.seed):
            parts.append(unaware_points(fast_copy.model, images, labels, q.threat, seeds).cpu())
        report(float(rows[-1] + 1) / len(q.test))
    return {"steps": UNAWARE_STEPS, "search": fast_copy.name}, {"images": torch.cat(parts)}


def know(subject: Subject, suite: Tensor, unaware: Tensor, report: Report) -> Outcome:
    """Logits and every score of validation, clean and attacked images (N, C, H, W)."""
    q = subject.question
    places = (
        ("held", q.held.images, q.held.items),
        ("clean", q.test.images, q.test.items),
        ("suite", suite, q.test.items),
        ("unaware", unaware, q.test.items),
    )
    tensors = {}
    for number, (where, images, items) in enumerate(places):
        known = subject.know(images, items)
        tensors[f"{where}/logits"] = known.logits
        tensors |= {f"{where}/{name}": score for name, score in known.scores.items()}
        report((number + 1) / len(places))
    return {"scores": list(subject.detectors)}, tensors


def miscalibrate(subject: Subject, report: Report) -> Outcome:
    """Right answers unsure, wrong ones sure, and every answer as it was."""
    q = subject.question
    fast_copy = subject.fast_copy("calibrated", subject.model)
    found = seek(
        Ascent(Miscalibrate(), steps=STEPS, slack=fast_copy.error),
        subject.model,
        q.test.floats,
        q.test.labels,
        q.threat,
        search=fast_copy.model,
        seed=q.seed,
        batch_size=subject.batch_size,
        device=q.device,
        report=report,
    )
    return {"moved": int(found.moved.sum()), "search": fast_copy.name}, {
        "images": found.images,
        "logits": found.outputs,
        "moved": found.moved,
    }


def evade(
    subject: Subject,
    detector: str,
    validation: Tensor,
    thresholds: list[Threshold],
    attacked: dict[str, Tensor],
    known: dict[str, Tensor],
    report: Report,
) -> Outcome:
    """Past one detector by an attacker who knows it: selective, then orthogonal where that fails.

    Only images that some attack broke, or that are misclassified as they are, can be wrong and
    unseen; the search starts from the least suspicious of the images that break them.

    Args:
        validation: the detector's scores of clean validation images.
        thresholds: of abstaining by the same score, which an evader undercuts too.
        attacked: the images of other attacks, by name, the usual one first.
        known: `NAME/logits` and `NAME/DETECTOR` of each.
    """
    q = subject.question
    every_logits, every_score = (
        torch.stack([known[f"{name}/{what}"] for name in attacked]) for what in ("logits", detector)
    )
    breaks = torch.stack([wrong(each, q.test.labels) for each in every_logits])
    chosen = torch.where(breaks, every_score, torch.inf).argmin(0)  # the first, where none breaks
    place = chosen, torch.arange(len(chosen))
    starts = torch.stack(list(attacked.values()))[place]
    logits, scores = every_logits[place], every_score[place]
    rows = breaks.any(0).nonzero().squeeze(1)
    by = torch.zeros(len(logits), dtype=torch.int64)  # 1: selective, 2: orthogonal
    watched, fast_copy = subject.watched(detector)
    # Below this, an image looks surer than nine clean ones in ten, and is accepted everywhere.
    wanted = [threshold_at(validation, 0.9), *(t.value for t in thresholds)]
    target = min(value for value in wanted if np.isfinite(value))
    images = q.test.floats
    for number, orthogonal in enumerate((False, True)):
        rows = rows[scores[rows] >= target]
        if not len(rows):
            break
        found = seek(
            Ascent(Evade(), steps=STEPS, orthogonal=orthogonal, aim=-target, slack=fast_copy.error),
            watched,
            images[rows],
            q.test.labels[rows],
            q.threat,
            search=fast_copy.model,
            starts=starts[rows],
            items=q.test.items[rows],
            seed=q.seed,
            batch_size=subject.batch_size,
            device=q.device,
            report=between(report, number / 2, (number + 1) / 2),
        )
        lower = found.moved & (found.outputs[:, -1] < scores[rows])
        where = rows[lower]
        logits[where], scores[where] = found.outputs[lower, :-1], found.outputs[lower, -1]
        by[where] = number + 1
    figures = {
        "tried": int(breaks.any(0).sum()),
        "selective": int((by == 1).sum()),
        "orthogonal": int((by == 2).sum()),
        "search": fast_copy.name,
    }
    return figures, {"logits": logits, "scores": scores}


def look_foreign(subject: Subject, foreign: Foreign, report: Report) -> Outcome:
    """Scores of foreign images, and of some that were attacked to look familiar."""
    q = subject.question
    images = torch.from_numpy(foreign.images)
    known = subject.know(images, torch.arange(len(images)))
    report(0.3)
    some = images[:FOREIGN_ATTACKED].float() / 255
    fast_copy = subject.fast_copy("calibrated", subject.model)
    found = seek(
        Ascent(LookFamiliar(), steps=FOREIGN_STEPS),
        subject.model,
        some,
        torch.zeros(len(some), dtype=torch.int64),  # foreign images have no class of ours
        q.threat,
        search=fast_copy.model,
        seed=q.seed,
        batch_size=subject.batch_size,
        device=q.device,
        report=between(report, 0.3, 1.0),
    )
    return {"n": len(images), "attacked": len(some)}, {
        **{f"score/{name}": score for name, score in known.scores.items()},
        "attacked": found.outputs,
    }


def look_corrupted(subject: Subject, corruption: str, report: Report) -> Outcome:
    """Calibrated logits (5, N, K) on one corruption at every severity."""
    q = subject.question
    images, parts = q.test.floats, []
    coarse = subject.fast_copy("calibrated", subject.model)
    for number, severity in enumerate(SEVERITIES):
        corrupted = corrupt(images, corruption, severity, seed=q.seed, items=q.test.items)
        parts.append(_answers(subject, coarse.model, coarse.error, corrupted))
        report((number + 1) / len(SEVERITIES))
    return {"search": coarse.name}, {"logits": torch.stack(parts)}


def _answers(subject: Subject, fast_copy: Model, error: float, images: Tensor) -> Tensor:
    """The fast copy's logits, and the original's wherever the two could answer differently."""
    device, parts = subject.question.device, []
    with torch.no_grad():
        for part in images.split(subject.batch_size):
            parts.append(fast_copy(part.to(device)).float().cpu())
    logits = torch.cat(parts)
    top = logits.topk(2, dim=1).values
    near = (top[:, 0] - top[:, 1] <= 2 * error).nonzero().squeeze(1)
    if len(near):
        logits[near] = subject.logits(images[near])
    return logits


def attack_sets(
    subject: Subject, sets: SplitConformal, suite: Tensor, unsure: Tensor, report: Report
) -> Outcome:
    """Sets without the label, sets of everything, and both against ε.

    Args:
        sets: of score `lac`, whose threshold the second attack aims at.
        suite: (N, C, H, W), the suite's images: where the first attack starts.
        unsure: (N, C, H, W), where the second one starts.
    """
    q = subject.question
    fast_copy = subject.fast_copy("calibrated", subject.model)
    enlarge = Enlarge(min(max(1 - float(sets.thresholds[0]), 0.0), 1 - 1e-9))
    images, labels = q.test.floats, q.test.labels

    everything, some = len(images), min(CURVE_IMAGES, len(images))

    def climb(
        goal: Goal, n: int, threat: Threat, starts: Tensor, steps: int, low: float, high: float
    ) -> Found:
        return seek(
            Ascent(goal, steps=steps),
            subject.model,
            images[:n],
            labels[:n],
            threat,
            search=fast_copy.model,
            starts=starts[:n],
            seed=q.seed,
            batch_size=subject.batch_size,
            device=q.device,
            report=between(report, low, high),
        )

    tensors = {
        "miscover": climb(Miscover(), everything, q.threat, suite, SET_STEPS, 0.0, 0.3).outputs,
        "enlarge": climb(enlarge, everything, q.threat, unsure, SET_STEPS, 0.3, 0.6).outputs,
    }
    low = high = images[:some]
    for number, multiple in enumerate(MULTIPLES):
        ball = q.threat.times(multiple)
        after = 0.6 + 0.1 * number
        # What lies in a ball lies in every larger one: each radius starts from the last.
        lower = climb(Miscover(), some, ball, low, CURVE_STEPS, after, after + 0.05)
        higher = climb(enlarge, some, ball, high, CURVE_STEPS, after + 0.05, after + 0.1)
        low, high = lower.images, higher.images
        tensors[f"miscover/{number}"], tensors[f"enlarge/{number}"] = lower.outputs, higher.outputs
    return {"n": everything, "curve_n": some, "eps": [q.threat.eps * m for m in MULTIPLES]}, tensors


def attack_robust_sets(subject: Subject, report: Report) -> Outcome:
    """Robust sets: clean, attacked inside their radius, and at the threat model's ε.

    The attacker averages over noise of its own; the draw that decides a set is not known to it.
    """
    q = subject.question
    device = q.device
    images, labels = q.test.floats, q.test.labels
    robust = RobustConformal.fit(
        lambda x: subject.model(x.to(device)),
        q.held.images,
        q.held.labels,
        q.alpha,
        radius=q.radius,
        sigma=q.sigma,
        score="lac",
        seed=q.seed,
        items=q.held.items,
    )
    fast_copy = subject.fast_copy("calibrated", subject.model)
    tensors = {"clean": torch.from_numpy(robust.sets(images, q.test.items))}
    runs = (
        ("inside", Threat("l2", q.radius), len(images)),
        ("beyond", q.threat, min(CURVE_IMAGES, len(images))),
    )
    for number, (name, ball, n) in enumerate(runs):
        found = seek(
            Ascent(Miscover(), steps=ROBUST_STEPS),
            Noisy(subject.model, q.sigma).eval(),
            images[:n],
            labels[:n],
            ball,
            search=Noisy(fast_copy.model, q.sigma).eval(),
            samples=ROBUST_SAMPLES,
            items=q.test.items[:n],
            seed=q.seed,
            batch_size=max(1, subject.batch_size // ROBUST_SAMPLES),
            device=device,
            report=between(report, number / 2, (number + 1) / 2),
        )
        tensors[name] = torch.from_numpy(robust.sets(found.images, q.test.items[:n]))
    return {"alpha_within": robust.plain.alpha}, tensors
