"""The result of an evaluation: standard and robust accuracy under a suite of attacks."""

from __future__ import annotations

from typing import Any, ClassVar, Literal

from .base import Count, Fraction, Interval, ListOf, Names, Part, Positive, Quantity, percent
from .measured import AttackCost, Flag, Measurement, OtherCost


class CurvePoint(Part):
    eps: Quantity
    robust_accuracy: Fraction
    interval: Interval | None = None


class Curve(Part):
    """Accuracy against ε under one attack of fixed strength, on the first `n` images; or, where
    `attack` is a suite, by the smallest distances that it found, on all of them."""

    attack: str = ""
    n: Positive | None = None
    points: ListOf[CurvePoint] = ()


class DrawFigure(Part):
    """Accuracies of a random model over fresh draws, which no search has seen.

    Attributes:
        kind: `average`, the share of right answers, over images and draws; `worst`, an image
            counts as right if all `draws` answers are; `majority`, if the most frequent answer
            is: what verdicts go by.
    """

    kind: str
    draws: Positive | None = None
    standard_accuracy: Fraction | None = None
    standard_accuracy_interval: Interval | None = None
    robust_accuracy: Fraction | None = None
    robust_accuracy_interval: Interval | None = None


class Unaware(Part):
    """What a defence looks like to an attacker who does not know of it: the network behind it is
    attacked, and the points are shown to the defended model."""

    attack: str = ""
    n: Positive | None = None
    robust_accuracy: Fraction | None = None
    robust_accuracy_interval: Interval | None = None


class GivenInfo(Part):
    """Adversarial images that were handed over: nobody searched for them here, so that the robust
    accuracy is an upper bound.

    Attributes:
        images: how many.
        counted: how many of them count: finite, in the box, in the ball.
        not_finite, outside_box, outside_ball: how many are so, as handed over.
        clipped: how many were brought into ball and box.
        told: what was taken from where, one line each.
    """

    images: Positive | None = None
    counted: Count | None = None
    not_finite: Count = 0
    outside_box: Count = 0
    outside_ball: Count = 0
    clipped: Count = 0
    told: Names = ()


class TransferInfo(Part):
    """The model on which the adversarial images were found, and how much of them comes over.

    Attributes:
        source: its name.
        suite: what attacked it.
        standard_accuracy, robust_accuracy: its own, on the same images.
        broke_source: images that an attack broke on the source, and that the judged model gets
            right without an attack.
        broke_both: how many of them break the judged model too.
        rate: the transfer rate, `broke_both` / `broke_source`; None without any.
    """

    source: str = ""
    suite: str = ""
    standard_accuracy: Fraction | None = None
    standard_accuracy_interval: Interval | None = None
    robust_accuracy: Fraction | None = None
    robust_accuracy_interval: Interval | None = None
    broke_source: Count | None = None
    broke_both: Count | None = None
    rate: Fraction | None = None
    rate_interval: Interval | None = None


class QueryPoint(Part):
    queries: Count
    robust_accuracy: Fraction
    interval: Interval | None = None


class QueryFigures(Part):
    """The account of a model whose queries were counted. A query is one image shown to it.

    Attributes:
        budget: queries an image that no search could exceed; None: they were only counted.
        asked: queries about all images.
        most: about one image.
        outside: clean predictions, and what health checks asked; in the last session.
        curve: the share of images that stand after so many queries each.
    """

    budget: Positive | None = None
    asked: Count | None = None
    most: Count | None = None
    outside: Count | None = None
    curve: ListOf[QueryPoint] = ()


class Repair(Part):
    """Something that was repaired in a model's graph: what, in which function, and how often it is
    met in one forward pass."""

    what: str
    where: str = ""
    times: Positive | None = None

    def __str__(self) -> str:
        often = "" if self.times is None else f", {self.times} time{'s' * (self.times != 1)}"
        return f"`{self.what}`" + (f" in `{self.where}`" if self.where else "") + often


class EvaluationRecord(Measurement):
    """`result.json` of an evaluation.

    Attributes:
        standard_accuracy, robust_accuracy: fractions of the n images, in [0, 1].
        standard_accuracy_interval, robust_accuracy_interval: 95 %, Clopper–Pearson.
        goal: what counted as a success of the attacker: `untargeted`, any mistake; or `target`, one
            class for each image, which verdicts name: then the robust accuracy is the share of
            images on which it was not reached.
        targets: with a target: how it was chosen, `least-likely`, `most-likely`, `random` or `own`.
        attacks: what each attack of the suite broke and cost.
        other_costs: what everything else took; with the attacks it sums to `seconds`. Files of
            before do not say it. Several workers attack at the same time, and the rest is the first
            one's.
        stopped: of a sample: why it is no larger: `budget`, `until`, or `all images`. None where
            all images were asked for.
        population: how many images the sample was drawn from, without replacement; n is its size.
        budget: seconds that were allowed in all.
        until: half the width that was asked for of the robust accuracy's interval.
        standard_accuracy_anytime_interval, robust_accuracy_anytime_interval: of a sample: 95 %
            intervals of the accuracies on the whole population that are valid whenever one stops
            (`holdfast.intervals.anytime_interval`). Clopper & Pearson's promise less where the size
            of the sample depends on what was seen.
        curve: security curve, if one was asked for.
        draws: of a model that draws random numbers: its accuracies over fresh draws.
        given: of images that were handed over and not searched for: what the checks counted.
        transfer: of images that were found on another model: how that one fared.
        unaware: of a defended model: its accuracy against an attacker who does not know of the
            defence. Never its robust accuracy.
        unanswered: how many of the broken images are so because the model answers nothing at the
            breaking point (a logit is NaN or +∞).
        queries: of a black box, or with a budget: what was asked, and what it bought.
        outputs: what the attacker saw of an answer, `scores` or `labels`; None: all that the model
            shows.
        repairs: what had to be repaired for the model to have useful gradients; empty where it
            hides none.
        log: why a faster copy of the model, or a compiled one, was not searched on.
        classes: names, in the order of the labels.
        training_run: the folder of the run that trained the model.
    """

    SCHEMA: ClassVar[str] = "holdfast/evaluation/1"

    standard_accuracy: Fraction | None = None
    standard_accuracy_interval: Interval | None = None
    robust_accuracy: Fraction | None = None
    robust_accuracy_interval: Interval | None = None
    stopped: Literal["budget", "until", "all images"] | None = None
    population: Positive | None = None
    budget: Quantity | None = None
    until: Fraction | None = None
    standard_accuracy_anytime_interval: Interval | None = None
    robust_accuracy_anytime_interval: Interval | None = None
    suite: str | None = None
    goal: str = "untargeted"
    targets: str | None = None
    attacks: ListOf[AttackCost] = ()
    other_costs: ListOf[OtherCost] = ()
    curve: Curve | None = None
    forwards: Count | None = None
    backwards: Count | None = None
    precision: str | None = None
    batch_size: Positive | None = None
    draws: ListOf[DrawFigure] = ()
    given: GivenInfo | None = None
    transfer: TransferInfo | None = None
    unaware: Unaware | None = None
    unanswered: Count = 0
    queries: QueryFigures | None = None
    outputs: str | None = None
    repairs: ListOf[Repair] = ()
    log: Names = ()
    classes: Names = ()
    training_run: str | None = None

    def to_dict(self) -> dict[str, Any]:
        held = super().to_dict()
        if "goal" not in self.model_fields_set:  # files of before do not say it
            held.pop("goal", None)
        return held

    @property
    def target_reached(self) -> float | None:
        """The share of images on which the target was reached; None where any mistake counted."""
        if self.goal != "target" or self.robust_accuracy is None:
            return None
        return 1 - self.robust_accuracy

    @property
    def target_reached_interval(self) -> tuple[float, float] | None:
        """Its 95 % interval; of a sample, the one that is valid at any time."""
        missed = self.interval_shown("robust_accuracy")
        return (
            None
            if self.target_reached is None or missed is None
            else (1 - missed[1], 1 - missed[0])
        )

    @property
    def doubts(self) -> tuple[Flag, ...]:
        """Without the checks that only say that gradients are hidden, where they were repaired."""
        answered = {"hidden-gradients", "gradients-vanish"} if self.repairs else set()
        return tuple(flag for flag in self.fired if flag.name not in answered)

    def headline(self) -> str:
        return f"Evaluation of {self.measured_on()}, suite {self.suite or '?'}"

    @property
    def is_sample(self) -> bool:
        """Whether the images are a part of what was asked for, as large as one saw fit."""
        return self.stopped in ("budget", "until")

    def interval_shown(self, name: str) -> Interval | None:
        """The interval that stands first beside an accuracy: of a sample, the one that is valid at
        any time.

        Args:
            name: `standard_accuracy` or `robust_accuracy`.
        """
        kind = "_anytime_interval" if self.is_sample else "_interval"
        interval: Interval | None = getattr(self, name + kind)
        return interval

    def key_figures(self) -> list[tuple[str, str]]:
        fired = ", ".join(flag.name for flag in self.fired)
        robust = percent(self.robust_accuracy, self.interval_shown("robust_accuracy"))
        reached = percent(self.target_reached, self.target_reached_interval)
        return [
            (
                "standard accuracy",
                percent(self.standard_accuracy, self.interval_shown("standard_accuracy")),
            ),
            ("robust accuracy", robust)
            if self.target_reached is None
            else ("target reached", reached),
            *(
                [("stopped", f"{self.stopped}, {self.n} of {self.population}")]
                if self.stopped
                else []
            ),
            ("fired flags", fired or "none"),
        ]
