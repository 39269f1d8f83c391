"""Charts as files: whole, safe, of the page's colours, and showing what they are given."""

from __future__ import annotations

import base64
import csv
import io
import re
import xml.etree.ElementTree as ET

import pytest
from run_folders import evaluation_run

from holdfast import charts
from holdfast.charts import Axis, Chart, Estimate, Event, Line, Mark, fraction_axis
from holdfast.palette import TONES, dash
from holdfast.report import write_report

SVG = "{http://www.w3.org/2000/svg}"


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


def test_files_and_pages_have_the_same_colours(tmp_path):
    page = write_report([evaluation_run(tmp_path / "run")], tmp_path / "page.html").read_text()
    light = dict(re.findall(r"--([a-z0-9-]+): (#[0-9a-f]+);", page.split("@media")[0]))
    classes = dict(re.findall(r"\.([a-z0-9-]+) { --tone: var\(--([a-z0-9-]+)\); }", page))
    lines = [Line(tone, tone, [0, 1], [0, 1]) for tone in TONES]
    file = charts.svg_file([Chart("", Axis("", 0, 1, []), Axis("", 0, 1, []), lines)])
    for tone in TONES:
        (colour,) = re.findall(rf"\.event\.{tone}\{{stroke:(#[0-9a-f]+)\}}", file)
        assert light[classes[tone]] == colour, tone
        for text in (page, file):
            found = re.findall(rf"\.curve\.{tone} ?{{ ?stroke-dasharray: ?(.*?);? ?}}", text)
            assert found == ([dash(tone)] if dash(tone) else []), tone


def test_many_bands_are_hidden_and_few_are_not():
    lines = [Line(f"{i}", f"tone-{i}", [0, 1], [0.5, 0.5], [0, 0], [1, 1]) for i in range(4)]

    def drawn(count: int) -> str:
        return charts.line_chart("", Axis("", 0, 1, []), fraction_axis(""), lines[:count])

    assert drawn(3).count('class="band tone-') == 3 and "quiet" not in drawn(3)
    assert drawn(4).count("quiet") == 4  # eight bands are one grey area; the table has them


def test_dots_that_are_not_joined_say_how_many_they_stand_for():
    line = Line("bins", "robust", [0.2, 0.9], [0.1, 1.0], [0, 0.5], [0.4, 1], joined=False,
                notes=["1 image", "50 images"])  # fmt: skip
    drawn = charts.line_chart("", fraction_axis("x"), fraction_axis("y"), [line])
    assert "polyline" not in drawn and "polygon" not in drawn
    assert drawn.count('class="whisker robust"') == 2
    assert "bins: 10\N{NO-BREAK SPACE}% at 20\N{NO-BREAK SPACE}%, 1 image<" in drawn


def saved(page: str) -> dict[str, str]:
    """What the links of a figure save, by the ending of the file's name."""
    links = re.findall(r'download="[a-z0-9-]+\.(\w+)" href="data:[^,]+;base64,([^"]+)"', page)
    return {kind: base64.b64decode(text).decode() for kind, text in links}


def test_every_figure_can_be_saved_with_its_values():
    half, part = Estimate(0.5, 0.4, 0.6, "half"), charts.Part('"><b>', "robust", 3)
    figures = {
        "chart": charts.line_chart("One. Two", chart().x, chart().y, chart().lines, chart().marks),
        "parts": charts.parts_bar("Parts", [part, charts.Part("rest", "standard", 1)]),
        "strips": charts.strips_saved("Strips", [("row", [("right", "robust", half)])]),
        "heat": charts.heat_saved("Heat", ["a", "=b"], [[0, 7], [1, 0]], "broken-0"),
    }
    tables = {}
    for name, figure in figures.items():
        files = saved(figure)
        assert ET.fromstring(files["svg"]).tag == f"{SVG}svg", name
        tables[name] = list(csv.reader(io.StringIO(files["csv"])))
    assert tables["chart"][1:4] == [
        ["clean", "0", "0.0", "0", "0.5", ""],
        ["clean", "5", "", "0", "0.5", ""],
        ["clean", "10", "1.0", "0.5", "1.0", ""],
    ]
    assert tables["chart"][4] == ["suite", "5", "0.5", "0.4", "0.6", ""]
    assert tables["parts"][1:] == [['"><b>', "3", "0.75"], ["rest", "1", "0.25"]]
    assert tables["strips"][1:] == [["row", "right", "0.5", "0.4", "0.6"]]
    assert tables["heat"] == [["label", "a", "'=b"], ["a", "0", "7"], ["'=b", "1", "0"]]
