"""Whatever command is printed anywhere can be pasted into a shell, and would run."""

from __future__ import annotations

import shlex
import sys

import pytest
from printed_commands import check, in_markdown, in_python, printed

from holdfast.runs import environment, identity

PRINTED = printed()


@pytest.mark.parametrize("file", PRINTED)
def test_every_printed_command_would_run(file: str) -> None:
    wrong = []
    for command in PRINTED[file]:
        try:
            check(command)
        except Exception as error:
            if "is not installed: pip install" in str(
                error
            ):  # a library that is no part of Holdfast
                continue
            wrong.append(f"{command}\n    {type(error).__name__}: {error}")
    assert not wrong, "\n".join(wrong)


def test_commands_are_found_wherever_they_are_printed() -> None:
    for file in ("README.md", "docs/uncertainty.md", "docs/attacks.md", "holdfast/cli/evaluate.py"):
        assert PRINTED[file]
    assert sum(map(len, PRINTED.values())) > 100


@pytest.mark.parametrize(
    ("command", "said"),
    [
        ("holdfast evaluate zoo/cifar10-linf-w40 --pixels JPEG test images --out runs/a", "test"),
        ("holdfast evaluate cifar10-linf-w40 --suit swift --out runs/a", "--suit"),
        ("holdfast evaluate cifar10-linf-w40 --suite swft --out runs/a", "swft"),
        ("holdfast evaluate cifar10-linf-w40 --eps 8/0 --out runs/a", "8/0"),
        ("holdfast evaluate cifar10-linf-w40 --limit ten --out runs/a", "integer"),
        ("holdfast evaluate cifar10-linf-w41 --out runs/a", "w41"),
        ("holdfast evaluate cifar10-linf-w40", "--out"),
        ("holdfast train recipes/cifar10-cpu.yaml --set optimiser.rate=0.1 --out runs/a", "rate"),
        ("holdfast train recipes/cifar11.yaml --out runs/a", "cifar11"),
        ("holdfast assess cifar10-linf-w40", "assess"),
        ("python benchmarks/no_such_page.py", "no_such_page"),
        ("python benchmarks/memory.py --data datasets --pixels JPEG test", "test"),
        ("python benchmarks/table.py --chekc", "chekc"),
        ("memory.py --data datasets", "memory.py"),
        ("make tea", "tea"),
        ("holdfast report 'runs/a", "quotation"),
    ],
)
def test_a_command_that_would_not_run_is_noticed(command: str, said: str) -> None:
    with pytest.raises(Exception, match=said):
        check(command)


def test_commands_are_read_out_of_documents_and_sources() -> None:
    page = "```\nholdfast data   # listed\n```\nor `python a.py --b\nc`, and `holdfast.load`"
    assert list(in_markdown(page)) == ["holdfast data   # listed", "python a.py --b c"]
    assert list(in_python('"""Run `make test`.\n\n    holdfast data\n"""')) == [
        "make test",
        "holdfast data",
    ]


@pytest.mark.parametrize(
    ("program", "told"),
    [
        (identity.PACKAGE / "__main__.py", ["holdfast"]),
        (identity.PACKAGE.parent / "benchmarks" / "memory.py", ["python", "benchmarks/memory.py"]),
        ("/usr/local/bin/holdfast", ["holdfast"]),
    ],
)
def test_a_run_stores_its_command_as_words_of_a_shell(monkeypatch, program, told) -> None:
    given = ["--pixels", "JPEG test images; $(rm)", "--out", "runs/it's"]
    monkeypatch.setattr(sys, "argv", [str(program), *given])
    command = environment.circumstances("cpu")["command"]
    assert command == [*told, *given]
    assert shlex.split(shlex.join(command)) == command
