"""`measure`: from a request to every figure, in steps that the run folder keeps."""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Callable
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ...data.corruptions import SEVERITIES
from ...distributed import Workers, joined
from ...draws import fixed_draws
from ...errors import InputError
from ...evaluation.classes import check_number_of_logits
from ...evaluation.health import gradients
from ...inputs import check_logits
from ...models.adapted import described_with
from ...models.black_box import innermost
from ...models.modes import evaluating
from ...models.wrapper import standard_defaults, unwrapped
from ...runs.environment import circumstances
from ...runs.folder import finished, on_date, open_run, withdraw_run
from ...runs.identity import code_version, digest, identity, settings_digest, weights_digest
from ...runs.lock import claimed
from ...runs.parts import Done, Stages
from ...runs.progress import ProgressLine
from ...runs.records import UncertaintyRecord
from ..batches import in_batches
from ..calibration import IsotonicScaling, TemperatureScaling, VectorScaling
from . import measurements
from .output import write_run
from .probed_model import ProbedModel
from .request import Request
from .result import Findings, conformal_sets, figures_of, rows_of, thresholds_of

CODE = (
    "attacks",
    "search",
    "uncertainty",
    "evaluation",
    "intervals.py",
    "threat.py",
    "draws.py",
    "data/corruptions.py",
    "data/out_of_distribution.py",
)


def measure(
    request: Request,
    run: Path | None = None,
    *,
    described: dict[str, Any] | None = None,
    progress: bool = False,
) -> UncertaintyRecord:
    """Measure how sure a model is, and whether that can be believed.

    Everything is measured on clean, corrupted, out-of-distribution and attacked images.

    Args:
        request: what to measure.
        run: a folder that keeps the outcome of each step; the same request goes on from there.
        described: `model` and `data` of the result: what they are.
        progress: show progress on standard error.

    Returns:
        what `result.json` holds.

    Raises:
        InputError: a model whose logits are not finite, or that cannot be differentiated; a folder
            that holds another run.
    """
    request, described = request.with_wrapped_models(), described or {}
    with (
        standard_defaults(),
        evaluating(request.model),
        joined() as workers,
        claimed(run) if run is not None and workers.leads else nullcontext(),
    ):
        _check_models(request)
        code = code_version(*CODE)
        key = identity(**_deciding(request), code=code)
        _check_together(request, workers, key)
        progress = progress and workers.leads
        folder, result = run, None
        if run is not None and workers.leads:
            asked = {**_settings(request), **_checksums(request), **described, "code": code}
            folder, begun = open_run(
                run, "uncertainty", key, {"asked": asked, **circumstances(request.device)}
            )
            result = finished(folder, UncertaintyRecord) if begun else None
            if result is not None:
                _say_finished(folder, result, progress)
        known: UncertaintyRecord | None = workers.share(result)
        if known is not None:
            return known
        try:
            return _measure(request, folder, key, described, progress, workers)
        except InputError:
            if folder is not None and workers.leads:
                _withdraw(folder)
            raise


def _check_together(request: Request, workers: Workers, key: str) -> None:
    """InputError where several processes were started that cannot measure this together."""
    if workers.size == 1:
        return
    if not all(isinstance(split.floats, Tensor) for split in request.splits):
        raise InputError(
            "images that would fill more than 512 MiB as float32: uncertainty measures them in one "
            "process; start it without torchrun, or as one task of Slurm"
        )
    if len(set(workers.gather(key))) > 1:
        raise InputError("the processes have different models, images or versions of Holdfast")


def _measure(
    request: Request,
    folder: Path | None,
    key: str,
    described: dict[str, Any],
    progress: bool,
    workers: Workers,
) -> UncertaintyRecord:
    """Attack predictions, fit calibrators, measure all else, write the result."""
    began = time.monotonic()
    _check_differentiable(request)
    suite = _attack_predictions(request, folder, described, progress, workers)
    shown = folder if workers.leads else None
    with ProgressLine(f"uncertainty, {request.threat}", progress, run=shown) as line:
        steps = Stages(folder, line, _weights(request), workers)
        fitting = steps.do("answers", lambda report: ({}, _fitting_logits(request))).tensors
        calibrators = _fit_calibrators(request, fitting["fitting"])
        probed = ProbedModel(
            request, calibrators["temperature"], folder=steps.folder, key=key, workers=workers
        )
        clean = steps.do("clean", partial(measurements.look_at_clean, probed)).tensors
        logits = {**fitting, **{name: clean[name] for name in ("more_calibration", "more_test")}}
        outcomes = _search(probed, steps, clean, suite)
    found = Findings(request, probed.temperature, calibrators, logits, suite, outcomes)
    seconds, settings = {"suite": suite.seconds} | steps.seconds, _settings(request)
    result = {
        "status": "complete",
        "identity": key,
        **described_with(described, request.model),
        **{name: settings[name] for name in ("threat", "suite", "n", "seed")},
        "settings": settings,
        "classes": list(request.classes),
        **figures_of(found),
        "stages": seconds,
        "log": list(dict.fromkeys(probed.log)),
        # The work of earlier processes on this run counts too.
        "seconds": max(time.monotonic() - began, sum(seconds.values())),
    }
    record = None
    if workers.leads and folder is None:
        record = UncertaintyRecord.checked(result, "the result")
    elif workers.leads and folder is not None:
        record = write_run(folder, result, rows_of(found))
    shared: UncertaintyRecord | None = workers.share(record)
    assert shared is not None
    steps.forget()
    if folder is not None and not workers.leads:
        with contextlib.suppress(OSError):  # it holds the run, where worker 0 sees it too
            folder.rmdir()
    return shared


# --- before anything is searched -----------------------------------------------------------------


def _check_models(request: Request) -> None:
    """InputError where a model's logits do not fit the classes, or are not finite."""
    request.threat.check_reach(request.test.floats)
    images, labels = (t[:8].to(request.device) for t in (request.test.floats, request.test.labels))
    models = [("the model", request.model), *(("a member", m) for m in request.members)]
    for name, model in models:
        with torch.no_grad(), evaluating(model), fixed_draws(0):
            logits = model(images)
        check_number_of_logits(logits.shape[1], request.classes, exactly=True, model=name)
        check_logits(logits, len(images), labels)


def _check_differentiable(request: Request) -> None:
    images, labels = (t[:8].to(request.device) for t in (request.test.floats, request.test.labels))
    if "reason" in gradients(request.model, images, labels).figures:
        raise InputError(
            "the model cannot be differentiated: attacks on uncertainty need gradients, so only "
            "`holdfast evaluate` can judge it"
        )


# --- the steps -----------------------------------------------------------------------------------


def _attack_predictions(
    request: Request,
    folder: Path | None,
    described: dict[str, Any],
    progress: bool,
    workers: Workers,
) -> Done:
    """The outcome of the suite.

    Raises:
        InputError: on some attacked image the model's logits are not finite. Nobody can say how
            sure it is there.
    """
    uncalibrated = ProbedModel(request, TemperatureScaling(1.0))
    # The suite shows its own progress: it is the longest step, and resumes image by image.
    with ProgressLine("uncertainty", enabled=False) as quiet:
        suite = Stages(folder, quiet, {"suite": 1.0}, workers).do(
            "suite",
            lambda report: measurements.attack_predictions(
                uncalibrated, folder, described, progress
            ),
        )
    (flag,) = [f for f in suite.figures["flags"] if f["name"] == "answers-nothing"]
    if flag["fired"]:
        raise InputError(
            f"on {flag['figures']['images']} of {len(request.test)} images an attack found a point "
            "at which the model predicts nothing (a logit is NaN or infinite), so its confidence "
            "cannot be measured; `holdfast evaluate` counts them as broken"
        )
    return suite


def _fitting_logits(request: Request) -> dict[str, Tensor]:
    """Uncalibrated logits (N, K) of the fitting split."""

    def predict(images: Tensor) -> Tensor:
        return request.model(images.to(request.device)).float().cpu()

    return {"fitting": in_batches(predict, request.fitting.images)}


def _fit_calibrators(request: Request, logits: Tensor) -> dict[str, Any]:
    """Every calibrator, fitted on the logits of the fitting split."""
    labels = request.fitting.labels
    return {
        "temperature": TemperatureScaling.fit(logits, labels),
        "vector": VectorScaling.fit(logits, labels),
        "isotonic": IsotonicScaling.fit(logits, labels),
    }


def _search(
    probed: ProbedModel, steps: Stages, clean: dict[str, Tensor], suite: Done
) -> dict[str, Done]:
    """Every step that runs the model on images that are scored, corrupted or attacked."""
    request = probed.request
    outcomes: dict[str, Done] = {}

    def do(name: str, work: Callable[..., measurements.Outcome], *arguments: Any) -> Done:
        outcomes[name] = steps.do(name, partial(work, probed, *arguments))
        return outcomes[name]

    calibration = probed.temperature(clean["more_calibration"][: len(request.calibration)])
    broken = suite.tensors["images"]
    unaware = do("unaware", measurements.attack_unaware, broken).tensors["images"]
    attacked = {"suite": broken, "unaware": unaware}
    scored = do("known", measurements.score_images, clean, broken, unaware)
    predicted = scored.tensors["clean/logits"]
    unsure = do("miscalibrate", measurements.attack_confidence, predicted).tensors
    thresholds = list(thresholds_of(request, calibration)[0].values())
    for name in measurements.AWARE:
        if name in scored.figures["scores"]:
            do(
                f"evade-{name}",
                measurements.attack_detector,
                name,
                scored.tensors[f"calibration/{name}"],
                thresholds if name == "max-softmax" else [],
                attacked,
                scored.tensors,
            )
    for number, other in enumerate(request.out_of_distribution):
        do(f"foreign-{number}", measurements.score_out_of_distribution, other)
    for name in request.corruption_names:
        do(f"corruption-{name}", _or_reason(measurements.predict_corrupted), name)
    sets = conformal_sets(request, calibration, "lac")
    do("sets", measurements.attack_sets, sets, attacked, scored.tensors, unsure)
    do("robust-sets", _or_reason(measurements.attack_robust_sets))
    return outcomes


def _or_reason(work: Callable[..., measurements.Outcome]) -> Callable[..., measurements.Outcome]:
    """The same step, which says in one line why these images or this model allow no outcome."""

    def attempt(*arguments: Any) -> measurements.Outcome:
        try:
            return work(*arguments)
        except InputError as error:
            return {"unavailable": str(error)}, {}

    return attempt


def _weights(request: Request) -> dict[str, float]:
    """About how many thousand forward passes each step takes for a thousand images."""
    weights = {"answers": 1.0, "clean": 20.0, "unaware": 30.0, "known": 20.0}
    weights |= {"miscalibrate": 25.0, "sets": 35.0}
    weights |= {f"evade-{name}": 40.0 for name in measurements.AWARE} | {"robust-sets": 40.0}
    weights |= {f"foreign-{i}": 8.0 for i in range(len(request.out_of_distribution))}
    return weights | {f"corruption-{name}": 2.0 for name in request.corruption_names}


# --- the run folder ------------------------------------------------------------------------------


def _settings(request: Request) -> dict[str, Any]:
    """The request's names and numbers, as `request.json` and `result.json` hold them."""
    return {
        "threat": {"norm": request.threat.norm, "eps": request.threat.eps},
        "suite": request.suite.name,
        "n": len(request.test),
        "tuning": len(request.fitting),
        "held": len(request.calibration),
        "more_test": len(request.more_test),
        "more_held": len(request.more_calibration),
        "training": len(request.training),
        "members": len(request.members),
        "foreign": [other.name for other in request.out_of_distribution],
        "human": request.human is not None,
        "alpha": request.alpha,
        "risk": request.risk,
        "coverage": request.coverage,
        "radius": request.radius,
        "sigma": request.sigma,
        "seed": request.seed,
    }


def _deciding(request: Request) -> dict[str, Any]:
    """Everything that can change the result."""
    model, members = unwrapped(request.model), [unwrapped(member) for member in request.members]
    weights = weights_digest(model)
    if not isinstance(innermost(model), nn.Module):  # a function is identified by its logits
        with torch.no_grad():
            weights = digest(request.model(request.test.floats[:8].to(request.device)))
    return {
        **_settings(request),
        "model": [weights, settings_digest(model)],
        "members": [[weights_digest(member), settings_digest(member)] for member in members],
        "suite": request.suite.describe(),
        "images": [digest(split.images, split.labels) for split in request.splits],
        "foreign_images": [digest(other.images) for other in request.out_of_distribution],
        "human": None if request.human is None else digest(request.human),
        **({} if request.corruptions is None else {"corruptions": _corruptions_digest(request)}),
    }


def _checksums(request: Request) -> dict[str, str]:
    """Checksums by which the inputs of two runs can be compared."""
    tensors = [t for split in request.splits for t in (split.images, split.labels)]
    members = [weights_digest(unwrapped(member)) or "" for member in request.members]
    return {
        "images": digest(*tensors),
        "attacks": digest(json.dumps(request.suite.describe(), sort_keys=True)),
        "ensemble": digest(*members),
        "foreign_images": digest(*(other.images for other in request.out_of_distribution)),
        **({} if request.human is None else {"human_labels": digest(request.human)}),
        **({} if request.corruptions is None else {"corruptions": _corruptions_digest(request)}),
    }


def _corruptions_digest(request: Request) -> str:
    published = request.corruptions
    assert published is not None
    images = (published.images(n, s) for n in published.names for s in SEVERITIES)
    return digest(published.labels, *(digest(each) for each in images))


def _say_finished(folder: Path, result: UncertaintyRecord, progress: bool) -> None:
    with ProgressLine("uncertainty", progress) as line:
        Stages(folder, line, {}).forget()  # left by a process that was killed at the very end
        when = on_date(result.finished or "")
        line.say(f"{folder} was finished on {when}: read, not measured again")


def _withdraw(folder: Path) -> None:
    """Free the folder again where nothing was found yet."""
    with contextlib.suppress(OSError):
        (folder / "attack").rmdir()  # only if it is empty
    withdraw_run(folder)
