"""`evaluate`: from a model and images to a verdict for each image."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Int64
from torch import Tensor, nn

from .. import draws
from ..attacks import PGD, Attack, Stage, Suite, suite_named
from ..attacks.adaptive import NAME as ADAPTIVE
from ..attacks.adaptive import SAMPLES, adaptive
from ..attacks.base import Model
from ..attacks.suite import UNDEFENDED
from ..defences import declared, steps
from ..distributed import Workers, joined, own_device
from ..errors import InputError
from ..inputs import (
    check_count,
    check_labels,
    check_logits,
    checked_data,
    checked_device,
    checked_threat,
)
from ..intervals import clopper_pearson
from ..models.modes import evaluating
from ..models.wrapper import NO_PREDICTION, own_defaults, unwrapped, wrapped
from ..runs.environment import circumstances
from ..runs.folder import claimed, finished, holds, now, on_date, open_run, withdraw_run
from ..runs.identity import code_version, digest, identity, settings_digest, weights_digest
from ..runs.progress import ProgressLine
from ..search import (
    CLEAN,
    MAJORITY_OF,
    Journal,
    Ledger,
    Level,
    Search,
    Shard,
    Verifier,
    measure_batch_size,
)
from ..search.fast_copies import compiled_where_it_pays, levels_of
from ..search.shards import NAME as JOURNAL
from ..threat import Images, Threat
from . import health
from .classes import logits_without_images
from .curve import IMAGES as CURVE_IMAGES
from .curve import distance_curve, security_curve
from .defence_examples import write_strips
from .inspection import (
    bare_network,
    blind_views,
    frozen,
    levels_by_view,
    suite_for,
    told_of,
    without_blind,
)
from .packing import pack, unpack
from .random_models import draw_figures
from .result import Curve, Evaluation, Unaware, write_run
from .unaware import unaware_accuracy
from .verdicts import costs_of, distances_of, final_answers, verdicts_of

PROBE = 64  # images that fast copies are compared and health is checked on
NEEDS_GRADIENTS = "it needs gradients, which the model does not have"
PRECISIONS = ("auto", "bf16", "float32", "original")


def evaluate(
    model: Model,
    images: Images,
    labels: Int64[Tensor, " n"] | None = None,
    threat: Threat | None = None,
    suite: str | Suite | Attack | Sequence[Attack] = "autoattack",
    batch_size: int | None = None,
    device: str | torch.device | None = None,
    precision: str = "auto",
    seed: int = 0,
    run: Path | str | None = None,
    progress: bool = False,
    *,
    curve: bool = False,
    samples: int = SAMPLES,
    described: dict[str, Any] | None = None,
) -> Evaluation:
    """Standard and robust accuracy of a classifier under a suite of attacks.

    Args:
        model: anything callable from images to logits (N, K), K at least the number of classes.
            Where PyTorch cannot differentiate it, the suite falls back to attacks that need no
            gradient, and a flag says so. A module is evaluated in eval mode and handed back as it
            was. A logit of −∞ masks its class. Where a logit is NaN or +∞, the model answers
            nothing: at a point of the ball that is a success of the attack, and a flag counts
            them; at a clean image it is an error.
        images: float32 (N, C, H, W) in [0, 1]; 8-bit integers, arrays and lists are taken too, and
            so is a `DataLoader` or a data set that brings the labels (see `holdfast.inputs`).
        labels: int64 (N,) true classes; any whole numbers, or one-hot rows.
        threat: what the attacker may do; a pair `("linf", 8 / 255)` is taken too.
        suite: a name from `holdfast.attacks.SUITES`, a `Suite`, one attack, or a list of attacks.
        batch_size: items searched at once; measured if None. It changes no verdict of a model that
            answers each image by itself, up to floating-point rounding; a flag says whether this
            one does.
        device: where to work; by default where the model is.
        precision: what the *search* runs in: `float32` on a folded copy; `bf16` on a coarser
            copy, with everything near the boundary searched again in float32; `original` on the
            model itself; `auto` chooses by the hardware. Verdicts always come from the original.
        seed: of all random draws.
        run: a folder for journal and result; the same call goes on where it was interrupted.
        progress: show a progress bar (plain lines where there is no terminal).
        curve: also measure the security curve on the first images.
        samples: of the suite `adaptive`: over how many draws each look at a random model averages.
        described: for `result.json`: what the model and the data are.

    Raises:
        InputError (a ValueError): bad images or labels, a model that fails on them, or whose
            logits are not finite there, of the wrong shape or fewer than the classes; a ball that
            holds every image there is; a folder that holds another run.
    """
    if isinstance(labels, Threat) and threat is None:  # images that bring their labels
        labels, threat = None, labels
    threat = checked_threat(threat)
    model = wrapped(model)
    plain = unwrapped(model)
    with own_defaults():
        images, labels = checked_data(images, labels)
    threat.check_reach(images)
    if precision not in PRECISIONS:
        raise InputError(f"precision must be one of {', '.join(PRECISIONS)}, not {precision!r}")
    if batch_size is not None:
        check_count("batch_size", batch_size)
    made_for_it = suite == ADAPTIVE  # for which the model has to be seen at work
    suite = adaptive(samples=samples, norm=threat.norm) if made_for_it else suite_named(suite)
    whole = suite
    suite = suite.fitting(threat)
    home = _device_of(model)
    if home.type == "meta":
        raise InputError("the model has no weights: they are on torch's device meta")
    where = home if device is None else checked_device(own_device(device))
    request = _Request(
        model=model,
        images=_plain(images),
        labels=_plain(labels),
        threat=threat,
        suite=suite,
        samples=samples if made_for_it else None,
        unfitting=whole.without(suite),
        batch_size=batch_size,
        device=where,
        precision=precision,
        seed=seed,
        progress=progress,
        curve=curve,
    )
    mover = model if where != home else None
    told = {
        "model": {"name": getattr(plain, "__name__", type(plain).__name__)} | told_of(model),
        "data": {"pixels": "as handed to holdfast.evaluate"},
    }
    try:
        if mover is not None:
            mover.to(where)
        with (
            own_defaults(),
            evaluating(model),
            joined() as workers,
            claimed(run) if run is not None and workers.leads else nullcontext(),
        ):
            return _evaluate(request, workers, run, told | (described or {}))
    finally:
        if mover is not None:
            mover.to(home)


@dataclass(frozen=True)
class _Request:
    """What `evaluate` was asked, checked; images and labels on the CPU."""

    model: Model
    images: Tensor
    labels: Tensor
    threat: Threat
    suite: Suite
    samples: int | None  # where the suite is made for the model
    unfitting: tuple[Stage, ...]  # of the suite asked for, those that do not know the norm
    batch_size: int | None
    device: torch.device
    precision: str
    seed: int
    progress: bool
    curve: bool

    def asked(self, weights: str) -> dict[str, Any]:
        """All that can change the result, as JSON; what cannot is left out."""
        return {
            "model": weights,
            "images": digest(self.images, self.labels),
            "threat": self.threat.describe(),
            "suite": self.suite.describe(),
            "seed": self.seed,
            "precision": self.precision,
        }

    def told(self, weights: str, settings: str, code: str) -> dict[str, Any]:
        """What was asked, for a reader and for comparison with what another run was asked."""
        return {
            **self.asked(weights),
            "suite": self.suite.name,
            "attacks": digest(json.dumps(self.suite.describe(), sort_keys=True)),
            **({} if self.samples is None else {"samples": self.samples}),
            "n": len(self.images),
            "settings_sha256": settings,
            "code": code,
        }


def _evaluate(
    request: _Request, workers: Workers, run: Path | str | None, described: dict[str, Any]
) -> Evaluation:
    began = time.monotonic()
    model, images, labels = request.model, request.images, request.labels
    threat, device = request.threat, request.device
    plain = unwrapped(model)
    before = weights_digest(plain)
    probe, probe_labels = images[:PROBE].to(device), labels[:PROBE].to(device)
    with torch.no_grad(), draws.fixed_draws(0):
        logits = model(probe)
    unnamed = logits_without_images(logits.shape[1], labels, described.get("classes"))
    logits = check_logits(logits, len(probe), probe_labels)
    check_labels(labels, len(labels), logits.shape[1])
    bare = bare_network(model, probe)
    changes = health.outputs_change(model, probe)
    random = declared(model).random or changes.fired
    if request.samples is not None:
        suite = suite_for(model, bare, random, request.samples, threat.norm)
        request = replace(request, suite=suite)
    most = max(stage.samples for stage in request.suite.stages)
    # The digest of a defended function's defences says nothing of the function.
    weights = before if isinstance(unwrapped(bare or model), nn.Module) else None
    known_by = weights or digest(before or "", logits)
    asked = request.asked(known_by)
    settings = settings_digest(plain)
    code = code_version(
        "attacks",
        "search",
        "threat.py",
        "spatial.py",
        "draws.py",
        *(["defences"] if steps(model) else []),
    )
    key = identity(**asked, settings=settings, code=code)
    folder = None if run is None else Path(run)
    done = _recalled(folder, key, request, described, workers)
    if done is not None:
        return done

    flags = [
        health.outputs_like_probabilities(logits),
        unnamed,
        health.averaged(changes, most),
        health.depends_on_batch(model, probe, changes.fired),
        health.forward_computes_gradients(model, probe),
        health.gradients(model, probe, probe_labels),
    ]
    differentiable = health.differentiable(flags[-1])
    # Fast copies are compared by their answers: behind defences, by those of the network alone.
    changing = changes.fired if bare is None else health.outputs_change(bare, probe).fired
    precision = "original" if changing or not differentiable else request.precision
    log: list[str] = []
    views = levels_by_view(
        model, bare, lambda m: levels_of(m, probe, probe_labels, precision, log.append)
    )
    _check_views(request.suite, views)
    levels = views[""]
    blind = blind_views(model, bare, probe, probe_labels)
    suite = without_blind(request.suite, blind)
    verifier = Verifier(model, MAJORITY_OF if random else 1)
    # The model as each stage sees it, its own gradients first; what is carried over is another's.
    ways = dict.fromkeys(["", *(stage.view for stage in suite.stages)])
    looks = [views[way][-1].fast_copy.model for way in ways if way != UNDEFENDED]
    steady = model
    if random:
        few = max(1, most // 10)  # draws: the checks are no search
        looks, steady = [frozen(look, few) for look in looks], frozen(model, few)
    exact = looks[0]
    # PGD stands behind the curve and two of the checks.
    climbable = differentiable and threat.norm in PGD.norms
    if climbable:
        flags += [
            health.more_steps(exact, probe, probe_labels, threat, request.seed),
            health.huge_eps(steady, looks, probe, probe_labels, threat, request.seed),
        ]
    misled = workers.share(any(flag.fired for flag in flags if flag.name in health.MISLEADING))
    # Only the first level's batch is measured: the others are small or of the same cost.
    batch_size = request.batch_size or measure_batch_size(
        levels[0].fast_copy.model, images, device, differentiable
    )
    used = " then ".join(level.fast_copy.name for level in levels)
    _agree(workers, {"identity": key, "suite": suite.describe(), "precision": used})
    if bare is None:
        batch = images[:batch_size].to(device), labels[:batch_size].to(device)
        levels = views[""] = compiled_where_it_pays(
            levels,
            model,
            suite,
            *batch,
            workers,
            batch_size=batch_size,
            of=len(images),
            classes=logits.shape[1],
            say=log.append,
        )
        used = " then ".join(level.fast_copy.name for level in levels)
    if folder is not None and workers.leads:
        told = {**request.told(known_by, settings, code), "suite": suite.name, **described}
        request_ = {"asked": told, "workers": workers.size, **circumstances(device)}
        open_run(folder, "evaluate", key, request_)
    shard = Shard(workers, folder, key, len(images))
    # What other processes spent on this run before.
    earlier = sum(shard.journal.cost(number)[0] for number in range(len(suite.stages)))
    drawn: Curve | None = None
    with ProgressLine(f"{suite.name}, {threat}", request.progress and workers.leads) as line:

        def report(share: float, word: str) -> None:
            workers.check()
            line.update(share, word)

        def made(journal: Journal, rows: Tensor) -> Search:
            return Search(
                model,
                images,
                labels,
                threat,
                suite,
                levels=levels,
                batch_size=batch_size,
                device=device,
                seed=request.seed,
                ledger=Ledger.of(images, labels, torch.arange(len(images)), threat.witness_size),
                journal=journal,
                report=report,
                rows=rows,
                views=views,
                verifier=verifier,
                misled=misled,
            )

        if unnamed.fired:
            line.say(unnamed.detail)
        for entry in dict.fromkeys(log):
            line.say(entry)
        if misled and any(stage.after is not None for stage in suite.stages):
            line.say("gradients mislead: a short search will not do")
        try:
            search = shard.search(made)
        except InputError:
            if shard.discard_if_bare() and folder is not None and workers.leads:
                withdraw_run(folder)
            raise
        if search is None:  # worker 0 has it all, and says what came of it
            return unpack(workers.broadcast(b""))
        ledger = search.ledger
        prediction, confidence, answers = final_answers(
            verifier, ledger, images, threat, batch_size, device, request.seed
        )
        distances = distances_of(suite, ledger, images, threat)
        if suite.closest:
            drawn = distance_curve(distances, f"suite {suite.name}", threat)
        elif request.curve and climbable:
            line.say("security curve …")
            drawn = security_curve(
                steady,
                exact,
                images[:CURVE_IMAGES].to(device),
                labels[:CURVE_IMAGES].to(device),
                threat,
                request.seed,
            )
        seen: Unaware | None = None
        if bare is not None and UNDEFENDED not in blind and threat.norm in PGD.norms:
            line.say("attack on the network behind the defence …")
            seen = unaware_accuracy(
                views[UNDEFENDED][-1].fast_copy.model,
                verifier,
                images,
                labels,
                threat,
                batch_size=batch_size,
                device=device,
                seed=request.seed,
            )
    left_out = [(stage, f"does not know the norm {threat.norm}") for stage in request.unfitting]
    left_out += [(stage, NEEDS_GRADIENTS) for stage in request.suite.without(suite)]
    costs = costs_of(suite, search, left_out)
    gradient_free = {s.name for s in suite.stages if not s.attack.needs_gradient}
    if not suite.closest:  # whose stages all go over the same images
        flags.append(health.gradient_free_wins(costs, gradient_free, len(images)))
    flags.append(health.model_changes(before, weights_digest(plain)))
    flags.append(health.writes_to_its_input(model))
    unanswered = int((ledger.broken & (prediction == NO_PREDICTION)).sum())
    flags.append(health.answers_nothing(unanswered, len(images)))
    n, right = len(images), int((ledger.stage != CLEAN).sum())
    standing = int((~ledger.broken).sum())
    result = Evaluation(
        n=n,
        standard_accuracy=right / n,
        standard_accuracy_interval=clopper_pearson(right, n),
        robust_accuracy=standing / n,
        robust_accuracy_interval=clopper_pearson(standing, n),
        threat=threat.describe(),
        suite=suite.name,
        attacks=costs,
        flags=tuple(flags),
        curve=drawn,
        forwards=n * verifier.draws + sum(cost.forwards for cost in costs),
        backwards=sum(cost.backwards for cost in costs),
        seconds=earlier + time.monotonic() - began,
        seed=request.seed,
        precision=used,
        batch_size=batch_size,
        identity=key,
        broken=ledger.broken,
        adversarial=ledger.adversarial,
        verdicts=verdicts_of(suite, ledger, distances, prediction, confidence),
        draws=draw_figures(verifier, ledger, images, answers, batch_size, device, request.seed)
        if random
        else (),
        unaware=seen,
        unanswered=unanswered,
        log=tuple(dict.fromkeys(log)),
        finished=now(),
    )
    if folder is not None:
        if bare is not None and seen is not None:
            network = views[UNDEFENDED][-1].fast_copy.model
            write_strips(folder, network, verifier, images, result, threat, device)
        shard.conclude(pack(replace(result, adversarial=torch.empty(0))))
        write_run(folder, images, result, described)
    if workers.size > 1:
        workers.broadcast(pack(result))
    return result


def _recalled(
    folder: Path | None,
    key: str,
    request: _Request,
    described: dict[str, Any],
    workers: Workers,
) -> Evaluation | None:
    """The outcome of this very run where it is known already; in all workers alike.

    The journal keeps it. Where the process was killed before its files were all written, they are
    written now.
    """
    result: Evaluation | None = None
    path = None if folder is None else folder / JOURNAL
    if (
        path is not None
        and workers.leads
        and path.is_file()
        and holds(path.parent, "evaluate", key)
    ):
        journal = Journal(path, key)
        try:
            packed = journal.outcome()
            if packed is not None:
                ledger = Ledger.of(
                    request.images,
                    request.labels,
                    torch.arange(len(request.images)),
                    request.threat.witness_size,
                )
                journal.restore(ledger)
                result = replace(unpack(packed), adversarial=ledger.adversarial)
                if request.curve and _lacks_curve(result):
                    result = None  # what is missing is measured; no attack is made again
        finally:
            journal.close()
    if not workers.share(result is not None):
        return None
    if result is not None and folder is not None:
        if finished(folder) is None:
            open_run(folder, "evaluate", key, {})  # which clears away what was half written
            write_run(folder, request.images, result, described)
        with ProgressLine("evaluation", request.progress) as line:
            line.say(f"{folder} was finished on {on_date(result.finished)}: read, not run again")
    if workers.size == 1:
        return result
    return unpack(workers.broadcast(b"" if result is None else pack(result)))


def _lacks_curve(result: Evaluation) -> bool:
    """Whether there is no security curve, and could be one."""
    known = {flag.name: flag for flag in result.flags}
    climbable = health.differentiable(known["gradients-vanish"])
    return result.curve is None and climbable and result.threat["norm"] in PGD.norms


def _agree(workers: Workers, seen: dict[str, Any]) -> None:
    """All workers were asked the same, and decided alike how to go about it."""
    told = workers.share(seen)
    for name, value in json.loads(json.dumps(seen)).items():
        if not workers.leads and told[name] != value:
            raise InputError(
                f"the model, the data or the hardware differ from worker 0's (its {name} is "
                f"{str(told[name])[:60]}, not {str(value)[:60]}); all workers need the same"
            )


def _check_views(suite: Suite, views: dict[str, list[Level]]) -> None:
    """InputError where a stage looks at the model in a way that it does not offer."""
    for stage in suite.stages:
        if stage.view not in views:
            offered = ", ".join(sorted(view for view in views if view)) or "none"
            raise InputError(
                f"suite {suite.name!r}: the model offers no view {stage.view!r} "
                f"(it offers: {offered})"
            )


def _device_of(model: Model) -> torch.device:
    if isinstance(model, nn.Module):
        for tensor in (*model.parameters(), *model.buffers()):
            return tensor.device
    return torch.device("cpu")


def _plain(tensor: Tensor) -> Tensor:
    """On the CPU, and one that can take part in gradients."""
    tensor = tensor.detach().cpu()
    with torch.inference_mode(False):
        return tensor.clone() if tensor.is_inference() else tensor
