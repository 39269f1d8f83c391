"""`holdfast view`: runs in a browser, while they are being made."""

from __future__ import annotations

import os
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ..terminal import tell

if TYPE_CHECKING:
    from ..viewer import Viewer


@dataclass(frozen=True)
class Options:
    """Show the runs below a folder in a browser, live: those that are being made, too.

    It answers this machine alone, writes nothing, and ends with Ctrl-C.
    """

    folder: Annotated[
        Path | None,
        typer.Argument(
            help="A folder that holds run folders. By default runs, or else the working folder.",
            show_default=False,
        ),
    ] = None
    host: Annotated[
        str,
        typer.Option(
            "--host",
            help="The address to answer on. By default nobody but this machine reaches it; there "
            "is no password.",
        ),
    ] = "127.0.0.1"
    port: Annotated[int, typer.Option("--port", help="The port; 0 is one that is free.")] = 8741
    robustbench: Annotated[
        list[Path] | None,
        typer.Option(
            "--robustbench",
            help="A folder with RobustBench's published entries, shown as measured elsewhere. May "
            "be repeated.",
        ),
    ] = None
    show: Annotated[bool, typer.Option("--open", help="Open the page in a browser.")] = False


def run(options: Options) -> Viewer:
    """Begin to answer.

    Raises:
        InputError: as `holdfast.view`.
    """
    from ..viewer import view

    folder = options.folder or Path("runs" if os.path.isdir("runs") else ".")
    return view(folder, host=options.host, port=options.port, robustbench=options.robustbench or ())


def show(viewer: Viewer, options: Options) -> None:
    """Print where the page is, and answer until Ctrl-C."""
    if not viewer.alone:
        tell(
            f"warning: whoever reaches this machine on port {viewer.port} sees these runs: there "
            "is no password",
            error=True,
        )
    # Whoever reads the line may end the program before the next one has begun.
    with suppress(KeyboardInterrupt), viewer:
        tell(f"{viewer.address} shows {viewer.folder}; Ctrl-C ends it")
        if options.show:
            import webbrowser

            webbrowser.open(viewer.address)
        viewer.wait()
