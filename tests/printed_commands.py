"""Every command that Holdfast prints, and whether it would run as it stands.

Nothing is run: a command is split by `shlex` as a shell would, and read by the real parser of what
it calls. Words in capitals are placeholders, as are folders below `runs/`, which commands make.
"""

from __future__ import annotations

import argparse
import ast
import importlib.util
import json
import re
import shlex
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import typer

from holdfast import cli
from holdfast.attacks import suite_named
from holdfast.attacks.adaptive import NAME as ADAPTIVE
from holdfast.evaluation.cards import threat_of
from holdfast.parsing import parse_number
from holdfast.training import load_recipe

ROOT = Path(__file__).resolve().parents[1]
COMMAND = r"(?:holdfast|python|torchrun|make|pytest) "
PLACEHOLDERS = {
    "N": "2",
    "SUITE": "swift",
    "RECIPE": "recipes/cifar10-cpu.yaml",
    "NAME": "cifar10-linf-w40",
    "WORD": "pgd",
    "KIND": "suites",
}
PROGRAM = typer.main.get_command(cli.app)
VERBS = PROGRAM.commands  # type: ignore[attr-defined]


# --- where they are printed ----------------------------------------------------------------------


def in_markdown(text: str) -> Iterator[str]:
    """Commands in fenced blocks, with lines that go on joined, and in inline code."""
    text = re.sub(r"<!--.*?-->", "", text, flags=re.DOTALL)
    blocks = re.findall(r"^```(\w*)\n(.*?)^```$", text, re.DOTALL | re.MULTILINE)
    for language, block in blocks:
        if language not in ("", "sh", "bash", "console", "yaml"):
            continue
        for line in block.replace("\\\n", " ").splitlines():
            if re.match(COMMAND, line.strip().removeprefix("$ ")):
                yield line.strip().removeprefix("$ ")
    for code in re.findall(r"`([^`]+)`", re.sub(r"^```.*?^```$", "", text, flags=re.DOTALL | re.M)):
        if re.match(COMMAND, code):
            yield " ".join(code.split())


def in_python(text: str) -> Iterator[str]:
    """Commands in the strings of a source file, in backticks or on an indented line of their own;
    those that a program puts together are not whole, and are left to tests of their own."""
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.JoinedStr):
            for part in node.values:
                part.value = "" if isinstance(part, ast.Constant) else part.value  # type: ignore[union-attr]
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            for code in re.findall(r"`([^`]+)`", node.value):
                if re.match(COMMAND, code):
                    yield " ".join(code.split())
            for line in node.value.replace("\\\n", " ").splitlines():
                if re.match(r" {4,}" + COMMAND, line):
                    yield line.strip()


def in_comments(text: str) -> Iterator[str]:
    """Commands in the comments of a recipe."""
    said = " ".join(line.lstrip("# ") for line in text.splitlines() if line.startswith("#"))
    for code in re.findall(r"`([^`]+)`", said):
        if re.match(COMMAND, code):
            yield code


def in_results(value: Any) -> Iterator[str]:
    """The stored commands of a result file, as pages and reports print them."""
    if isinstance(value, dict):
        if isinstance(value.get("command"), list):
            yield shlex.join(value["command"])
        for inner in value.values():
            yield from in_results(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from in_results(inner)


def printed() -> dict[str, list[str]]:
    """All commands by the file that prints them."""
    found = {}
    for pattern, reader in (
        ("*.md", in_markdown),
        ("docs/*.md", in_markdown),
        ("recipes/*.yaml", in_comments),
        ("holdfast/**/*.py", in_python),
        ("benchmarks/*.py", in_python),
        ("zoo/*.py", in_python),
        ("benchmarks/results/**/*.json", lambda text: in_results(json.loads(text))),
        ("zoo/*/card.json", lambda text: in_results(json.loads(text))),
    ):
        for file in sorted(ROOT.glob(pattern)):
            commands = list(dict.fromkeys(reader(file.read_text())))
            if commands:
                found[str(file.relative_to(ROOT))] = commands
    return found


# --- whether they would run ----------------------------------------------------------------------


class Parsed(Exception):
    """A script's arguments were read; it is not to go on."""


def check(command: str) -> None:
    """ValueError saying why a command would not run as it stands."""
    whole = "…" not in command
    words = shlex.split(re.sub(r" ?\[|\] ?| ?…", " ", command), comments=True)
    words = [PLACEHOLDERS.get(word, word) for word in words]
    program, *rest = words
    if program == "make":
        targets = re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
        if missing := set(rest) - set(targets):
            raise ValueError(f"make knows no {missing}")
    elif program == "pytest":
        _check_there(rest[0])
    elif program == "holdfast":
        _check_verb(rest, whole)
    elif program == "torchrun":
        _check_torchrun(rest[: rest.index("-m")])
        _check_verb(rest[rest.index("holdfast") + 1 :], whole)
    elif program == "python" and rest[:2] == ["-m", "holdfast"]:
        _check_verb(rest[2:], whole)
    elif program == "python" and rest and rest[0].endswith(".py"):
        _check_script(rest[0], rest[1:], whole)
    else:
        raise ValueError(f"what is {program} {rest[:1]}?")


def _check_torchrun(options: list[str]) -> None:
    """ValueError where torchrun knows one of these not."""
    from torch.distributed.run import get_args_parser

    known = {each for action in get_args_parser()._actions for each in action.option_strings}
    for option in options:
        if option.startswith("--") and option not in known:
            raise ValueError(f"torchrun {option}")


def _check_verb(words: list[str], whole: bool) -> None:
    if not words:
        return
    verb, *arguments = words
    if verb.startswith("-"):
        PROGRAM.make_context("holdfast", list(words), resilient_parsing=True)
        return
    if verb not in VERBS:
        raise ValueError(f"holdfast knows no {verb!r}")
    if not arguments:  # a verb is spoken of
        return
    parser = VERBS[verb]
    if hasattr(parser, "commands") and arguments[0] in parser.commands:  # a kind, as of figures
        parser, arguments = parser.commands[arguments[0]], arguments[1:]
    if not arguments:
        return
    try:
        context = parser.make_context(verb, list(arguments), resilient_parsing=not whole)
    except typer.TyperException as error:
        raise ValueError(error.format_message()) from None
    given = {name: value for name, value in context.params.items() if value is not None}
    if verb in ("evaluate", "uncertainty", "certify", "mix", "figure"):
        threat_of(given.get("norm"), given.get("eps"), {})
    for suite in (given.get("suite"), given.get("attack")):
        if suite not in (None, ADAPTIVE):
            suite_named(suite)
    for radius in given.get("radius", ()) if verb == "certify" else ():
        parse_number(radius)
    if verb in ("train", "figure") and "recipe" in given:
        budget = [f"budget={given['budget']}"] if "budget" in given else []
        file = ROOT / given["recipe"]
        load_recipe(
            file if file.exists() else given["recipe"], [*(given.get("change") or []), *budget]
        )
    for name in ("model", "robust", "accurate", "data", "human"):
        if name in given:
            _check_there(str(given[name]))
    for model in given.get("models", ()):
        _check_there(model)


def _check_there(source: str) -> None:
    """A file, a folder, or what plainly stands for one."""
    if source.isupper() or source.startswith(("runs/", "datasets")) or source == "digits":
        return
    if re.fullmatch(r"[\w.]+:\w+", source):  # a person's own function
        return
    if source.startswith("http://127.0.0.1:"):  # a person's own server
        return
    if not ((ROOT / source).exists() or (ROOT / "zoo" / source).exists()):
        raise ValueError(f"there is no {source}")


def _check_script(path: str, arguments: list[str], whole: bool) -> None:
    file = ROOT / path
    if not file.exists():
        raise ValueError(f"there is no {path}")
    spec = importlib.util.spec_from_file_location(f"printed_{file.stem}", file)
    assert spec is not None and spec.loader is not None
    real = argparse.ArgumentParser.parse_args

    def parse(self: argparse.ArgumentParser, *given: Any) -> None:
        said: list[str] = []
        self.error = said.append  # type: ignore[method-assign, assignment]
        real(self, *given)
        if said and whole and arguments:
            raise ValueError(said[0])
        raise Parsed

    before, sys.argv = sys.argv, [path, *arguments]
    sys.path.insert(0, str(file.parent))
    argparse.ArgumentParser.parse_args = parse  # type: ignore[method-assign, assignment]
    try:
        module = importlib.util.module_from_spec(spec)
        sys.modules[spec.name] = module  # where dataclasses look for it
        spec.loader.exec_module(module)
        module.main()
    except Parsed:
        return
    finally:
        sys.argv = before
        sys.path.remove(str(file.parent))
        argparse.ArgumentParser.parse_args = real  # type: ignore[method-assign]
    if arguments:
        raise ValueError(f"{path} takes no arguments")
