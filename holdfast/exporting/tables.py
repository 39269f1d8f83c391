"""The figures of runs as tables: CSV for programs, Markdown and LaTeX for papers."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from typing import TypeAlias

from ..errors import InputError
from ..evaluation.result import VERDICTS, distinct_names
from ..report.image_by_image import attacker
from ..report.requirements import Figure, accuracy
from ..report.runs import (
    CertificationRun,
    EvaluationRun,
    Run,
    TrainingRun,
    UncertaintyRun,
)
from ..report.tables import latex_table, markdown, markdown_table
from ..runs.files import csv_text, read_text

NONE = "—"
Measured: TypeAlias = EvaluationRun | CertificationRun | UncertaintyRun


def check_one_model(runs: Sequence[Measured], what: str) -> None:
    """InputError where runs are of different models, or of one behind different defences."""
    for run in runs[1:]:
        one, other = runs[0].model, run.model
        if (one.sha256, one.defences) != (other.sha256, other.defences):
            raise InputError(
                f"{runs[0].path} and {run.path} are of different models: {what} is of one"
            )


def csv_files(runs: Sequence[EvaluationRun]) -> tuple[str, str]:
    """All verdicts, a row an image and run, and the figures, a row a run."""
    rows: list[dict[str, object]] = []
    for run in runs:
        if run.verdicts is None:
            raise InputError(f"{run.path} holds no {VERDICTS}; issue its command again")
        text = read_text(run.path / VERDICTS)  # which has been checked
        held = csv.DictReader(io.StringIO(text, newline=""))
        rows += [{"run": str(run.path), **row} for row in held]
    columns = list(dict.fromkeys(name for row in rows for name in row))
    verdicts = csv_text(columns, ([row.get(name, "") for name in columns] for row in rows))
    summary = csv_text(
        [
            "run", "model", "sha256", "data", "split", "pixels", "norm", "eps", "suite", "seed",
            "n", "standard_accuracy", "standard_low", "standard_high", "robust_accuracy",
            "robust_low", "robust_high", "flags", "population", "anytime",
        ],
        ([str(run.path), *_summary(run)] for run in runs),
    )  # fmt: skip
    return verdicts, summary


def _summary(run: EvaluationRun) -> list[object]:
    record = run.record
    cells: list[object] = [
        run.model.title, run.model.sha256, run.data.name, run.data.split, run.data.pixels,
        record.threat["norm"], record.threat["eps"], record.suite, record.seed, record.n,
    ]  # fmt: skip
    for name in ("standard", "robust"):
        figure = accuracy(record, name)
        cells += [figure.value, *(figure.interval or (None, None))]
    sampled = [record.population, 1] if record.is_sample else [record.n, 0]
    return [*cells, "; ".join(flag.name for flag in record.fired), *sampled]


def table_of(runs: Sequence[Run], kind: str) -> str:
    """Tables of the runs' figures: one for each kind of run, suite, threat model and images.

    Args:
        kind: `.md` or `.tex`.

    Raises:
        InputError: a training run, whose figures are no verdict.
    """
    groups: dict[str, list[Measured]] = {}
    for run in runs:
        if isinstance(run, TrainingRun):
            raise InputError(f"{run.path} is a run of training: evaluate its model first")
        groups.setdefault(_caption(run), []).append(run)
    parts = ["% Needs \\usepackage{booktabs}.\n"] if kind == ".tex" else []
    for caption, members in groups.items():
        names = distinct_names(
            [run.model.title for run in members], [run.model.sha256 or "" for run in members]
        )
        lines = [_row(run, name) for run, name in zip(members, names, strict=True)]
        columns = tuple(dict.fromkeys(column for line in lines for column in line))
        rows = [[line.get(column, NONE) for column in columns] for line in lines]
        caption = f"{caption}. Intervals in brackets are 95 %."
        if any(" of " in line["n"] for line in lines):
            caption += (
                " Where n is a part drawn at random, they are valid at any time, and of all images."
            )
        if kind == ".tex":
            parts.append(latex_table(columns, rows, caption))
        else:
            parts.append(f"{markdown(caption)}\n\n{markdown_table(columns, rows)}")
    return "\n".join(parts)


def _caption(run: Measured) -> str:
    """What figures must have in common to stand in one table."""
    data = " ".join(word for word in (run.data.name, run.data.split) if word) or "images"
    pixels = f" ({run.data.pixels})" if run.data.pixels else ""
    goal = ""
    if isinstance(run, EvaluationRun) and run.aimed:
        targets = run.record.targets or "?"
        goal = f" (robust: the target, {targets}, was not reached)"
    if isinstance(run, EvaluationRun) and (knows := attacker(run.record)) != "knows the model":
        goal += f", by an attacker who {knows}"
    how = {
        "evaluation": f"Accuracy under the suite {getattr(run.record, 'suite', None) or '?'}{goal}",
        "certification": f"Certified accuracy by {getattr(run.record, 'method', '') or '?'}",
        "uncertainty": f"Uncertainty, attacked by {getattr(run.record, 'suite', None) or '?'}",
    }[run.kind]
    return f"{how}, {run.threat}, on {data}{pixels}"


def _row(run: Measured, name: str) -> dict[str, str]:
    """The cells of a run by their columns."""
    cells = {"model": name}
    if isinstance(run, EvaluationRun):
        cells["standard accuracy"] = percent(accuracy(run.record, "standard"))
        cells["robust accuracy"] = percent(accuracy(run.record, "robust"))
    elif isinstance(run, CertificationRun):
        record = run.record
        cells["standard accuracy"] = percent(
            Figure(record.standard_accuracy, record.standard_accuracy_interval)
        )
        for at in record.certified:
            figure = Figure(at.certified_accuracy, at.interval)
            cells[f"certified at {at.radius:.4g}"] = percent(figure)
        cells["attacked"] = percent(
            Figure(record.attacked_accuracy, record.attacked_accuracy_interval)
        )
    elif isinstance(run, UncertaintyRun):
        for condition, answers in run.record.conditions.items():
            for field, shown in (("accuracy", "accuracy"), ("ece", "calibration error")):
                held = getattr(answers, field)
                if held is not None:
                    ends = None if held.low is None else (held.low, held.high)
                    cells[f"{shown}, {condition}"] = percent(Figure(held.value, ends))
    cells["n"] = str(run.n)
    if isinstance(run, EvaluationRun) and run.record.is_sample:
        cells["n"] += f" of {run.record.population}"
    cells["flags"] = ", ".join(flag.name for flag in run.fired) or "none"
    return cells


def percent(figure: Figure) -> str:
    """`37.8 % [34.8, 40.9]`; two decimals are for documents of 10,000 images and more."""
    if figure.value is None:
        return NONE
    said = f"{100 * figure.value:.1f} %"
    if figure.interval is None:
        return said
    low, high = figure.interval
    return f"{said} [{100 * low:.1f}, {100 * high:.1f}]"
