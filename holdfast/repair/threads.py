"""Work that a model gives to other threads, which no mode of torch follows by itself."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import thread
from contextlib import AbstractContextManager, contextmanager
from typing import Any


@contextmanager
def in_other_threads(shown: Callable[[], AbstractContextManager[None]]) -> Iterator[None]:
    """Inside, what starts in another thread, or is handed to a pool of threads, runs within
    `shown()`: the pool's threads may be older."""
    homes: list[tuple[Any, str]] = [(threading.Thread, "run"), (thread._WorkItem, "run")]
    own = threading.current_thread()
    before = [(home, name, getattr(home, name)) for home, name in homes]

    def following(run: Callable[..., Any]) -> Callable[..., Any]:
        def followed(self: Any, *args: Any) -> Any:
            pooled = getattr(self, "_target", None) is thread._worker  # what it is handed follows
            if pooled or threading.current_thread() is own:
                return run(self, *args)
            with shown():
                return run(self, *args)

        return followed

    for home, name, run in before:
        setattr(home, name, following(run))
    try:
        yield
    finally:
        for home, name, run in before:
            setattr(home, name, run)
