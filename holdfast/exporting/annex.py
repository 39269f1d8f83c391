"""An annex that maps what was measured, and what was not, to three texts on trustworthy AI.

- Regulation (EU) 2024/1689 (the EU AI Act), Article 15;
- NIST AI 100-1, Artificial Intelligence Risk Management Framework 1.0, MEASURE 2.5 to 2.7;
- ISO/IEC 24029-2:2023 (formal methods), and ISO/IEC 24029-3 (statistical methods), a draft when
  this was written.

What the texts ask is said in a few words of our own; whoever relies on them reads them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from ..errors import InputError
from ..report.format import count
from ..report.image_by_image import attacker
from ..report.requirements import Figure, accuracy
from ..report.runs import (
    CertificationRun,
    EvaluationRun,
    Run,
    TrainingRun,
    UncertaintyRun,
)
from ..report.tables import markdown
from .tables import Measured, check_one_model, percent

MEASURED, PARTLY, NOT = "measured", "measured in part", "not measured"

PREFACE = """\
This annex says which figures of the runs below may serve as evidence for which item, and which
items they say nothing about. It is no declaration of conformity, no assessment of one, and no legal
advice. Whether a level is appropriate depends on the system's purpose, which the runs do not know.
What the texts ask is shortened here: read the texts.
"""


@dataclass(frozen=True)
class Item:
    """What a text asks, and what the runs have to say to it."""

    place: str
    asks: str
    status: str
    evidence: Sequence[str] = ()
    missing: str = ""


def annex_of(runs: Sequence[Run]) -> str:
    """The annex, in Markdown.

    Raises:
        InputError: no run that measured a model.
    """
    measured = [run for run in runs if isinstance(run, Measured)]
    if not measured or any(isinstance(run, TrainingRun) for run in runs):
        raise InputError(
            "an annex is of evaluations, certifications and uncertainty runs: give their folders"
        )
    check_one_model(measured, "an annex")
    facts = Facts(measured)
    return "\n".join(
        [
            "# Annex: what was measured, and what was not\n",
            PREFACE,
            "## The runs\n",
            *(f"- {markdown(run.record.headline())} (`{_path(run)}`)" for run in measured),
            "",
            *_section("EU AI Act, Regulation (EU) 2024/1689, Article 15", _ai_act(facts)),
            *_section("NIST AI RMF 1.0 (NIST AI 100-1), MEASURE 2.5 to 2.7", _nist(facts)),
            *_section("ISO/IEC 24029, robustness of neural networks", _iso(facts)),
        ]
    )


def _path(run: Measured) -> str:
    return "".join(c for c in str(run.path) if c.isprintable() and c != "`")


def _section(title: str, items: Sequence[Item]) -> list[str]:
    lines = [f"## {title}\n"]
    for item in items:
        lines += [f"### {item.place}: {item.status}\n", f"{item.asks}\n"]
        lines += [f"- {line}" for line in item.evidence]
        lines += [f"- Not measured: {item.missing}"] if item.missing else []
        lines.append("")
    return lines


class Facts:
    """The figures of the runs, as sentences by what they are evidence of."""

    def __init__(self, runs: Sequence[Measured]):
        evaluations = [run for run in runs if isinstance(run, EvaluationRun)]
        certifications = [run for run in runs if isinstance(run, CertificationRun)]
        uncertainties = [run for run in runs if isinstance(run, UncertaintyRun)]
        self.accurate = [
            f"Standard accuracy {_said(accuracy(run.record, 'standard'))} of {_images(run)}."
            for run in evaluations
        ]
        self.robust = [_robust(run) for run in evaluations]
        self.curves = [
            f"Accuracy against the radius, at {len(run.record.curve.points)} radii, on "
            f"{count(run.record.curve.n)} images."
            for run in evaluations
            if run.record.curve is not None and run.record.curve.points
        ]
        self.certified = [_certified(run) for run in certifications]
        self.formal = [
            line
            for run, line in zip(certifications, self.certified, strict=True)
            if "interval" in run.record.method
        ]
        self.smoothed = [line for line in self.certified if line not in self.formal]
        bounds = (
            "Interval bounds are an abstract interpretation: sound, and incomplete. The domain is "
            "the ball of the threat model around each image."
        )
        smoothing = (
            "Randomised smoothing proves with a stated probability of error: a statistical method."
        )
        self.about_bounds = [bounds] if self.formal else []
        self.about_smoothing = [smoothing] if self.smoothed else []
        self.calibrated = [line for run in uncertainties for line in _calibrated(run)]
        self.corrupted = [line for run in uncertainties for line in _corrupted(run)]
        self.foreign = [
            f"Images of other kinds ({markdown(', '.join(run.record.foreign))}): how well scores "
            "tell them from those of the data, in the run's record."
            for run in uncertainties
            if run.record.foreign
        ]
        self.abstains = [
            f"Abstaining, by a threshold that promises {markdown(str(held.promise))} on clean "
            "images; what became of it under attack is in the run's record."
            for run in uncertainties
            for held in run.record.abstaining.values()
            if held.promise and held.unavailable is None
        ]
        self.checks = [_checks(run) for run in runs if run.record.flags]
        self.seen = [
            f"Some images of {markdown(str(run.path))} were seen in training: its figures flatter "
            "the model."
            for run in runs
            if run.data.seen_in_training
        ]


def _said(figure: Figure) -> str:
    kind = ", valid at any time" if figure.anytime else ""
    text = percent(figure)
    return text if figure.interval is None else f"{text} (95 %{kind})"


def _robust(run: EvaluationRun) -> str:
    name = "Target not reached on" if run.aimed else "Robust accuracy"
    how = f"by the suite {markdown(run.record.suite or '?')}: what these attacks left"
    if run.record.given is not None:
        how = "on adversarial images that were handed over; no search was made on this model"
    return (
        f"{name} {_said(accuracy(run.record, 'robust'))} of {_images(run)} under "
        f"{markdown(str(run.threat))}, {how}, so an upper bound. The attacker "
        f"{attacker(run.record)}."
    )


def _images(run: Measured) -> str:
    words = " ".join(word for word in (run.data.name, run.data.split) if word) or "the images given"
    pixels = f" ({markdown(run.data.pixels)})" if run.data.pixels else ""
    return f"{count(run.n)} images of {markdown(words)}{pixels}"


def _certified(run: CertificationRun) -> str:
    at = "; ".join(
        f"{_said(Figure(point.certified_accuracy, point.interval))} at radius {point.radius:.4g}"
        for point in run.record.certified
    )
    return (
        f"Certified accuracy on {_images(run)}, {markdown(str(run.threat))}, by "
        f"{markdown(run.record.method or '?')}: {at or 'no radius'}."
    )


def _calibrated(run: UncertaintyRun) -> list[str]:
    return [
        f"Expected calibration error {_said(_share(answers.ece))}, {markdown(name)}, on "
        f"{_images(run)}."
        for name, answers in run.record.conditions.items()
        if answers.ece is not None
    ]


def _corrupted(run: UncertaintyRun) -> list[str]:
    held = run.record.corruptions
    if held.mean_accuracy is None:
        return []
    return [
        f"Mean accuracy {_said(_share(held.mean_accuracy))} on corrupted images (noise, blur, "
        f"weather and the like, {count(held.n)} images), all severities together."
    ]


def _share(held: object) -> Figure:
    low, high = getattr(held, "low", None), getattr(held, "high", None)
    ends = None if low is None or high is None else (low, high)
    return Figure(getattr(held, "value", None), ends)


def _checks(run: Measured) -> str:
    fired = ", ".join(markdown(flag.name) for flag in run.doubts)
    told = f"of {len(run.record.flags)} health checks of `{_path(run)}`"
    if fired:
        return f"{len(run.doubts)} {told} fired ({fired}): its figures may be too good."
    return f"None {told} fired."


def _status(evidence: Sequence[str], whole: bool = False) -> str:
    if not evidence:
        return NOT
    return MEASURED if whole else PARTLY


def _ai_act(facts: Facts) -> list[Item]:
    robust = [*facts.robust, *facts.certified]
    return [
        Item(
            "15(1), appropriate and consistent levels",
            "Accuracy, robustness and cybersecurity are to be appropriate, and stay so over the "
            "life cycle.",
            _status([*facts.accurate, *robust]),
            [*facts.accurate, *robust, *facts.seen],
            "whether these levels are appropriate for the purpose; how they change over the life "
            "cycle.",
        ),
        Item(
            "15(3), levels and metrics that are declared",
            "The levels of accuracy and their metrics are to stand in the instructions for use.",
            _status([*facts.accurate, *facts.calibrated]),
            [
                *facts.accurate,
                *facts.calibrated,
            ],
            "accuracy on the images that the system meets in use; accuracy by groups of people.",
        ),
        Item(
            "15(4), errors, faults and inconsistencies",
            "The system is to be resilient to errors, faults and inconsistencies; redundancy and "
            "feedback loops are to be seen to.",
            _status([*facts.corrupted, *facts.foreign, *facts.abstains]),
            [*facts.corrupted, *facts.foreign, *facts.abstains],
            "redundancy and plans for failure; feedback loops of systems that go on learning; "
            "faults of hardware and of the software around the model"
            + ("" if facts.corrupted else "; corrupted images (an uncertainty run measures them)")
            + ".",
        ),
        Item(
            "15(5), inputs made to mislead the model (adversarial examples, evasion)",
            "The system is to be resilient to attempts by others to exploit its weak points; among "
            "the measures named are those against adversarial examples.",
            _status(robust),
            [*robust, *facts.curves, *facts.checks],
            "attackers who may do other things than the threat models named; attacks on the system "
            "around the model.",
        ),
        Item(
            "15(5), poisoning of data and of models, confidentiality, flaws",
            "The same, against manipulated training data and pre-trained parts, attacks on "
            "confidentiality, and flaws of the model.",
            NOT,
            (),
            "poisoning of training data and of pre-trained parts; membership inference, model "
            "extraction and inversion; general cybersecurity.",
        ),
    ]


def _nist(facts: Facts) -> list[Item]:
    valid = [*facts.accurate, *facts.calibrated]
    return [
        Item(
            "MEASURE 2.5, valid and reliable",
            "The system is shown to be valid and reliable; how far that generalises is documented.",
            _status([*valid, *facts.corrupted, *facts.foreign]),
            [*valid, *facts.corrupted, *facts.foreign, *facts.seen],
            "validity for the intended use; behaviour on data from other sources than those named.",
        ),
        Item(
            "MEASURE 2.6, safe",
            "The system is evaluated for safety risks; it can fail safely; metrics reflect its "
            "reliability and robustness, monitoring and response times.",
            _status([*facts.robust, *facts.abstains]),
            [*facts.robust, *facts.abstains],
            "harm that a mistake does; residual risk beside what is tolerated; monitoring in use; "
            "response times to failures.",
        ),
        Item(
            "MEASURE 2.7, secure and resilient",
            "Security and resilience are evaluated and documented.",
            _status([*facts.robust, *facts.certified]),
            [*facts.robust, *facts.certified, *facts.curves, *facts.checks],
            "poisoning, extraction and inference attacks; the security of the system around the "
            "model; recovery.",
        ),
    ]


def _iso(facts: Facts) -> list[Item]:
    statistical = [*facts.robust, *facts.curves, *facts.smoothed, *facts.corrupted]
    return [
        Item(
            "ISO/IEC 24029-2:2023, formal methods",
            "Robustness properties, such as stability within a domain, are stated formally and "
            "proved, or refuted by counterexamples.",
            _status(facts.formal),
            [
                *facts.formal,
                *facts.about_bounds,
            ],
            "sensitivity, relevance and reachability; computer arithmetic."
            if facts.formal
            else "no property was proved (`holdfast certify` without --sigma proves some, by "
            "interval bounds).",
        ),
        Item(
            "ISO/IEC 24029-3, statistical methods (a draft when this was written)",
            "Robustness is measured on samples, as a drop of performance under stated changes, "
            "with what is known of the error.",
            _status(statistical),
            [
                *statistical,
                *facts.about_smoothing,
            ],
            "whether the images are representative of the domain of use; changes other than those "
            "named.",
        ),
    ]
