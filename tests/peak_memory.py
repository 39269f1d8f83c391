"""The most memory that this process has held.

`getrusage` counts what earlier tests of the process held, and even the process that started it; so
a limit on what it says may never fail. Linux tells more; elsewhere there is nothing better.
"""

from __future__ import annotations

import re
import resource
from pathlib import Path

STATUS, FORGET = Path("/proc/self/status"), Path("/proc/self/clear_refs")


def forget_peak() -> None:
    """From here on, the peak is that of what comes."""
    if FORGET.exists():
        FORGET.write_text("5")


def peak() -> int:
    """KiB held at most, since the process began or the peak was forgotten."""
    if STATUS.exists():
        (kibibytes,) = re.findall(r"^VmHWM:\s*(\d+) kB$", STATUS.read_text(), re.MULTILINE)
        return int(kibibytes)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
