"""Damaged input by the thousand: seeded changes, and what a reader may do with them."""

from __future__ import annotations

import random
import signal
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from peak_memory import forget_peak, peak

from holdfast.errors import HoldfastError

SECONDS = 20  # that one case may take, on a busy machine
MEMORY = 1_000_000  # KiB that all cases together may add

# Values that have broken readers of one kind or another.
ODD: tuple[Any, ...] = (
    None, True, False, 0, -1, 1, 2**31, 2**63, 2**64, -(2**63) - 1, 10**25, 10**400, 0.5, -0.5,
    1e308,
    float("nan"), float("inf"), -float("inf"), "", " ", "0", "nan", "1e-2", "-1", "x" * 5000,
    "\0", "\x1b[2J", "\ud800", "a\nb", "../..", "/etc/passwd", "os:abort", "{0}", "%s", "{{ 1 }}",
    [], {}, [[]], [None], {"": None}, [1, "a", None], [float("nan")], {"name": 3}, [[[[[1]]]]],
)  # fmt: skip


class Hang(BaseException):
    """A case that took too long."""


@contextmanager
def time_limit(seconds: float) -> Iterator[None]:
    def ring(*_: object) -> None:
        raise Hang

    before = signal.signal(signal.SIGALRM, ring)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def trial(read: Callable[[], object]) -> str | None:
    """What went wrong with one case, None if nothing did: a result, or one line of Holdfast's."""
    try:
        with time_limit(SECONDS):
            read()
    except HoldfastError as error:
        said = str(error)
        return None if said and "\n" not in said else f"not one line: {said!r}"
    except Hang:
        return f"took more than {SECONDS} s"
    except Exception:
        return traceback.format_exc()[-1500:]
    return None


def survives(cases: Iterator[tuple[Any, Callable[[], object]]]) -> int:
    """How many cases there were; an AssertionError shows those that failed."""
    forget_peak()
    before = peak()
    failed, count = [], 0
    for case, read in cases:
        count += 1
        wrong = trial(read)
        if wrong is not None:
            failed.append(f"{str(ascii(case))[:600]}\n{wrong}")
    assert not failed, f"{len(failed)} of {count}:\n" + "\n".join(failed[:5])
    grown = peak() - before
    assert grown < MEMORY, f"{grown} KiB more"
    return count


def damaged(data: bytes, rng: random.Random) -> bytes:
    """Bytes with one to three changes: flipped, cut, repeated, inserted or replaced."""
    for _ in range(rng.randint(1, 3)):
        at = rng.randrange(len(data) + 1)
        to = min(len(data), at + rng.choice((1, 1, 2, 4, 8, 64, 1000)))
        some = rng.choice(
            (bytes(rng.randrange(256) for _ in range(to - at)), b"\0" * (to - at), b"\xff" * 8,
             b"9" * 40, b"-", b'"', b"[", b"{", b"\n", b"nan", b"1e999")
        )  # fmt: skip
        data = rng.choice(
            (
                data[:at] + some + data[to:],
                data[:at] + some + data[at:],
                data[:at] + data[to:],
                data[:at],
                data[:to] + data[at:],
            )
        )
    return data


def places(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The paths of all values inside a JSON value."""
    inner = value.items() if isinstance(value, dict) else enumerate(value)
    for key, part in inner:
        yield (*path, key)
        if isinstance(part, dict | list):
            yield from places(part, (*path, key))


def changed(value: Any, rng: random.Random) -> Any:
    """A JSON value with one to three places removed, renamed, or given an odd value."""
    value = copied(value)
    for _ in range(rng.choice((1, 1, 1, 2, 3))):
        paths = list(places(value))
        if not paths:
            break
        *parents, last = rng.choice(paths)
        place = value
        for key in parents:
            place = place[key]
        action = rng.random()
        if action < 0.7:
            place[last] = copied(rng.choice(ODD))
        elif action < 0.8:
            del place[last]
        elif action < 0.9 and isinstance(place, list):
            place.extend([copied(place[last])] * rng.choice((1, 3)))
        elif isinstance(place, dict):
            place[str(rng.choice(("", "name", "__class__", "x" * 300, "\x1b")))] = place.pop(last)
    return value


def copied(value: Any) -> Any:
    """A deep copy of a JSON value."""
    if isinstance(value, dict):
        return {key: copied(part) for key, part in value.items()}
    return [copied(part) for part in value] if isinstance(value, list) else value
