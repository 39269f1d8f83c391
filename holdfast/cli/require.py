"""`holdfast require`: whether a run meets what is required of it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer

from .options import JsonOption, JunitOption, RequireOption
from .requirements import check_junit, show_required


@dataclass(frozen=True)
class Options:
    """Hold a finished run to requirements, such as "robust>=40%"; exit status 3 if one is not met.

    For >= the lower end of the figure's 95 % interval decides, for <= the upper end.
    """

    folder: Annotated[
        Path,
        typer.Argument(
            metavar="RUN", help="The run folder of an evaluation, certification or uncertainty run."
        ),
    ]
    requirements: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="REQUIREMENT…",
            help="Bounds on figures: robust, standard, flags; certified@RADIUS, attacked; ece, "
            "coverage and the like.",
        ),
    ] = None
    require: RequireOption = None
    junit: JunitOption = None
    as_json: JsonOption = False


def run(options: Options) -> list[str]:
    """All requirements, which can be read.

    Raises:
        InputError: one cannot, or there is none; the file of outcomes cannot be written.
    """
    from ..report.requirements import parsed_all

    asked = [*(options.requirements or ()), *(options.require or ())]
    parsed_all(asked)
    check_junit(asked, options.junit)
    return asked


def show(requirements: list[str], options: Options) -> None:
    """Print a line for each requirement: met or not, the figure and its interval."""
    show_required(options.folder, requirements, options.junit, options.as_json)
