"""Charts as inline SVG.

All positions are percentages of the plot, so one drawing fits a phone and a poster with its text
and strokes at their own size; only curves are drawn in a stretched 100 × 100 coordinate system of
their own, with strokes that do not stretch. Colours come from the page's style sheet by class,
which is what makes them follow light and dark.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from markupsafe import Markup

from ..terminal import page_text
from .fields import Accuracy
from .format import NONE, accuracy, interval, whole_percent


@dataclass(frozen=True)
class Axis:
    """A linear scale from `low` to `high`, its ticks and how to write a value on it."""

    label: str
    low: float
    high: float
    ticks: Sequence[float]
    write: Callable[[float], str] = "{:g}".format

    def share(self, value: float) -> float:
        """Where a value lies, in percent of the axis."""
        return 100 * (value - self.low) / (self.high - self.low)


@dataclass(frozen=True)
class Line:
    """One curve; a y that is None is a gap in the data, not a zero."""

    name: str
    tone: str
    x: Sequence[float]
    y: Sequence[float | None]
    low: Sequence[float | None] = ()
    high: Sequence[float | None] = ()

    def points(self) -> list[tuple[float, float]]:
        return [(x, y) for x, y in zip(self.x, self.y, strict=True) if y is not None]


@dataclass(frozen=True)
class Mark:
    """One separately measured point with its interval, drawn as a diamond; marks of one legend
    share an entry there."""

    name: str
    tone: str
    x: float
    accuracy: Accuracy
    legend: str


@dataclass(frozen=True)
class Event:
    """A vertical line at x."""

    x: float
    name: str
    tone: str


def tag(name: str, *content: str, **attributes: object) -> Markup:
    """An element; content and attribute values are escaped unless they are markup themselves.
    Attribute names take `-` for `_`."""
    written = Markup("").join(
        Markup(' {}="{}"').format(key.rstrip("_").replace("_", "-"), page_text(value))
        for key, value in attributes.items()
    )
    inner = Markup("").join(page_text(part) for part in content)
    return Markup("<{0}{1}>{2}</{0}>").format(Markup(name), written, inner)


def _percent(share: float) -> str:
    return f"{round(share, 2):g}%"


def ticks(low: float, high: float, most: int = 6) -> list[float]:
    """Round values (1, 2 or 5 times a power of ten apart) within [low, high], at most `most`."""
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
    return Axis(label, 0, 1, [0, 0.25, 0.5, 0.75, 1], whole_percent)


def _stretched(*shapes: Markup) -> Markup:
    return tag(
        "svg",
        *shapes,
        viewBox="0 0 100 100",
        preserveAspectRatio="none",
        width="100%",
        height="100%",
        overflow="visible",
        aria_hidden="true",
    )


def _path(points: Sequence[tuple[float, float]]) -> str:
    return " ".join(f"{round(x, 2):g},{round(y, 2):g}" for x, y in points)


def _diamond(x: str, y: str, tone: str, title: str) -> Markup:
    # A nested <svg> is the one shape that can be placed in percent and drawn in pixels.
    shape = tag("path", d="M0-6.5 6.5 0 0 6.5-6.5 0Z", class_=f"mark {tone}")
    return tag("svg", tag("title", title), shape, x=x, y=y, overflow="visible")


def line_chart(
    description: str,
    x: Axis,
    y: Axis,
    lines: Sequence[Line],
    marks: Sequence[Mark] = (),
    events: Sequence[Event] = (),
    write: Callable[[float], str] | None = None,
) -> Markup:
    """Lines with their bands, marked points and events, with a legend above.

    Args:
        description: read out by a screen reader in place of the drawing.
        write: how a y value is written in a point's tooltip; as on the axis by default.
    """
    write = write or y.write

    def at(px: float, py: float) -> tuple[float, float]:
        return x.share(px), 100 - y.share(py)

    parts: list[Markup] = []
    for value in y.ticks:
        level = _percent(100 - y.share(value))
        parts.append(tag("line", x1="0", x2="100%", y1=level, y2=level, class_="grid"))
        parts.append(tag("text", y.write(value), x="0", y=level, dx=-10, dy="0.35em", class_="end"))
    for value in x.ticks:
        where = _percent(x.share(value))
        parts.append(tag("line", x1=where, x2=where, y1="100%", y2="100%", class_="tick"))
        parts.append(tag("text", x.write(value), x=where, y="100%", dy=22, class_="middle"))
    for event in events:
        where = _percent(x.share(event.x))
        rule = tag("line", x1=where, x2=where, y1="0", y2="100%", class_=f"event {event.tone}")
        parts.append(tag("g", tag("title", event.name), rule))
    curves: list[Markup] = []
    for line in lines:
        band = [
            (px, low, high)
            for px, low, high in zip(line.x, line.low, line.high, strict=False)
            if low is not None and high is not None
        ]
        if len(band) > 1:
            edge = [at(px, high) for px, _, high in band]
            edge += [at(px, low) for px, low, _ in reversed(band)]
            curves.append(tag("polygon", points=_path(edge), class_=f"band {line.tone}"))
    for line in lines:
        drawn = [at(*point) for point in line.points()]
        curves.append(tag("polyline", points=_path(drawn), class_=f"curve {line.tone}"))
    parts.append(_stretched(*curves))
    for line in lines:
        points = line.points()
        radius = 3 if len(points) <= 30 else 1.5
        for px, py in points:
            cx, cy = at(px, py)
            title = f"{line.name}: {write(py)} at {x.write(px)}"
            parts.append(
                tag(
                    "circle",
                    tag("title", title),
                    cx=_percent(cx),
                    cy=_percent(cy),
                    r=radius,
                    class_=f"dot {line.tone}",
                )
            )
    for mark in marks:
        if mark.accuracy.value is None:
            continue
        where, level = (_percent(share) for share in at(mark.x, mark.accuracy.value))
        if mark.accuracy.low is not None and mark.accuracy.high is not None:
            top, bottom = (
                _percent(at(mark.x, edge)[1]) for edge in (mark.accuracy.high, mark.accuracy.low)
            )
            parts.append(
                tag("line", x1=where, x2=where, y1=top, y2=bottom, class_=f"whisker {mark.tone}")
            )
        title = f"{mark.name}: {accuracy(mark.accuracy)} ({interval(mark.accuracy)})"
        parts.append(_diamond(where, level, mark.tone, title))
    plot = tag(
        "svg",
        *parts,
        class_="plot",
        role="img",
        aria_label=description,
        width="100%",
        height="100%",
        overflow="visible",
    )
    return tag(
        "div",
        _legend(lines, marks, events),
        tag("div", y.label, class_="y-label"),
        tag("div", plot, class_="canvas"),
        tag("div", x.label, class_="x-label"),
        class_="chart",
    )


def _legend(lines: Sequence[Line], marks: Sequence[Mark], events: Sequence[Event]) -> Markup:
    def entry(shape: Markup, name: str) -> Markup:
        sample = tag("svg", shape, width=26, height=14, aria_hidden="true")
        return tag("li", sample, tag("span", name))

    entries = [
        entry(tag("line", x1=0, x2=26, y1=7, y2=7, class_=f"curve {line.tone}"), line.name)
        for line in lines
    ]
    for text in dict.fromkeys(mark.legend for mark in marks):
        tones = {mark.tone for mark in marks if mark.legend == text}
        tone = tones.pop() if len(tones) == 1 else "ink"
        entries.append(
            entry(tag("path", d="M13 0.5 19.5 7 13 13.5 6.5 7Z", class_=f"mark {tone}"), text)
        )
    # Events of one kind share an entry; each says in its tooltip which it is.
    kinds = {event.tone: event.name for event in events}
    entries += [
        entry(tag("line", x1=13, x2=13, y1=0, y2=14, class_=f"event {tone}"), name)
        for tone, name in kinds.items()
    ]
    return tag("ul", *entries, class_="legend")


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
        text = NONE if value is None else write_y(value)
        if value is not None and low is not None and high is not None:
            text += f" ({write_y(low)} – {write_y(high)})"
        return tag("td", text)

    head = tag("tr", *(tag("th", n, scope="col") for n in (x_name, *(line.name for line in lines))))
    body = [
        tag("tr", tag("th", write_x(px), scope="row"), *(cell(i, px) for i in range(len(lines))))
        for px in sorted({px for line in lines for px in line.x})
    ]
    return tag("table", tag("thead", head), tag("tbody", *body), class_="figures")


def strip(description: str, *points: tuple[str, Accuracy]) -> Markup:
    """Accuracies on one line from 0 to 100 %, each (tone, accuracy) with its interval: the first
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
        title = tag("title", f"{accuracy(a)} ({interval(a)})")
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


@dataclass(frozen=True)
class Part:
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
    return tag("div", bar, tag("ul", *entries, class_="legend"))
