"""Certification runs on the page: certified ≤ true ≤ attacked accuracy, from `result.json`."""

from __future__ import annotations

from typing import Any

from markupsafe import Markup

from .. import charts
from ..runs.records import CertifiedAt
from . import format
from .evaluation import radius_axis, remarks
from .runs import Accuracy, CertificationRun
from .verdict import Verdict, of_certification


def _by_radius(
    run: CertificationRun, points: tuple[CertifiedAt, ...]
) -> list[tuple[float, Accuracy]]:
    return [
        (point.radius, Accuracy.stated(point.certified_accuracy, point.interval, run.n))
        for point in sorted(points, key=lambda point: point.radius)
    ]


def view(run: CertificationRun) -> dict[str, Any]:
    """What the template is given."""
    return {
        "facts": facts(run),
        "attacked": run.accuracy("attacked_accuracy"),
        "standard": run.accuracy("standard_accuracy"),
        "rows": [(_radius(run, radius), a) for radius, a in _by_radius(run, run.record.certified)],
        "chart": chart(run),
        "table": table(run),
    }


def _radius(run: CertificationRun, radius: float) -> str:
    return f"{format.norm(run.threat)} {format.radius(run.threat, radius)}"


def facts(run: CertificationRun) -> list[tuple[str, str]]:
    record = run.record
    settings = " · ".join(
        f"{format.name(k)} {format.figure(v)}" for k, v in record.settings.items()
    )
    return [
        ("Images", format.data(run.data, run.n)),
        ("Pixels", run.data.pixels or format.NONE),
        *remarks(run.data),
        ("Method", f"{record.method}, {settings}" if settings else record.method),
        ("Attack", f"{record.attack}, {run.threat}"),
        ("Abstentions", format.percent(record.abstained, run.n)),
        ("Mean certified radius", format.figure(record.mean_radius)),
        ("Model", format.model(run.model)),
        *([("Mind", record.note)] if record.note else []),
        ("Seed", format.figure(record.seed)),
        ("Time", format.duration(record.seconds)),
    ]


def judgement(run: CertificationRun) -> str:
    """Certified ≤ true ≤ attacked, in one sentence."""
    if run.fired:
        return "Do not rely on these certificates: " + " ".join(f.detail for f in run.fired)
    attacked = format.accuracy(run.accuracy("attacked_accuracy"))
    certified = _by_radius(run, run.record.certified)
    at = [a for radius, a in certified if radius == run.threat.eps]
    if not at:
        return f"At {run.threat} the true accuracy is at most {attacked}."
    return (
        f"At {run.threat} the true accuracy lies between {format.accuracy(at[0])}, which is "
        f"certified, and {attacked}, which an attack left standing."
    )


def verdict(run: CertificationRun) -> Verdict:
    return of_certification(run, judgement(run), _more(run))


def _more(run: CertificationRun) -> str:
    standard = run.accuracy("standard_accuracy")
    return Markup(
        "An abstention is never right. {} of the images are answered right (95 % interval "
        '<span class="line">{}</span>).'
    ).format(format.accuracy(standard), format.interval(standard))


def _line(run: CertificationRun) -> charts.Line:
    points = _by_radius(run, run.record.curve)
    return charts.Line(
        "certified",
        "robust",
        [radius for radius, _ in points],
        [a.value for _, a in points],
        [a.low for _, a in points],
        [a.high for _, a in points],
    )


def chart(run: CertificationRun) -> Markup | None:
    if not run.record.curve:
        return None
    attacked, eps = run.accuracy("attacked_accuracy"), run.threat.eps
    mark = charts.Mark("attacked", "ink", eps, format.estimate(attacked), f"attacked, {run.threat}")
    return charts.line_chart(
        "Certified accuracy against the radius; the table below holds the same figures.",
        _axis(run),
        charts.fraction_axis("certified accuracy"),
        [_line(run)],
        [mark],
        write=format.percent,
    )


def table(run: CertificationRun) -> Markup:
    axis = _axis(run)
    return charts.data_table(axis.label, [_line(run)], axis.write, format.percent)


def _axis(run: CertificationRun) -> charts.Axis:
    high = max([run.threat.eps, *(point.radius for point in run.record.curve)])
    return radius_axis("radius", [run.threat], high)
