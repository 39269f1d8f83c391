"""`evaluate`: from a model and images to a verdict for each image."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Int64
from torch import Tensor, nn

from ..attacks import PGD, Attack, Square, Stage, Suite, suite_named
from ..attacks.base import Model
from ..checks import check_images, check_labels, check_logits
from ..engine import CLEAN, STANDING, Journal, Lane, Ledger, Search, fast_twin, measure_batch_size
from ..engine.twin import has_fast_bf16, original
from ..errors import InputError
from ..models.modes import evaluating
from ..progress import ProgressLine
from ..runs import (
    circumstances,
    code_version,
    digest,
    identity,
    open_run,
    settings_digest,
    weights_digest,
    withdraw_run,
)
from ..threat import Images, Threat
from . import health
from .curve import security_curve
from .intervals import interval
from .result import AttackCost, Curve, Evaluation, Verdict, write_run

PROBE = 64  # images that twins are compared and health is checked on
PRECISIONS = ("auto", "bf16", "float32", "original")


def evaluate(
    model: Model,
    images: Images,
    labels: Int64[Tensor, " n"],
    threat: Threat,
    suite: str | Suite | Attack = "autoattack",
    batch_size: int | None = None,
    device: str | torch.device | None = None,
    precision: str = "auto",
    seed: int = 0,
    run: Path | str | None = None,
    progress: bool = False,
    *,
    curve: bool = False,
    described: dict[str, Any] | None = None,
) -> Evaluation:
    """Standard and robust accuracy of a classifier under a suite of attacks.

    Args:
        model: anything callable from images to logits (N, K). Where PyTorch cannot differentiate
            it, the suite falls back to attacks that need no gradient, and a flag says so. A
            module is evaluated in eval mode and handed back as it was.
        images: float32 (N, C, H, W) in [0, 1].
        labels: int64 (N,) true classes.
        threat: what the attacker may do.
        suite: a name from `holdfast.attacks.SUITES`, a `Suite`, or one attack.
        batch_size: items searched at once; measured if None. It changes no verdict.
        device: where to work; by default where the model is.
        precision: what the *search* runs in: `float32` on a folded copy; `bf16` on a coarser
            copy, with everything near the boundary searched again in float32; `original` on the
            model itself; `auto` chooses by the hardware. Verdicts always come from the original.
        seed: of all random draws.
        run: a folder for journal and result; the same call goes on where it was interrupted.
        progress: show a progress bar (plain lines where there is no terminal).
        curve: also measure the security curve on the first images.
        described: for `result.json`: what the model and the data are.

    Raises:
        InputError (a ValueError): bad images or labels, a model whose logits are not finite or
            of the wrong shape, a folder that holds another run.
    """
    check_images(images)
    check_labels(labels, len(images))
    if precision not in PRECISIONS:
        raise InputError(f"precision must be one of {', '.join(PRECISIONS)}, not {precision!r}")
    if batch_size is not None and batch_size < 1:
        raise InputError(f"batch_size must be at least 1, not {batch_size}")
    suite = suite_named(suite)
    for stage in suite.stages:
        stage.attack.check_norm(threat)
    home = _device_of(model)
    where = home if device is None else _usable(device)
    request = _Request(
        model=model,
        images=_plain(images),
        labels=_plain(labels),
        threat=threat,
        suite=suite,
        batch_size=batch_size,
        device=where,
        precision=precision,
        seed=seed,
        progress=progress,
        curve=curve,
    )
    mover = model if isinstance(model, nn.Module) and where != home else None
    told = {
        "model": {"name": getattr(model, "__name__", type(model).__name__)},
        "data": {"pixels": "as handed to holdfast.evaluate"},
    }
    try:
        if mover is not None:
            mover.to(where)
        # Whatever the caller's mode, attacks need gradients.
        with torch.inference_mode(False), evaluating(model):
            return _evaluate(request, run, told | (described or {}))
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
            "threat": {"norm": self.threat.norm, "eps": self.threat.eps},
            "suite": self.suite.describe(),
            "seed": self.seed,
            "precision": self.precision,
        }


def _evaluate(request: _Request, run: Path | str | None, described: dict[str, Any]) -> Evaluation:
    began = time.monotonic()
    model, images, labels = request.model, request.images, request.labels
    threat, device = request.threat, request.device
    before = weights_digest(model)
    probe, probe_labels = images[:PROBE].to(device), labels[:PROBE].to(device)
    with torch.no_grad():
        logits = check_logits(model(probe), len(probe), probe_labels)
    check_labels(labels, len(labels), logits.shape[1])
    asked = request.asked(before or digest(logits))
    settings = settings_digest(model)
    key = identity(
        **asked, settings=settings, code=code_version("attacks", "engine", "threat.py", "draws.py")
    )

    flags = [
        health.outputs_like_probabilities(logits),
        health.outputs_change(model, probe),
        health.forward_computes_gradients(model, probe),
        health.gradients(model, probe, probe_labels),
    ]
    differentiable = "reason" not in flags[-1].figures
    suite = request.suite if differentiable else _without_gradients(request.suite)
    steady = not flags[1].fired
    lanes = _lanes(
        model, probe, probe_labels, request.precision if differentiable and steady else "original"
    )
    exact = lanes[-1].twin.model
    # Only the first lane's batch is measured: the others are small or of the same cost.
    batch_size = request.batch_size or measure_batch_size(
        lanes[0].twin.model, images, device, differentiable
    )

    folder = None
    if run is not None:
        told = {**asked, "suite": suite.name, "n": len(images), **described}
        folder, _ = open_run(run, "evaluate", key, {"asked": told, **circumstances(device)})
    journal = Journal(None if folder is None else folder / "journal.sqlite", key)
    # What other processes spent on this run before.
    earlier = sum(journal.cost(number)[0] for number in range(len(suite.stages)))
    ledger = Ledger.of(images, labels, torch.arange(len(images)))
    drawn: Curve | None = None
    with ProgressLine(f"{suite.name}, {threat}", request.progress) as line:
        search = Search(
            model,
            images,
            labels,
            threat,
            suite,
            lanes=lanes,
            batch_size=batch_size,
            device=device,
            seed=request.seed,
            ledger=ledger,
            journal=journal,
            report=line.update,
        )
        try:
            search.run()
        except InputError:
            if folder is not None and journal.discard_if_bare():
                withdraw_run(folder)
            raise
        finally:
            journal.close()
        prediction, confidence = _final_answers(model, ledger, images, threat, batch_size, device)
        # PGD stands behind the curve and two of the checks.
        climbable = differentiable and threat.norm in PGD.norms
        if request.curve and climbable:
            line.say("security curve …")
            drawn = security_curve(
                model, exact, images.to(device), labels.to(device), threat, request.seed
            )
    costs = _costs(suite, search)
    if climbable:
        flags += [
            health.more_steps(exact, probe, probe_labels, threat, request.seed),
            health.huge_eps(model, exact, probe, probe_labels, threat, request.seed),
        ]
    gradient_free = {s.attack.name for s in suite.stages if not s.attack.needs_gradient}
    flags += [
        health.gradient_free_wins(costs, gradient_free, len(images)),
        health.model_changes(before, weights_digest(model)),
    ]
    n, right = len(images), int((ledger.stage != CLEAN).sum())
    standing = int((~ledger.broken).sum())
    result = Evaluation(
        n=n,
        standard_accuracy=right / n,
        standard_accuracy_interval=interval(right, n),
        robust_accuracy=standing / n,
        robust_accuracy_interval=interval(standing, n),
        threat={"norm": threat.norm, "eps": threat.eps},
        suite=suite.name,
        attacks=costs,
        flags=tuple(flags),
        curve=drawn,
        forwards=n + sum(cost.forwards for cost in costs),
        backwards=sum(cost.backwards for cost in costs),
        seconds=earlier + time.monotonic() - began,
        seed=request.seed,
        precision=" then ".join(lane.twin.name for lane in lanes),
        batch_size=batch_size,
        identity=key,
        broken=ledger.broken,
        adversarial=ledger.adversarial,
        verdicts=_verdicts(suite, ledger, images, threat, prediction, confidence),
    )
    if folder is not None and not (folder / "result.json").exists():
        write_run(folder, images, result, described)
    return result


def _device_of(model: Model) -> torch.device:
    if isinstance(model, nn.Module):
        for tensor in (*model.parameters(), *model.buffers()):
            return tensor.device
    return torch.device("cpu")


def _usable(device: str | torch.device) -> torch.device:
    try:
        return torch.empty(0, device=device).device
    except (RuntimeError, AssertionError) as error:  # torch's words for what is not there
        reason = (str(error).splitlines() or ["unknown"])[0]
        raise InputError(f"device {str(device)!r} cannot be used: {reason}") from None


def _plain(tensor: Tensor) -> Tensor:
    """On the CPU, and one that can take part in gradients."""
    tensor = tensor.detach().cpu()
    with torch.inference_mode(False):
        return tensor.clone() if tensor.is_inference() else tensor


def _without_gradients(suite: Suite) -> Suite:
    stages = tuple(s for s in suite.stages if not s.attack.needs_gradient)
    return Suite(f"{suite.name}, gradient-free part", stages or (Stage(Square(queries=5000)),))


def _lanes(model: Model, probe: Tensor, labels: Tensor, precision: str) -> list[Lane]:
    """What the search looks at, the coarsest first."""
    if precision == "original":
        return [Lane(original(model))]
    exact = fast_twin(model, probe, labels, "float32") or original(model)
    if precision == "float32" or (precision == "auto" and not has_fast_bf16(probe.device)):
        return [Lane(exact)]
    coarse = fast_twin(model, probe, labels, "bf16")
    if coarse is None:
        return [Lane(exact)]
    return [Lane(coarse), Lane(exact, near=3 * coarse.error)]


def _final_answers(
    model: Model,
    ledger: Ledger,
    images: Tensor,
    threat: Threat,
    batch_size: int,
    device: torch.device,
) -> tuple[Tensor, Tensor]:
    """What the original says of every adversarial image: the last word on every verdict."""
    predictions, confidences = [], []
    for rows in torch.arange(len(images)).split(batch_size):
        with torch.no_grad():
            logits = model(ledger.adversarial[rows].to(device)).float().cpu()
        predictions.append(logits.argmax(1))
        confidences.append(logits.softmax(1).amax(1))
    prediction = torch.cat(predictions)
    # Rounding differs between batches of different make-up; a point right on the boundary may
    # answer differently now. The attacker chooses.
    fooled = (prediction != ledger.labels) & threat.contains(ledger.adversarial, images)
    late = fooled & ~ledger.broken
    ledger.broken[late] = True
    ledger.stage[late] = int(ledger.stage.max().clamp_min(0))
    return prediction, torch.cat(confidences)


def _costs(suite: Suite, search: Search) -> tuple[AttackCost, ...]:
    ledger = search.ledger
    return tuple(
        AttackCost(
            stage.attack.name,
            int((ledger.stage == number).sum()),
            cost.forwards,
            cost.backwards,
            cost.seconds,
        )
        for number, (stage, cost) in enumerate(zip(suite.stages, search.costs, strict=True))
    )


def _verdicts(
    suite: Suite,
    ledger: Ledger,
    images: Tensor,
    threat: Threat,
    prediction: Tensor,
    confidence: Tensor,
) -> tuple[Verdict, ...]:
    names = {CLEAN: "clean", STANDING: ""} | {
        number: stage.attack.name for number, stage in enumerate(suite.stages)
    }
    distance = threat.distance(ledger.adversarial, images)
    return tuple(
        Verdict(
            index=int(ledger.index[i]),
            label=int(ledger.labels[i]),
            clean_prediction=int(ledger.clean_prediction[i]),
            clean_confidence=float(ledger.clean_confidence[i]),
            broken=bool(ledger.broken[i]),
            attack=names[int(ledger.stage[i])],
            target=int(ledger.target[i]),
            adversarial_prediction=int(prediction[i]),
            adversarial_confidence=float(confidence[i]),
            distance=float(distance[i]),
            forwards=int(ledger.forwards[i]),
            backwards=int(ledger.backwards[i]),
        )
        for i in range(len(images))
    )
