"""Charts as SVG: on a page, or as a file of their own.

All positions are percentages of the plot, so one drawing fits a phone and a poster with its text
and strokes at their own size; only curves are drawn in a coordinate system of their own. On a page
the plot stretches with the window, strokes do not, and colours come from the page's style sheet by
class, which is what makes them follow light and dark. A file has a fixed size and brings its style
along.
"""

from __future__ import annotations

import base64
import csv
import io
import math
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from markupsafe import Markup, escape

from .palette import LIGHT, TONES, dash
from .terminal import csv_cell, page_text

NO_VALUE = "—"  # never 0

# Of a file, and of a page in the light.
INK, SOFT, FAINT, CARD, GRID = (LIGHT[name] for name in ("ink", "soft", "faint", "card", "grid"))
MOST_BANDS = 3  # of one chart that can still be told apart

# Of a chart in a file, in pixels.
PLOT_WIDTH, PLOT_HEIGHT = 380, 240
_LEFT, _RIGHT, _BOTTOM = 56, 24, 56
_ROW = 20  # a line of text


def whole_percent(value: float) -> str:
    """A fraction as "41 %", for axes."""
    return f"{100 * value:.0f}\u00a0%"


@dataclass(frozen=True)
class Axis:
    """A scale from `low` to `high`, its ticks and how to write a value on it; linear, or else
    logarithmic, and then `low` is above 0."""

    label: str
    low: float
    high: float
    ticks: Sequence[float]
    write: Callable[[float], str] = "{:g}".format
    logarithmic: bool = False

    def share(self, value: float) -> float:
        """Where a value lies, in percent of the axis.

        Example:
            >>> Axis("queries", 1, 100, [1, 10, 100], logarithmic=True).share(10)
            50.0
        """
        low, high = self.low, self.high
        if self.logarithmic:
            low, high, value = (math.log10(number) for number in (low, high, value))
        return 100 * (value - low) / (high - low)


@dataclass(frozen=True)
class Line:
    """One curve; a y that is None is a gap in the data, not a zero.

    Attributes:
        name: in the legend; "" leaves the line out of it.
        tone: a key of `holdfast.palette.TONES`.
        low, high: the edges of a band around the curve, one an x; none by default.
        radii: of the dots, in pixels, one an x; 0 draws none. By default all dots are alike, and
            smaller where there are many.
        joined: whether a curve leads from dot to dot; otherwise intervals are whiskers, no band.
        notes: what is said of each dot besides, one an x; nothing by default.
    """

    name: str
    tone: str
    x: Sequence[float]
    y: Sequence[float | None]
    low: Sequence[float | None] = ()
    high: Sequence[float | None] = ()
    radii: Sequence[float] = ()
    joined: bool = True
    notes: Sequence[str] = ()

    def points(self) -> list[tuple[float, float]]:
        """The (x, y) that have a value."""
        return [(x, y) for x, y in zip(self.x, self.y, strict=True) if y is not None]

    def dots(self) -> list[tuple[float, float, float]]:
        """x, y and radius of the points that are marked."""
        return [(x, y, radius) for x, y, radius, _ in self.noted()]

    def noted(self) -> list[tuple[float, float, float, str]]:
        """The same, each with what is said of it besides."""
        radii = self.radii or [3.0 if len(self.points()) <= 30 else 1.5] * len(self.x)
        notes = self.notes or [""] * len(self.x)
        return [
            (x, y, radius, note)
            for x, y, radius, note in zip(self.x, self.y, radii, notes, strict=True)
            if y is not None and radius
        ]

    def intervals(self) -> list[tuple[float, float, float]]:
        """x and both ends of the intervals that are known."""
        return [
            (x, low, high)
            for x, low, high in zip(self.x, self.low, self.high, strict=False)
            if low is not None and high is not None
        ]


@dataclass(frozen=True)
class Estimate:
    """A fraction with its interval, and both in words, for a tooltip; None has no value."""

    value: float | None
    low: float | None
    high: float | None
    words: str


@dataclass(frozen=True)
class Mark:
    """One separately measured point with its interval, drawn as a diamond; marks of one legend
    share an entry there. `line` is the number of the line that it belongs to, if any."""

    name: str
    tone: str
    x: float
    estimate: Estimate
    legend: str
    line: int | None = None


@dataclass(frozen=True)
class Event:
    """A vertical line at x."""

    x: float
    name: str
    tone: str


@dataclass(frozen=True)
class Chart:
    """Lines with their bands, marked points and events.

    Attributes:
        description: read out by a screen reader in place of the drawing.
        write: how a y value is written in a point's tooltip; as on the axis by default.
    """

    description: str
    x: Axis
    y: Axis
    lines: Sequence[Line]
    marks: Sequence[Mark] = ()
    events: Sequence[Event] = ()
    write: Callable[[float], str] | None = None

    def place(self, x: float, y: float) -> tuple[float, float]:
        """Where a point lies, in percent from the left and from the top of the plot."""
        return self.x.share(x), 100 - self.y.share(y)


def tag(name: str, *content: str, **attributes: object) -> Markup:
    """An element; content and attribute values are escaped unless they are markup themselves.
    Attribute names take `-` for `_`."""
    written = "".join(
        f' {key.rstrip("_").replace("_", "-")}="{escape(page_text(value))}"'
        for key, value in attributes.items()
    )
    inner = "".join(escape(page_text(part)) for part in content)
    return Markup(f"<{name}{written}>{inner}</{name}>")


def _percent(share: float) -> str:
    return f"{round(share, 2):g}%"


def ticks(low: float, high: float, most: int = 6) -> list[float]:
    """Round values (1, 2 or 5 times a power of ten apart) within [low, high], at most `most`.

    Example:
        >>> ticks(0, 24)
        [0.0, 5.0, 10.0, 15.0, 20.0]
    """
    if not high > low:
        return [low]
    step = 10.0 ** math.floor(math.log10((high - low) / most))
    for factor in (1, 2, 5, 10):
        first, last = (
            math.ceil(low / (step * factor) - 1e-9),
            math.floor(high / (step * factor) + 1e-9),
        )
        if last - first < most:
            return [k * step * factor for k in range(first, last + 1)]
    raise AssertionError("ten steps of the next power of ten always fit")


def fraction_axis(label: str) -> Axis:
    """From 0 to 100 %."""
    return Axis(label, 0, 1, [0, 0.25, 0.5, 0.75, 1], whole_percent)


def _path(points: Sequence[tuple[float, float]], width: float, height: float) -> str:
    """Points in percent as SVG writes them, in a plot of that size."""
    return " ".join(
        f"{round(x * width / 100, 2):g},{round(y * height / 100, 2):g}" for x, y in points
    )


def _diamond(x: str, y: str, mark: Mark, title: str) -> Markup:
    # A nested <svg> is the one shape that can be placed in percent and drawn in pixels.
    shape = tag("path", d="M0-6.5 6.5 0 0 6.5-6.5 0Z", class_=f"mark {mark.tone}")
    where = {"x": x, "y": y, "overflow": "visible", **_of_line(mark.line)}
    return tag("svg", tag("title", title), shape, **where)


def line_chart(
    description: str,
    x: Axis,
    y: Axis,
    lines: Sequence[Line],
    marks: Sequence[Mark] = (),
    events: Sequence[Event] = (),
    write: Callable[[float], str] | None = None,
) -> Markup:
    """A `Chart` for a page, as wide as its place there, with a legend above."""
    chart = Chart(description, x, y, lines, marks, events, write)
    plot = tag(
        "svg",
        *_plot(chart),
        class_="plot",
        role="img",
        aria_label=description,
        width="100%",
        height="100%",
        overflow="visible",
    )
    entries = [
        tag(
            "li",
            tag("svg", shape, width=26, height=14, aria_hidden="true"),
            tag("span", name),
            **_of_line(number),
        )
        for shape, name, number in _legend(chart)
    ]
    return tag(
        "div",
        tag("ul", *entries, class_="legend"),
        tag("div", y.label, class_="y-label"),
        tag("div", plot, class_="canvas"),
        tag("div", x.label, class_="x-label"),
        downloads(description, svg_file([chart]), *_rows(chart)),
        class_="chart",
    )


def _rows(chart: Chart) -> tuple[list[str], list[list[object]]]:
    """Every point of a chart, for a table."""
    rows: list[list[object]] = []
    for line in chart.lines:
        bands = {x: (low, high) for x, low, high in line.intervals()}
        notes = line.notes or [""] * len(line.x)
        for x, y, note in zip(line.x, line.y, notes, strict=True):
            rows.append([line.name, x, y, *bands.get(x, (None, None)), note])
    for mark in chart.marks:
        held = mark.estimate
        rows.append([mark.name, mark.x, held.value, held.low, held.high, ""])
    rows += [[event.name, event.x, None, None, None, ""] for event in chart.events]
    return ["series", chart.x.label, chart.y.label, "low", "high", "note"], rows


def downloads(
    description: str, svg: str, names: Sequence[str], rows: Iterable[Sequence[object]]
) -> Markup:
    """Links that save a figure of a page: as SVG and as CSV at once, as PNG where scripts run.

    Args:
        description: of the figure; its beginning is the name of the files.
        svg: the figure as a file.
        names, rows: its figures as a table.
    """
    words = re.split(r"[.;:,]", description)[0].lower()
    name = re.sub(r"[^a-z0-9]+", "-", words).strip("-")[:60].strip("-") or "figure"
    table = io.StringIO()
    writer = csv.writer(table, lineterminator="\n")
    writer.writerow([csv_cell(cell) for cell in names])
    writer.writerows([csv_cell(cell) for cell in row] for row in rows)
    links = [
        tag(
            "a",
            kind.upper(),
            download=f"{name}.{kind}",
            href=_data_uri(media, text),
        )
        for kind, media, text in (
            ("svg", "image/svg+xml", svg),
            ("csv", "text/csv", table.getvalue()),
        )
    ]
    return tag("p", "Save as ", links[0], " ", links[1], class_="downloads")


def _data_uri(media: str, text: str) -> str:
    return f"data:{media};base64,{base64.b64encode(text.encode('utf-8', 'replace')).decode()}"


def svg_file(charts: Sequence[Chart], titles: Sequence[str] = (), caption: str = "") -> str:
    """Charts side by side as one SVG file, of a fixed size and with its own style.

    Args:
        charts: at least one.
        titles: one a chart, above it.
        caption: one line below all.
    """
    legends = [_legend(chart) for chart in charts]
    # All plots begin at one height. Nothing here knows how wide a text is, so legends are lists.
    top = 12 + _ROW * (bool(titles) + max(map(len, legends)) + 1)
    panel_width = _LEFT + PLOT_WIDTH + _RIGHT
    width = panel_width * len(charts)
    height = top + PLOT_HEIGHT + _BOTTOM + (_ROW if caption else 0)
    parts = [
        tag("style", Markup(_style(_tones(charts)))),
        tag("rect", width=width, height=height, fill=CARD),
    ]
    for number, (chart, legend) in enumerate(zip(charts, legends, strict=True)):
        left = number * panel_width + _LEFT
        if titles:
            parts.append(tag("text", titles[number], x=left, y=_ROW, class_="title"))
        for row, (shape, name, _) in enumerate(legend):
            level = 12 + _ROW * (bool(titles) + row)
            parts.append(tag("svg", shape, x=left, y=level - 3, width=26, height=14))
            parts.append(tag("text", name, x=left + 34, y=level + 8))
        middle = left + PLOT_WIDTH / 2
        parts += [
            tag("text", chart.y.label, x=left, y=top - 12),
            tag(
                "svg",
                *_plot(chart, (PLOT_WIDTH, PLOT_HEIGHT)),
                x=left,
                y=top,
                width=PLOT_WIDTH,
                height=PLOT_HEIGHT,
                overflow="visible",
                role="img",
                aria_label=chart.description,
            ),
            tag("text", chart.x.label, x=f"{middle:g}", y=top + PLOT_HEIGHT + 44, class_="middle"),
        ]
    if caption:
        parts.append(tag("text", caption, x=_LEFT, y=height - 10))
    return tag(
        "svg",
        *parts,
        xmlns="http://www.w3.org/2000/svg",
        width=width,
        height=height,
        viewBox=f"0 0 {width} {height}",
    )


def _tones(charts: Sequence[Chart]) -> list[str]:
    found = ["ink"]
    for chart in charts:
        found += [line.tone for line in chart.lines] + [mark.tone for mark in chart.marks]
        found += [event.tone for event in chart.events]
    return found


def _style(tones: Iterable[str]) -> str:
    """The style sheet of a file. Its colours are spelt out: some programs know no variables."""
    rules = [
        f"svg{{font-family:system-ui,sans-serif}}text{{fill:{SOFT};font-size:12.5px}}",
        f".title{{fill:{INK};font-weight:600}}.end{{text-anchor:end}}.middle{{text-anchor:middle}}",
        f".grid{{stroke:{GRID}}}.tick{{stroke:{FAINT}}}",
        ".curve{fill:none;stroke-width:2;stroke-linejoin:round}.band{opacity:.14}.quiet{opacity:0}",
        f".mark{{fill:{CARD};stroke-width:2.5}}.whisker{{stroke-width:1.5}}",
        ".event{stroke-width:1.5;stroke-dasharray:3 3}",
    ]
    for tone in dict.fromkeys(tones):
        colour = LIGHT[TONES[tone]]
        filled, drawn = ("band", "dot", "part"), ("curve", "mark", "whisker", "event")
        rules.append(",".join(f".{kind}.{tone}" for kind in filled) + f"{{fill:{colour}}}")
        rules.append(",".join(f".{kind}.{tone}" for kind in drawn) + f"{{stroke:{colour}}}")
        if dash(tone):
            rules.append(f".curve.{tone}{{stroke-dasharray:{dash(tone)}}}")
    return "".join(rules)


def _plot(chart: Chart, size: tuple[float, float] | None = None) -> list[Markup]:
    """What lies inside the axes, and their ticks.

    Args:
        size: of the plot in pixels, where it is fixed; else the plot stretches with its place.
    """
    x, y, at = chart.x, chart.y, chart.place
    write = chart.write or y.write
    parts: list[Markup] = []
    for value in y.ticks:
        level = _percent(100 - y.share(value))
        parts.append(tag("line", x1="0", x2="100%", y1=level, y2=level, class_="grid"))
        parts.append(tag("text", y.write(value), x="0", y=level, dx=-10, dy="0.35em", class_="end"))
    for value in x.ticks:
        where = _percent(x.share(value))
        parts.append(tag("line", x1=where, x2=where, y1="100%", y2="100%", class_="tick"))
        parts.append(tag("text", x.write(value), x=where, y="100%", dy=22, class_="middle"))
    for event in chart.events:
        where = _percent(x.share(event.x))
        rule = tag("line", x1=where, x2=where, y1="0", y2="100%", class_=f"event {event.tone}")
        parts.append(tag("g", tag("title", event.name), rule))
    parts.append(_curves(chart, size))
    for number, line in enumerate(chart.lines):
        if not line.joined:
            parts += [
                _whisker(chart, px, low, high, line.tone, number)
                for px, low, high in line.intervals()
            ]
        for px, py, radius, note in line.noted():
            cx, cy = at(px, py)
            title = f"{line.name}: {write(py)} at {x.write(px)}"
            parts.append(
                tag(
                    "circle",
                    tag("title", f"{title}, {note}" if note else title),
                    cx=_percent(cx),
                    cy=_percent(cy),
                    r=f"{radius:g}",
                    class_=f"dot {line.tone}",
                    data_line=number,
                )
            )
    for mark in chart.marks:
        held = mark.estimate
        if held.value is None:
            continue
        if held.low is not None and held.high is not None:
            parts.append(_whisker(chart, mark.x, held.low, held.high, mark.tone, mark.line))
        where, level = (_percent(share) for share in at(mark.x, held.value))
        parts.append(_diamond(where, level, mark, f"{mark.name}: {held.words}"))
    return parts


def _whisker(
    chart: Chart, x: float, low: float, high: float, tone: str, line: int | None
) -> Markup:
    (where, top), (_, bottom) = (
        map(_percent, chart.place(x, max(chart.y.low, min(chart.y.high, edge))))
        for edge in (high, low)
    )
    return tag(
        "line", x1=where, x2=where, y1=top, y2=bottom, class_=f"whisker {tone}", **_of_line(line)
    )


def _of_line(number: int | None) -> dict[str, object]:
    """By what the page's script finds the shapes of a line, to hide and to show them."""
    return {} if number is None else {"data_line": number}


def _curves(chart: Chart, size: tuple[float, float] | None) -> Markup:
    """The lines and their bands, in a coordinate system of their own."""
    width, height = size or (100, 100)
    shapes: list[Markup] = []
    banded = [line for line in chart.lines if line.joined and len(line.intervals()) > 1]
    quiet = " quiet" if len(banded) > MOST_BANDS else ""  # many bands add up to one grey area
    for number, line in enumerate(chart.lines):
        if line in banded:
            edge = [chart.place(px, high) for px, _, high in line.intervals()]
            edge += [chart.place(px, low) for px, low, _ in reversed(line.intervals())]
            points = _path(edge, width, height)
            kind = f"band {line.tone}{quiet}"
            shapes.append(tag("polygon", points=points, class_=kind, data_line=number))
    for number, line in enumerate(chart.lines):
        if line.joined:
            drawn = _path([chart.place(*point) for point in line.points()], width, height)
            kind = f"curve {line.tone}"
            shapes.append(tag("polyline", points=drawn, class_=kind, data_line=number))
    return tag(
        "svg",
        *shapes,
        viewBox=f"0 0 {width:g} {height:g}",
        preserveAspectRatio="none",
        width="100%",
        height="100%",
        overflow="visible",
        aria_hidden="true",
    )


def _legend(chart: Chart) -> list[tuple[Markup, str, int | None]]:
    """Samples of 26 × 14 pixels, what they stand for, and the number of the line if it is one."""
    entries: list[tuple[Markup, str, int | None]] = []
    for number, line in enumerate(chart.lines):
        if line.name:
            sample = (
                tag("line", x1=0, x2=26, y1=7, y2=7, class_=f"curve {line.tone}")
                if line.joined
                else tag("circle", cx=13, cy=7, r=5, class_=f"dot {line.tone}")
            )
            entries.append((sample, line.name, number))
    for text in dict.fromkeys(mark.legend for mark in chart.marks):
        tones = {mark.tone for mark in chart.marks if mark.legend == text}
        tone = tones.pop() if len(tones) == 1 else "ink"
        shape = tag("path", d="M13 0.5 19.5 7 13 13.5 6.5 7Z", class_=f"mark {tone}")
        entries.append((shape, text, None))
    # Events of one kind share an entry; each says in its tooltip which it is.
    for tone, name in {event.tone: event.name for event in chart.events}.items():
        rule = tag("line", x1=13, x2=13, y1=0, y2=14, class_=f"event {tone}")
        entries.append((rule, name, None))
    return entries


def data_table(
    x_name: str,
    lines: Sequence[Line],
    write_x: Callable[[float], str],
    write_y: Callable[[float], str],
) -> Markup:
    """The same figures as a table, one row an x, one column a line."""
    values = [dict(zip(line.x, line.y, strict=True)) for line in lines]
    bands = [
        dict(zip(line.x, zip(line.low, line.high, strict=True), strict=False)) for line in lines
    ]

    def cell(i: int, px: float) -> Markup:
        value, (low, high) = values[i].get(px), bands[i].get(px, (None, None))
        text = NO_VALUE if value is None else write_y(value)
        if value is not None and low is not None and high is not None:
            text += f" ({write_y(low)} – {write_y(high)})"
        return tag("td", text)

    head = tag("tr", *(tag("th", n, scope="col") for n in (x_name, *(line.name for line in lines))))
    body = [
        tag("tr", tag("th", write_x(px), scope="row"), *(cell(i, px) for i in range(len(lines))))
        for px in sorted({px for line in lines for px in line.x})
    ]
    return tag("table", tag("thead", head), tag("tbody", *body), class_="figures")


def strip(description: str, *points: tuple[str, Estimate]) -> Markup:
    """Fractions on one line from 0 to 100 %, each (tone, estimate) with its interval: the first
    hollow, the others solid, so that they differ in more than their colour."""
    parts = [tag("line", x1="0", x2="100%", y1="50%", y2="50%", class_="track")]
    for share in (0, 25, 50, 75, 100):
        parts.append(tag("line", x1=f"{share}%", x2=f"{share}%", y1=5, y2=17, class_="grid"))
    shown = [(tone, a, a.value) for tone, a in points if a.value is not None]
    for tone, a, _ in shown:
        if a.low is not None and a.high is not None:
            x1, x2 = _percent(100 * a.low), _percent(100 * a.high)
            parts.append(
                tag("line", x1=x1, x2=x2, y1="50%", y2="50%", class_=f"whisker wide {tone}")
            )
    for i, (tone, a, value) in enumerate(shown):
        title = tag("title", a.words)
        hollow = " hollow" if len(points) > 1 and i == 0 else ""
        parts.append(
            tag(
                "circle",
                title,
                cx=_percent(100 * value),
                cy="50%",
                r=5,
                class_=f"dot {tone}{hollow}",
            )
        )
    return tag(
        "svg",
        *parts,
        class_="strip",
        role="img",
        aria_label=description,
        width="100%",
        height=22,
        overflow="visible",
    )


def span(description: str, tone: str, low: float, high: float) -> Markup:
    """From `low` to `high` on a line from 0 to 100 %: where a value lies that is not known yet."""
    parts = [tag("line", x1="0", x2="100%", y1="50%", y2="50%", class_="track")]
    for share in (0, 25, 50, 75, 100):
        parts.append(tag("line", x1=f"{share}%", x2=f"{share}%", y1=5, y2=17, class_="grid"))
    place = {"x": _percent(100 * low), "width": _percent(100 * max(0.005, high - low))}
    parts.append(tag("rect", y=7, height=8, rx=4, class_=f"part {tone}", **place))
    return tag(
        "svg",
        *parts,
        class_="strip",
        role="img",
        aria_label=description,
        width="100%",
        height=22,
        overflow="visible",
    )


@dataclass(frozen=True)
class Part:
    """A part of a whole: `size` of its things."""

    name: str
    tone: str
    size: int


def parts_bar(description: str, parts: Sequence[Part]) -> Markup:
    """A whole divided into its parts, in order, with a legend that gives each part's size."""
    whole = sum(part.size for part in parts)
    rectangles, start = [], 0
    for part in parts:
        rectangles.append(
            tag(
                "rect",
                tag("title", f"{part.name}: {part.size:,}"),
                x=_percent(100 * start / whole),
                y=0,
                width=_percent(100 * part.size / whole),
                height="100%",
                class_=f"part {part.tone}",
            )
        )
        start += part.size
    bar = tag(
        "svg",
        *rectangles,
        class_="parts",
        role="img",
        aria_label=description,
        width="100%",
        height=28,
    )
    entries = [
        tag(
            "li",
            tag("i", class_=f"swatch {part.tone}"),
            tag("span", tag("b", f"{part.size:,}"), " ", part.name),
        )
        for part in parts
    ]
    rows = [[part.name, part.size, part.size / whole] for part in parts]
    saved = downloads(description, _parts_file(description, parts), ["", "images", "share"], rows)
    return tag("div", bar, tag("ul", *entries, class_="legend"), saved)


def _parts_file(description: str, parts: Sequence[Part]) -> Markup:
    whole, left = sum(part.size for part in parts), 16.0
    shapes = []
    for row, part in enumerate(parts):
        width, level = 640 * part.size / whole, 64 + _ROW * row
        shapes += [
            tag(
                "rect",
                x=f"{left:g}",
                y=16,
                width=f"{width:g}",
                height=28,
                class_=f"part {part.tone}",
            ),
            tag("rect", x=16, y=level, width=12, height=12, class_=f"part {part.tone}"),
            tag("text", f"{part.size:,} {part.name}", x=38, y=level + 11),
        ]
        left += width
    return _file(description, 672, 76 + _ROW * len(parts), shapes, [part.tone for part in parts])


def _file(
    description: str, width: int, height: int, shapes: Sequence[Markup], tones: Iterable[str]
) -> Markup:
    """A figure of its own, of a fixed size."""
    return tag(
        "svg",
        tag("title", description),
        tag("style", Markup(_style(tones))),
        tag("rect", width=width, height=height, fill=CARD),
        *shapes,
        xmlns="http://www.w3.org/2000/svg",
        width=width,
        height=height,
        viewBox=f"0 0 {width} {height}",
    )


def strips_saved(
    description: str, rows: Sequence[tuple[str, Sequence[tuple[str, str, Estimate]]]]
) -> Markup:
    """Links that save rows of strips.

    Args:
        rows: a name, and its estimates, each with what it is called and its tone.
    """
    shapes, left, width = [], 220, 420
    for number, (name, points) in enumerate(rows):
        y = 24 + 24 * number
        shapes.append(tag("text", name, x=left - 14, y=y + 4, class_="end"))
        shapes.append(tag("line", x1=left, x2=left + width, y1=y, y2=y, class_="grid"))
        for place, (_, tone, a) in enumerate(points):
            if a.value is None:
                continue
            ends = [a.value if end is None else end for end in (a.low, a.high)]
            x1, x2, x = (f"{left + width * end:g}" for end in (*ends, a.value))
            shapes.append(tag("line", x1=x1, x2=x2, y1=y, y2=y, class_=f"whisker {tone}"))
            hollow = {"style": f"fill:{CARD};stroke:{LIGHT[TONES[tone]]};stroke-width:2"}
            more = hollow if place == 0 and len(points) > 1 else {}
            shapes.append(tag("circle", cx=x, cy=y, r=5, class_=f"dot {tone}", **more))
    base = 24 * len(rows) + 34
    for share in (0, 50, 100):
        text = tag("text", f"{share} %", x=left + width * share / 100, y=base, class_="middle")
        shapes.append(text)
    tones = [tone for _, points in rows for _, tone, _ in points]
    kinds = {what: tone for _, points in rows for what, tone, _ in points}
    for place, (what, tone) in enumerate(kinds.items()):
        shapes.append(tag("circle", cx=left + 160 * place, cy=base + 22, r=5, class_=f"dot {tone}"))
        shapes.append(tag("text", what, x=left + 160 * place + 12, y=base + 26))
    table = [[name, what, a.value, a.low, a.high] for name, points in rows for what, _, a in points]
    svg = _file(description, left + width + 40, base + 44, shapes, tones)
    return downloads(description, svg, ["", "figure", "value", "low", "high"], table)


def heat_saved(
    description: str, names: Sequence[str], counts: Sequence[Sequence[int]], tone: str
) -> Markup:
    """Links that save a square table of counts, whose cells are the darker the more they hold."""
    shapes, left, cell = [], 150, 44
    most = max((count for row in counts for count in row), default=0) or 1
    for i, row in enumerate(counts):
        y = 110 + cell * i
        shapes.append(tag("text", names[i], x=left - 10, y=y + 27, class_="end"))
        turn = f"rotate(-60 {left + cell * i + 26} 100)"
        shapes.append(tag("text", names[i], x=left + cell * i + 26, y=100, transform=turn))
        for j, count in enumerate(row):
            x, share = left + cell * j, count / most
            place = {
                "x": x,
                "y": y,
                "width": cell - 2,
                "height": cell - 2,
                "class_": f"part {tone}",
            }
            shapes.append(tag("rect", opacity=f"{0.04 + 0.7 * share:.2f}", **place))
            if count:
                text = tag("text", f"{count}", x=x + 21, y=y + 27, class_="middle", fill=INK)
                shapes.append(text)
    size = left + cell * len(names) + 60
    svg = _file(description, size, 130 + cell * len(names), shapes, [tone])
    rows = [[name, *row] for name, row in zip(names, counts, strict=True)]
    return downloads(description, svg, ["label", *names], rows)
