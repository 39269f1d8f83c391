"""Colours can be read, and told apart by readers who see no red, no green or no blue."""

from __future__ import annotations

from itertools import combinations

import numpy as np
import pytest

from holdfast.palette import COLOURS, DARK, LIGHT, STYLES, TONES, dash

# Machado, Oliveira & Fernandes 2009, severity 1: what is seen of linear RGB.
SEEN = {
    "by most": np.eye(3),
    "without red": [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216],
                    [-0.003882, -0.048116, 1.051998]],
    "without green": [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413],
                      [-0.011820, 0.042940, 0.968881]],
    "without blue": [[1.255528, -0.076749, -0.178779], [-0.078411, 0.930809, 0.147602],
                     [0.004733, 0.691367, 0.303900]],
}  # fmt: skip
# Ottosson 2020, OKLab: equal distances look equally large.
CONES = [[0.4122214708, 0.5363325363, 0.0514459929], [0.2119034982, 0.6806995451, 0.1073969566],
         [0.0883024619, 0.2817188376, 0.6299787005]]  # fmt: skip
LAB = [[0.2104542553, 0.7936177850, -0.0040720468], [1.9779984951, -2.4285922050, 0.4505937099],
       [0.0259040371, 0.7827717662, -0.8086757660]]  # fmt: skip
APART = 0.075  # in OKLab; black and white are 1 apart

TOGETHER = {  # colours of one drawing
    "what became of the images": ["robust", "broken-0", "broken-1", "broken-2", "standard"],
    "lines": ["standard", *(f"tone-{i}" for i in range(COLOURS))],
}


def linear(colour: str) -> np.ndarray:
    values = np.array([int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)])
    return np.where(values <= 0.04045, values / 12.92, ((values + 0.055) / 1.055) ** 2.4)


def contrast(a: str, b: str) -> float:
    light, dark = sorted((linear(c) @ [0.2126, 0.7152, 0.0722] for c in (a, b)), reverse=True)
    return (light + 0.05) / (dark + 0.05)


def distance(a: str, b: str, matrix: object) -> float:
    labs = [
        np.array(LAB) @ np.cbrt(np.array(CONES) @ np.clip(np.array(matrix) @ linear(c), 0, 1))
        for c in (a, b)
    ]
    return float(np.linalg.norm(labs[0] - labs[1]))


def test_the_measures_are_right():
    assert contrast("#000000", "#ffffff") == pytest.approx(21)
    assert contrast("#767676", "#ffffff") == pytest.approx(4.54, abs=0.005)  # WCAG's own example
    assert distance("#000000", "#ffffff", np.eye(3)) == pytest.approx(1, abs=1e-4)
    red_and_green = ("#b22222", "#5a6b00")
    assert distance(*red_and_green, SEEN["by most"]) > 2 * APART
    assert distance(*red_and_green, SEEN["without green"]) < APART  # what the test is there for


@pytest.mark.parametrize("palette", [LIGHT, DARK], ids=["light", "dark"])
def test_text_and_shapes_have_contrast(palette):
    for ground in ("page", "card", "code"):
        for text in ("ink", "soft", "faint"):
            assert contrast(palette[text], palette[ground]) >= 4.5, (text, ground)
    for text in ("robust", "alarm", "mind", "good", "standard"):
        for ground in ("page", "card"):
            assert contrast(palette[text], palette[ground]) >= 4.5, (text, ground)
    for box in ("alarm", "mind", "good"):
        for text in (box, "ink", "soft"):
            assert contrast(palette[text], palette[f"{box}-page"]) >= 4.5, (text, box)
    for tone, colour in TONES.items():
        for ground in ("page", "card"):
            assert contrast(palette[colour], palette[ground]) >= 3, (tone, ground)


@pytest.mark.parametrize("seen", SEEN)
@pytest.mark.parametrize("drawing", TOGETHER)
@pytest.mark.parametrize("palette", [LIGHT, DARK], ids=["light", "dark"])
def test_colours_of_one_drawing_are_told_apart(palette, drawing, seen):
    close = {
        (a, b): round(distance(palette[a], palette[b], SEEN[seen]), 3)
        for a, b in combinations(TOGETHER[drawing], 2)
    }
    assert min(close.values()) >= APART, {pair: d for pair, d in close.items() if d < APART}


def test_no_two_lines_look_the_same():
    looks = [(LIGHT[TONES[f"tone-{i}"]], dash(f"tone-{i}")) for i in range(STYLES)]
    assert len(set(looks)) == STYLES >= 24
    assert all(set(LIGHT) == set(other) for other in (DARK,))
