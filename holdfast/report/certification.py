"""Certification runs on the page: certified ≤ true ≤ attacked accuracy, from `result.json`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from markupsafe import Markup

from .. import charts
from ..errors import InputError
from . import format as words
from .fields import Accuracy, Fields
from .measured import Flag, Measured, measured, read_flags

SCHEMA = "holdfast/certification/1"
_NORMS = {"linf": "L∞", "l2": "L2"}


@dataclass(frozen=True)
class Certification(Measured):
    """A finished certification run; `certified` and `curve` pair a radius with an accuracy."""

    kind = "certification"

    method: str
    settings: dict[str, Any]
    attack: str
    standard: Accuracy
    attacked: Accuracy
    abstained: float | None
    mean_radius: float | None
    certified: list[tuple[float, Accuracy]]
    curve: list[tuple[float, Accuracy]]
    flags: list[Flag]
    seed: int | None
    note: str = ""

    @property
    def fired(self) -> list[Flag]:
        return [flag for flag in self.flags if flag.fired]


def read_certification(run: Path, result: Fields) -> Certification:
    """As `runs.read_run`."""
    shared = measured(run, result)
    n = shared["n"]
    return Certification(
        **shared,
        method=result.text("method"),
        settings=result.object("settings").value,
        attack=result.text("attack"),
        standard=result.accuracy("standard_accuracy", "standard_accuracy_interval", n),
        attacked=result.accuracy("attacked_accuracy", "attacked_accuracy_interval", n),
        abstained=result.number("abstained", 0, 1),
        mean_radius=result.number("mean_radius"),
        certified=_points(result, "certified", n),
        curve=_points(result, "curve", n),
        flags=read_flags(result),
        seed=result.whole("seed", -(2**63)),
        note=result.text("note"),
    )


def _points(result: Fields, name: str, n: int) -> list[tuple[float, Accuracy]]:
    points = []
    for point in result.objects(name):
        radius = point.number("radius")
        if radius is None:
            raise InputError(f"{point.where} has no 'radius'")
        points.append((radius, point.accuracy("certified_accuracy", "interval", n)))
    return sorted(points, key=lambda point: point[0])


def view(run: Certification) -> dict[str, Any]:
    """What the template is given."""
    return {
        "facts": facts(run),
        "judgement": judgement(run),
        "rows": [(_radius(run, radius), a) for radius, a in run.certified],
        "chart": chart(run),
        "table": table(run),
    }


def _radius(run: Certification, radius: float) -> str:
    size = words.over_255(radius) if run.threat.norm == "linf" else f"{radius:.4g}"
    return f"{_NORMS.get(run.threat.norm, run.threat.norm)} {size}"


def facts(run: Certification) -> list[tuple[str, str]]:
    settings = " · ".join(f"{words.name(k)} {words.figure(v)}" for k, v in run.settings.items())
    return [
        ("Images", words.data(run.data, run.split, run.first, run.n)),
        ("Pixels", run.pixels or words.NONE),
        *run.remarks,
        ("Method", f"{run.method}, {settings}" if settings else run.method),
        ("Attack", f"{run.attack}, {run.threat}"),
        ("Abstentions", words.percent(run.abstained, run.n)),
        ("Mean certified radius", words.figure(run.mean_radius)),
        ("Model", " · ".join(w for w in (run.architecture, run.sha256[:12]) if w) or words.NONE),
        *([("Mind", run.note)] if run.note else []),
        ("Seed", words.figure(run.seed)),
        ("Time", words.duration(run.seconds)),
    ]


def judgement(run: Certification) -> str:
    """Certified ≤ true ≤ attacked, in one sentence."""
    if run.fired:
        return "Do not rely on these certificates: " + " ".join(f.detail for f in run.fired)
    at = [a for radius, a in run.certified if radius == run.threat.eps]
    if not at:
        return f"At {run.threat} the true accuracy is at most {words.accuracy(run.attacked)}."
    return (
        f"At {run.threat} the true accuracy lies between {words.accuracy(at[0])}, which is "
        f"certified, and {words.accuracy(run.attacked)}, which an attack left standing."
    )


def _line(run: Certification) -> charts.Line:
    radii, accuracies = zip(*run.curve, strict=True) if run.curve else ((), ())
    return charts.Line(
        "certified",
        "robust",
        radii,
        [a.value for a in accuracies],
        [a.low for a in accuracies],
        [a.high for a in accuracies],
    )


def chart(run: Certification) -> Markup | None:
    if not run.curve:
        return None
    high = max(run.threat.eps, run.curve[-1][0])
    mark = charts.Mark(
        "attacked", "ink", run.threat.eps, words.estimate(run.attacked), f"attacked, {run.threat}"
    )
    return charts.line_chart(
        "Certified accuracy against the radius; the table below holds the same figures.",
        _axis(run, high),
        charts.fraction_axis("certified accuracy"),
        [_line(run)],
        [mark],
        write=words.percent,
    )


def table(run: Certification) -> Markup:
    high = max([run.threat.eps, *(radius for radius, _ in run.curve)])
    axis = _axis(run, high)
    return charts.data_table(axis.label, [_line(run)], axis.write, words.percent)


def _axis(run: Certification, high: float) -> charts.Axis:
    name = f"radius ({_NORMS.get(run.threat.norm, run.threat.norm)})"
    return charts.Axis(name, 0, high, charts.ticks(0, high), "{:.4g}".format)
