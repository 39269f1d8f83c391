"""Where a run ran: versions, hardware, revision, command."""

from __future__ import annotations

import functools
import os
import platform
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ..version import VERSION
from .folder import now
from .identity import PACKAGE

OWN = Path(__file__).resolve().relative_to(PACKAGE)  # this file, in the package


@functools.cache
def processor() -> str:
    """The processor's name, as the system tells it."""
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def machine(device: torch.device | str = "cpu") -> str:
    """One line on the hardware: processor, threads used, fast bfloat16 units, and GPU if used."""
    parts = [processor(), f"{torch.get_num_threads()} threads of {os.cpu_count()} cores"]
    for name, probe in (
        ("AMX", "_is_amx_tile_supported"),
        ("AVX-512 bf16", "_is_avx512_bf16_supported"),
    ):
        if getattr(torch.cpu, probe, lambda: False)():
            parts.append(name)
            break
    if torch.device(device).type == "cuda":
        parts.insert(0, torch.cuda.get_device_name(device))
    return ", ".join(parts)


def git_revision() -> str | None:
    """The revision of the checkout that Holdfast runs from, "+changes" if it was edited.

    None where Holdfast is installed: a checkout around the environment is somebody else's.
    """

    def git(*arguments: str) -> str:
        return subprocess.run(
            ["git", "-C", str(PACKAGE), *arguments],
            capture_output=True,
            text=True,
            check=True,
            timeout=10,
        ).stdout.strip()

    try:
        git("ls-files", "--error-unmatch", OWN.as_posix())
        return git("rev-parse", "HEAD") + (
            "+changes" if git("status", "--porcelain", "--untracked-files=no") else ""
        )
    except (OSError, subprocess.SubprocessError):
        return None


def command() -> list[str]:
    """The words of the command that this process is, such that `shlex.join` of them, pasted into a
    shell at the root of the checkout, is it again.

    A script of the checkout is told by its path and `python`, and `python -m holdfast` by name.
    """
    program = Path(sys.argv[0])
    if program == PACKAGE / "__main__.py":
        words = [PACKAGE.name]
    elif program.suffix == ".py" and program.resolve().is_relative_to(PACKAGE.parent):
        words = ["python", program.resolve().relative_to(PACKAGE.parent).as_posix()]
    else:
        words = [program.name]
    return [*words, *sys.argv[1:]]


def circumstances(device: torch.device | str) -> dict[str, Any]:
    """What a reader needs besides the request: versions, hardware, time, command."""
    return {
        "command": command(),
        "versions": {
            "holdfast": VERSION,
            "python": platform.python_version(),
            "torch": torch.__version__,
            "numpy": np.__version__,
        },
        "device": str(device),
        "machine": machine(device),
        "git": git_revision(),
        "started": now(),
    }
