"""The box that every page opens with: what was found, and whether to believe it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from ..errors import InputError
from ..runs.records import Flag
from ..runs.records.training import COLLAPSED
from ..runs.records.uncertainty import Answers, Figure
from . import format
from .image_by_image import compare_runs
from .runs import Accuracy, CertificationRun, EvaluationRun, TrainingRun, UncertaintyRun

Tone = Literal["good", "mind", "doubt"]
WORDS = {"good": "To be believed", "mind": "With reservations", "doubt": "Not to be believed"}
CALIBRATED = 0.05  # a calibration error up to which a confidence is called right
FEW = 100  # images, below which an interval is wide whatever it holds


@dataclass(frozen=True)
class Verdict:
    """One sentence on what was found, one on whether to believe it.

    Attributes:
        more: the counts behind it.
    """

    found: str
    trust: str
    tone: Tone
    more: str = ""

    @property
    def word(self) -> str:
        return WORDS[self.tone]


def _margin(a: Accuracy) -> str:
    """How well a figure is known: "± 3.1 points on 1,000 images"."""
    if a.low is None or a.high is None:
        return f"{format.count(a.n)} images"
    return f"±\u00a0{50 * (a.high - a.low):.1f} points on {format.count(a.n)} images"


def _names(flags: Sequence[Flag]) -> str:
    return ", ".join(format.name(flag.name) for flag in flags)


def of_evaluation(run: EvaluationRun, found: str, more: str) -> Verdict:
    """
    Args:
        found, more: the judgement, and the counts behind it.
    """
    trust, tone = _trust(run)
    if run.unaware is not None and run.unaware.value is not None:
        trust += (
            f" Who does not know of the defence leaves {format.accuracy(run.unaware)} standing: "
            "believe the figure of the attacker who knows it."
        )
    return Verdict(found, trust, tone, more)


def _trust(run: EvaluationRun) -> tuple[str, Tone]:
    record, robust = run.record, run.robust
    if robust.value is None or run.standard.value is None:
        return "There is no robust accuracy.", "doubt"
    if robust.count == 0:
        return "Every image was broken, and the model itself was asked about each.", "good"
    if record.doubts:
        return (
            f"The attack may have failed for another reason than robustness "
            f"({_names(record.doubts)}).",
            "doubt",
        )
    if record.given is not None:
        return "The robust accuracy is an upper bound: nobody attacked this very model.", "mind"
    checked = [flag for flag in record.flags if flag.fired is not None]
    known = f"The robust accuracy is known to {_margin(robust)}"
    if not checked:
        return f"No health check says whether the attack worked. {known}.", "mind"
    clear = f"All {len(checked)} health checks that were run are clear."
    if record.repairs:
        clear = "The gradients that it hides were repaired, and the other health checks are clear."
    if run.n < FEW:
        return f"{run.n} images are few. {clear} {known}.", "mind"
    if len(record.attacks) == 1:
        return (
            f"One attack alone was tried, and a suite may find more. {known}.",
            "mind",
        )
    return f"{clear} {known}.", "good"


def of_uncertainty(run: UncertaintyRun, more: str) -> Verdict:
    def error(condition: str) -> Figure | None:
        return (run.record.conditions.get(condition) or Answers()).ece

    clean, moved = error("clean"), error("miscalibrate")
    if clean is None or moved is None:
        return Verdict(
            "The run reached no calibration error.", "Nothing was measured.", "doubt", more
        )
    figures = (
        f"On clean images its confidence is off by {format.percent(clean.value)} on average; an "
        f"attacker who leaves every answer as it is makes that {format.percent(moved.value)}."
    )
    right, stays = clean.value <= CALIBRATED, moved.value <= CALIBRATED
    if right and stays:
        found = "How sure it is can be believed, on clean images and under attack."
    elif right:
        found = "How sure it is can be believed on clean images; not under attack."
    elif stays:
        found = "How sure it is cannot be believed on clean images."
    else:
        found = "How sure it is cannot be believed, neither on clean images nor under attack."
    if run.fired:
        trust = f"A health check fired ({_names(run.fired)}). {figures}"
        return Verdict(found, trust, "doubt", more)
    tone: Tone = "good" if right and stays else "mind" if right else "doubt"
    return Verdict(found, figures, tone, more)


def of_side_by_side(runs: Sequence[UncertaintyRun], names: Sequence[str]) -> Verdict:
    """Whose confidence can be believed the most, on clean images and under attack."""
    found = {
        condition: [
            (error.value, name)
            for run, name in zip(runs, names, strict=True)
            if (error := (run.record.conditions.get(condition) or Answers()).ece) is not None
        ]
        for condition in ("clean", "miscalibrate")
    }
    if not all(found.values()):
        return Verdict("A run reached no calibration error.", "The models do not compare.", "doubt")
    (clean, best), (moved, under) = (min(errors) for errors in found.values())
    judgement = (
        f"Of {len(runs)} models {best} is calibrated best on clean images, off by "
        f"{format.percent(clean)}; under attack {under}, off by {format.percent(moved)}."
    )
    if any(run.fired for run in runs):
        return Verdict(judgement, "A health check fired.", "doubt")
    if moved > CALIBRATED:
        trust = "On clean images that can be believed; under attack no model's confidence can be."
        return Verdict(judgement, trust, "mind")
    return Verdict(judgement, "Both are small.", "good")


def of_certification(run: CertificationRun, found: str, more: str) -> Verdict:
    if run.fired:
        return Verdict(found, "A check of the certificates failed.", "doubt", more)
    alpha = run.record.settings.get("alpha")
    trust = "Within a certified radius no attack of any kind can succeed."
    if isinstance(alpha, float) and 0 < alpha < 1:
        trust = (
            f"Each certificate holds with a probability of {100 * (1 - alpha):.4g} %, whatever the "
            "attack."
        )
    if run.n < FEW:
        return Verdict(found, f"{trust} But {run.n} images are few.", "mind", more)
    return Verdict(found, trust, "good", more)


def _share_left(run: TrainingRun) -> str:
    left, right = run.pgd.value, run.standard.value
    if left is None or right is None:
        return "nobody asked what stands"
    for bound, words in ((0.05, "almost nothing"), (0.45, "less than half"), (0.55, "about half")):
        if left < bound * right:
            return f"{words} of what the weights get right stands"
    return "more than half of what the weights get right stands"


def of_training(run: TrainingRun) -> Verdict:
    record = run.record
    if run.standard.value is None:
        found = "The training went to its end; its weights were not validated."
    else:
        found = f"Trained to the end: {_share_left(run)} under PGD."
    wrong = [event for event in record.events if event.kind == COLLAPSED]
    if wrong:
        times = "once" if len(wrong) == 1 else f"{len(wrong)} times"
        return Verdict(
            found,
            f"Look at what happened: the training went wrong {times} and went on from weights of "
            "before. PGD is a short check: evaluate the model.",
            "mind",
        )
    if not run.held_out and run.standard.value is not None:
        return Verdict(found, "The model has seen these images in training.", "doubt")
    return Verdict(
        found,
        "The standard accuracy can be believed. What stands under PGD is an upper bound, for it is "
        "a short check along the way: evaluate the model.",
        "mind",
    )


def of_comparison(runs: Sequence[EvaluationRun], names: Sequence[str]) -> Verdict:
    """Which of the runs, all of one suite and threat model, leaves most standing, and whether that
    is chance.

    Args:
        runs: the most robust first.
        names: what the page calls them.
    """
    known = [
        (run, name) for run, name in zip(runs, names, strict=True) if run.robust.value is not None
    ]
    if not known or not known[0][0].robust.value:
        return Verdict("No model stands anywhere under attack.", "Every image was broken.", "good")
    (best, name), *others = known
    doubted = [name for run, name in known if run.record.doubts]
    found = (
        f"{name} is the most robust of {len(runs)}: {format.accuracy(best.robust)} of the images "
        f"stand ({best.record.suite or format.NONE}, {best.threat})."
        if len(runs) > 1
        else f"No two of the runs are of one suite and threat model. {name} stands on "
        f"{format.accuracy(best.robust)}."
    )
    if doubted:
        held = ", ".join(doubted[:3]) + (", …" if len(doubted) > 3 else "")
        return Verdict(found, f"The order may be wrong: a health check fired for {held}.", "doubt")
    if not others:
        return Verdict(found, "Figures that different searches found do not compare.", "mind")
    second, runner_up = others[0]
    lead = f"{runner_up} comes next with {format.accuracy(second.robust)}"
    try:
        beside = compare_runs([best, second]).pairs[0].robust
    except InputError:
        return Verdict(
            found,
            f"{lead}; the two were not measured on the same images, so the order may be chance.",
            "mind",
        )
    if beside.p_value < 0.05 and len(known) == 2:
        return Verdict(found, f"{lead}; the difference is not chance (McNemar's test).", "good")
    if beside.p_value < 0.05 / len(known):
        return Verdict(
            found,
            f"{lead}; the difference is not chance (McNemar's test, corrected for choosing the "
            f"best of {len(known)}).",
            "good",
        )
    return Verdict(
        found, f"{lead}; so small a difference may be chance on {best.n:,} images.", "mind"
    )
