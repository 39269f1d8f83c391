"""Forked workers that join each other as torchrun's do, and die when they are told to."""

from __future__ import annotations

import json
import os
import signal
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

from holdfast.search import search as suite_search


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        return int(probe.getsockname()[1])


def team(
    folder: Path,
    size: int,
    work: Callable[[int], Any],
    dies: Callable[[int], int | None] | None = None,
) -> list[dict[str, Any]] | None:
    """What each of `size` forked workers said of `work(rank)`; None if one was killed.

    Args:
        dies: after how many of its steps a worker kills itself; None for never. The others are
            then killed too, as torchrun does.
    """
    port, children = free_port(), {}
    for rank in range(size):
        pid = os.fork()
        if pid:
            children[pid] = rank
            continue
        place = {"RANK": rank, "WORLD_SIZE": size, "MASTER_ADDR": "localhost", "MASTER_PORT": port}
        os.environ.update({key: str(value) for key, value in place.items()} if size > 1 else {})
        if dies is not None and (last := dies(rank)) is not None:
            die_at(last)
        try:
            said = {"result": work(rank)}
        except Exception as error:
            said = {"error": repr(error), "silent": getattr(error, "said", None)}
        (folder / f"said-{rank}").write_text(json.dumps(said))
        os._exit(0)
    killed = False
    while children:
        pid, status = os.wait()
        children.pop(pid)
        if status:
            killed = True
            for other in children:
                os.kill(other, signal.SIGKILL)
    return None if killed else [json.loads((folder / f"said-{r}").read_text()) for r in range(size)]


def die_at(step: int) -> None:
    taken, real = 0, suite_search.Search._tell

    def counting(self: Any, *arguments: Any) -> None:
        nonlocal taken
        taken += 1
        if taken == step:
            os.kill(os.getpid(), signal.SIGKILL)
        real(self, *arguments)

    suite_search.Search._tell = counting  # type: ignore[method-assign]
