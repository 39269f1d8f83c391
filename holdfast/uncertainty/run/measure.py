"""`measure`: from a question to every figure, in stages that a run remembers."""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ...data.corruptions import CORRUPTIONS
from ...draws import fixed_draws
from ...errors import InputError
from ...evaluation.classes import check_number_of_logits
from ...evaluation.health import gradients
from ...inputs import check_logits
from ...models.modes import evaluating
from ...models.wrapper import own_defaults, unwrapped, wrapped
from ...runs.environment import circumstances
from ...runs.folder import claimed, finished, on_date, open_run, withdraw_run
from ...runs.identity import code_version, digest, identity, settings_digest, weights_digest
from ...runs.parts import Done, Stages
from ...runs.progress import ProgressLine
from ..batches import in_batches
from ..calibration import Calibrator, IsotonicScaling, TemperatureScaling, VectorScaling
from . import measurements as searches
from .output import write_run
from .probed import Part, Question, Subject
from .summary import figures_of, plain_sets, rows_of, thresholds_of

SCHEMA = "holdfast/uncertainty/1"
CODE = (
    "attacks",
    "search",
    "uncertainty",
    "evaluation",
    "threat.py",
    "draws.py",
    "data/corruptions.py",
    "data/out_of_distribution.py",
)


def measure(
    question: Question,
    run: Path | None = None,
    *,
    described: dict[str, Any] | None = None,
    progress: bool = False,
) -> dict[str, Any]:
    """How sure a model is and whether that can be believed: clean, corrupted, foreign, attacked.

    Args:
        question: what is asked.
        run: a folder that remembers finished stages; the same question goes on from there.
        described: `model` and `data`, for the result.
        progress: shown on standard error.

    Returns:
        what `result.json` holds.

    Raises:
        InputError: a model that answers nonsense or cannot be differentiated; a folder that holds
            another run.
    """
    q = replace(
        question, model=wrapped(question.model), members=[wrapped(m) for m in question.members]
    )
    with (
        own_defaults(),
        evaluating(q.model),
        nullcontext() if run is None else claimed(run),
    ):
        _first_look(q)
        code = code_version(*CODE)
        key = identity(**_asked(q), code=code)
        folder = None
        if run is not None:
            told = {**_plainly(q), **_checksums(q), **(described or {}), "code": code}
            request = {"asked": told, **circumstances(q.device)}
            folder, begun = open_run(run, "uncertainty", key, request)
            done = finished(folder) if begun else None
            if done is not None:
                with ProgressLine("uncertainty", progress) as line:
                    Stages(folder, line, {}).forget()  # of a process that was killed at the end
                    when = on_date(done["finished"])
                    line.say(f"{folder} was finished on {when}: read, not measured again")
                return done
        try:
            return _measure(q, folder, key, described or {}, progress)
        except InputError:
            if folder is not None:
                _withdraw(folder)
            raise


def _first_look(q: Question) -> None:
    """InputError, before anything is searched, where a model cannot be asked how sure it is."""
    q.threat.check_reach(q.test.floats)
    probe = q.test.floats[:8].to(q.device)
    for name, model in [("the model", q.model), *(("a member", m) for m in q.members)]:
        with torch.no_grad(), evaluating(model), fixed_draws(0):
            logits = model(probe)
        check_number_of_logits(logits.shape[1], q.classes, exactly=True, model=name)
        check_logits(logits, len(probe), q.test.labels[:8].to(q.device))


def _withdraw(folder: Path) -> None:
    """Leave the folder free again where nothing was found yet."""
    with contextlib.suppress(OSError):
        (folder / "attack").rmdir()  # only if it is empty
    withdraw_run(folder)


def _checksums(q: Question) -> dict[str, str]:
    """Of what was asked with, for comparison with what another run was asked with."""
    return {
        "images": digest(*(part for p in _parts(q) for part in (p.images, p.labels))),
        "attacks": digest(json.dumps(q.suite.describe(), sort_keys=True)),
        "ensemble": digest(*(weights_digest(unwrapped(m)) or "" for m in q.members)),
        "foreign_images": digest(*(f.images for f in q.foreign)),
        **({} if q.human is None else {"human_labels": digest(q.human)}),
    }


def _asked(q: Question) -> dict[str, Any]:
    """All that can change the result."""
    plain, members = unwrapped(q.model), [unwrapped(member) for member in q.members]
    model = weights_digest(plain)
    if model is None:  # a bare function is known by what it answers
        with torch.no_grad():
            model = digest(q.model(q.test.floats[:8].to(q.device)))
    return {
        **_plainly(q),
        "model": [model, settings_digest(plain)],
        "members": [[weights_digest(m), settings_digest(m)] for m in members],
        "suite": q.suite.describe(),
        "images": [digest(p.images, p.labels) for p in _parts(q)],
        "foreign_images": [digest(f.images) for f in q.foreign],
        "human": None if q.human is None else digest(q.human),
    }


def _plainly(q: Question) -> dict[str, Any]:
    """What was asked, in words and numbers."""
    return {
        "threat": {"norm": q.threat.norm, "eps": q.threat.eps},
        "suite": q.suite.name,
        "n": len(q.test),
        "tuning": len(q.tuning),
        "held": len(q.held),
        "more_test": len(q.more_test),
        "more_held": len(q.more_held),
        "training": len(q.training),
        "members": len(q.members),
        "foreign": [f.name for f in q.foreign],
        "human": q.human is not None,
        "alpha": q.alpha,
        "risk": q.risk,
        "coverage": q.coverage,
        "radius": q.radius,
        "sigma": q.sigma,
        "seed": q.seed,
    }


def _parts(q: Question) -> tuple[Part, ...]:
    return q.test, q.tuning, q.held, q.more_test, q.more_held, q.training


def _weights(q: Question) -> dict[str, float]:
    """About how many thousand looks each stage takes for a thousand images."""
    weights = {"answers": 15.0, "unaware": 80.0, "known": 25.0, "miscalibrate": 20.0, "sets": 50.0}
    weights |= {f"evade-{name}": 40.0 for name in searches.AWARE} | {"robust-sets": 40.0}
    weights |= {f"foreign-{i}": 8.0 for i in range(len(q.foreign))}
    return weights | {f"corruption-{name}": 2.0 for name in CORRUPTIONS}


def _measure(
    q: Question, folder: Path | None, key: str, described: dict[str, Any], progress: bool
) -> dict[str, Any]:
    began = time.monotonic()
    probe, labels = (t[:8].to(q.device) for t in (q.test.floats, q.test.labels))
    if "reason" in gradients(q.model, probe, labels).figures:
        raise InputError(
            "the model cannot be differentiated: attacks on uncertainty need gradients, so only "
            "`holdfast evaluate` can judge it"
        )
    # The suite shows its own progress: it is the longest stage, and resumes image by image.
    with ProgressLine("uncertainty", enabled=False) as quiet:
        first = Stages(folder, quiet, {"suite": 1.0})
        uncalibrated = Subject(q, TemperatureScaling(1.0))
        suite = first.do(
            "suite", lambda report: searches.break_labels(uncalibrated, folder, described, progress)
        )
    _answered_everywhere(q, suite)
    with ProgressLine(f"uncertainty, {q.threat}", progress) as line:
        stages = Stages(folder, line, _weights(q))
        predicted = stages.do("answers", lambda report: ({}, _raw_logits(q)))
        z = predicted.tensors
        z |= {"held": z["more_held"][: len(q.held)], "test": z["more_test"][: len(q.test)]}
        temperature = TemperatureScaling.fit(z["tuning"], q.tuning.labels)
        scalings: dict[str, Calibrator] = {
            "temperature": temperature,
            "vector": VectorScaling.fit(z["tuning"], q.tuning.labels),
            "isotonic": IsotonicScaling.fit(z["tuning"], q.tuning.labels),
        }
        subject = Subject(q, temperature)
        found = _searched(subject, stages, z, suite)
        result = figures_of(subject, scalings, z, suite, found)
    seconds, told = first.seconds | stages.seconds, _plainly(q)
    measured = {
        "schema": SCHEMA,
        "status": "complete",
        "identity": key,
        **described,
        **{name: told[name] for name in ("threat", "suite", "n", "seed")},
        "settings": told,
        "classes": list(q.classes),
        **result,
        "stages": seconds,
        "log": list(dict.fromkeys(subject.log)),
        # Work of earlier processes on the same run counts; tables are made in this one.
        "seconds": max(time.monotonic() - began, sum(seconds.values())),
    }
    if folder is not None:
        measured = write_run(folder, measured, rows_of(subject, z, suite, found))
        stages.forget()
    return measured


def _answered_everywhere(q: Question, suite: Done) -> None:
    """InputError where the model answers nothing at attacked images: then nobody can say how sure
    it is there."""
    (flag,) = [f for f in suite.figures["flags"] if f["name"] == "answers-nothing"]
    if flag["fired"]:
        raise InputError(
            f"on {flag['figures']['images']} of {len(q.test)} images an attack found a point at "
            "which the model answers nothing (a logit is NaN or infinite), so its confidence "
            "cannot be measured; `holdfast evaluate` counts them as broken"
        )


def _raw_logits(q: Question) -> dict[str, Tensor]:
    """What the model answers before any scaling."""

    def answer(x: Tensor) -> Tensor:
        return q.model(x.to(q.device)).float().cpu()

    parts = (("tuning", q.tuning), ("more_held", q.more_held), ("more_test", q.more_test))
    return {name: in_batches(answer, part.images) for name, part in parts}


def _searched(
    subject: Subject, stages: Stages, z: dict[str, Tensor], suite: Done
) -> dict[str, Done]:
    """Everything that runs the model, as outcomes by stage."""
    q = subject.question
    found: dict[str, Done] = {}

    def do(name: str, work: Callable[..., searches.Outcome], *arguments: Any) -> None:
        found[name] = stages.do(name, partial(work, subject, *arguments))

    do("unaware", searches.climb_unaware)
    unaware = found["unaware"].tensors["images"]
    do("known", searches.know, suite.tensors["images"], unaware)
    known = found["known"]
    do("miscalibrate", searches.miscalibrate)
    held = subject.temperature(z["held"])
    thresholds = list(thresholds_of(q, held)[0].values())
    for name in searches.AWARE:
        if name in known.figures["scores"]:
            do(
                f"evade-{name}",
                searches.evade,
                name,
                known.tensors[f"held/{name}"],
                thresholds if name == "max-softmax" else [],
                {"suite": suite.tensors["images"], "unaware": unaware},
                known.tensors,
            )
    for number, foreign in enumerate(q.foreign):
        do(f"foreign-{number}", searches.look_foreign, foreign)
    for name in CORRUPTIONS:
        do(f"corruption-{name}", _or_reason(searches.look_corrupted), name)
    starts = suite.tensors["images"], found["miscalibrate"].tensors["images"]
    do("sets", searches.attack_sets, plain_sets(q, held)["lac"], *starts)
    do("robust-sets", _or_reason(searches.attack_robust_sets))
    return found


def _or_reason(work: Callable[..., searches.Outcome]) -> Callable[..., searches.Outcome]:
    """The outcome, or in one line why these images or this model have none."""

    def attempt(*arguments: Any) -> searches.Outcome:
        try:
            return work(*arguments)
        except InputError as error:
            return {"unavailable": str(error)}, {}

    return attempt
