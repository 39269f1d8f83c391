"""`holdfast export`: what a run found, for use elsewhere."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ..terminal import tell
from .options import DeviceOption, QuietOption, SizeOption

if TYPE_CHECKING:
    from ..exporting import Exported


@dataclass(frozen=True)
class Options:
    """Export a run: its adversarial images, verdicts, tables for papers, a model card, an annex.

    --to DIR writes 8-bit PNGs that still fool the model, FILE.npz the exact arrays, FILE.csv all
    verdicts, FILE.md and FILE.tex a table of figures.
    """

    runs: Annotated[
        list[Path],
        typer.Argument(help="A run folder; tables, cards and annexes take several."),
    ]
    to: Annotated[
        Path,
        typer.Option("--to", help="A folder, or a file that ends in .npz, .csv, .md or .tex."),
    ]
    card: Annotated[
        bool,
        typer.Option(
            "--card",
            help="Write a model card for Hugging Face instead: README.md in the folder, or the "
            ".md file.",
        ),
    ] = False
    annex: Annotated[
        bool,
        typer.Option(
            "--annex",
            help="Write an annex instead: what was measured, and what was not, beside the EU AI "
            "Act, the NIST AI RMF and ISO/IEC 24029. It claims no conformity.",
        ),
    ] = False
    model: Annotated[
        str | None,
        typer.Option(
            "--model", help="The model that was judged, if the run does not name it rightly."
        ),
    ] = None
    defence: Annotated[
        list[str] | None,
        typer.Option(
            "--defence", help="A defence in front of it, if the run's own cannot be taken from it."
        ),
    ] = None
    data: Annotated[
        str | None,
        typer.Option("--data", help="The data of the run, if they lie elsewhere by now."),
    ] = None
    size: SizeOption = None
    force: Annotated[bool, typer.Option("--force", help="Replace what is there.")] = False
    device: DeviceOption = None
    quiet: QuietOption = False


def run(options: Options) -> Exported:
    """Write the export.

    Raises:
        InputError: as `holdfast.export`.
    """
    from ..exporting import export

    return export(
        options.runs,
        options.to,
        card=options.card,
        annex=options.annex,
        model=options.model,
        defences=options.defence,
        data=options.data,
        size=options.size,
        device=options.device,
        force=options.force,
        progress=not options.quiet,
    )


def show(result: Exported, options: Options) -> None:
    """Print what was written, and how many images still fool the model."""
    for line in str(result).splitlines():
        tell(line)
