"""What each section of an evaluation's page shows, worked out from the run. Templates only lay it
out."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import yaml
from markupsafe import Markup

from .. import charts, palette
from ..evaluation.result import distinct_names
from ..runs.records import Curve, CurvePoint, DataInfo
from ..threat import Threat
from . import format, pictures
from .runs import Accuracy, EvaluationRun, Run, TrainingRun

MOST_CLASSES = 30  # rows of the class table
MOST_CONFUSED = 20  # classes of a confusion matrix that still fits a page; pairs beyond
MOST_EXAMPLES = 24
PIXELS = 400_000  # of all example images together, so that photographs do not make a page of 50 MB

Facts = list[tuple[str, str]]


def heading(run: Run) -> str:
    if isinstance(run, TrainingRun):
        return _trained(run)
    return run.model.title if run.model.name else run.path.resolve().name


def _trained(run: TrainingRun) -> str:
    """What was trained, and how: folders of trainings are often called just that."""
    recipe = run.request.asked.get("recipe") if run.request else None
    if not isinstance(recipe, dict):
        return run.path.resolve().name

    def named(value: object, key: str) -> str:
        found = value.get(key) if isinstance(value, dict) else value
        return found if isinstance(found, str) else ""

    model = named(recipe.get("model"), "architecture")
    objective = named(recipe.get("objective"), "name")
    if not model or not objective:
        return run.path.resolve().name
    return f"{model} trained by {objective}"


def headings(runs: Sequence[Run]) -> list[str]:
    """Headings that tell runs apart which stand side by side: models of one name but of other
    weights by these, and otherwise alike ones by their folders."""
    apart = distinct_names(
        [heading(run) for run in runs],
        ["" if isinstance(run, TrainingRun) else run.model.sha256 or "" for run in runs],
    )
    return [
        f"{name}, {run.path.resolve().name}" if apart.count(name) > 1 else name
        for name, run in zip(apart, runs, strict=True)
    ]


# --- the verdict -------------------------------------------------------------------------------


def verdict(run: EvaluationRun) -> tuple[str, str]:
    """The outcome in plain words: one short judgement, and the counts behind it."""
    right, standing = run.standard.count, run.robust.count
    if right is None or standing is None:
        return "The evaluation reached no verdict.", "At least one of its accuracies has no value."
    if run.aimed:
        return _verdict_on_targets(run, right, standing)
    if right == 0:
        judgement = "The model is wrong everywhere, attack or not."
    elif standing == 0:
        judgement = "Nothing stands under attack."
    elif run.record.doubts:
        fired = len(run.record.doubts)
        judgement = "Do not rely on the robust accuracy yet: " + (
            "a health check fired." if fired == 1 else f"{fired} health checks fired."
        )
    elif run.record.repairs:
        judgement = "The model hides its gradients, which is no defence: repaired ones were used."
    elif standing < 0.05 * right:
        judgement = "Almost nothing stands under attack."
    elif standing < 0.45 * right:
        judgement = "Less than half of what the model gets right stands under attack."
    elif standing <= 0.55 * right:
        judgement = "About half of what the model gets right stands under attack."
    elif standing < 0.95 * right:
        judgement = "More than half of what the model gets right stands under attack."
    else:
        judgement = "Nearly all that the model gets right stands under attack."
    counts = f"It names {format.count(right)} of {format.count(run.n)} images right."
    if right:
        counts += (
            f" An attacker who may {format.permission(run.threat)} makes it wrong on "
            f"{format.count(right - standing)} of these"
        )
        counts += (
            f"; {format.count(standing)} still stand {_after(run)} could only lower that figure."
            if standing
            else "; none is left."
        )
    return judgement, counts


def _after(run: EvaluationRun) -> str:
    if run.record.given is None:
        return "after the whole suite. A stronger attack"
    return (
        "against these images. Nobody searched for others on this model, so its robust accuracy is "
        "an upper bound here: an attack on it"
    )


def _verdict_on_targets(run: EvaluationRun, right: int, standing: int) -> tuple[str, str]:
    judgement = f"Target reached on {format.accuracy(run.reached)} of the images."
    if run.fired:
        judgement += " Do not rely on it yet: a health check fired."
    return judgement, (
        f"It names {format.count(right)} of {format.count(run.n)} images right. An attacker who "
        f"may {format.permission(run.threat)} made it answer the one class that was wanted on "
        f"{format.count(run.n - standing)}; any other mistake does not count. A stronger attack "
        "could only raise that figure."
    )


def remarks(data: DataInfo) -> Facts:
    """What a record says against its images, as rows of a table."""
    absent = data.classes_without_images
    named = ", ".join(absent[:10]) + (", …" if len(absent) > 10 else "")
    rows = [("Classes without an image", f"{len(absent)}: {named}")] if absent else []
    for each in data.overlaps:
        images = f"{format.count(each.images)} of {each.split} are in {each.other} too"
        rows.append(("Images in two splits", images))
    return rows


def sample_facts(run: EvaluationRun) -> Facts:
    """Why a sample is as large as it is, and its other intervals."""
    record = run.record
    if record.stopped is None:
        return []
    limits = [f"budget {format.duration(record.budget)}"] if record.budget is not None else []
    limits += [f"until ± {format.percent(record.until)}"] if record.until is not None else []
    of = f"{format.count(run.n)} of {format.count(record.population)} images"
    rows = [("Stopped", f"{record.stopped} ({', '.join([of, *limits])})")]
    if record.is_sample:
        usual = [
            format.interval(Accuracy.stated(None, bounds, run.n))
            for bounds in (record.standard_accuracy_interval, record.robust_accuracy_interval)
        ]
        rows.append(("Were n fixed beforehand (Clopper–Pearson)", " · ".join(usual)))
    return rows


def facts(run: EvaluationRun) -> Facts:
    record = run.record
    return [
        ("Images", format.images(run)),
        *sample_facts(run),
        ("Pixels", run.data.pixels or format.NONE),
        *remarks(run.data),
        ("Threat model", str(run.threat)),
        ("Suite", record.suite or format.NONE),
        *_handed_over(run),
        *([("Goal", f"one class for each image: {record.targets or '?'}")] if run.aimed else []),
        ("Model", format.model(run.model)),
        ("Seed · precision", f"{format.figure(record.seed)} · {record.precision or format.NONE}"),
        *(
            [("Gradients repaired", "; ".join(map(str, record.repairs)).replace("`", ""))]
            if record.repairs
            else []
        ),
        ("Time", format.duration(record.seconds)),
        (
            "Forwards · backwards",
            f"{format.count(record.forwards)} · {format.count(record.backwards)}",
        ),
    ]


def _handed_over(run: EvaluationRun) -> Facts:
    """Where adversarial images came from that nobody searched for here."""
    given, transfer = run.record.given, run.record.transfer
    rows = []
    if given is not None:
        count = f"{format.count(given.counted)} of {format.count(given.images)} count"
        rows.append(("Adversarial images", "; ".join([count, *given.told])))
    if transfer is not None:
        standard = Accuracy.stated(
            transfer.standard_accuracy, transfer.standard_accuracy_interval, run.n
        )
        robust = Accuracy.stated(transfer.robust_accuracy, transfer.robust_accuracy_interval, run.n)
        rate = Accuracy.stated(transfer.rate, transfer.rate_interval, transfer.broke_source)
        rows += [
            (
                "Attacked in its place",
                f"{transfer.source} by {transfer.suite}: standard accuracy "
                f"{format.accuracy(standard)}, robust accuracy {format.accuracy(robust)}",
            ),
            (
                "Transfer rate",
                f"{format.accuracy(rate)}: {format.count(transfer.broke_both)} of "
                f"{format.count(transfer.broke_source)} images that broke the other model, and "
                "that this one gets right without an attack, break this one too",
            ),
        ]
    return rows


def fates(run: EvaluationRun) -> Markup | None:
    """What became of all n images; None where the counts of the attacks do not add up to n."""
    right, standing = run.standard.count, run.robust.count
    if right is None or standing is None:
        return None
    broken = [(attack.name, attack.broken) for attack in run.record.attacks if attack.broken]
    stand, by, before = "stand", "broken by", "wrong before any attack"
    first = run.n - right
    if run.aimed:
        stand, by, before = "target not reached", "reached by", "at their target before any attack"
        first = run.n - standing - sum(number or 0 for _, number in broken)
    parts = [charts.Part(stand, "robust", standing)]
    parts += [
        charts.Part(f"{by} {name}", f"broken-{min(i, 2)}", number)
        for i, (name, number) in enumerate(broken)
    ]
    parts += [charts.Part(before, "standard", first)]
    parts = [part for part in parts if part.size]
    if sum(part.size for part in parts) != run.n:
        return None
    spoken = "; ".join(f"{part.size} {part.name}" for part in parts)
    return charts.parts_bar(f"What became of {run.n} images: {spoken}.", parts)


# --- security curves ---------------------------------------------------------------------------


@dataclass(frozen=True)
class Curves:
    chart: Markup
    table: Markup
    caption: str


def radius_axis(label: str, threats: Sequence[Threat], high: float) -> charts.Axis:
    """An axis of radii, in the unit in which the page writes those of the threat models."""
    name = format.norm(threats[0])
    if all(format.in_steps(threat) for threat in threats):
        ticks = [tick / 255 for tick in charts.ticks(0, high * 255)]
        return charts.Axis(
            f"{label} ({name}), in steps of 1/255", 0, high, ticks, lambda eps: f"{eps * 255:.4g}"
        )
    return charts.Axis(f"{label} ({name})", 0, high, charts.ticks(0, high), "{:.4g}".format)


def _end(curve: Curve) -> float:
    """The radius from which nothing stands, or the last one."""
    points = ascending(curve)
    end = points[-1].eps
    for point in reversed(points):
        if point.robust_accuracy != 0:
            break
        end = point.eps
    return end


def ascending(curve: Curve) -> list[CurvePoint]:
    """A curve's points by their radius."""
    return sorted(curve.points, key=lambda point: point.eps)


def security_curves(runs: Sequence[EvaluationRun]) -> Curves | None:
    """Robust accuracy against ε, one line a run, and each suite's own figure as a marked point.

    The runs must share the norm and the curve's attack: figures from different searches never
    share a line, nor lines a chart.
    """
    shown = [(run, curve) for run in runs if (curve := run.record.curve) and curve.points]
    if not shown:
        return None
    left_out, shown = len(shown[palette.STYLES :]), shown[: palette.STYLES]
    high = max(max(run.threat.eps, _end(curve)) for run, curve in shown)
    axis = radius_axis("ε", [run.threat for run, _ in shown], high)
    several = len(shown) > 1
    lines, marks = [], []
    names = headings([run for run, _ in shown])
    for i, (run, curve) in enumerate(shown):
        tone = f"tone-{i}" if several else "robust"
        points = [point for point in ascending(curve) if point.eps <= high]
        lines.append(
            charts.Line(
                names[i] if several else f"{curve.attack}, n = {format.count(curve.n)}",
                tone,
                [point.eps for point in points],
                [point.robust_accuracy for point in points],
                [point.interval and point.interval[0] for point in points],
                [point.interval and point.interval[1] for point in points],
            )
        )
        title = f"suite {run.record.suite or ''} at {run.threat}, n = {format.count(run.n)}"
        marks.append(
            charts.Mark(
                f"{names[i]}: {title}" if several else title,
                tone if several else "ink",
                run.threat.eps,
                format.estimate(run.robust),
                title,
                line=i,
            )
        )
    chart = charts.line_chart(
        "Robust accuracy against the radius ε; the table below holds the same figures.",
        axis,
        charts.fraction_axis("robust accuracy"),
        lines,
        marks,
        write=format.percent,
    )
    table = charts.data_table(axis.label, lines, axis.write, format.percent)
    band = "The band is the 95 % interval. "
    if len(shown) > charts.MOST_BANDS:
        band = "The 95 % intervals are in the table. "
    caption = f"{band}The diamond is the suite's own figure: " + (
        "the line is made of the same distances."
        if all(curve.attack == f"suite {run.record.suite}" for run, curve in shown)
        else "a longer search on its own images, so it belongs to no line."
    )
    if any(ascending(curve)[-1].robust_accuracy not in (None, 0.0) for _, curve in shown):
        caption += (
            " The line does not reach 0: either the radii end too early, or the attack "
            "fails where a stronger one would not."
        )
    if left_out:
        caption += f" The first {len(shown)} are drawn; {left_out} more are not."
    if several:
        caption += f" Lines: {shown[0][1].attack}, n = {format.count(shown[0][1].n)}."
    return Curves(chart, table, caption)


# --- queries -----------------------------------------------------------------------------------


def query_curve(run: EvaluationRun) -> Curves | None:
    """The share that stands against the queries about each image, for a model whose queries were
    counted."""
    queries = run.record.queries
    if queries is None:
        return None
    points = sorted((p for p in queries.curve if p.queries), key=lambda point: point.queries)
    if len(points) < 2:
        return None
    last = points[-1].queries
    powers = [10.0**k for k in range(len(str(last))) if 10**k <= last]
    axis = charts.Axis(
        "queries about each image", 1, last, powers, lambda count: f"{count:,.0f}", logarithmic=True
    )
    lines = [
        charts.Line(
            f"stand after so many queries, n = {format.count(run.n)}",
            "robust",
            [point.queries for point in points],
            [point.robust_accuracy for point in points],
            [point.interval and point.interval[0] for point in points],
            [point.interval and point.interval[1] for point in points],
        )
    ]
    if run.record.standard_accuracy is not None:
        level = run.record.standard_accuracy
        lines.append(charts.Line("right before any", "standard", [1, last], [level] * 2))
    chart = charts.line_chart(
        "Robust accuracy against queries; the table below holds the same figures.",
        axis,
        charts.fraction_axis("stand"),
        lines,
        write=format.percent,
    )
    seen = f" The attacker saw {run.record.outputs} only." if run.record.outputs else ""
    limit = (
        "Queries were counted, not limited."
        if queries.budget is None
        else f"No image was asked about more than {queries.budget:,} times."
    )
    caption = (
        f"A query is one image shown to the model. {limit} In all there were "
        f"{format.count(queries.asked)}, and {format.count(queries.outside)} for clean predictions "
        f"and checks.{seen} The band is the 95 % interval."
    )
    table = charts.data_table(axis.label, lines[:1], axis.write, format.percent)
    return Curves(chart, table, caption)


# --- classes and confusions --------------------------------------------------------------------


@dataclass(frozen=True)
class ClassRow:
    name: str
    standard: Accuracy
    robust: Accuracy
    strip: Markup


@dataclass(frozen=True)
class Classes:
    rows: list[ClassRow]
    left_out: int
    saved: Markup


def classes(run: EvaluationRun) -> Classes | None:
    """Accuracy by class; of many classes, those that are weakest under attack."""
    if run.verdicts is None:
        return None
    v, rows = run.verdicts, []
    for label in np.unique(v.label):
        own = v.label == label
        standard = Accuracy.of(int((own & v.clean_right).sum()), int(own.sum()))
        robust = Accuracy.of(int((own & ~v.broken).sum()), int(own.sum()))
        name = run.class_name(int(label))
        strip = charts.strip(
            f"{name}: {format.accuracy(standard)} clean, {format.accuracy(robust)} under attack",
            ("standard", format.estimate(standard)),
            ("robust", format.estimate(robust)),
        )
        rows.append(ClassRow(name, standard, robust, strip))
    left_out = max(0, len(rows) - MOST_CLASSES)
    if left_out:
        rows = sorted(rows, key=lambda row: row.robust.value or 0.0)[:MOST_CLASSES]
    saved = charts.strips_saved(
        "Accuracy by class",
        [
            (
                row.name,
                [
                    ("clean", "standard", format.estimate(row.standard)),
                    ("attacked", "robust", format.estimate(row.robust)),
                ],
            )
            for row in rows
        ],
    )
    return Classes(rows, left_out, saved)


@dataclass(frozen=True)
class Confusion:
    """How often each label (row) was broken into each prediction (column), clean mistakes left
    out; for many classes, only the commonest pairs."""

    total: int
    names: list[str]
    counts: list[list[int]]
    largest: int
    pairs: list[tuple[str, str, int]]
    saved: Markup


def confusion(run: EvaluationRun) -> Confusion | None:
    if run.verdicts is None:
        return None
    v = run.verdicts
    of_interest = v.broken_by_attack & (v.adversarial_prediction >= 0)
    labels, turned = v.label[of_interest], v.adversarial_prediction[of_interest]
    k = int(max(len(run.record.classes), *(v.label + 1), *(turned + 1)))
    pairs, numbers = np.unique(np.stack([labels, turned]), axis=1, return_counts=True)
    if k <= MOST_CONFUSED:
        counts = np.zeros((k, k), int)
        counts[pairs[0], pairs[1]] = numbers
        names = [run.class_name(i) for i in range(k)]
        saved = charts.heat_saved("What breaks into what", names, counts.tolist(), "broken-0")
        largest = max(1, int(counts.max()))
        return Confusion(int(of_interest.sum()), names, counts.tolist(), largest, [], saved)
    commonest = np.argsort(-numbers, kind="stable")[:MOST_CONFUSED]
    return Confusion(
        int(of_interest.sum()),
        [],
        [],
        max(1, int(numbers.max(initial=1))),
        [
            (run.class_name(int(pairs[0, i])), run.class_name(int(pairs[1, i])), int(numbers[i]))
            for i in commonest
        ],
        Markup(""),
    )


# --- examples ----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Example:
    index: int
    label: str
    fate: str  # standing, broken or mistake
    attack: str
    image: str
    perturbation: str
    adversarial: str
    before: str
    before_confidence: str
    after: str
    after_confidence: str
    distance: str
    wrong_before: bool
    wrong_after: bool


@dataclass(frozen=True)
class Examples:
    shown: list[Example]
    stored: int
    factor: int
    note: str


def _distance(run: EvaluationRun, value: float) -> str:
    if not np.isfinite(value):
        return ""
    if value == 0:
        return "no change"
    return f"{format.norm(run.threat)} {format.radius(run.threat, value)}"


def examples(run: EvaluationRun) -> Examples | None:
    """The first of the stored examples, as pictures."""
    if run.examples is None or run.verdicts is None or not len(run.examples.rows):
        return None
    images, v = run.examples.images, run.verdicts
    stored, channels, height, width = images.shape
    if channels not in (1, 3):
        note = f"Images of {channels} channels cannot be shown; 1 or 3 can."
        return Examples([], stored, 1, note)
    most = max(3, min(MOST_EXAMPLES, PIXELS // (height * width)))
    images, adversarial = images[:most], run.examples.adversarial[:most]
    delta = adversarial - images
    factor = pictures.magnification(delta)
    shown = []
    for row, image, change, attacked in zip(
        run.examples.rows, images, delta, adversarial, strict=False
    ):
        before = v.attack[row] == "clean" if run.aimed else not v.clean_right[row]
        fate = "mistake" if before else "broken" if v.broken[row] else "standing"
        shown.append(
            Example(
                index=int(v.index[row]),
                label=run.class_name(int(v.label[row])),
                fate=fate,
                attack=v.attack[row],
                image=pictures.png(image),
                perturbation=pictures.png(pictures.magnified(change, factor)),
                adversarial=pictures.png(attacked),
                before=run.class_name(int(v.clean_prediction[row])),
                before_confidence=_confidence(v.clean_confidence[row]),
                after=run.class_name(int(v.adversarial_prediction[row])),
                after_confidence=_confidence(v.adversarial_confidence[row]),
                distance=_distance(run, float(v.distance[row])),
                wrong_before=not v.clean_right[row],
                wrong_after=bool(v.adversarial_prediction[row] not in (-1, v.label[row])),
            )
        )
    return Examples(shown, stored, factor, "")


def _confidence(value: float) -> str:
    return "" if np.isnan(value) else format.percent(float(value))


# --- cost --------------------------------------------------------------------------------------


@dataclass(frozen=True)
class CostRow:
    name: str
    broken: str
    share: float  # of all images, for the bar
    forwards: str
    backwards: str
    seconds: str
    outcome: str = ""  # in place of the figures, where it was not tried


def cost(run: EvaluationRun) -> list[CostRow]:
    return [
        CostRow(
            attack.name,
            format.count(attack.broken),
            (attack.broken or 0) / run.n,
            format.count(attack.forwards),
            format.count(attack.backwards),
            format.duration(attack.seconds),
            "" if attack.ran else attack.outcome,
        )
        for attack in run.record.attacks
    ]


def other_costs(run: EvaluationRun) -> Facts:
    """What took time besides the attacks, in the order in which it was begun."""
    costs = run.record.other_costs
    return [(cost.name, format.duration(cost.seconds)) for cost in costs]


# --- the request -------------------------------------------------------------------------------

_SHOWN_ELSEWHERE = {"schema", "kind", "command", "versions", "asked", "recipe"}


@dataclass(frozen=True)
class Request:
    command: str
    versions: Facts
    asked: Facts
    recipe: str


def request(run: Run) -> Request | None:
    if run.request is None:
        return None
    # Of the first version, what was asked stands beside the rest.
    given = run.request.to_dict() | run.request.asked
    recipe = given.get("recipe")
    if recipe is not None and not isinstance(recipe, str):
        recipe = yaml.safe_dump(recipe, sort_keys=False, allow_unicode=True)
    details = [
        row
        for key, value in given.items()
        if key not in _SHOWN_ELSEWHERE
        for row in _asked(format.name(key), value)
    ]
    if not isinstance(run, TrainingRun):
        details += [
            ("model loaded from", run.model.source or ""),
            ("weights, SHA-256", run.model.sha256 or ""),
        ]
    return Request(
        command=shlex.join(run.request.command),
        versions=[(key, format.figure(value)) for key, value in run.request.versions.items()],
        asked=[(name, value) for name, value in details if value],
        recipe=recipe or "",
    )


def _asked(name: str, value: Any) -> Facts:
    """A value of the request as rows, one for each value inside it."""
    if isinstance(value, dict):
        return [row for key, part in value.items() for row in _asked(f"{name}: {key}", part)]
    if isinstance(value, list) and any(isinstance(part, dict | list) for part in value):
        return [
            row for place, part in enumerate(value, 1) for row in _asked(f"{name} {place}", part)
        ]
    # The exact number: it is what one would have to ask again.
    return [(name, repr(value) if isinstance(value, float) else format.figure(value))]
