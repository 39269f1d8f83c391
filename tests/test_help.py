"""Help: at once, and in words that one understands without the code."""

from __future__ import annotations

import inspect
import json
import os
import resource
import subprocess
import sys
from typing import Any

import pytest
import typer

from holdfast import cli
from holdfast.cli.program import VERBS

HEAVY = ("torch", "numpy", "scipy", "sklearn", "matplotlib", "lightning", "PIL")
COMMANDS: dict[str, Any] = typer.main.get_command(cli.app).commands  # type: ignore[attr-defined]
KINDS = {  # of verbs that have several, such as `figure example`
    f"{verb} {kind}": command
    for verb in VERBS
    for kind, command in getattr(COMMANDS[verb], "commands", {}).items()
}


@pytest.mark.slow  # on a busy machine it takes longer; what it rests on is tested below
@pytest.mark.parametrize("arguments", [["--help"], ["--version"], *([v, "--help"] for v in VERBS)])
def test_help_answers_within_half_a_second_of_the_processor(arguments: list[str]) -> None:
    def seconds() -> float:
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        command = [sys.executable, "-m", "holdfast", *arguments]
        done = subprocess.run(command, capture_output=True, text=True)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        assert done.returncode == 0 and done.stdout, done.stderr
        return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime

    assert any(seconds() < 0.5 for _ in range(3))  # the machine may be busy with other things


@pytest.mark.parametrize("arguments", [["--help"], ["--version"]])
def test_help_and_version_answer(arguments: list[str]) -> None:
    command = [sys.executable, "-m", "holdfast", *arguments]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0 and done.stdout, done.stderr


def test_help_imports_nothing_heavy() -> None:
    program = (
        "import json, sys\nfrom holdfast.cli import main\n"
        f"for verb in {list(VERBS)}:\n"
        "    sys.argv = ['holdfast', verb, '--help']\n"
        "    try:\n        main()\n    except SystemExit:\n        pass\n"
        "print(json.dumps(sorted(sys.modules)), file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    loaded = set(json.loads(done.stderr))
    assert "holdfast.cli.evaluate" in loaded
    assert not loaded & set(HEAVY)


@pytest.mark.parametrize("verb", [*VERBS, *KINDS])
def test_every_option_is_a_sentence(verb: str) -> None:
    command = {**COMMANDS, **KINDS}[verb]
    assert command.help[0].isupper()
    for parameter in command.params:
        said = parameter.help or ""
        assert said and said[0].isupper() and said.rstrip().endswith((".", "…")), parameter.name
        assert not said.startswith(("Of ", "Their ", "Its ")), f"{parameter.name}: whose?"


@pytest.mark.parametrize("verb", VERBS)
def test_every_option_of_the_command_line_can_be_given_by_a_caller(verb: str) -> None:
    module = sys.modules[f"holdfast.cli.{verb}"]
    fields = set(inspect.signature(module.Options).parameters)
    assert fields == {parameter.name for parameter in COMMANDS[verb].params} - {"help"}
    for kind, options in getattr(module, "KINDS", {}).items():
        fields = set(inspect.signature(options).parameters)
        command = KINDS[f"{verb} {kind}"]
        assert fields == {parameter.name for parameter in command.params} - {"help"}


def test_the_shell_completes_verbs() -> None:
    environment = {
        **os.environ,
        "_HOLDFAST_COMPLETE": "complete_bash",
        "COMP_WORDS": "holdfast ev",
        "COMP_CWORD": "1",
    }
    program = "import sys; sys.argv = ['holdfast']; from holdfast.cli import main; main()"
    done = subprocess.run(
        [sys.executable, "-c", program], env=environment, capture_output=True, text=True
    )
    assert done.stdout.split() == ["evaluate"]
