"""The result of an uncertainty run: how sure a model is, and whether that can be believed.

A metric that has no value, such as the AUROC of mistakes where there is none, is None. Conditions
are `clean`, `suite` (labels attacked) and `miscalibrate` (confidence attacked, no answer changed).
"""

from __future__ import annotations

from typing import Any, ClassVar, Self

from pydantic import model_validator

from .base import (
    Count,
    Fraction,
    Integer,
    Interval,
    ListOf,
    Names,
    Part,
    Positive,
    Quantity,
    Real,
    percent,
)
from .measured import AttackCost, Measurement, ThreatFields


class Figure(Part):
    """A metric, with its 95 % interval where it has one.

    Attributes:
        by_chance: of a calibration error: what a perfectly calibrated model measures on average.
    """

    value: Real
    low: Real | None = None
    high: Real | None = None
    by_chance: Fraction | None = None


class Share(Figure):
    """A fraction of images, with its 95 % interval where it has one."""

    value: Fraction
    low: Fraction | None = None
    high: Fraction | None = None


class Settings(Part):
    """What was asked.

    Attributes:
        n: number of test images that are measured and attacked.
        tuning: of the fitting split, on which calibrators are fitted.
        held: of the calibration split, on which thresholds and conformal sets are calibrated.
        more_test, more_held: of the test and the calibration images with further ones, on which
            whatever needs no attack is measured.
        training: of the training images, whose features detectors compare with.
        members: further models of an ensemble.
        foreign: names of sets of out-of-distribution images.
        alpha: share of conformal sets that may miss.
        risk, coverage: what abstaining promises.
        radius, sigma: of the robust sets, L2, in image units.
    """

    threat: ThreatFields | None = None
    suite: str | None = None
    n: Positive | None = None
    tuning: Count | None = None
    held: Count | None = None
    more_test: Count | None = None
    more_held: Count | None = None
    training: Count | None = None
    members: Count | None = None
    foreign: Names = ()
    human: bool | None = None
    alpha: Fraction | None = None
    risk: Fraction | None = None
    coverage: Fraction | None = None
    radius: Quantity | None = None
    sigma: Quantity | None = None
    seed: Integer | None = None


class Answers(Part):
    """Metrics of a model's answers under one condition; see `holdfast.uncertainty.metrics`."""

    accuracy: Share | None = None
    confidence: Share | None = None
    ece: Share | None = None
    ece_equal_mass: Share | None = None
    ece_classwise: Share | None = None
    nll: Figure | None = None
    brier: Figure | None = None
    aurc: Figure | None = None
    excess_aurc: Figure | None = None
    risk_at_80_coverage: Share | None = None
    coverage_at_5_risk: Share | None = None
    mistakes_auroc: Figure | None = None
    mistakes_aupr: Figure | None = None
    right_aupr: Figure | None = None
    mistakes_fpr_at_95_tpr: Share | None = None


class CalibrationError(Part):
    """Of one calibrator under one condition."""

    ece: Fraction | None = None
    nll: Real | None = None
    brier: Real | None = None


class CalibrationOfMore(Part):
    """Calibration errors by calibrator on clean images, `n` of them."""

    n: Count | None = None
    none: Share | None = None
    temperature: Share | None = None
    vector: Share | None = None
    isotonic: Share | None = None


class Moved(Part):
    """Mean confidence of n answers before and after the attack on it."""

    n: Count | None = None
    before: Fraction | None = None
    after: Fraction | None = None


class ConfidenceMoved(Part):
    """The attack on confidence: right answers are pushed down, wrong ones up."""

    answers_changed: Count | None = None
    right: Moved = Moved()
    wrong: Moved = Moved()
    search: str | None = None


class Columns(Part):
    """Lists that belong together, place by place; None is a gap."""

    @model_validator(mode="after")
    def _alike(self) -> Self:
        columns = {
            k: v for k in type(self).model_fields if isinstance(v := getattr(self, k), tuple)
        }
        if len({len(column) for column in columns.values()}) > 1:
            raise ValueError(f"{', '.join(columns)} are not of one length")
        return self


class Reliability(Columns):
    """By bin of confidence: images, mean confidence and share right; None in an empty bin."""

    images: ListOf[Count] = ()
    confidence: ListOf[Real | None] = ()
    frequency: ListOf[Real | None] = ()


class RiskCoverage(Columns):
    """Share wrong among the answers given, by the share of images answered, the surest first."""

    coverage: ListOf[Real | None] = ()
    risk: ListOf[Real | None] = ()


class Drawing(Part):
    """What the diagrams of one condition are drawn from."""

    reliability: Reliability = Reliability()
    risk_coverage: RiskCoverage | None = None


class Separation(Part):
    """How well a score tells `n` images, which should score higher, from clean ones."""

    n: Count | None = None
    auroc: Figure | None = None
    aupr: Real | None = None
    aupr_clean: Real | None = None
    fpr_at_95_tpr: Real | None = None


class RobustError(Share):
    """The share of images for which a wrong answer is accepted.

    Attributes:
        clean_rejected: share of clean images that the detector rejects.
        threshold: of its score.
    """

    clean_rejected: Fraction | None = None
    threshold: Real | None = None


class Detection(Part):
    """A detector under one attack.

    Attributes:
        told: how well broken images are told from the same images, clean; None if none is broken.
        robust_error: by the share of clean images that may be rejected.
        search: how the attacker who knows the detector searched.
    """

    told: Separation | None = None
    robust_error: dict[str, RobustError | None] = {}
    search: dict[str, Any] | None = None


class Histogram(Part):
    """Shares of images by score, between `edges`, by kind of image."""

    edges: ListOf[Real] = ()
    shares: dict[str, ListOf[Real | None]] = {}


class Detector(Part):
    """One detector under attackers who do not know it (`suite`, `unaware`), and one who does."""

    suite: Detection = Detection()
    unaware: Detection = Detection()
    aware: Detection | None = None
    histogram: Histogram | None = None


class OutOfDistribution(Part):
    """Images of another kind: how well each score tells them from clean images.

    Attributes:
        attacked: the maximum softmax, on those attacked to look familiar.
    """

    n: Count | None = None
    pixels: str | None = None
    scores: dict[str, Separation] = {}
    attacked: Separation = Separation()


class Severity(Part):
    """All corruptions at one severity, from 1 to 5."""

    severity: Positive
    accuracy: Fraction | None = None
    confidence: Fraction | None = None
    ece: Fraction | None = None
    nll: Real | None = None


class Corruptions(Part):
    """Corrupted images; `unavailable` says why there are none.

    Attributes:
        by_type: accuracy at each severity, of the benchmark's 15 corruptions.
        beside: the same of others, which are in no mean.
        published: the folder of published images, such as `CIFAR-10-C`; None: generated ones.
        told: what a reader must know of them.
    """

    unavailable: str | None = None
    n: Count | None = None
    mean_accuracy: Share | None = None
    by_severity: ListOf[Severity] = ()
    by_type: dict[str, ListOf[Real | None]] = {}
    beside: dict[str, ListOf[Real | None]] = {}
    published: str | None = None
    told: Names = ()


class SetsOfSize(Part):
    sets: Count | None = None
    coverage: Real | None = None


class SetFigures(Part):
    """Prediction sets: coverage, mean size, and shares of empty sets and of sets of all classes.

    Attributes:
        by_size: by the number of classes in a set.
        by_class: coverage by class.
        unavailable: why there are none.
    """

    unavailable: str | None = None
    n: Count | None = None
    coverage: Share | None = None
    mean_size: Quantity | None = None
    empty: Fraction | None = None
    trivial: Fraction | None = None
    by_size: dict[str, SetsOfSize] = {}
    by_class: dict[str, Share] | None = None


class AttackedSets(Part):
    """Attacked images, image by image the one that is missed, or whose set is largest."""

    covered: SetFigures = SetFigures()
    enlarged: SetFigures = SetFigures()


class Splits(Part):
    """Coverage over random splits into calibration and test images.

    Attributes:
        interval: in which the coverage of one split of a right method lies 95 times of 100.
        inside: how many do.
        calibration, measured: images on either side of a split.
    """

    unavailable: str | None = None
    coverages: ListOf[Real] = ()
    mean: Fraction | None = None
    mean_size: Quantity | None = None
    interval: Interval | None = None
    inside: Count | None = None
    calibration: Count | None = None
    measured: Count | None = None


class AgainstEps(Columns):
    """Coverage and mean size of the first n images' sets, by the attack's radius."""

    n: Count | None = None
    eps: ListOf[Real | None] = ()
    coverage: ListOf[Real | None] = ()
    mean_size: ListOf[Real | None] = ()


class ConformalSets(Part):
    """Sets by one nonconformity score."""

    clean: SetFigures = SetFigures()
    attacked: AttackedSets = AttackedSets()
    splits: Splits = Splits()
    against_eps: AgainstEps = AgainstEps()


class Sets(Part):
    """Split conformal sets that promise to hold the label of a share `promise` of clean images."""

    promise: Fraction | None = None
    calibration: Count | None = None
    by_score: dict[str, ConformalSets] = {}
    class_conditional: SetFigures | None = None


class RobustSets(Part):
    """Sets that keep their promise within an L2 `radius` (image units), by noise of `sigma`.

    Attributes:
        alpha_within: the share of sets that may miss, after what the noise takes.
        clean, inside, beyond: measured on clean images, and attacked within the radius and beyond.
        unavailable: why there are none.
    """

    unavailable: str | None = None
    promise: Fraction | None = None
    radius: Quantity | None = None
    sigma: Quantity | None = None
    alpha_within: Real | None = None
    clean: SetFigures | None = None
    inside: SetFigures | None = None
    beyond: SetFigures | None = None


class Rates(Part):
    """Shares of images; `risk` is the share wrong among the answers given."""

    right: Fraction | None = None
    wrong: Fraction | None = None
    abstained: Fraction | None = None
    risk: Fraction | None = None


class Abstaining(Part):
    """A promise, in words, the threshold that keeps it on clean images, and what became of it by
    condition; `unavailable` says why it could not be given."""

    unavailable: str | None = None
    promise: str | None = None
    threshold: Real | None = None
    rates: dict[str, Rates] = {}


class BesidePeople(Part):
    """A model's uncertainty beside people's under one condition; entropies in nats."""

    unavailable: str | None = None
    n: Real | None = None
    cross_entropy: Real | None = None
    human_entropy: Real | None = None
    entropy_correlation: Real | None = None
    disagreement_auroc: Real | None = None
    disagreed: Real | None = None


class People(Part):
    """The model beside people, by condition.

    Attributes:
        broken_first: the probability that people are less sure of a broken image than of one that
            stands.
    """

    n: Count | None = None
    compared: dict[str, BesidePeople] = {}
    broken_first: Figure | None = None


class UncertaintyRecord(Measurement):
    """`result.json` of an uncertainty run.

    Attributes:
        temperature: by which logits are divided.
        attacks, flags: of the suite.
        conditions: metrics by condition.
        calibration: errors by calibrator, then by condition.
        drawings: of diagrams, by condition.
        detectors, foreign: by name.
        human: None where no human labels were given.
        stages: seconds by stage.
        log: why a faster copy of the model was not searched on.
    """

    SCHEMA: ClassVar[str] = "holdfast/uncertainty/1"

    suite: str | None = None
    settings: Settings = Settings()
    classes: Names = ()
    temperature: Quantity | None = None
    attacks: ListOf[AttackCost] = ()
    conditions: dict[str, Answers] = {}
    calibration: dict[str, dict[str, CalibrationError]] = {}
    calibration_of_more: CalibrationOfMore | None = None
    confidence: ConfidenceMoved = ConfidenceMoved()
    drawings: dict[str, Drawing] = {}
    detectors: dict[str, Detector] = {}
    foreign: dict[str, OutOfDistribution] = {}
    corruptions: Corruptions = Corruptions()
    sets: Sets = Sets()
    robust_sets: RobustSets = RobustSets()
    abstaining: dict[str, Abstaining] = {}
    human: People | None = None
    stages: dict[str, Quantity] = {}
    log: Names = ()

    def headline(self) -> str:
        return f"Uncertainty of {self.measured_on()}, suite {self.suite or '?'}"

    def key_figures(self) -> list[tuple[str, str]]:
        return [
            (f"calibration error, {name}", percent(answers.ece.value))
            for name, answers in self.conditions.items()
            if answers.ece is not None
        ]
