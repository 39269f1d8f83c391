"""Who started this process together with others: torchrun, Slurm, or somebody who says so.

| started by | which one, of how many | where they meet |
| --- | --- | --- |
| torchrun, or by hand | `RANK`, `WORLD_SIZE`, `LOCAL_RANK` | `MASTER_ADDR`, `MASTER_PORT` |
| Slurm's `srun` | `SLURM_PROCID`, `SLURM_STEP_NUM_TASKS`, `SLURM_LOCALID` | the first machine of \
`SLURM_STEP_NODELIST`, at a port that follows from the numbers of job and step |

What `MASTER_ADDR` and `MASTER_PORT` say goes before what follows from Slurm's variables. A batch
script by itself is one process, whatever it asked for: only what `srun` starts are several.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass

from .errors import InputError

FIRST_PORT, PORTS = 15000, 15000  # below those that systems hand out by themselves


@dataclass(frozen=True)
class Place:
    """A process's place among those that were started with it.

    Attributes:
        rank: 0 … size − 1.
        size: how many there are.
        local_rank: which of those on its machine it is.
        node: which of the machines it is on, counted from 0.
        host, port: where all of them find each other; empty and 0 where nobody says.
    """

    rank: int = 0
    size: int = 1
    local_rank: int = 0
    node: int = 0
    host: str = ""
    port: int = 0


def place(environment: Mapping[str, str] | None = None) -> Place:
    """This process's place, as its environment says.

    Raises:
        InputError: a variable is no number that it can be.

    Example:
        >>> place({"SLURM_PROCID": "5", "SLURM_STEP_NUM_TASKS": "8", "SLURM_LOCALID": "1",
        ...        "SLURM_NODEID": "1", "SLURM_STEP_NODELIST": "node[07-08]",
        ...        "SLURM_JOB_ID": "40", "SLURM_STEP_ID": "2"})
        Place(rank=5, size=8, local_rank=1, node=1, host='node07', port=15322)
    """
    held = os.environ if environment is None else environment
    if "RANK" in held:
        rank, size = _number(held, "RANK", 0), _number(held, "WORLD_SIZE", 1)
        local, node = _number(held, "LOCAL_RANK", 0), _number(held, "GROUP_RANK", 0)
    elif "SLURM_PROCID" in held:
        rank, size = _number(held, "SLURM_PROCID", 0), _number(held, "SLURM_STEP_NUM_TASKS", 1)
        local, node = _number(held, "SLURM_LOCALID", 0), _number(held, "SLURM_NODEID", 0)
    else:
        return Place()
    if size <= 1:
        return Place()
    if rank >= size:
        raise InputError(f"this process is number {rank} of {size}: they are counted from 0")
    host, port = held.get("MASTER_ADDR", ""), _number(held, "MASTER_PORT", 0)
    if "RANK" not in held:
        host = host or first_host(held.get("SLURM_STEP_NODELIST", ""))
        port = port or _slurm_port(held)
    return Place(rank, size, local, node, host, port)


def check_meeting(here: Place) -> None:
    """InputError where nobody said where the processes meet."""
    if not (here.host and here.port):
        raise InputError(
            f"this is process {here.rank} of {here.size}, but not both MASTER_ADDR and MASTER_PORT "
            "say where they meet; torchrun and srun do, and by hand it is the first machine's name "
            "and a free port"
        )


def leads() -> bool:
    """Whether this process is the one that reports, as far as its environment says.

    Also where that is not as it should be: then all that are number 0, or have no number, report.
    """
    held = os.environ
    if held.get("RANK", "0") != "0":
        return False
    several = "RANK" not in held and held.get("SLURM_STEP_NUM_TASKS", "1") != "1"
    return not several or held.get("SLURM_PROCID", "0") == "0"


def first_host(nodes: str) -> str:
    """The first machine of a list as Slurm writes it; empty where there is none.

    Example:
        >>> first_host("rack[2-3]n[010-012,020],login"), first_host("a,b")
        ('rack2n010', 'a')
    """
    return re.sub(r"\[([^\],-]*)[^\]]*\]", r"\1", nodes).split(",")[0].strip()


def _slurm_port(held: Mapping[str, str]) -> int:
    """A port that all processes of a step derive alike, and those of another step hardly."""
    job = _number(held, "SLURM_JOB_ID", 0)
    return FIRST_PORT + (8 * job + _number(held, "SLURM_STEP_ID", 0)) % PORTS


def _number(held: Mapping[str, str], name: str, usual: int) -> int:
    text = held.get(name, "")
    if not text:
        return usual
    if not re.fullmatch(r"[0-9]{1,18}", text):
        raise InputError(f"the environment variable {name} is {text!r}, which is no whole number")
    return int(text)
