"""The most memory that this process has held.

`getrusage` counts what earlier tests of the process held, and even the process that started it; so
a limit on what it says may never fail. Linux tells more; elsewhere there is nothing better.
"""

from __future__ import annotations

import re
import resource
from contextlib import suppress
from pathlib import Path

STATUS, FORGET = Path("/proc/self/status"), Path("/proc/self/clear_refs")


def forget_peak() -> None:
    """From here on, the peak is that of what comes."""
    with suppress(OSError):  # not everybody may, and not every system can
        FORGET.write_text("5")


def peak() -> int:
    """KiB held at most, since the process began or the peak was forgotten."""
    told = STATUS.read_text() if STATUS.exists() else ""
    if found := re.search(r"^VmHWM:\s*(\d+) kB$", told, re.MULTILINE):
        return int(found[1])
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
