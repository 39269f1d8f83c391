"""The outcome of an evaluation, and how it is written down."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float
from safetensors.torch import save
from torch import Tensor

from ..runs.files import csv_text, write_atomically
from ..runs.folder import finish
from ..threat import Threat

SCHEMA = "holdfast/evaluation/1"
EXAMPLES = 24  # images kept for the report
FILES = (".csv", ".safetensors")  # how the names of a run's files for readers end


@dataclass(frozen=True)
class Verdict:
    """All that is known about one image.

    `attack` is `clean` for a clean mistake, the name of the attack that broke the image, or
    empty where it stands; then the adversarial columns describe the strongest point found.
    `adversarial_prediction` is −1 where the model answers nothing. `distance` is in the threat
    model's norm (spatial: the ε at which the move is just allowed); from the suite `minimum` it is
    the smallest found, ∞ where there is none. Passes are those spent up to the verdict.
    """

    index: int
    label: int
    clean_prediction: int
    clean_confidence: float
    broken: bool
    attack: str
    target: int
    adversarial_prediction: int
    adversarial_confidence: float
    distance: float
    forwards: int
    backwards: int


@dataclass(frozen=True)
class Flag:
    """A health check: whether it fired, in one sentence, with the figures behind it."""

    name: str
    fired: bool
    detail: str
    figures: dict[str, Any] = field(default_factory=dict)


RAN = "ran"
NOT_NEEDED = "not needed"


@dataclass(frozen=True)
class AttackCost:
    """What one stage of the suite broke and cost: all passes, those of cancelled items too.

    `outcome` tells an attack that found nothing from one that was not tried: `RAN`; `NOT_NEEDED`,
    or `not run`, each followed by `: ` and why.
    """

    name: str
    broken: int
    forwards: int
    backwards: int
    seconds: float
    outcome: str = RAN

    @property
    def ran(self) -> bool:
        return self.outcome == RAN


def outcome_of(attack: Mapping[str, Any]) -> str:
    """The outcome of an entry of a result's `attacks`, older ones included, which do not say it.

    Every attack that is tried looks at the model: one that has made no pass was not.
    """
    said = attack.get("outcome")
    if isinstance(said, str) and said:
        return said
    idle = [attack.get(name) for name in ("broken", "forwards", "backwards")] == [0, 0, 0]
    return NOT_NEEDED if idle else RAN


@dataclass(frozen=True)
class CurvePoint:
    eps: float
    robust_accuracy: float
    interval: tuple[float, float]


@dataclass(frozen=True)
class Curve:
    """Accuracy against ε under one attack of fixed strength, on the first `n` images; or, where
    `attack` is a suite, by the smallest distances that it found, on all of them."""

    attack: str
    n: int
    points: tuple[CurvePoint, ...]


@dataclass(frozen=True)
class DrawFigure:
    """Accuracies of a random model over fresh draws, which no search has seen.

    Attributes:
        kind: `average`, the share of right answers, over images and draws; `worst`, an image
            counts as right if all `draws` answers are; `majority`, if the most frequent answer
            is: what verdicts go by.
    """

    kind: str
    draws: int
    standard_accuracy: float
    standard_accuracy_interval: tuple[float, float]
    robust_accuracy: float
    robust_accuracy_interval: tuple[float, float]


@dataclass(frozen=True)
class Unaware:
    """What a defence looks like to an attacker who does not know of it: the network behind it is
    attacked, and the points are shown to the defended model."""

    attack: str
    n: int
    robust_accuracy: float
    robust_accuracy_interval: tuple[float, float]


@dataclass(frozen=True)
class Evaluation:
    """The outcome of `holdfast.evaluate`.

    Attributes:
        standard_accuracy, robust_accuracy: fractions of the n images, in [0, 1].
        standard_accuracy_interval, robust_accuracy_interval: 95 %, Clopper–Pearson.
        broken: bool (N,); a clean mistake is broken.
        adversarial: float32 (N, C, H, W): the breaking image, or the strongest found.
        verdicts: one row an image.
        flags: health checks.
        attacks: cost by stage of the suite.
        curve: security curve, if one was asked for.
        draws: of a model that draws random numbers: its accuracies over fresh draws.
        unaware: of a defended model: its accuracy against an attacker who does not know of the
            defence. Never its robust accuracy.
        unanswered: how many of the broken images are so because the model answers nothing at the
            breaking point (a logit is NaN or +∞).
        log: why a faster copy of the model, or a compiled one, was not searched on.
        finished: when, ISO 8601, UTC. A run that is found finished keeps its date.
    """

    n: int
    standard_accuracy: float
    standard_accuracy_interval: tuple[float, float]
    robust_accuracy: float
    robust_accuracy_interval: tuple[float, float]
    threat: dict[str, Any]
    suite: str
    attacks: tuple[AttackCost, ...]
    flags: tuple[Flag, ...]
    curve: Curve | None
    forwards: int
    backwards: int
    seconds: float
    seed: int
    precision: str
    batch_size: int
    identity: str
    broken: Bool[Tensor, " n"] = field(repr=False)
    adversarial: Float[Tensor, "n c h w"] = field(repr=False)
    verdicts: tuple[Verdict, ...] = field(repr=False)
    draws: tuple[DrawFigure, ...] = ()
    unaware: Unaware | None = None
    unanswered: int = 0
    log: tuple[str, ...] = ()
    finished: str = ""

    @property
    def described_threat(self) -> str:
        """Norm and radius as a reader writes them, such as `L∞ 8/255`."""
        return str(Threat(**self.threat))

    def summary(self) -> dict[str, Any]:
        """Everything but the rows and the images, as JSON holds it."""
        rows = ("broken", "adversarial", "verdicts")
        kept = {f.name: getattr(self, f.name) for f in fields(self) if f.name not in rows}
        kept["attacks"] = [asdict(a) for a in self.attacks]
        kept["flags"] = [asdict(f) for f in self.flags]
        kept["curve"] = None if self.curve is None else asdict(self.curve)
        kept["draws"] = [asdict(d) for d in self.draws]
        kept["unaware"] = None if self.unaware is None else asdict(self.unaware)
        return kept


def write_verdicts(path: Path, verdicts: tuple[Verdict, ...]) -> None:
    """`verdicts.csv`: one row an image; `broken` is 0 or 1."""
    names = [f.name for f in fields(Verdict)]
    rows = [{**asdict(verdict), "broken": int(verdict.broken)} for verdict in verdicts]
    cells = (
        [f"{row[name]:.6g}" if isinstance(row[name], float) else row[name] for name in names]
        for row in rows
    )
    write_atomically(path, csv_text(names, cells))


def write_examples(path: Path, images: Tensor, result: Evaluation) -> None:
    """`examples.safetensors`: some images with their adversarial counterparts.

    Broken by an attack first, spread over the classes and over the confidence of the clean
    answer, then images that stand: what a reader needs to see how the model is fooled.
    """
    fooled = [i for i, v in enumerate(result.verdicts) if v.broken and v.attack != "clean"]
    standing = [i for i, v in enumerate(result.verdicts) if not v.broken]
    chosen = _spread(fooled, EXAMPLES * 3 // 4, result) + _spread(standing, EXAMPLES // 4, result)
    if not chosen:
        chosen = list(range(min(EXAMPLES, result.n)))
    rows = torch.tensor(chosen)
    payload = {
        "images": images[rows].contiguous(),
        "adversarial": result.adversarial[rows].contiguous(),
        "index": torch.tensor([result.verdicts[i].index for i in chosen]),
    }
    write_atomically(path, save(payload))


def _spread(rows: list[int], count: int, result: Evaluation) -> list[int]:
    """Up to `count` rows, taking turns between the labels."""
    by_label: dict[int, list[int]] = {}
    for row in rows:
        by_label.setdefault(result.verdicts[row].label, []).append(row)
    turns = np.argsort(
        [turn for label in sorted(by_label) for turn in range(len(by_label[label]))], kind="stable"
    )
    flat = [row for label in sorted(by_label) for row in by_label[label]]
    return [flat[i] for i in turns[:count]]


def write_run(folder: Path, images: Tensor, result: Evaluation, described: dict[str, Any]) -> None:
    """The files of a finished evaluation; `result.json` last, so that its presence means done.

    Args:
        described: `model` and `data`, for a reader.
    """
    write_verdicts(folder / "verdicts.csv", result.verdicts)
    write_examples(folder / "examples.safetensors", images, result)
    told = {"schema": SCHEMA, "status": "complete", **described, **result.summary()}
    others = sorted(file.name for file in folder.iterdir() if file.suffix in FILES)
    finish(folder, told, others)


def model_name(result: dict[str, Any]) -> str:
    """The model's name, and the defences in front of it."""
    model = result.get("model") or {}
    defences = model.get("defences") or []
    behind = f" behind {', then '.join(defences)}" if defences else ""
    return f"{model.get('name') or '?'}{behind}"


def distinct_names(names: Sequence[str], weights: Sequence[str]) -> list[str]:
    """Names of models side by side; those of one name but of other weights say which weights.

    Args:
        weights: their SHA-256; empty where it is unknown.
    """
    of: dict[str, set[str]] = {}
    for name, own in zip(names, weights, strict=True):
        of.setdefault(name, set()).add(own)
    return [
        f"{name}, weights {own[:8] or 'unknown'}" if len(of[name]) > 1 else name
        for name, own in zip(names, weights, strict=True)
    ]
