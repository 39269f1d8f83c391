"""What the viewer shows: the leaderboard with what is under way, the page of a run, comparisons."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from markupsafe import Markup

from .. import charts
from ..errors import InputError
from ..leaderboard.pages import board, model_page, runs_of, slug, verdict
from ..report import format
from ..report.image_by_image import compare_runs
from ..report.page import OWN_SCRIPT, fill, render
from ..report.runs import Accuracy, EvaluationRun, read_run
from ..runs.folder import on_date
from ..runs.records import ModelInfo, threat_in
from .library import Look, Unfinished

SCRIPT = (*OWN_SCRIPT, ("viewer", "live.js"))
ROOMS = ("viewer", "leaderboard")
SILENT = 120.0  # seconds after which a run's last word is old
MOST_COMPARED = 8


@dataclass(frozen=True)
class ShownRun:
    """A run without a result, as a card shows it.

    Attributes:
        bar: how much is done; strip: between which bounds the robust accuracy will lie.
    """

    name: str
    kind: str
    folder: str
    under_way: bool
    facts: list[tuple[str, str]]
    share: int | None
    word: str
    interval: str
    strip: Markup | None
    command: str


@dataclass(frozen=True)
class OtherRun:
    """A finished run that no table ranks."""

    kind: str
    found: str
    folder: str
    figures: str


def _page(template: str, **given: Any) -> str:
    return fill(template, rooms=ROOMS, script=SCRIPT, served=True, **given)


# --- all runs ------------------------------------------------------------------------------------


def overview(look: Look, folder: Path) -> str:
    """The page of all runs."""
    pages = {
        id(model.row): f"/model?name={slug(model)}"
        for table in look.ranked
        for model in table.models
        if model.here
    }
    return _page(
        "view.html",
        folder=str(folder),
        tables=board(look.ranked, pages),
        verdict=verdict(look.ranked) if look.ranked else None,
        runs=[shown(run) for run in look.unfinished],
        others=_others(look),
        left_out=look.found.left_out,
        board_version=look.board,
        live_version=look.live,
    )


def under_way(runs: Sequence[Unfinished]) -> str:
    """The part of that page that changes while runs are made."""
    return fill("underway.html", rooms=ROOMS, script=(), runs=[shown(run) for run in runs])


def _others(look: Look) -> list[OtherRun]:
    return [
        OtherRun(
            found.record.SCHEMA.split("/")[1],
            found.record.headline(),
            str(found.folder),
            ", ".join(f"{name} {value}" for name, value in found.record.key_figures()),
        )
        for found in (*look.found.trainings, *look.found.others)
    ]


def shown(run: Unfinished) -> ShownRun:
    """A run as its card shows it."""
    request, progress = run.request, run.progress
    asked, share, word, interval, strip = request.asked, None, "", "", None
    facts = [("Run", str(run.folder))]
    if isinstance(suite := asked.get("suite"), str):
        facts.append(("Suite", suite))
    if threat := _threat(asked):
        facts.append(("Threat model", threat))
    if request.started:
        facts.append(("Begun", on_date(request.started)))
    if progress is not None:
        share, word = int(100 * progress.share), progress.word
        if run.under_way and (left := _left(run)) is not None:
            facts.append(("Left, about", format.duration(left)))
        if run.silent is not None and run.silent > SILENT:
            word = f"{word} ({format.duration(run.silent)} ago)"
        if progress.n is not None:
            of = "" if progress.judged is None else f"{format.count(progress.judged)} of "
            facts.append(("Images", f"{of}{format.count(progress.n)}"))
        if progress.robust_accuracy_interval is not None:
            low, high = progress.robust_accuracy_interval
            ends = Accuracy(None, low, high, progress.n)
            interval = format.interval(ends)
            spoken = f"The robust accuracy will lie within {interval}"
            strip = charts.span(spoken, "robust", low, high)
    return ShownRun(
        _name(run),
        request.kind or "run",
        str(run.folder),
        run.under_way,
        facts,
        share,
        word,
        interval,
        strip,
        shlex.join(request.command),
    )


def _name(run: Unfinished) -> str:
    """The model's name, or the folder's."""
    held = run.request.asked.get("model")
    try:
        title = ModelInfo.checked(held, "the request").title if isinstance(held, dict) else "?"
    except InputError:
        title = "?"
    return run.folder.resolve().name if title == "?" else title


def _threat(asked: dict[str, Any]) -> str:
    held = asked.get("threat")
    try:
        return str(threat_in(held)) if isinstance(held, dict) else ""
    except (InputError, TypeError, ValueError, OverflowError, KeyError):
        return ""


def _left(run: Unfinished) -> float | None:
    """Seconds, judged by the share that is done; the run may have been interrupted meanwhile."""
    share = run.progress.share if run.progress else 0.0
    if run.seconds is None or share < 0.02:
        return None
    return run.seconds * (1 - share) / share


# --- one run, or several -------------------------------------------------------------------------


def of_model(look: Look, name: str) -> str | None:
    """The page of a model in the tables; None where there is none of that name."""
    for table in look.ranked:
        for model in table.models:
            if model.here and slug(model) == name:
                runs, _ = runs_of(model, whole=True)
                command = shlex.join(["holdfast", "report", *model.row.runs])
                return model_page(model, runs, "/", command, whole=True, script=SCRIPT, served=True)
    return None


def of_run(look: Look, name: str) -> str | None:
    """The page of a run of any verb, finished or not; None where there is none.

    Raises:
        InputError: it is damaged.
    """
    found = look.folder(name)
    if found is not None:
        run = read_run(found.folder)
        command = shlex.join(["holdfast", "report", str(found.folder)])
        return _rendered([run], command)
    unfinished = next((run for run in look.unfinished if str(run.folder) == name), None)
    if unfinished is None:
        return None
    return _page(
        "unfinished.html",
        runs=[shown(unfinished)],
        live_version=look.live,
        board_version=look.board,
    )


def of_comparison(look: Look, names: Sequence[str]) -> str:
    """Evaluations side by side, image by image.

    Raises:
        InputError: fewer than two; one that there is not, or that is damaged.
    """
    chosen = list(dict.fromkeys(names))
    if len(chosen) < 2:
        raise InputError("choose two runs or more to compare")
    if len(chosen) > MOST_COMPARED:
        raise InputError(f"{len(chosen)} runs are too many: choose {MOST_COMPARED} at most")
    runs = []
    for name in chosen:
        found = look.folder(name)
        run = read_run(found.folder) if found is not None else None
        if not isinstance(run, EvaluationRun):
            raise InputError(f"there is no finished evaluation {name}")
        runs.append(run)
    try:
        compare_runs(runs)
        why = ""
    except InputError as error:  # they stand side by side all the same
        why = f"Not compared image by image: {error}."
    return _rendered(runs, shlex.join(["holdfast", "compare", *chosen]), why)


def _rendered(runs: Sequence[Any], command: str, remark: str = "") -> str:
    return render(
        runs, command, template="seen.html", remark=remark, rooms=ROOMS, script=SCRIPT, served=True
    )


def sorry(title: str, line: str) -> str:
    """A page with one line."""
    return _page("sorry.html", title=title, line=line)
