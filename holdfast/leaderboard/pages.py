"""The pages of a leaderboard: one of all models, one of each."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any

import yaml
from markupsafe import Markup

from .. import charts
from ..errors import InputError
from ..report import format
from ..report.comparison import around
from ..report.evaluation import Facts
from ..report.gallery import BUDGET
from ..report.page import MOST_SECTIONS, fill, render
from ..report.runs import EvaluationRun, read_run
from ..report.verdict import Verdict
from ..runs.records import (
    REQUEST,
    RESULT,
    Card,
    EvaluationRecord,
    LeaderboardRow,
    RequestRecord,
    read_file,
    threat_in,
)
from . import words
from .found import FoundRecord
from .rows import HIDDEN, Model, Table

MOST_WHISKERS = 24  # intervals that a picture can still show
MARK = '<meta name="generator" content="Holdfast leaderboard">'


@dataclass(frozen=True)
class ShownRow:
    """A row as the page of all models has it."""

    row: LeaderboardRow
    page: str | None
    strip: Markup
    cells: Mapping[str, str]
    standard: words.Accuracy
    robust: words.Accuracy
    here: bool


@dataclass(frozen=True)
class ShownTable:
    id: str
    table: Table
    rows: list[ShownRow]
    picture: Markup | None


def slug(model: Model) -> str:
    """The name of a model's page: its own, and what tells it apart from all others."""
    row = model.row
    name = re.sub(r"[^a-z0-9]+", "-", row.model.lower())[:60].strip("-") or "model"
    of = f"{row.run}\n{threat_in(row.threat)}\n{row.model}".encode("utf-8", "backslashreplace")
    return f"{name}-{hashlib.sha256(of).hexdigest()[:8]}"


# --- the page of all models ----------------------------------------------------------------------


def board(tables: Sequence[Table], page_of: Mapping[int, str]) -> list[ShownTable]:
    """The tables as the page shows them.

    Args:
        page_of: where the page of a model lies, by the identity of its row.
    """
    return [
        ShownTable(
            f"table-{number}",
            table,
            [_shown(model, page_of.get(id(model.row))) for model in table.models],
            picture(table),
        )
        for number, table in enumerate(tables, 1)
    ]


def _shown(model: Model, page: str | None) -> ShownRow:
    row = model.row
    standard, robust = words.standard(row), words.robust(row)
    spoken = (
        f"{row.model}: {format.accuracy(standard)} standard, {format.accuracy(robust)} robust "
        "accuracy"
    )
    strip = charts.strip(
        spoken, ("standard", format.estimate(standard)), ("robust", format.estimate(robust))
    )
    cells = {
        "images": words.images(row),
        "flags": words.flags(row),
        "parameters": words.parameters(row.parameters),
        "training": words.training(row),
        "by": words.measured_by(row),
    }
    return ShownRow(row, page, strip, cells, standard, robust, model.here)


def pareto(points: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """The points that no other one beats in one figure without losing in the other, from the left
    to the right.

    Example:
        >>> pareto([(0.8, 0.4), (0.9, 0.3), (0.7, 0.3), (0.95, 0.0)])
        [(0.8, 0.4), (0.9, 0.3), (0.95, 0.0)]
    """
    front: list[tuple[float, float]] = []
    for x, y in sorted(set(points), key=lambda point: (-point[0], -point[1])):
        if not front or y > front[-1][1]:
            front.append((x, y))
    return front[::-1]


def picture(table: Table) -> Markup | None:
    """Standard against robust accuracy, and the Pareto front; None of fewer than two models."""
    if len(table.models) < 2:
        return None

    def dots(name: str, tone: str, rows: Sequence[LeaderboardRow]) -> charts.Line:
        few = len(rows) <= MOST_WHISKERS
        held = [words.robust(row) for row in rows]
        return charts.Line(
            name,
            tone,
            [row.standard_accuracy for row in rows],
            [row.robust_accuracy for row in rows],
            [a.low for a in held] if few else [],
            [a.high for a in held] if few else [],
            radii=[5.0 if few else 3.5] * len(rows),
            joined=False,
            notes=[f"{row.model}, {row.suite or '?'}" for row in rows],
        )

    rows = [model.row for model in table.models]
    here = [model.row for model in table.models if model.here]
    others: dict[str, list[LeaderboardRow]] = {}
    for model in table.models:
        if not model.here:
            others.setdefault(model.row.measured_by, []).append(model.row)
    front = pareto([(row.standard_accuracy, row.robust_accuracy) for row in rows])
    # Between two models of the front stands what the one on the right has.
    steps = [front[0]]
    for (x, _), (further, y) in pairwise(front):
        steps += [(x, y), (further, y)]
    lines = [
        charts.Line(
            "Pareto front",
            "calm",
            [x for x, _ in steps],
            [y for _, y in steps],
            radii=[0.0] * len(steps),
        )
    ]
    for number, (name, held) in enumerate(others.items()):
        lines.append(dots(f"published by {name}", f"tone-{2 + number % 5}", held))
    if here:
        lines.append(dots("measured here", "robust", here))
    ends = [v for row in here for v in row.robust_accuracy_interval or ()]
    return charts.line_chart(
        f"Standard against robust accuracy, {table.title}. The table below holds the same figures.",
        around("standard accuracy", [row.standard_accuracy for row in rows]),
        around(
            "robust accuracy, the lowest that is known",
            [row.robust_accuracy for row in rows] + (ends if len(here) <= MOST_WHISKERS else []),
        ),
        lines,
        write=format.percent,
    )


def verdict(tables: Sequence[Table]) -> Verdict:
    """What the leaderboard says, and whether to believe it."""
    models = [model for table in tables for model in table.models]
    first = tables[0]
    here = [model for model in first.models if model.here]
    best = (here or first.models)[0]
    count = len({(m.row.sha256 or m.row.run, m.row.model) for m in models if m.here or not here})
    found = f"{count} models" if count > 1 else "1 model"
    found += " measured here. " if here else f", published by {best.row.measured_by}. "
    robust = format.accuracy(words.robust(best.row))
    found += f"{best.row.model} is the most robust of {first.title}: {robust} stand."
    top = first.models[0]
    if here and not top.here:
        robust = format.accuracy(words.robust(top.row))
        found += (
            f" The best that {top.row.measured_by} published there is {top.row.model}: {robust}."
        )
    doubted = [model for model in models if model.row.flags]
    hidden = [model for model in models if model.row.gradients == HIDDEN]
    elsewhere = sum(not model.here for model in models)
    more = (
        f"{len(models) - elsewhere} rows measured here, {elsewhere} published elsewhere and not "
        "checked here."
        if elsewhere
        else ""
    )
    trust = "Each figure is the lowest that any suite found; a stronger attack could only lower it."
    if doubted or hidden:
        some = len({id(model) for model in [*doubted, *hidden]})
        trust += f" Something speaks against the figure of {some} of {len(models)}: see the flags."
        return Verdict(found, trust, "doubt" if best in doubted else "mind", more)
    if not all(table.same_images for table in tables):
        trust += " Not all rows of a table are on the same images."
        return Verdict(found, trust, "mind", more)
    ranked = here or list(first.models)
    if len(ranked) > 1 and _overlap(best.row, ranked[1].row):
        trust += " The first two differ by less than their intervals: their order may be chance."
        return Verdict(found, trust, "mind", more)
    return Verdict(found, trust, "good", more)


def _overlap(best: LeaderboardRow, second: LeaderboardRow) -> bool:
    low, high = words.robust(best).low, words.robust(second).high
    return low is not None and high is not None and low <= high


def index(
    tables: Sequence[Table],
    page_of: Mapping[int, str],
    left_out: Sequence[str],
    command: str,
    **given: Any,
) -> str:
    """The page of all models.

    Args:
        left_out: what could not be read.
        command: that makes it.
        given: as `holdfast.report.page.fill`, and what the template shows besides.
    """
    return fill(
        "board.html",
        rooms=("leaderboard",),
        mark=Markup(MARK),
        tables=board(tables, page_of),
        verdict=verdict(tables) if tables else None,
        left_out=list(left_out),
        board_command=command,
        **given,
    )


# --- the page of a model -------------------------------------------------------------------------


def runs_of(model: Model, whole: bool) -> tuple[list[EvaluationRun], list[str]]:
    """The evaluations of a model, and why some are not shown whole.

    Args:
        whole: read verdicts and images, not `result.json` alone.
    """
    runs, why = [], []
    for found in model.evaluations:
        if whole and found.file.name == RESULT:
            try:
                run = read_run(found.folder)
                assert isinstance(run, EvaluationRun)
                runs.append(run)
                continue
            except InputError as error:
                why.append(str(error))
        runs.append(_short(found))
    return runs, why


def _short(found: FoundRecord) -> EvaluationRun:
    request = None
    try:
        held = read_file(found.folder / REQUEST)
        request = held if isinstance(held, RequestRecord) else None
    except InputError:
        pass
    assert isinstance(found.record, EvaluationRecord)
    return EvaluationRun(found.folder, found.record, request, None, None)


def model_page(
    model: Model,
    runs: Sequence[EvaluationRun],
    back: str,
    command: str,
    *,
    whole: bool,
    **given: Any,
) -> str:
    """The page of a model: its report, its card, its command.

    Args:
        runs: its evaluations, as `runs_of` reads them.
        back: address of the page of all models.
        whole: with curves, classes and images.
        given: as `holdfast.report.page.fill`, and `share`: of the bytes of pictures.
    """
    if len(runs) > MOST_SECTIONS:  # of one model: no more than the deciding ones
        runs = runs[:MOST_SECTIONS]
    share = given.pop("share", 1.0)
    return render(
        runs,
        command,
        budget=int(share * BUDGET) if whole else None,
        template="model.html",
        rooms=("leaderboard",),
        mark=Markup(MARK),
        row=model.row,
        facts=_facts(model),
        card=_card(model.trained.card),
        recipe=_recipe(model.trained.card),
        back=back,
        **given,
    )


def _facts(model: Model) -> Facts:
    row = model.row
    return [
        ("Lowest known robust accuracy", format.accuracy(words.robust(row))),
        ("Found by", row.suite or format.NONE),
        ("Gradients", row.gradients or format.NONE),
        ("Parameters", words.parameters(row.parameters)),
        ("Training", words.training(row)),
        ("Trained on", row.trained_on or format.NONE),
        *([("Trained by", row.training_machine)] if row.training_machine else []),
    ]


def _card(card: Card | None) -> Facts:
    if card is None:
        return []
    trained = "none" if card.threat is None else str(threat_in(card.threat))
    rows: Facts = [
        ("Architecture", card.architecture),
        ("Its arguments", format.figure(card.arguments)),
        ("Classes", f"{len(card.classes)}: {', '.join(card.classes[:12])}"),
        ("Trained for the threat model", trained),
        ("Trained on", card.trained_on or format.NONE),
        ("Defences", ", ".join(card.defences) or "none"),
        ("Seed", format.figure(card.seed)),
        ("SHA-256 of the weights", card.weights_sha256 or format.NONE),
        ("Figures on validation images", format.figure(card.figures)),
    ]
    return [(name, value) for name, value in rows if value != format.NONE]


def _recipe(card: Card | None) -> str:
    if card is None or not card.recipe:
        return ""
    return str(yaml.safe_dump(card.recipe, sort_keys=False, allow_unicode=True))


def renamed(model: Model, page: str) -> Model:
    """A model whose row says where its page lies."""
    return replace(model, row=model.row.model_copy(update={"page": page}))
