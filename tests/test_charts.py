"""Charts as files: whole, safe, of the page's colours, and showing what they are given."""

from __future__ import annotations

import re
import xml.etree.ElementTree as ET
from pathlib import Path

import pytest

import holdfast
from holdfast import charts
from holdfast.charts import Axis, Chart, Estimate, Event, Line, Mark, fraction_axis

SVG = "{http://www.w3.org/2000/svg}"
STYLE = Path(holdfast.__file__).parent / "report" / "style.html"


def chart(name: str = "clean") -> Chart:
    estimate = Estimate(0.5, 0.4, 0.6, "50 % (40 – 60 %)")
    return Chart(
        "Accuracy by step.",
        Axis("step", 0, 10, [0, 5, 10]),
        fraction_axis("accuracy"),
        [Line(name, "robust", [0, 5, 10], [0.0, None, 1.0], [0, 0, 0.5], [0.5, 0.5, 1.0])],
        [Mark("suite", "ink", 5, estimate, "measured")],
        [Event(2, "best", "calm")],
    )


def test_a_file_is_whole_and_of_a_fixed_size():
    root = ET.fromstring(charts.svg_file([chart(), chart()], ["left", "right"], "below"))
    width, height = (float(root.get(side) or 0) for side in ("width", "height"))
    assert root.tag == f"{SVG}svg" and width > 2 * charts.PLOT_WIDTH
    assert height > charts.PLOT_HEIGHT
    texts = [element.text for element in root.iter(f"{SVG}text")]
    assert {"left", "right", "below", "step", "accuracy", "clean", "measured"} <= set(texts)
    assert charts.svg_file([chart()]) == charts.svg_file([chart()])


def test_a_curve_lies_where_its_values_say():
    root = ET.fromstring(charts.svg_file([chart()]))
    (curve,) = root.iter(f"{SVG}polyline")
    assert curve.get("points") == f"0,{charts.PLOT_HEIGHT} {charts.PLOT_WIDTH},0"  # no gap as 0
    dots = [circle for circle in root.iter(f"{SVG}circle")]
    assert [(dot.get("cx"), dot.get("cy")) for dot in dots] == [("0%", "100%"), ("100%", "0%")]


def test_radii_choose_the_dots():
    line = Line("", "robust", [0, 1, 2], [0.1, 0.2, None], radii=[0, 4, 4])
    assert line.dots() == [(1, 0.2, 4)]


@pytest.mark.parametrize("name", ['"><script>alert(1)</script>', "a\x1b]0;b\ud800", "]]>&amp;"])
def test_names_cannot_break_out(name):
    text = charts.svg_file([chart(name)], [name], name)
    root = ET.fromstring(text)
    assert {element.tag for element in root.iter()} <= {
        SVG + tag
        for tag in ("svg", "style", "rect", "text", "title", "line", "polyline", "polygon",
                    "circle", "path", "g")
    }  # fmt: skip


def test_a_file_needs_nothing_from_elsewhere():
    text = charts.svg_file([chart()]).replace('xmlns="http://www.w3.org/2000/svg"', "")
    assert not re.search(r"https?:|url\(|href|var\(", text)


def test_files_and_pages_have_the_same_colours():
    light = STYLE.read_text().split("@media")[0]
    page = dict(re.findall(r"--([a-z0-9-]+): (#[0-9a-f]+);", light))
    for tone, colour in charts.TONES.items():
        assert page[{"calm": "faint"}.get(tone, tone)] == colour, tone
    found = [page[name] for name in ("ink", "soft", "faint", "card", "grid")]
    assert found == [charts.INK, charts.SOFT, charts.FAINT, charts.CARD, charts.GRID]
