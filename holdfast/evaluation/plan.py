"""How a model is searched: the stages that run, the levels they query, the batch size."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor

from ..attacks import PGD, Stage, Suite
from ..attacks.base import CANNOT_REACH
from ..attacks.suite import REPAIRED, UNDEFENDED
from ..distributed import Workers
from ..errors import InputError
from ..models.wrapper import predicted
from ..search import MAJORITY_OF, Verifier, measure_batch_size
from ..search.fast_copies import compiled_where_it_pays
from ..types import Model
from . import health
from .goals import goals_of
from .inspection import Inspection, Levels, frozen
from .request import Request
from .result import Flag

NEEDS_OWN = "it needs the model's own gradients, which are zero or missing"
NEEDS_GRADIENTS = "it needs gradients, which the model does not have"
NEEDS_SCORES = "it needs scores, and the model returns only labels"
QUERIED_AT_ONCE = 64  # items that ask a black box together


@dataclass(frozen=True)
class Plan:
    """A search that is about to begin.

    Attributes:
        suite: the stages that this model can be attacked with.
        left_out: stages that were asked for and cannot run, each with the reason.
        views: for each view of the model the levels that a stage runs on.
        verifier: who decides whether a point is a success.
        batch_size: items searched at once.
        precision: what the search runs in, such as `bf16 then float32`.
        misled: whether the model's gradients mislead, for all that is known beforehand.
        climbable: whether PGD can climb the model in this threat model.
        steady: the model as health checks and curves query it: its draws are fixed.
        searched: the same, but as a stage sees it: a fast copy, or another backward pass.
        coarse: the fastest copy of it, whose margins are a little off.
        flags: the health checks made so far.
        goals: int64 (N,), the classes that alone count as a success; −1 where any mistake does.
    """

    suite: Suite
    left_out: tuple[tuple[Stage, str], ...]
    views: dict[str, Levels]
    verifier: Verifier
    batch_size: int
    precision: str
    misled: bool
    climbable: bool
    steady: Model
    searched: Model
    coarse: Model
    flags: tuple[Flag, ...]
    goals: Tensor

    def part(self, rows: Tensor) -> Plan:
        """For some of the images alone."""
        return replace(self, goals=self.goals[rows])

    @property
    def levels(self) -> Levels:
        """The levels of stages that query the model itself."""
        return self.views[""]

    @property
    def network(self) -> Model:
        """A fast copy of the network behind the defences."""
        return self.views[UNDEFENDED][-1].fast_copy.model


def choose(request: Request, known: Inspection, workers: Workers, key: str) -> Plan:
    """The search that suits a model, the same in all workers.

    Raises:
        InputError: a stage wants a view that the model does not offer; a worker differs.
    """
    threat, seed = request.threat, request.seed
    samples = max(stage.samples for stage in request.suite.stages)
    flags = known.health(samples)
    views = known.views
    _check_views(request.suite, views)
    suite = known.without_blind(request.suite)
    left_out = [(s, f"does not know the norm {threat.norm}") for s in request.unfitting]
    left_out += [(s, CANNOT_REACH) for s in request.unreaching]
    needs = NEEDS_OWN if known.hides else NEEDS_GRADIENTS
    left_out += [
        (s, needs if s.attack.needs_gradient else NEEDS_SCORES)
        for s in request.suite.without(suite)
    ]

    # The model as each stage sees it: with repaired gradients first, then with its own; of
    # `UNDEFENDED`, points are only carried over.
    mended = [REPAIRED] if known.hides else []  # checks climb it, whatever the stages do
    seen = dict.fromkeys(["", *mended, *(stage.view for stage in suite.stages)])
    seeing = [view for view in seen if view != UNDEFENDED and view not in known.blind] or [""]
    seeing.sort(key=lambda view: view != REPAIRED)
    searched = [views[view][-1].fast_copy.model for view in seeing]
    coarse = views[seeing[0]][0].fast_copy.model
    steady: Model = request.model
    if known.random:
        few = max(1, samples // 10)  # draws: the checks are no search
        searched, steady = [frozen(model, few) for model in searched], frozen(steady, few)
        coarse = frozen(coarse, few)
    may_ask = request.queries is None  # checks are no attack, and have no queries of their own
    climbable = may_ask and (known.differentiable or known.hides) and threat.norm in PGD.norms
    probe = known.images, known.labels, threat, seed
    # A model whose draws are fixed for the checks may answer otherwise than it did.
    right = None if known.random else predicted(known.logits) == known.labels
    with known.spending.on("health checks"):
        if climbable:
            # The fastest copy first; what it cannot show, another one may.
            copies = list({id(copy): copy for copy in (coarse, *searched)}.values())
            steps = health.more_steps(coarse, *probe, right)
            if steps.fired and coarse is not searched[0]:
                steps = health.more_steps(searched[0], *probe, right)
            flags += [steps, health.huge_eps(steady, copies, *probe, right)]
        if known.repair and threat.norm in PGD.norms:
            own = searched[seeing.index("")] if "" in seeing else None
            flags.append(health.hidden_gradients(known.diagnosis, steady, own, searched[0], *probe))
    # Where they vanish and are repaired, the repaired ones are judged.
    telling = [name for name in health.MISLEADING if not (known.hides and "vanish" in name)]
    misled = any(flag.fired for flag in flags if flag.name in telling)
    misled = workers.share(misled)
    # Only the first level's batch is measured: the others are small or of the same cost.
    with known.spending.on("batch size"):
        batch_size = request.batch_size or (
            min(QUERIED_AT_ONCE, len(request.images))
            if request.account is not None
            else measure_batch_size(
                views[""][0].fast_copy.model, request.images, request.device, known.differentiable
            )
        )
    _agree(
        workers,
        {"identity": key, "suite": suite.describe(), "precision": _precision(views[""])},
    )
    if known.network is None:
        with known.spending.on("fast copies"):
            views[""] = compiled_where_it_pays(
                views[""],
                request.model,
                suite,
                request.images[:batch_size].to(request.device),
                request.labels[:batch_size].to(request.device),
                workers,
                batch_size=batch_size,
                of=len(request.images),
                budget=request.limits.budget if request.limits else None,
                classes=known.logits.shape[1],
                say=known.log.append,
            )
    return Plan(
        suite=suite,
        left_out=tuple(left_out),
        views=views,
        verifier=Verifier(request.model, MAJORITY_OF if known.random else 1),
        batch_size=batch_size,
        precision=_precision(views[""]),
        misled=misled,
        climbable=climbable,
        steady=steady,
        searched=searched[0],
        coarse=coarse,
        flags=tuple(flags),
        goals=goals_of(request, known),
    )


def _precision(levels: Levels) -> str:
    return " then ".join(level.fast_copy.name for level in levels)


def _check_views(suite: Suite, views: dict[str, Levels]) -> None:
    """InputError where a stage wants a view that the model does not offer."""
    for stage in suite.stages:
        if stage.view not in views:
            offered = ", ".join(sorted(view for view in views if view)) or "none"
            raise InputError(
                f"suite {suite.name!r}: the model offers no view {stage.view!r} "
                f"(it offers: {offered})"
            )


def _agree(workers: Workers, seen: dict[str, Any]) -> None:
    """InputError in a worker whose request or plan differs from worker 0's."""
    first = workers.share(seen)
    for name, value in json.loads(json.dumps(seen)).items():
        if not workers.leads and first[name] != value:
            raise InputError(
                f"the model, the data or the hardware differ from worker 0's (its {name} is "
                f"{str(first[name])[:60]}, not {str(value)[:60]}); all workers need the same "
                "(--pieces where each has images of its own)"
            )
