"""`holdfast demo`: the whole way on the embedded digits, in minutes."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import typer

from ..terminal import tell, tell_table
from . import evaluate
from .options import QuietOption, SeedOption
from .tables import percent

# Each model by its changes to the recipe `digits`.
CHANGES = {"undefended": ["objective={name: standard}", "epochs=15"], "defended": []}


@dataclass(frozen=True)
class Options:
    """Go the whole way on embedded digits: train, defend, attack, report. It takes minutes."""

    out: Annotated[
        Path, typer.Option("--out", help="The folder to write the runs and the page into.")
    ] = Path("runs/demo")
    seed: SeedOption = 0
    quiet: QuietOption = False


class Demo(NamedTuple):
    """What the demo came to: the evaluations by name, the page, and the seconds it took."""

    evaluations: dict[str, dict[str, Any]]
    page: Path
    seconds: float


def run(options: Options) -> Demo:
    """Train an undefended and a defended model, attack both, and write the page.

    An interrupted demo goes on.
    """
    from .. import data as datasets
    from ..report import write_report
    from ..training import train
    from ..training.recipe import load_recipe

    began = time.monotonic()
    digits = datasets.load("digits")
    runs, found = [], {}
    for name, changes in CHANGES.items():
        recipe = load_recipe("digits", changes)
        training, verdict = options.out / name, options.out / f"{name}-verdict"
        train(
            recipe,
            digits,
            training,
            seed=options.seed,
            progress=not options.quiet,
        )
        result = evaluate.run(
            evaluate.Options(
                str(training),
                verdict,
                "digits",
                suite="apgd",
                norm=recipe.threat.norm,
                eps=recipe.threat.eps,
                seed=options.seed,
                quiet=options.quiet,
            )
        )
        runs += [verdict, training]
        found[name] = result.to_dict()
    page = write_report(runs, options.out / "report.html")
    return Demo(found, page, time.monotonic() - began)


def show(demo: Demo, options: Options) -> None:
    """Print both models' accuracies, and where the page is."""
    tell_table(
        "digits, L∞ 0.2, suite apgd",
        ("model", "standard accuracy", "robust accuracy", "n"),
        [
            (
                name,
                percent(found, "standard_accuracy"),
                percent(found, "robust_accuracy"),
                str(found["n"]),
            )
            for name, found in demo.evaluations.items()
        ],
    )
    tell(f"report: {demo.page}  ({demo.seconds:.0f} s)")
