"""What stands under an image: the model's answer, its confidence, and whether it is right."""

from __future__ import annotations

import math

from ..canvas import EDGE, FAINT, INK, RIGHT, SOFT, WRONG, Canvas, width_of
from .subject import Answer, percent

ANSWER = 46.0  # height of what stands under an image


def under(
    page: Canvas,
    left: float,
    top: float,
    width: float,
    answer: Answer,
    label: int,
    name: str,
    size: float = 14,
) -> None:
    """The class with a sign for right or wrong, its probability, and a bar as long as that."""
    right = answer.label == label
    colour = RIGHT if right else WRONG
    level = top + 9 + size
    share = percent(answer.confidence)
    room = width - width_of(share, size) - 8
    sign = "✓" if right else "✗"
    beside = width_of(f"{sign} ", size, bold=True)
    page.words(sign, left, level, size, colour, bold=True)
    page.words(name, left + beside, level, size, colour, bold=True, room=room - beside)
    page.words(share, left + width, level, size, INK, align="right")
    if not math.isnan(answer.confidence):
        page.box(left, level + 9, width, 5, fill=EDGE)
        page.box(left, level + 9, max(width * answer.confidence, 1), 5, fill=colour)


def beneath(
    page: Canvas, left: float, top: float, width: float, first: str, second: str, size: float = 14
) -> None:
    """Two lines in grey under an image that no model answers."""
    page.words(first, left, top + 9 + size, size, SOFT, room=width)
    page.words(second, left, top + 14 + 2 * size, size - 2.5, FAINT, room=width)
