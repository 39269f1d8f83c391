"""The code that CONTRIBUTING.md shows."""

from __future__ import annotations

import re
from pathlib import Path

PAGE = Path(__file__).parents[1] / "CONTRIBUTING.md"


def snippet(name: str) -> str:
    """The block of Python that defines a class."""
    blocks = re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.DOTALL)
    (found,) = [block for block in blocks if f"class {name}(" in block]
    return found
