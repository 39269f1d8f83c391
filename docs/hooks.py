"""What the pages of the site take from elsewhere: commands from the program, files of the root."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import typer

from holdfast import cli

ROOT = Path(__file__).resolve().parents[1]
COMMANDS = "<!-- commands -->"


def on_page_markdown(markdown: str, **_: Any) -> str:
    """A page with its placeholders filled."""
    if COMMANDS in markdown:
        markdown = markdown.replace(COMMANDS, commands())
    return re.sub(r"<!-- file: (\S+) -->", lambda found: of_root(found[1]), markdown)


def of_root(name: str) -> str:
    """A file of the root, its links as seen from `docs/`; those to no page of the site as text."""
    text = (ROOT / name).read_text()
    text = re.sub(r"\]\(docs/", "](", text)
    return re.sub(r"\[([^\]]+)\]\((?!https?:|[\w-]+\.md|#)[^)]+\)", r"\1", text)


def commands() -> str:
    """Each verb with its arguments and options, as the program has them."""
    return "\n\n".join(sections("holdfast", typer.main.get_command(cli.app)))


def sections(name: str, group: Any) -> Iterator[str]:
    """A section for each command of a group, and of the groups in it."""
    for verb, command in group.commands.items():
        yield section(f"{name} {verb}", command)
        if hasattr(command, "commands"):
            yield from sections(f"{name} {verb}", command)


def section(name: str, command: Any) -> str:
    lines = [f"## {name}", "", (command.help or "").strip(), "", "| | |", "| --- | --- |"]
    for parameter in command.params:
        if parameter.param_type_name == "argument":
            called = f"`{(parameter.metavar or parameter.name).upper()}`"
        else:
            called = ", ".join(f"`{o}`" for o in [*parameter.opts, *parameter.secondary_opts])
        told = " ".join((getattr(parameter, "help", "") or "").split())
        usual = parameter.default
        if usual not in (None, (), [], False, True, "") and not callable(usual):
            told += f" Default: `{usual}`."
        lines.append(f"| {called} | {told.replace('|', chr(92) + '|')} |")
    return "\n".join(lines)
