"""Runs in, one self-contained HTML file out."""

from __future__ import annotations

import base64
import functools
import hashlib
import os
import shlex
from collections.abc import Sequence
from importlib import resources
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from jinja2 import ChoiceLoader, Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from .. import charts, palette
from ..errors import InputError
from ..runs.files import check_named, write_named
from ..terminal import page_text, tell
from . import (
    certification,
    defences,
    evaluation,
    format,
    gallery,
    training,
    uncertainty,
    verdict,
)
from .comparison import comparison
from .runs import CertificationRun, EvaluationRun, Run, TrainingRun, UncertaintyRun, read_run
from .verdict import Verdict

MOST_SECTIONS = 24  # runs that are shown whole; of more, a page has the figures alone


@functools.cache
def _environment(*rooms: str) -> Environment:
    """
    Args:
        rooms: of the package, whose templates come before those of reports.
    """
    environment = Environment(
        loader=ChoiceLoader([PackageLoader(f"holdfast.{name}", "") for name in (*rooms, "report")]),
        autoescape=True,
        finalize=page_text,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "accuracy": format.accuracy,
        "interval": format.interval,
        "percent": format.percent,
        "count": format.count,
        "duration": format.duration,
        "figure": format.figure,
        "in_words": format.name,
        "title": format.title,
    }
    environment.globals |= {
        "NONE": format.NONE,
        "light": palette.LIGHT,
        "dark": palette.DARK,
        "tones": palette.TONES,
        "dash": palette.dash,
    }
    return environment


@functools.cache
def script_of(*files: tuple[str, str]) -> str:
    """The script of a page.

    Args:
        files: room and name of each part.
    """
    return "".join(
        (resources.files(f"holdfast.{room}") / name).read_text("utf-8") for room, name in files
    )


OWN_SCRIPT = (("report", "page.js"),)


def fill(
    template: str,
    *,
    rooms: Sequence[str] = (),
    script: Sequence[tuple[str, str]] = OWN_SCRIPT,
    style_file: str = "",
    served: bool = False,
    **given: Any,
) -> str:
    """A page: whatever the names in it contain, it loads nothing from elsewhere, and runs nothing
    but its own script, which its policy names by its hash.

    Args:
        rooms: whose templates are looked through first.
        script: room and file of each part of its script; none for a page without one.
        style_file: where its style sheet lies; by default it is part of the page.
        served: whether the page may ask whoever served it for more, and send forms there.
        given: what the template shows.
    """
    text = script_of(*script)
    digest = base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
    home = "'self'" if served else "'none'"
    policy = {
        "default-src": "'none'",
        "style-src": "'unsafe-inline'" + (" 'self'" if style_file else ""),
        "script-src": f"'sha256-{digest}'" if text else "'none'",
        "img-src": "data:",
        "connect-src": home,
        "base-uri": "'none'",
        "form-action": home,
    }
    return (
        _environment(*rooms)
        .get_template(template)
        .render(
            policy=Markup("; ".join(f"{name} {source}" for name, source in policy.items())),
            script=Markup(text),
            style_file=style_file,
            **given,
        )
    )


def style_sheet() -> str:
    """The style of all pages, as a file."""
    return _environment().get_template("style.css").render()


def _view(number: int, run: Run, budget: int | None) -> SimpleNamespace:
    """What the template named after the run's kind is given.

    Args:
        budget: bytes that its pictures may take; None leaves out all that needs more than the
            run's `result.json`.
    """
    common = {
        "number": number,
        "id": f"run-{number}",
        "run": run,
        "heading": evaluation.heading(run),
        "request": evaluation.request(run),
        "verdict": _verdict(run),
        "brief": budget is None,
    }
    if isinstance(run, TrainingRun):
        own = {"facts": training.facts(run), "charts": training.curves(run)}
        return SimpleNamespace(**common, **own)
    if isinstance(run, UncertaintyRun):
        return SimpleNamespace(**common, **uncertainty.view(run))
    if isinstance(run, CertificationRun):
        return SimpleNamespace(**common, **certification.view(run))
    return SimpleNamespace(
        **common,
        facts=evaluation.facts(run),
        fates=evaluation.fates(run),
        curves=None if budget is None else evaluation.security_curves([run]),
        queries=None if budget is None else evaluation.query_curve(run),
        classes=evaluation.classes(run),
        confusion=evaluation.confusion(run),
        examples=evaluation.examples(run),
        gallery=None if budget is None else gallery.gallery(run, budget),
        cost=evaluation.cost(run),
        other_costs=evaluation.other_costs(run),
        defended=defences.defended(run),
        standard_strip=charts.strip(
            "standard accuracy", ("standard", format.estimate(run.standard))
        ),
        robust_strip=charts.strip("robust accuracy", ("robust", format.estimate(run.robust))),
    )


def _verdict(run: Run) -> Verdict:
    if isinstance(run, TrainingRun):
        return verdict.of_training(run)
    if isinstance(run, UncertaintyRun):
        return uncertainty.verdict(run)
    if isinstance(run, CertificationRun):
        return certification.verdict(run)
    return verdict.of_evaluation(run, *evaluation.verdict(run))


KINDS = {  # what a page of such runs is called; the first kind that it holds names it
    "evaluation": "Robustness",
    "certification": "Certification",
    "uncertainty": "Uncertainty",
    "training": "Training",
}


def render(
    runs: Sequence[Run],
    command: str,
    pairs: str = "",
    *,
    budget: int | None = gallery.BUDGET,
    template: str = "page.html",
    **given: Any,
) -> str:
    """The page of these runs, evaluations first, and the command that makes it; the same runs
    always give the same page.

    Args:
        pairs: which evaluations are compared image by image, as `holdfast.compare` takes it; by
            default the first with each other that the same suite judged.
        budget: bytes that all pictures of images may take; None makes a short page, of
            `result.json` alone.
        template: one that extends `page.html`; `given`: what it shows besides, and as `fill`.
    """
    evaluations = [run for run in runs if isinstance(run, EvaluationRun)]
    trainings = [run for run in runs if isinstance(run, TrainingRun)]
    uncertainties = [run for run in runs if isinstance(run, UncertaintyRun)]
    certifications = [run for run in runs if isinstance(run, CertificationRun)]
    ordered: list[Run] = [*evaluations, *certifications, *uncertainties, *trainings]
    whole = len(ordered) <= MOST_SECTIONS
    share = None if budget is None else budget // max(1, len(evaluations))
    return fill(
        template,
        kind=next(name for kind, name in KINDS.items() if any(r.kind == kind for r in ordered)),
        views=[_view(number, run, share) for number, run in enumerate(ordered, 1)] if whole else [],
        brief=[] if whole else _brief(ordered),
        sections=whole,
        paths=[str(run.path) for run in ordered],
        evaluations=len(evaluations),
        uncertainties=len(uncertainties),
        comparison=comparison(evaluations, pairs),
        side_by_side=uncertainty.side_by_side(uncertainties),
        defences=defences.defence_table(evaluations),
        report_command=command,
        **given,
    )


def _brief(runs: Sequence[Run]) -> list[dict[str, Any]]:
    """A row a run, of as many as have no room for all that they hold."""
    names = evaluation.headings(runs)
    return [
        {"name": name, "path": str(run.path), "kind": run.kind, "verdict": _verdict(run)}
        for run, name in zip(runs, names, strict=True)
    ]


def write_report(runs: Sequence[Path | str], out: Path | str) -> Path:
    """Write one HTML file that shows finished runs and opens without a network.

    Args:
        runs: folders of evaluation and training runs, in the order to show them. A training run
            that an evaluation names is added. A folder given twice is shown once.
        out: the file to write; its folder is made if need be. A page that is there is replaced in
            one step, and nothing else is; links are followed; a pipe or device is written to.

    Returns:
        `out`.

    Raises:
        InputError: no run; a run that is missing, unfinished or damaged; `out` is a folder, or a
            file that is no such page, or cannot be written; whatever was there is untouched.

    Example:
        >>> import torch, holdfast as hf
        >>> model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(4, 2))
        >>> x, y = torch.rand(8, 1, 2, 2), torch.arange(8) % 2
        >>> result = hf.evaluate(model, x, y, ("linf", 0.1), suite="fgsm", run="runs/one")
        >>> hf.write_report(["runs/one"], "report.html")
        PosixPath('report.html')
    """
    out = Path(out)
    if not runs:
        raise InputError("no run to report on: give at least one run folder")
    check_named(out, _is_page)
    folders: dict[Path, Path] = {}
    for run in runs:
        if not os.path.lexists(run):  # no error, whatever the name is
            raise InputError(f"run folder {run} does not exist")
        folders.setdefault(Path(run).resolve(), Path(run))
    read = [read_run(run) for run in folders.values()]
    for run in training.linked_trainings(read):
        try:
            read.append(read_run(run))
        except InputError as error:  # nobody asked for it by name
            tell(f"left out: {error}", error=True)
    command = ["holdfast", "report", *(str(folder) for folder in folders.values())]
    html = render(read, shlex.join([*command, "--out", str(out)]))
    # Paths of the file system may hold lone surrogates, which UTF-8 has no bytes for.
    write_named(out, html.encode("utf-8", "replace"), _is_page)
    return out


def write_comparison(runs: Sequence[Path | str], out: Path, pairs: str = "first") -> Path:
    """The page of `write_report` of evaluations that can be compared image by image.

    Raises:
        InputError: as `holdfast.compare` and `write_report`.
    """
    check_named(out, _is_page)
    read = [read_run(Path(run)) for run in runs]
    command = ["holdfast", "compare", *(str(run) for run in runs)]
    command += [] if pairs == "first" else ["--pairs", pairs]
    html = render(read, shlex.join([*command, "--out", str(out)]), pairs)
    write_named(out, html.encode("utf-8", "replace"), _is_page)
    return out


def _is_page(content: bytes) -> bool:
    """Whether these bytes are a page that `render` made, by this version or one before."""
    head = content[: 2**16]
    return head.startswith(b"<!doctype html>") and b"Holdfast report</title>" in head
