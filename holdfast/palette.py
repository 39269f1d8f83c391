"""Colours, once: pages take them as variables, SVG files spelt out.

Text has a contrast of 4.5 : 1 against what it stands on, and lines and areas have 3 : 1 (WCAG 2.2,
AA). Colours of one drawing differ for readers who see no red, no green or no blue too;
`tests/test_palette.py` simulates that. Where there are many lines, dashes tell them apart besides.
"""

from __future__ import annotations

LIGHT = {
    "page": "#fafaf8",
    "card": "#ffffff",
    "ink": "#16191d",
    "soft": "#565e68",
    "faint": "#666e78",
    "rule": "#e4e5e1",
    "grid": "#e9eae6",
    "code": "#f2f2ee",
    "standard": "#33415c",
    "robust": "#0b7a6f",
    "alarm": "#b3261e",
    "alarm-page": "#fdf1ef",
    "mind": "#8a4b00",
    "mind-page": "#fdf6e7",
    "good": "#0a6b61",
    "good-page": "#eef8f6",
    "broken-0": "#c2501c",
    "broken-1": "#8f3510",
    "broken-2": "#561c09",
    "tone-0": "#0b7a6f",
    "tone-1": "#b45309",
    "tone-2": "#4f46b8",
    "tone-3": "#337afd",
    "tone-4": "#6a1905",
    "tone-5": "#9879b6",
    "tone-6": "#da6e20",
}
DARK = {
    "page": "#111416",
    "card": "#181c1f",
    "ink": "#eceeef",
    "soft": "#a5adb5",
    "faint": "#8f98a1",
    "rule": "#2a3035",
    "grid": "#262b30",
    "code": "#1f2428",
    "standard": "#d3dbe6",
    "robust": "#35c4b0",
    "alarm": "#ff8d80",
    "alarm-page": "#2b1917",
    "mind": "#f0b45c",
    "mind-page": "#2a2113",
    "good": "#4fd0bd",
    "good-page": "#12251f",
    "broken-0": "#f49763",
    "broken-1": "#d56d3e",
    "broken-2": "#ac4f2a",
    "tone-0": "#35c4b0",
    "tone-1": "#f0a94b",
    "tone-2": "#9d97f5",
    "tone-3": "#bc405e",
    "tone-4": "#9d3ec6",
    "tone-5": "#c7802c",
    "tone-6": "#7e7fae",
}
COLOURS = 7  # of lines side by side
DASHES = ("", "7 4", "2 3", "9 3 2 3")
STYLES = COLOURS * len(DASHES)  # lines that differ in colour, in dashes or in both

# What a line, a dot or an area may be called, and the colour that it has. "calm" recedes.
TONES = {
    "standard": "standard",
    "robust": "robust",
    "alarm": "alarm",
    "calm": "faint",
    "ink": "ink",
    "broken-0": "broken-0",
    "broken-1": "broken-1",
    "broken-2": "broken-2",
    **{f"tone-{number}": f"tone-{number % COLOURS}" for number in range(STYLES)},
}


def dash(tone: str) -> str:
    """The dashes of a line of this tone; empty for a solid one."""
    if tone == "standard":
        return DASHES[1]
    if not tone.startswith("tone-"):
        return ""
    number = int(tone.removeprefix("tone-"))
    return DASHES[(number + 2 * (number // COLOURS)) % len(DASHES)]
