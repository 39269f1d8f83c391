"""The slow part of a run: what attacks, corruptions and out-of-distribution images do to a model.

Each function is one step of the run, whose outcome the run folder keeps. It returns figures, as
JSON holds them, and tensors: what the original model says of the images that it made or found.
`figures` and `result` turn these into metrics.
"""

from __future__ import annotations

import math
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from ... import draws
from ...attacks import Items, Oracle, run
from ...attacks.losses import margin
from ...data.corruptions import SEVERITIES, corrupt
from ...data.out_of_distribution import OutOfDistribution
from ...evaluation.evaluate import evaluate
from ...stored import Chosen, Made, ModelImages, part, room_for
from ...threat import Threat
from ...types import Images, Logits, Report
from ..abstaining import Threshold
from ..attacks import LONG, SHORT, Ascent
from ..conformal import NoisyModel, RobustConformal, SplitConformal
from ..detection import threshold_at_fpr
from ..goals import Enlarge, Evade, Goal, LookFamiliar, Miscalibrate, Miscover
from ..scores import LogitScore
from .probed_model import Look, ProbedModel, wrong
from .request import Request

STEPS = 15
UNAWARE_STEPS = 16
AWARE = ("max-softmax", "mahalanobis")  # the detectors that an attacker who knows them evades
FALSE_POSITIVE_RATES = (0.05, 0.5)  # at which a detector's robust error is measured
MULTIPLES = (0.25, 0.5, 1.0, 2.0)  # of ε, at which coverage and set size are measured
SET_STEPS = 10  # fewer, because these start from images that are attacked already
CURVE_IMAGES, CURVE_STEPS = 200, 6
OOD_ATTACKED, OOD_STEPS = 200, 10
ROBUST_STEPS, ROBUST_SAMPLES = 8, 2
# What a smooth model needs of these steps, if they begin with long ones: in L∞ 8/255, 9 on
# `cifar10-linf-slim` reached as far on the average as 15 short ones, goal by goal.
SMOOTH_SHARE = 0.6

Outcome = tuple[dict[str, Any], dict[str, Any]]  # figures and tensors of a step


def between(report: Report, low: float, high: float) -> Report:
    """A report of 0 to 1 on a part of a step, as a report from `low` to `high` on the whole."""
    return lambda share: report(low + (high - low) * share)


def attack_predictions(
    probed: ProbedModel, run: Path | None, described: dict[str, Any], progress: bool
) -> Outcome:
    """Run the suite: which predictions break, and the image that breaks each.

    With a run folder, this is an evaluation of its own, in the folder `attack` there.

    Returns:
        tensors `images` (N, C, H, W), where nothing broke the strongest found, and `broken` (N,).
    """
    request = probed.request
    evaluation = evaluate(
        request.model,
        request.test.floats,
        request.test.labels,
        request.threat,
        request.suite,
        device=request.device,
        seed=request.seed,
        run=None if run is None else run / "attack",
        progress=progress,
        described={**described, "classes": list(request.classes)},
    )
    summary = evaluation.to_dict()
    kept = ("attacks", "flags", "forwards", "backwards", "precision")
    tensors = {"images": evaluation.adversarial, "broken": evaluation.broken}
    return {name: summary[name] for name in kept}, tensors


def look_at_clean(probed: ProbedModel, report: Report) -> Outcome:
    """What the model says of clean images: the original of those that are attacked or calibrated
    on; of further ones the fast copy, and the original wherever the two could predict differently.

    Returns:
        tensors `more_calibration` and `more_test` of uncalibrated logits (M, K); `calibration` and
        `test` of features (N, D).
    """
    request, tensors = probed.request, {}
    splits = (
        ("calibration", request.calibration, request.more_calibration),
        ("test", request.test, request.more_test),
    )
    for number, (name, split, more) in enumerate(splits):
        look = probed.look(split.images)
        further = more[slice(len(split), None)]
        report((number + 0.2) / len(splits))
        logits = [look.logits]
        if len(further):
            logits.append(probed.logits_of_many(further.images))
        tensors[name] = look.features
        tensors[f"more_{name}"] = torch.cat(logits) * probed.temperature.temperature
        report((number + 1) / len(splits))
    return {}, tensors


def ascent(probed: ProbedModel, goal: Goal, steps: int, **options: Any) -> Ascent:
    """An ascent of so many short steps, or on a smooth model of fewer ones that begin long."""
    if probed.smooth:
        return Ascent(goal, steps=math.ceil(SMOOTH_SHARE * steps), lengths=LONG, **options)
    return Ascent(goal, steps=steps, lengths=SHORT, **options)


def attack_unaware(probed: ProbedModel, suite: ModelImages, report: Report) -> Outcome:
    """Attack as one who knows of no detector, and goes on after a success: the true class's
    probability as low as can be.

    The suite stops once a prediction is wrong. Its images are near the decision boundary, where
    every model is unsure.

    Args:
        suite: (N, C, H, W), of `attack_predictions`: where the search starts.

    Returns:
        the tensor `images` (N, C, H, W).
    """
    request, everything = probed.request, probed.request.test.floats
    found = room_for(everything)
    fast_copy = probed.fast_copy("calibrated", probed.model)
    steps = math.ceil(SMOOTH_SHARE * UNAWARE_STEPS) if probed.smooth else UNAWARE_STEPS
    attack = Ascent(Miscover(), steps=steps, lengths=LONG)
    for rows in torch.arange(len(request.test)).split(probed.batch_size):
        images, labels = everything[rows], request.test.labels[rows]
        items = Items(
            images=images,
            labels=labels,
            targets=labels,
            eps=request.threat.radii(images),
            seeds=draws.item_seeds(request.seed, "unaware", request.test.items[rows]),
            start=suite[rows],
        ).to(request.device)
        with draws.fixed_draws(request.seed):
            points = run(
                attack, Oracle(fast_copy.model), items, request.threat, own_draws=False
            ).best
        found[rows] = points.cpu()
        report(float(rows[-1] + 1) / len(request.test))
    return {"steps": steps, "search": fast_copy.name}, {"images": found}


def score_images(
    probed: ProbedModel,
    clean: dict[str, Tensor],
    suite: ModelImages,
    unaware: ModelImages,
    report: Report,
) -> Outcome:
    """Logits and every detector's score of calibration images, clean and attacked test images.

    Args:
        clean: of `look_at_clean`.
        suite: (N, C, H, W), of `attack_predictions`.
        unaware: (N, C, H, W), of `attack_unaware`.

    Returns:
        the figure `scores`, which lists the detectors, and tensors `WHERE/logits` and
        `WHERE/DETECTOR`, WHERE being `calibration`, `clean`, `suite` or `unaware`.
    """
    request = probed.request
    calibration, test = request.calibration, request.test
    looks = {
        name: Look(probed.temperature(clean[f"more_{name}"][: len(split)]), clean[name])
        for name, split in (("calibration", calibration), ("test", test))
    }
    places = (
        ("calibration", calibration.images, calibration.items, looks["calibration"]),
        ("clean", test.images, test.items, looks["test"]),
        ("suite", suite, test.items, None),
        ("unaware", unaware, test.items, None),
    )
    tensors = {}
    for number, (where, images, items, look) in enumerate(places):
        scored = probed.score(images, items, look)
        tensors[f"{where}/logits"] = scored.logits
        tensors |= {f"{where}/{name}": score for name, score in scored.scores.items()}
        report((number + 1) / len(places))
    return {"scores": list(probed.detectors)}, tensors


def attack_confidence(probed: ProbedModel, clean: Logits, report: Report) -> Outcome:
    """Make right predictions unsure and wrong ones sure, while every prediction stays the same.

    Args:
        clean: (N, K), calibrated, of the test images.

    Returns:
        tensors `images` (N, C, H, W), `logits` (N, K) on them and `moved` (N,): whether the
        attack found anything better than the clean image.
    """
    request = probed.request
    fast_copy = probed.fast_copy("calibrated", probed.model)
    found = probed.seek(
        "miscalibrate",
        ascent(probed, Miscalibrate(), STEPS, slack=fast_copy.error),
        probed.model,
        request.test.floats,
        request.test.labels,
        request.threat,
        search=fast_copy.model,
        known=clean,
        report=report,
    )
    return {"moved": int(found.moved.sum()), "search": fast_copy.name}, {
        "images": found.images,
        "logits": found.outputs,
        "moved": found.moved,
    }


def attack_detector(
    probed: ProbedModel,
    detector: str,
    calibration: Float[Tensor, " m"],
    thresholds: list[Threshold],
    attacked: dict[str, ModelImages],
    scored: dict[str, Tensor],
    report: Report,
) -> Outcome:
    """Get wrong predictions past a detector that the attacker knows.

    Only an image that some attack made wrong, or that is wrong as it is, can be wrong and
    accepted. Each search starts from the least suspicious image that is wrong: first by the
    selective attack, then, where that fails, by the orthogonal one (`Ascent`). A score of the
    logits falls as the wrong class gains on all others, so there the second has nothing to keep
    apart, and is left out.

    Args:
        calibration: the detector's scores of the calibration images.
        thresholds: of abstaining by the same score, which an evader stays below too.
        attacked: images (N, C, H, W) of other attacks, by name, the usual one first.
        scored: `NAME/logits` and `NAME/DETECTOR` of each of them.

    Returns:
        tensors `logits` (N, K) and `scores` (N,) of what the attacker hands in.
    """
    request = probed.request
    labels = request.test.labels
    rows, starts, logits, scores = _least_suspicious(detector, labels, attacked, scored)
    first_logits, first_scores = logits.clone(), scores.clone()
    tried = len(rows)
    by = torch.zeros(len(logits), dtype=torch.int64)  # 1: selective, 2: orthogonal
    both, fast_copy = probed.with_detector(detector)
    # Below this score, an image looks surer than 9 of 10 clean ones, and is accepted everywhere.
    wanted = [threshold_at_fpr(calibration, 0.9), *(t.value for t in thresholds)]
    target = min(value for value in wanted if np.isfinite(value))
    of_logits = isinstance(probed.detectors[detector], LogitScore)
    for number, orthogonal in enumerate((False,) if of_logits else (False, True)):
        rows = rows[scores[rows] >= target]
        if not len(rows):
            break
        found = probed.seek(
            f"evade {detector}",
            ascent(
                probed,
                Evade(),
                STEPS,
                orthogonal=orthogonal,
                aim=-target,
                slack=fast_copy.error,
            ),
            both,
            part(request.test.floats, rows),
            labels[rows],
            request.threat,
            search=fast_copy.model,
            starts=part(starts, rows),
            known=torch.cat([first_logits[rows], first_scores[rows, None]], 1),
            items=request.test.items[rows],
            report=between(report, number / 2, (number + 1) / 2),
        )
        lower = found.moved & (found.outputs[:, -1] < scores[rows])
        where = rows[lower]
        logits[where], scores[where] = found.outputs[lower, :-1], found.outputs[lower, -1]
        by[where] = number + 1
    figures = {
        "tried": tried,
        "selective": int((by == 1).sum()),
        "orthogonal": int((by == 2).sum()),
        "search": fast_copy.name,
    }
    return figures, {"logits": logits, "scores": scores}


def _least_suspicious(
    detector: str, labels: Tensor, attacked: dict[str, ModelImages], scored: dict[str, Tensor]
) -> tuple[Tensor, ModelImages, Tensor, Tensor]:
    """Of the images that different attacks found, the one with the lowest score that is wrong.

    Where none is wrong, the first attack's. Arguments as in `attack_detector`.

    Returns:
        which rows (M,) are wrong; images (N, C, H, W), their logits (N, K) and scores (N,).
    """
    every_logits, every_score = (
        torch.stack([scored[f"{name}/{what}"] for name in attacked])
        for what in ("logits", detector)
    )
    breaks = torch.stack([wrong(logits, labels) for logits in every_logits])
    chosen = torch.where(breaks, every_score, torch.inf).argmin(0), torch.arange(len(labels))
    rows = breaks.any(0).nonzero().squeeze(1)
    return rows, _chosen(attacked, chosen[0]), every_logits[chosen], every_score[chosen]


def _chosen(attacked: dict[str, ModelImages], which: Tensor) -> ModelImages:
    """Of the images that different attacks found, one each: in memory if all of them are."""
    versions = list(attacked.values())
    images = Chosen(versions, which)
    return images[:] if all(isinstance(each, Tensor) for each in versions) else images


def score_out_of_distribution(
    probed: ProbedModel, other: OutOfDistribution, report: Report
) -> Outcome:
    """Scores of out-of-distribution images, and of some that are attacked to look familiar.

    Returns:
        tensors `score/DETECTOR` (M,), and `attacked`: logits of the first `OOD_ATTACKED` images
        once they are attacked.
    """
    request = probed.request
    images = torch.from_numpy(other.images)
    scored = probed.score(images, torch.arange(len(images)))
    report(0.3)
    some = images[:OOD_ATTACKED].float() / 255
    fast_copy = probed.fast_copy("calibrated", probed.model)
    found = probed.seek(
        f"look familiar, {other.name}",
        ascent(probed, LookFamiliar(), OOD_STEPS),
        probed.model,
        some,
        torch.zeros(len(some), dtype=torch.int64),  # these images are of none of the classes
        request.threat,
        search=fast_copy.model,
        known=scored.logits[: len(some)],
        report=between(report, 0.3, 1.0),
    )
    return {"n": len(images), "attacked": len(some)}, {
        **{f"score/{name}": score for name, score in scored.scores.items()},
        "attacked": found.outputs,
    }


def predict_corrupted(probed: ProbedModel, corruption: str, report: Report) -> Outcome:
    """Calibrated logits of the test images under one corruption, at every severity.

    Returns:
        the tensor `logits` (5, N, K).
    """
    request = probed.request
    images, parts = request.test.floats, []
    items = request.test.items
    fast_copy = probed.fast_copy("calibrated", probed.model)
    for number, severity in enumerate(SEVERITIES):
        corrupted: Any
        if request.corruptions is not None:
            corrupted = request.corruptions.images(corruption, severity).float() / 255
        elif isinstance(images, Tensor):
            corrupted = corrupt(images, corruption, severity, seed=request.seed, items=items)
        else:
            some = partial(_corrupted, request, corruption, severity)
            corrupted = Made(some, images.shape)
        parts.append(probed.logits_of_many(corrupted))
        report((number + 1) / len(SEVERITIES))
    return {"search": fast_copy.name}, {"logits": torch.stack(parts)}


def _corrupted(request: Request, corruption: str, severity: int, rows: Tensor) -> Images:
    """Some of the test images under a corruption."""
    images, items = request.test.floats[rows], request.test.items[rows]
    return corrupt(images, corruption, severity, seed=request.seed, items=items)


def attack_sets(
    probed: ProbedModel,
    sets: SplitConformal,
    attacked: dict[str, ModelImages],
    scored: dict[str, Tensor],
    unsure: dict[str, Any],
    report: Report,
) -> Outcome:
    """Attack conformal sets twice: to miss the true class, and to hold as many classes as can be.

    Both attacks are made at the threat model's ε on all images, and at `MULTIPLES` of it on the
    first `CURVE_IMAGES`. At ε, the true class has been pressed down before, as far as can be: of
    the images that others found, the first attack takes the one where it is least probable.

    Args:
        sets: with score `lac`, whose threshold the second attack aims at.
        attacked: images (N, C, H, W) that others found, by name.
        scored: `NAME/logits` of each of them.
        unsure: of `attack_confidence`: the second attack starts there.

    Returns:
        the figure `eps`, which lists the radii, and tensors of logits: `miscover`, `enlarge`
        (N, K), and `miscover/i`, `enlarge/i` at the i-th radius.
    """
    request = probed.request
    fast_copy = probed.fast_copy("calibrated", probed.model)
    enlarge = Enlarge(min(max(1 - float(sets.thresholds[0]), 0.0), 1 - 1e-9))
    images, labels = request.test.floats, request.test.labels
    n, curve_n = len(images), min(CURVE_IMAGES, len(images))

    def climb(
        attack: Ascent,
        count: int,
        threat: Threat,
        begin: _Answered,
        low: float,
        high: float,
    ) -> _Answered:
        found = probed.seek(
            f"sets, {attack.name}, {threat.eps!r}",
            attack,
            probed.model,
            part(images, slice(count)),
            labels[:count],
            threat,
            search=fast_copy.model,
            starts=begin.images,
            known=begin.logits,
            report=between(report, low, high),
        )
        return _Answered(found.images, found.outputs)

    missed_at_eps = _least_probable(labels, attacked, scored)
    begin = _Answered(unsure["images"], unsure["logits"])
    large_at_eps = climb(ascent(probed, enlarge, SET_STEPS), n, request.threat, begin, 0.0, 0.4)
    tensors = {"miscover": missed_at_eps.logits, "enlarge": large_at_eps.logits}
    # So few steps are not shortened: from one radius to the next there is far to go.
    lengths = LONG if probed.smooth else SHORT
    misses, enlarges = (
        Ascent(goal, steps=CURVE_STEPS, lengths=lengths) for goal in (Miscover(), enlarge)
    )
    missed = enlarged = _Answered(part(images, slice(curve_n)), scored["clean/logits"][:curve_n])
    for number, multiple in enumerate(MULTIPLES):
        if multiple == 1:
            missed, enlarged = missed_at_eps.first(curve_n), large_at_eps.first(curve_n)
        else:
            ball = request.threat.times(multiple)
            after = 0.4 + 0.15 * number
            # A ball lies inside every larger one: each radius starts from the last one's images.
            missed = climb(misses, curve_n, ball, missed, after, after + 0.07)
            enlarged = climb(enlarges, curve_n, ball, enlarged, after + 0.07, after + 0.15)
        tensors[f"miscover/{number}"] = missed.logits
        tensors[f"enlarge/{number}"] = enlarged.logits
    figures = {"n": n, "curve_n": curve_n, "eps": [request.threat.eps * m for m in MULTIPLES]}
    return figures, tensors


class _Answered(NamedTuple):
    """Images (N, C, H, W), and the original's calibrated logits (N, K) on them."""

    images: ModelImages
    logits: Logits

    def first(self, count: int) -> _Answered:
        return _Answered(part(self.images, slice(count)), self.logits[:count].clone())


def _least_probable(
    labels: Tensor, attacked: dict[str, ModelImages], scored: dict[str, Tensor]
) -> _Answered:
    """Of the images that different attacks found, the one whose true class is least probable."""
    logits = torch.stack([scored[f"{name}/logits"] for name in attacked])
    lead = torch.stack([-margin(each, labels) for each in logits])
    chosen = lead.argmax(0), torch.arange(len(labels))
    return _Answered(_chosen(attacked, chosen[0]), logits[chosen])


def attack_robust_sets(probed: ProbedModel, report: Report) -> Outcome:
    """Robust conformal sets: of clean images, of images attacked inside the sets' own radius, and
    of images attacked inside the threat model's.

    The attacker averages over noise of its own, and does not know the noise that decides a set.

    Returns:
        tensors of sets, bool (N, K): `clean`, `inside` (the sets' radius) and `beyond` (the threat
        model's; of the first `CURVE_IMAGES`).
    """
    request = probed.request
    device = request.device
    images, labels = request.test.floats, request.test.labels
    robust = RobustConformal.fit(
        lambda x: probed.model(x.to(device)),
        request.calibration.images,
        request.calibration.labels,
        request.alpha,
        radius=request.radius,
        sigma=request.sigma,
        score="lac",
        seed=request.seed,
        items=request.calibration.items,
    )
    fast_copy = probed.fast_copy("calibrated", probed.model)
    tensors = {"clean": torch.from_numpy(robust.sets(images, request.test.items))}
    attacks = (
        ("inside", Threat("l2", request.radius), len(images)),
        ("beyond", request.threat, min(CURVE_IMAGES, len(images))),
    )
    for number, (name, ball, n) in enumerate(attacks):
        found = probed.seek(
            f"robust sets, {name}",
            ascent(probed, Miscover(), ROBUST_STEPS),
            NoisyModel(probed.model, request.sigma).eval(),
            part(images, slice(n)),
            labels[:n],
            ball,
            search=NoisyModel(fast_copy.model, request.sigma).eval(),
            samples=ROBUST_SAMPLES,
            items=request.test.items[:n],
            batch_size=max(1, probed.batch_size // ROBUST_SAMPLES),
            report=between(report, number / 2, (number + 1) / 2),
        )
        tensors[name] = torch.from_numpy(robust.sets(found.images, request.test.items[:n]))
    return {"alpha_within": robust.plain.alpha}, tensors
