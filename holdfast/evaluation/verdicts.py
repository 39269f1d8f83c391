"""From what a search found to verdicts: the original model has the last word."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from .. import draws
from ..attacks import PGD, Stage, Suite
from ..attacks.suite import UNDEFENDED
from ..intervals import clopper_pearson
from ..models.metered import MeteredModel, about
from ..models.wrapper import NO_PREDICTION, unwrapped
from ..runs.folder import now
from ..runs.identity import fingerprint, weights_digest
from ..runs.progress import ProgressLine
from ..runs.records import NOT_NEEDED, RAN, Curve, DrawFigure
from ..search import CLEAN, STANDING, Ledger, Search, Verifier, succeeded
from ..stored import ModelImages, each, in_parts
from ..threat import Threat
from . import health
from .curve import IMAGES as CURVE_IMAGES
from .curve import distance_curve, security_curve
from .inspection import Inspection
from .plan import Plan
from .queries import queries_until, query_figures
from .random_models import draw_figures
from .request import Request
from .result import AttackCost, Evaluation, Flag, Unaware, Verdict
from .unaware import unaware_accuracy


def judge(
    request: Request,
    known: Inspection,
    plan: Plan,
    search: Search,
    line: ProgressLine,
    beside: Beside | None = None,
) -> Evaluation:
    """Verdicts, accuracies and flags of a search at its end.

    `identity` and the seconds of other processes are the caller's.

    Args:
        beside: the security curve, and the attack of somebody who does not know of the defence;
            by default they are measured here.
    """
    images, threat, seed = request.images, request.threat, request.seed
    suite, ledger, batch, device = plan.suite, search.ledger, plan.batch_size, request.device
    account = request.account
    if account is not None and account.budget is not None:
        account.sealed = True  # all that counts has been asked
    with known.spending.on("last word"):
        prediction, confidence, predictions = final_predictions(
            plan.verifier, ledger, images, threat, batch, device, seed
        )
    distances = distances_of(suite, ledger, images, threat)
    beside = beside or Beside(
        measured_curve(request, known, plan, ledger, line),
        measured_unaware(request, known, plan, line),
    )
    curve, unaware = beside.curve, beside.unaware
    if suite.closest:
        curve = distance_curve(distances, f"suite {suite.name}", threat)
    costs = costs_of(suite, search, plan.left_out)
    unanswered = int((ledger.broken & (prediction == NO_PREDICTION)).sum())
    n, right = len(images), int((ledger.clean_prediction == ledger.labels).sum())
    standing = int((~ledger.broken).sum())
    queried = None if account is None else queries_until(account, ledger)
    drawn: tuple[DrawFigure, ...] = ()
    if known.random and not (account is not None and account.sealed):
        with known.spending.on("last word"):
            drawn = draw_figures(plan.verifier, ledger, images, predictions, batch, device, seed)
    return Evaluation(
        n=n,
        standard_accuracy=right / n,
        standard_accuracy_interval=clopper_pearson(right, n),
        robust_accuracy=standing / n,
        robust_accuracy_interval=clopper_pearson(standing, n),
        threat=threat.describe(),
        suite=suite.name,
        attacks=costs,
        flags=(*plan.flags, *_flags_after(request, known, plan, costs, unanswered)),
        curve=curve,
        goal=request.goal,
        targets=request.kind,
        forwards=n * plan.verifier.draws * (2 if isinstance(request.targets, str) else 1)
        + sum(cost.forwards for cost in costs),
        backwards=sum(cost.backwards for cost in costs),
        seconds=0.0,
        seed=seed,
        precision=plan.precision,
        batch_size=batch,
        identity="",
        broken=ledger.broken,
        adversarial=ledger.adversarial,
        verdicts=verdicts_of(suite, ledger, images, distances, prediction, confidence, queried),
        queries=None
        if account is None or queried is None
        else query_figures(account, ledger, queried),
        outputs="labels" if known.labels_only else request.outputs,
        draws=drawn,
        unaware=unaware,
        unanswered=unanswered,
        repairs=known.diagnosis.repairs if known.hides else (),
        log=tuple(dict.fromkeys(known.log)),
        finished=now(),
    )


@dataclass(frozen=True)
class Beside:
    """What is measured beside the verdicts, on the first images."""

    curve: Curve | None
    unaware: Unaware | None


def measured_curve(
    request: Request,
    known: Inspection,
    plan: Plan,
    ledger: Ledger,
    line: ProgressLine | None = None,
) -> Curve | None:
    """The security curve, if it is asked for and not known from distances.

    Args:
        ledger: what the search found, of the images of the request.
    """
    if plan.suite.closest or not (request.curve and plan.climbable):
        return None
    if line is not None:
        line.say("security curve …")
    with known.spending.on("security curve"):
        return security_curve(
            plan.steady,
            plan.coarse,
            request.images[:CURVE_IMAGES].to(request.device),
            request.labels[:CURVE_IMAGES].to(request.device),
            request.threat,
            request.seed,
            plan.goals[:CURVE_IMAGES].to(request.device),
            _first_distances(ledger, request),
            ledger.adversarial[:CURVE_IMAGES],
        )


def _first_distances(known: Ledger, request: Request) -> Tensor:
    """How far away what broke the first images is: 0 for clean mistakes, ∞ where they stand."""
    rows = slice(CURVE_IMAGES)
    distance = in_parts(
        request.threat.distance,
        known.adversarial[rows],
        request.images[rows],
        known.witness[rows],
    )
    distance = torch.where(known.stage[rows] == CLEAN, 0.0, distance)
    # A point right on the sphere may be a rounding error outside.
    distance = distance.clamp_max(request.threat.eps)
    return torch.where(known.broken[rows], distance, torch.inf)


def measured_unaware(
    request: Request, known: Inspection, plan: Plan, line: ProgressLine | None = None
) -> Unaware | None:
    """The accuracy of a defended model against an attacker who does not know of the defence."""
    blind = known.network is None or UNDEFENDED in known.blind
    if blind or request.kind is not None or request.threat.norm not in PGD.norms:
        return None
    if line is not None:
        line.say("attack on the network behind the defence …")
    with known.spending.on("attack by somebody who does not know of the defence"):
        return unaware_accuracy(
            plan.network,
            plan.verifier,
            request.images,
            request.labels,
            request.threat,
            batch_size=plan.batch_size,
            device=request.device,
            seed=request.seed,
        )


def _flags_after(
    request: Request,
    known: Inspection,
    plan: Plan,
    costs: tuple[AttackCost, ...],
    unanswered: int,
) -> list[Flag]:
    """The health checks that need the search's outcome."""
    n, flags = len(request.images), []
    if not plan.suite.closest:  # whose stages all go over the same images
        gradient_free = {s.name for s in plan.suite.stages if not s.attack.needs_gradient}
        flags.append(health.gradient_free_wins(costs, gradient_free, n))
    after = weights_digest(unwrapped(request.model))
    return [
        *flags,
        health.model_changes(known.weights, after),
        health.writes_to_its_input(request.model),
        health.answers_nothing(unanswered, n),
    ]


def final_predictions(
    verifier: Verifier,
    ledger: Ledger,
    images: ModelImages,
    threat: Threat,
    batch_size: int,
    device: torch.device,
    seed: int,
) -> tuple[Tensor, Tensor, Tensor]:
    """The original model's predictions on all adversarial images, which settle all verdicts.

    A random model predicts on draws that no search has seen: an image that only a lucky draw had
    broken stands. Clean mistakes stay broken.

    Returns:
        prediction and confidence, (N,), and the prediction of every draw, (N, D).
    """
    parts = []
    for rows in torch.arange(len(images)).split(batch_size):
        seeds = torch.where(
            ledger.stage[rows] == CLEAN,
            draws.item_seeds(seed, "clean", ledger.index[rows]),
            draws.item_seeds(seed, "last word", ledger.index[rows]),
        )
        with about(ledger.index[rows]):
            parts.append(verifier.predict(ledger.adversarial[rows].to(device), seeds))
    prediction = torch.cat([part.prediction for part in parts]).cpu()
    prediction = torch.where(ledger.stage == CLEAN, ledger.clean_prediction, prediction)
    confidence = torch.cat([part.confidence for part in parts]).cpu()
    # Rounding differs between batches of different make-up; a point right on the boundary may
    # be predicted differently now. What helps the attacker counts.
    wrong = succeeded(prediction, ledger.labels, ledger.goal)
    fooled = wrong & in_parts(
        lambda x_adv, x, witness: threat.contains(x_adv, x, None, witness),
        ledger.adversarial,
        images,
        ledger.witness,
    )
    late = fooled & ~ledger.broken
    ledger.broken[late] = True
    ledger.stage[late] = ledger.found[late].clamp_min(0)
    ledger.item[late] = ledger.found_item[late]
    # With a budget of queries there are no fresh draws: what a vote decided in the search stays.
    sealed = isinstance(verifier.model, MeteredModel) and verifier.model.account.sealed
    if verifier.draws > 1 and not sealed:
        lucky = ledger.broken & ~fooled & (ledger.stage != CLEAN)
        ledger.broken[lucky] = False
        ledger.stage[lucky] = STANDING
        ledger.item[lucky] = ledger.target[lucky] = -1
        ledger.found[~wrong] = -1
    return prediction, confidence, torch.cat([part.draws for part in parts]).cpu()


def costs_of(
    suite: Suite, search: Search, left_out: Sequence[tuple[Stage, str]] = ()
) -> tuple[AttackCost, ...]:
    """Cost and outcome of every stage of the suite.

    Args:
        left_out: stages that cannot run on this model in this threat model, and why.
    """
    ledger = search.ledger
    tried = (
        AttackCost(
            name=stage.name,
            broken=int((ledger.stage == number).sum()),
            forwards=cost.forwards,
            backwards=cost.backwards,
            seconds=cost.seconds,
            outcome=f"{NOT_NEEDED}: {idle}" if idle else RAN,
        )
        for number, (stage, cost, idle) in enumerate(
            zip(suite.stages, search.costs, search.idle, strict=True)
        )
    )
    return (
        *tried,
        *(
            AttackCost(
                name=stage.name,
                broken=0,
                forwards=0,
                backwards=0,
                seconds=0.0,
                outcome=f"not run: {why}",
            )
            for stage, why in left_out
        ),
    )


def distances_of(suite: Suite, ledger: Ledger, images: ModelImages, threat: Threat) -> Tensor:
    """From each image to its adversarial one, (N,). Where the closest is sought: ∞ if there is
    none, and 0 for clean mistakes."""
    distance = in_parts(threat.distance, ledger.adversarial, images, ledger.witness)
    none = suite.closest & (ledger.found < 0) & (ledger.stage != CLEAN)
    return torch.where(none, torch.inf, distance)


def verdicts_of(
    suite: Suite,
    ledger: Ledger,
    images: ModelImages,
    distance: Tensor,
    prediction: Tensor,
    confidence: Tensor,
    queries: Tensor | None = None,
) -> tuple[Verdict, ...]:
    """One row an image, of all that the search and the original model said of it."""
    names = {CLEAN: "clean", STANDING: ""} | {
        number: stage.name for number, stage in enumerate(suite.stages)
    }
    return tuple(
        Verdict(
            index=int(ledger.index[i]),
            label=int(ledger.labels[i]),
            clean_prediction=int(ledger.clean_prediction[i]),
            clean_confidence=float(ledger.clean_confidence[i]),
            broken=bool(ledger.broken[i]),
            attack=names[int(ledger.stage[i])],
            target=int(ledger.goal[i]) if ledger.goal[i] >= 0 else int(ledger.target[i]),
            adversarial_prediction=int(prediction[i]),
            adversarial_confidence=float(confidence[i]),
            distance=float(distance[i]),
            forwards=int(ledger.forwards[i]),
            backwards=int(ledger.backwards[i]),
            fingerprint=known_by,
            queries=-1 if queries is None else int(queries[i]),
        )
        for i, known_by in enumerate(map(fingerprint, each(images)))
    )
