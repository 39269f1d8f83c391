"""Requirements such as `robust>=40%`, and whether a run meets them: its intervals decide."""

from __future__ import annotations

import math
import re
import xml.etree.ElementTree as ET
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from ..errors import InputError
from ..parsing import nearest, parse_number
from ..runs.records import (
    CertificationRecord,
    EvaluationRecord,
    Measurement,
    ModelInfo,
    Record,
    UncertaintyRecord,
    read,
)
from ..runs.records.base import ShownAsRecord
from ..runs.records.uncertainty import Answers, Share
from ..terminal import page_text, printable
from ..uncertainty.run.output import figures as numbers

SIGNS = {
    ">=": ">=", "≥": ">=", "=>": ">=", "<=": "<=", "≤": "<=", "=<": "<=", ">": ">", "<": "<",
}  # fmt: skip
_WRITTEN = re.compile(r"\s*([^<>=≥≤!]+?)\s*(>=|<=|=>|=<|≥|≤|==|!=|=|>|<)\s*([^<>=≥≤!]+?)\s*")
_RIGHT = 'write it like "robust>=0.40" or "standard>=75%"'

# The figures of an evaluation. Those after `flags` are there for defended models, for an attacker
# who aims at a class, and for random models.
OF_EVALUATIONS = (
    "standard",
    "robust",
    "flags",
    "unaware",
    "target-reached",
    *(f"{name}.{kind}" for name in ("standard", "robust") for kind in ("average", "worst")),
)


@dataclass(frozen=True)
class Figure:
    """A figure of a run.

    Attributes:
        value: what was measured; None where it has no value.
        interval: 95 %; None where the record holds none.
        fraction: whether it lies between 0 and 1, so that it can be said in per cent.
        counted: whether it is a whole number that is known exactly.
        anytime: whether the interval is one that is valid at any time: the number of images
            depended on what was seen.
    """

    value: float | None
    interval: tuple[float, float] | None = None
    fraction: bool = True
    counted: bool = False
    anytime: bool = False

    def __str__(self) -> str:
        if self.value is None:
            return "no value"
        if self.counted:
            return f"{self.value:.0f}"
        if self.interval is None:
            return f"{self._said(self.value)} (no interval in the record)"
        low, high = map(self._said, self.interval)
        kind = "95 %, valid at any time" if self.anytime else "95 %"
        return f"{self._said(self.value)} ({kind}: {low} to {high})"

    def _said(self, value: float) -> str:
        return f"{value:.2%}" if self.fraction else f"{value:.4g}"


@dataclass(frozen=True)
class Requirement:
    """A bound on a figure: `robust>=0.40`.

    Attributes:
        text: as it was written.
        figure: its name.
        sign: `>=`, `<=`, `>` or `<`.
        bound: what the figure is held against.
        percent: whether the bound was written in per cent.
    """

    text: str
    figure: str
    sign: str
    bound: float
    percent: bool

    @classmethod
    def parse(cls, text: str) -> Requirement:
        """The requirement that a text says.

        Raises:
            InputError: it says none.

        Example:
            >>> found = Requirement.parse("robust >= 40%")
            >>> found.figure, found.sign, found.bound
            ('robust', '>=', 0.4)
        """
        if not isinstance(text, str):
            raise InputError(f"a requirement is text, not {type(text).__name__}: {_RIGHT}")
        said = " ".join(text.split())
        shown = said if len(said) <= 60 else said[:59] + "…"
        found = _WRITTEN.fullmatch(text)
        if found is None:
            quotes = ""
            if not any(sign in said for sign in SIGNS):  # `robust>=0.4` without quotes
                quotes = ", in quotes: a shell takes > and < for files"
            raise InputError(f"requirement {shown!r} cannot be read: {_RIGHT}{quotes}")
        name, sign, value = found.groups()
        if sign not in SIGNS:
            raise InputError(
                f"requirement {shown!r}: an interval is on one side of a bound or not: use >= or <="
            )
        percent = value.endswith("%")
        try:
            bound = parse_number(value.removesuffix("%").strip()) / (100 if percent else 1)
        except InputError:
            raise InputError(f"requirement {shown!r}: {value!r} is no number: {_RIGHT}") from None
        if not math.isfinite(bound):
            raise InputError(f"requirement {shown!r}: {value!r} is no finite number")
        return cls(shown, _plain(name)[:60], SIGNS[sign], bound, percent)

    def check(self, name: str, figure: Figure) -> None:
        """InputError where the bound is in another unit than the figure."""
        if figure.counted and self.percent:
            raise InputError(f"requirement {self.text!r}: {name} is a number, not a share")
        if figure.fraction and not figure.counted and not 0 <= self.bound <= 1:
            percent = 1 < self.bound <= 100 and not self.percent
            hint = f": did you mean {self.bound:g}%?" if percent else ""
            raise InputError(
                f"requirement {self.text!r}: {name} is a fraction, from 0 to 1 (0% to 100%){hint}"
            )

    def met_by(self, figure: Figure) -> bool:
        """Whether a figure meets it: for a lower bound the interval's lower end decides, for an
        upper one the upper end; without an interval the figure itself. No value meets nothing."""
        if figure.value is None:
            return False
        low, high = figure.interval or (figure.value, figure.value)
        return {
            ">=": low >= self.bound,
            ">": low > self.bound,
            "<=": high <= self.bound,
            "<": high < self.bound,
        }[self.sign]


@dataclass(frozen=True)
class Outcome:
    """A requirement beside one figure of a run."""

    requirement: Requirement
    name: str
    figure: Figure
    met: bool

    def __str__(self) -> str:
        end = "lower" if self.requirement.sign[0] == ">" else "upper"
        figure = self.figure
        decides = "" if figure.counted else "; the figure itself decides"
        decides = decides if figure.interval is None else f"; the {end} end decides"
        verdict = "met" if self.met else "not met"
        return f"{verdict:<8} {self.requirement.text}: {self.name} is {figure}{decides}"


@dataclass(frozen=True)
class Required:
    """What became of a run's requirements.

    Attributes:
        record: the run's.
        outcomes: one or more for each requirement, in the order given.
    """

    record: Measurement
    outcomes: tuple[Outcome, ...]

    @property
    def met(self) -> bool:
        """Whether all are met."""
        return all(outcome.met for outcome in self.outcomes)

    def __str__(self) -> str:
        return "\n".join(printable(str(outcome)) for outcome in self.outcomes)

    def to_dict(self) -> dict[str, object]:
        """As JSON holds it."""
        return {
            "met": self.met,
            "requirements": [
                {
                    "requirement": outcome.requirement.text,
                    "figure": outcome.name,
                    "value": outcome.figure.value,
                    "interval": outcome.figure.interval,
                    "anytime": outcome.figure.anytime,
                    "met": outcome.met,
                }
                for outcome in self.outcomes
            ],
        }


def require(
    run: Path | str | Record | ShownAsRecord, requirements: str | Iterable[str]
) -> Required:
    """Whether a run meets requirements, such as `robust>=0.40` or `ece<=5%`.

    What a run measured is known up to its 95 % interval: for a lower bound (`>=`, `>`) the
    interval's lower end decides, for an upper one (`<=`, `<`) the upper end. A figure whose record
    holds no interval decides itself. Where a run stopped by what it had seen, the interval that is
    valid at any time decides.

    Args:
        run: the folder of an evaluation, a certification or an uncertainty run, or its record.
        requirements: one or several. Figures of an evaluation: `standard`, `robust`, `flags` (how
            many fired), `unaware`, `robust.average`, `robust.worst`; of a certification:
            `certified`, `certified@0.25`, `standard`, `attacked`, `abstained`, `mean-radius`,
            `flags`; of an uncertainty run: `ece`, `accuracy` and the like on clean images,
            `ece.suite` under attack, `coverage.aps` of prediction sets, `coverage` of all of them,
            and any figure by its name in `metrics.csv`.

    Raises:
        InputError: a requirement that cannot be read, of a figure that the run does not have, or in
            another unit; as `holdfast.read`; a run of another kind.

    Example:
        >>> import torch, holdfast as hf
        >>> model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(4, 2))
        >>> images, labels = torch.rand(8, 1, 2, 2), torch.arange(8) % 2
        >>> result = hf.evaluate(model, images, labels, ("linf", 0.1), suite="fgsm")
        >>> hf.require(result, ["robust>=0", "standard<=100%"]).met
        True
    """
    run = run.as_record() if isinstance(run, ShownAsRecord) else run
    record = run if isinstance(run, Record) else read(run)
    parsed = parsed_all(requirements)
    if not isinstance(record, EvaluationRecord | CertificationRecord | UncertaintyRecord):
        raise InputError(
            f"{'the record' if isinstance(run, Record) else run} is a {_kind(record)}: "
            "requirements are for evaluations, certifications and uncertainty runs"
        )
    held = figures_of(record)
    outcomes = []
    for requirement in parsed:
        for name in _named(requirement, held, record):
            requirement.check(name, held[name])
            outcomes.append(Outcome(requirement, name, held[name], requirement.met_by(held[name])))
    return Required(record, tuple(outcomes))


def _kind(record: Record) -> str:
    return type(record).__name__.removesuffix("Record").lower()


def parsed_all(requirements: str | Iterable[str]) -> list[Requirement]:
    """All requirements; InputError where there is none, or one cannot be read."""
    texts = [requirements] if isinstance(requirements, str) else list(requirements)
    if not texts:
        raise InputError(f"no requirement is given: {_RIGHT}")
    return [Requirement.parse(text) for text in texts]


def checked_for_evaluation(
    requirements: Sequence[str], *, aimed: bool | None = None, defended: bool | None = None
) -> None:
    """Before an evaluation begins: InputError where a requirement cannot be read, or is of a figure
    that no evaluation has, or this one will not have.

    Args:
        aimed: whether only one class counts as a success; None where that is not known yet.
        defended: whether the model is behind a defence; None likewise.
    """
    lacking = {}
    if aimed is False:
        lacking["target-reached"] = "measured with --goal target only"
    if aimed or defended is False:
        lacking["unaware"] = (
            "not measured with --goal target" if aimed else "measured behind a --defence only"
        )
    for requirement in parsed_all(requirements):
        name = requirement.figure
        if name not in OF_EVALUATIONS:
            raise InputError(
                f"requirement {requirement.text!r}: an evaluation has no figure "
                f"{name!r}{nearest(name, OF_EVALUATIONS)}"
            )
        if name in lacking:
            raise InputError(f"requirement {requirement.text!r}: {name!r} is {lacking[name]}")
        requirement.check(name, Figure(None, counted=name == "flags"))


# --- the figures of a run ------------------------------------------------------------------------


def figures_of(record: Record) -> dict[str, Figure]:
    """What can be required of a run, by name."""
    if isinstance(record, CertificationRecord):
        return dict(_of_certification(record))
    if isinstance(record, UncertaintyRecord):
        return dict(_of_uncertainty(record))
    if isinstance(record, EvaluationRecord):
        return dict(_of_evaluation(record))
    return {}


def _of_evaluation(record: EvaluationRecord) -> Iterator[tuple[str, Figure]]:
    for name in ("standard", "robust"):
        yield name, accuracy(record, name)
    yield "flags", Figure(len(record.fired), counted=True)
    if record.target_reached is not None:
        reached = accuracy(record, "robust")
        ends = (
            None if reached.interval is None else (1 - reached.interval[1], 1 - reached.interval[0])
        )
        yield "target-reached", Figure(record.target_reached, ends, anytime=reached.anytime)
    if record.unaware is not None:
        found = record.unaware
        yield "unaware", Figure(found.robust_accuracy, found.robust_accuracy_interval)
    for drawn in record.draws:
        for name in ("standard", "robust"):
            value, bounds = (
                getattr(drawn, f"{name}_accuracy{end}", None) for end in ("", "_interval")
            )
            yield f"{name}.{drawn.kind}", Figure(value, bounds)


def accuracy(record: Measurement, name: str) -> Figure:
    """`standard` or `robust` accuracy with the interval that decides: the one that is valid at any
    time, where the record has it; but where a sample came to all images, their usual one."""
    value = getattr(record, f"{name}_accuracy")
    anytime = getattr(record, f"{name}_accuracy_anytime_interval", None)
    if anytime is not None and getattr(record, "stopped", None) != "all images":
        return Figure(value, _fractions(anytime, f"{name}_accuracy_anytime_interval"), anytime=True)
    return Figure(value, getattr(record, f"{name}_accuracy_interval"))


def _fractions(held: object, name: str) -> tuple[float, float]:
    """An interval of a record; InputError where it is none."""
    try:
        low, high = (float(end) for end in held)  # type: ignore[attr-defined]
    except (TypeError, ValueError):
        low = high = math.nan
    if not 0 <= low <= high <= 1:
        raise InputError(f"the record's {name!r} is no interval of fractions")
    return low, high


def _of_certification(record: CertificationRecord) -> Iterator[tuple[str, Figure]]:
    yield "standard", Figure(record.standard_accuracy, record.standard_accuracy_interval)
    yield "attacked", Figure(record.attacked_accuracy, record.attacked_accuracy_interval)
    for at in record.certified:
        figure = Figure(at.certified_accuracy, at.interval)
        yield f"certified@{at.radius:.6g}", figure
        if math.isclose(at.radius, record.threat["eps"], rel_tol=1e-6):
            yield "certified", figure
    yield "abstained", Figure(record.abstained)
    yield "mean-radius", Figure(record.mean_radius, fraction=False)
    yield "flags", Figure(len(record.fired), counted=True)


def _of_uncertainty(record: UncertaintyRecord) -> Iterator[tuple[str, Figure]]:
    yield "flags", Figure(len(record.fired), counted=True)
    for condition, answers in record.conditions.items():
        for name in Answers.model_fields:
            held = getattr(answers, name)
            if held is None:
                continue
            figure = Figure(
                held.value, _interval(held.low, held.high), fraction=isinstance(held, Share)
            )
            yield f"{_plain(name)}.{_plain(condition)}", figure
            if condition == "clean":
                yield _plain(name), figure
    for score, sets in record.sets.by_score.items():
        for condition, found in (("", sets.clean), (".attacked", sets.attacked.covered)):
            if found.coverage is not None:
                share = found.coverage
                figure = Figure(share.value, _interval(share.low, share.high))
                yield f"coverage.{_plain(score)}{condition}", figure
    for name, number in numbers(record.to_dict()):
        bounds = _interval(number.get("low"), number.get("high"))
        yield _plain(name), Figure(number["value"], bounds, fraction=False)


def _interval(low: float | None, high: float | None) -> tuple[float, float] | None:
    return None if low is None or high is None else (low, high)


def _plain(name: str) -> str:
    """A figure's name however it is written: `robust_accuracy`, `Robust accuracy`, `robust`."""
    short = "-".join(name.replace("_", " ").replace("-", " ").lower().split())
    for plain in ("standard", "robust", "certified", "attacked", "unaware"):
        short = plain if short == f"{plain}-accuracy" else short
        short = short.replace(f"{plain}-accuracy@", f"{plain}@")
    return short


def _named(requirement: Requirement, held: dict[str, Figure], record: Record) -> list[str]:
    """The figures that a requirement is about: the one of its name, the one at its radius, or all
    whose names begin with it.

    Raises:
        InputError: there is none; the message says which there are.
    """
    name = requirement.figure
    if name in held:
        return [name]
    stem, at, radius = name.partition("@")
    if at:
        try:
            wanted = parse_number(radius.strip())
        except InputError:
            raise InputError(f"requirement {requirement.text!r}: {radius!r} is no radius") from None
        for known in held:
            own, _, number = known.partition("@")
            if number and own == stem and math.isclose(float(number), wanted, rel_tol=1e-4):
                return [known]
    # Prediction sets have one coverage a score; attacked ones are asked for by name.
    below = [n for n in held if n.startswith(f"{name}.") and n.count(".") == name.count(".") + 1]
    if below and not isinstance(record, EvaluationRecord):
        return below
    short = [known for known in held if known.count(".") < 2]
    raise InputError(
        f"requirement {requirement.text!r}: the {_kind(record)} has no figure "
        f"{name!r}{nearest(name, short)}"
    )


# --- for continuous integration ------------------------------------------------------------------


def junit(required: Required, where: str) -> str:
    """The outcomes as JUnit's XML: a test case for each, the run's flags as properties.

    Args:
        where: the run's folder.
    """
    record = required.record
    failed = sum(not outcome.met for outcome in required.outcomes)
    counts = {"tests": str(len(required.outcomes)), "failures": str(failed), "errors": "0"}
    top = ET.Element("testsuites", counts)
    suite = ET.SubElement(top, "testsuite", {"name": _xml(f"holdfast {where}"), **counts})
    if record.seconds is not None:
        suite.set("time", f"{record.seconds:.3f}")
    if record.finished:
        suite.set("timestamp", _xml(record.finished))
    said = {
        "headline": record.headline(),
        "model": (record.model or ModelInfo()).title,
        "n": str(record.n),
        "threat": record.described_threat,
        "suite": str(getattr(record, "suite", None) or ""),
        "identity": record.identity or "",
        **{
            f"flag {flag.name}": {None: "not run", True: "fired", False: "clear"}[flag.fired]
            for flag in record.flags
        },
    }
    properties = ET.SubElement(suite, "properties")
    for name, value in said.items():
        if value:
            ET.SubElement(properties, "property", {"name": _xml(name), "value": _xml(value)})
    model = said["model"].replace(".", "_") or "run"
    for outcome in required.outcomes:
        name = outcome.requirement.text
        name += f" [{outcome.name}]" if outcome.name != outcome.requirement.figure else ""
        case = ET.SubElement(
            suite,
            "testcase",
            {"classname": _xml(f"holdfast.{model}"), "name": _xml(name), "time": "0"},
        )
        if not outcome.met:
            message = _xml(" ".join(str(outcome).split()))
            ET.SubElement(case, "failure", {"message": message, "type": "not met"}).text = message
        ET.SubElement(case, "system-out").text = _xml(
            "\n".join([str(outcome), *(f"flag: {f.name}: {f.detail}" for f in record.fired)])
        )
    ET.indent(top)
    return ET.tostring(top, encoding="unicode", xml_declaration=True) + "\n"


def _xml(text: str) -> str:
    """Text of which XML holds every character."""
    return "".join(c for c in str(page_text(text)) if c not in "\ufffe\uffff")


def is_junit(content: bytes) -> bool:
    """Whether these bytes are a file that `junit` made."""
    head = content[:2048]
    return head.startswith(b"<?xml") and b"<testsuites" in head and b'name="holdfast ' in head
