"""The program `holdfast`: its verbs, its errors and its exit statuses."""

from __future__ import annotations

import importlib
import inspect
import re
import sys
from collections.abc import Callable
from types import ModuleType
from typing import Annotated, Any

import typer

from ..errors import HoldfastError, InputError
from ..launchers import leads
from ..parsing import nearest
from ..terminal import forgive_encodings, tell
from ..version import VERSION
from .options import begin_program

INTERRUPTED = 130  # the exit status after Ctrl-C
VERBS = (  # as `holdfast --help` lists them; each is the module of its name
    "data",
    "train",
    "evaluate",
    "judge",
    "uncertainty",
    "certify",
    "mix",
    "report",
    "compare",
    "require",
    "export",
    "leaderboard",
    "view",
    "figure",
    "try",
    "play",
    "models",
    "list",
    "demo",
)

app = typer.Typer(
    help="Train image classifiers that stay right under attack, attack them as hard as anyone "
    "can, and say honestly how sure it all is.",
    invoke_without_command=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _version(asked: bool) -> None:
    if asked:
        tell(f"holdfast {VERSION}")
        raise typer.Exit


@app.callback()
def options(
    context: typer.Context,
    debug: Annotated[bool, typer.Option("--debug", help="Show tracebacks.")] = False,
    version: Annotated[
        bool,
        typer.Option("--version", callback=_version, is_eager=True, help="Print the version."),
    ] = False,
) -> None:
    if context.invoked_subcommand is None:
        print(context.get_help())


def command(verb: ModuleType, options: Any) -> Callable[..., None]:
    """A verb as typer takes it: a function whose parameters are the fields of its `Options`."""

    def call(**values: Any) -> None:
        asked = options(**values)
        verb.show(verb.run(asked), asked)

    call.__doc__ = options.__doc__
    call.__signature__ = inspect.signature(options, eval_str=True)  # type: ignore[attr-defined]
    return call


for name in VERBS:
    verb = importlib.import_module(f"{__package__}.{name}")
    if hasattr(verb, "KINDS"):  # each with options of its own
        group = typer.Typer(help=inspect.getdoc(verb.Options))
        for kind, its_options in verb.KINDS.items():
            group.command(kind)(command(verb, its_options))
        app.add_typer(group, name=name)
    else:
        app.command(name)(command(verb, verb.Options))


def _meant(error: typer.TyperException, said: str) -> str:
    """The verb, or its kind, that is closest to one that there is not."""
    within = getattr(getattr(error, "ctx", None), "command", None)
    known = list(getattr(within, "commands", VERBS))
    if said.startswith("Missing command"):
        return f" Say which: {', '.join(known)}"
    unknown = re.search(r"No such command '([^']*)'\.?$", said)
    return nearest(unknown[1], known).replace("; d", " D") if unknown else ""


def main() -> None:
    """Run the command line: errors are one line on standard error and an exit status.

    2 is bad input, 1 a failure, 3 a requirement that is not met, 130 an interruption. `--debug`
    shows tracebacks instead.
    """
    begin_program()
    forgive_encodings()
    if "--debug" in sys.argv:
        app()
        return
    try:
        status = app(standalone_mode=False)
        if status == INTERRUPTED:  # what typer makes of Ctrl-C
            raise KeyboardInterrupt
        sys.exit(status if isinstance(status, int) else 0)
    except typer.Exit as end:
        sys.exit(end.exit_code)
    except typer.TyperException as error:  # an unknown option, a missing argument
        if leads():  # of several workers, all were asked the same
            said = " ".join(error.format_message().split())
            tell(f"holdfast: {InputError(said + _meant(error, said))}", error=True)
        sys.exit(error.exit_code)
    except HoldfastError as error:
        if not error.said:
            tell(f"holdfast: {error}", error=True)
        sys.exit(error.exit_status)
    except BrokenPipeError:
        sys.exit(1)
    except OSError as error:
        # What no part of Holdfast named more closely: a full disk, a folder that went away.
        where = f"{error.filename}: " if error.filename else ""
        tell(f"holdfast: {InputError(f'{where}{error.strerror or error}')}", error=True)
        sys.exit(InputError.exit_status)
    except (KeyboardInterrupt, typer.Abort):
        tell("holdfast: interrupted; the same command goes on from here", error=True)
        sys.exit(INTERRUPTED)


if __name__ == "__main__":
    main()
