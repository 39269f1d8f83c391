"""Run the commands of a page, and write what they print under them.

    python benchmarks/console_page.py FILE.md [--check]

A command stands in a block of its own, marked `console`, behind `$ `. All of a page's commands run
in one empty folder, in order, by `sh`. With --check nothing is written, and the exit status is 1
where a command fails or prints something else; digits are not compared, as machines differ in them.
"""

from __future__ import annotations

import argparse
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path

from holdfast.runs.files import write_atomically

BLOCK = re.compile(
    r"^```console\n\$ (?P<command>.*)\n(?P<output>(?:(?!```).*\n)*)```$", re.MULTILINE
)


def printed(command: str, folder: Path) -> str:
    """What a command prints.

    Raises:
        SystemExit: it failed.
    """
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    told = {**os.environ, "PATH": path, "COLUMNS": "100", "NO_COLOR": "1"}
    done = subprocess.run(
        command, shell=True, cwd=folder, env=told, capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise SystemExit(f"{command}\n{done.stdout}{done.stderr}")
    return "".join(f"{line.rstrip()}\n" for line in done.stdout.splitlines())


def written_anew(text: str, folder: Path) -> str:
    """A page with what its commands print today."""

    def block(found: re.Match[str]) -> str:
        command = found["command"]
        return f"```console\n$ {command}\n{printed(command, folder)}```"

    return BLOCK.sub(block, text)


def shape(text: str) -> str:
    """A text without what may differ from machine to machine: digits, spaces around them, dates,
    and the order of what took time."""
    text = re.sub(r"^besides the attacks.*$", "", text, flags=re.MULTILINE)
    text = re.sub(r"finished on .* UTC", "finished", text)
    return re.sub(r"[\s\d.]*\d[\s\d.]*", "#", text)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("page", type=Path)
    parser.add_argument("--check", action="store_true")
    options = parser.parse_args()
    text = options.page.read_text()
    with tempfile.TemporaryDirectory() as folder:
        anew = written_anew(text, Path(folder))
    if not options.check:
        write_atomically(options.page, anew)
        return 0
    if shape(anew) != shape(text):
        print(f"{options.page} and what its commands print differ:\n{anew}")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
