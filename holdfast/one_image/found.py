"""What was found of one image before one model."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from jaxtyping import Float
from torch import Tensor

from ..figures.subject import Answer, naming, percent
from ..threat import Threat
from .sets import Calibration

SHOWN = 5  # of the likeliest classes, where they are told


@dataclass(frozen=True)
class Look:
    """What the model says of an image.

    Attributes:
        answer: the predicted class and its confidence.
        probabilities: float32 (K,), 0 to 1; NaN of a model that shows labels only.
        classes: of the conformal set, the likeliest first; None where there is no set.
    """

    answer: Answer
    probabilities: Float[Tensor, " k"]
    classes: tuple[int, ...] | None = None

    def likeliest(self, count: int = SHOWN) -> list[Answer]:
        """The classes of the largest probabilities, the largest first."""
        if bool(self.probabilities.isnan().any()):
            return [self.answer]
        values, labels = self.probabilities.topk(min(count, len(self.probabilities)))
        return [Answer(*each) for each in zip(labels.tolist(), values.tolist(), strict=True)]


@dataclass(frozen=True)
class Trial:
    """One image before one model, clean and attacked.

    Attributes:
        name: the model's.
        defences: in front of it, the first sees the image first.
        names: of the classes, by number; () where they have none.
        threat: what the attacker may do.
        label: the true class; the model's clean answer where nobody gave it (`label_given`).
        target: the class that alone counts as a success; None: any mistake does.
        image, adversarial: float32 (C, H, W) in [0, 1].
        clean, attacked: what the model says of the two.
        distance: between the two, in ε's units.
        broken: whether the attack reached what it wanted.
        smallest: the smallest ε at which the image was broken; 0 where the clean image is; None
            where none was found, or it was not looked for (`searched`).
        nearest: float32 (C, H, W), the image at that ε.
        attack: in words.
        steps: of PGD and the like.
        calibration: of the conformal sets, or why there are none.
        source: what the image is; and what was done to it, in words (`fitting`).
        seconds: that the attack took.
        seed: of all random draws.
    """

    name: str
    defences: tuple[str, ...]
    names: tuple[str, ...]
    threat: Threat
    label: int
    label_given: bool
    target: int | None
    image: Float[Tensor, "c h w"]
    adversarial: Float[Tensor, "c h w"]
    clean: Look
    attacked: Look
    distance: float
    broken: bool
    smallest: float | None
    nearest: Float[Tensor, "c h w"] | None
    searched: bool
    attack: str
    calibration: Calibration = field(default_factory=Calibration)
    source: str = "image"
    fitting: str = ""
    seconds: float = 0.0
    seed: int = 0

    def class_name(self, label: int) -> str:
        """A class by its number, in words."""
        return naming(self.names)(label)

    def said(self, look: Look, count: int = 3) -> str:
        """The likeliest classes with their probabilities, in a line."""
        return ", ".join(
            f"{self.class_name(each.label)} {percent(each.confidence)}"
            for each in look.likeliest(count)
        )

    def set_said(self, look: Look) -> str:
        """The conformal set in words."""
        if look.classes is None:
            return "none"
        return "{" + ", ".join(map(self.class_name, look.classes)) + "}"

    @property
    def outcome(self) -> str:
        """What became of the image, in a few words."""
        if self.smallest == 0 or (self.broken and self.distance == 0):
            return "wrong without any attack" if self.target is None else "reached without attack"
        if self.target is not None:
            return f"{'reached' if self.broken else 'kept from'} {self.class_name(self.target)}"
        return "broken" if self.broken else "stands"

    @property
    def smallest_said(self) -> str:
        """The smallest ε in words."""
        if not self.searched:
            return "not looked for"
        if self.smallest is None:
            return "none found"
        if self.smallest == 0:
            return "0: it is wrong without any attack"
        return f"{written(self.threat.norm, self.smallest)} in {_name(self.threat)}"

    def lines(self) -> list[tuple[str, str]]:
        """What a terminal shows: a title and what stands beside it."""
        true = f"true class {self.class_name(self.label)}"
        if not self.label_given:
            true = "no true class was given, so the model's own clean answer counts as right"
        how = f"{self.outcome} within {self.threat} by {self.attack}, seed {self.seed}"
        found = [
            ("image", f"{self.source}, {self.fitting}" if self.fitting else self.source),
            ("label", true),
            ("model", " → ".join([*self.defences, self.name])),
            ("clean", self.said(self.clean)),
            ("attacked", self.said(self.attacked)),
            ("outcome", self.outcome if self.smallest == 0 or not self.distance else how),
        ]
        if self.searched:
            found.append(("smallest ε found", self.smallest_said))
        if self.clean.classes is not None:
            sets = f"clean {self.set_said(self.clean)}, attacked {self.set_said(self.attacked)}"
            found.append(("conformal set", sets))
        found.append(("", self.calibration.promise))
        return found

    def to_dict(self) -> dict[str, Any]:
        """All but the images, as JSON holds it."""

        def look(of: Look) -> dict[str, Any]:
            nothing = bool(of.probabilities.isnan().any())
            return {
                "class": of.answer.label,
                "name": self.class_name(of.answer.label),
                "confidence": None if nothing else of.answer.confidence,
                "probabilities": None if nothing else of.probabilities.tolist(),
                "conformal_set": None if of.classes is None else list(of.classes),
            }

        conformal = self.calibration.conformal
        return {
            "model": self.name,
            "defences": list(self.defences),
            "image": self.source,
            "fitting": self.fitting,
            "classes": list(self.names),
            "label": self.label,
            "label_given": self.label_given,
            "target": self.target,
            "threat": {"norm": self.threat.norm, "eps": self.threat.eps},
            "attack": self.attack,
            "seed": self.seed,
            "clean": look(self.clean),
            "attacked": look(self.attacked),
            "broken": self.broken,
            "distance": self.distance,
            "smallest_eps": self.smallest,
            "smallest_eps_searched": self.searched,
            "conformal": None
            if conformal is None
            else {"alpha": conformal.alpha, "score": conformal.score, "on": self.calibration.on},
            "no_conformal_set": self.calibration.unavailable or None,
            "seconds": self.seconds,
        }


def written(norm: str, eps: float) -> str:
    """A radius that nobody chose, as it is read best.

    Example:
        >>> written("linf", 0.0213), written("l2", 0.4867), written("l0", 7.0)
        ('5.4/255', '0.487', '7 values')
    """
    if norm == "linf":
        return f"{255 * eps:.2g}/255" if eps < 10 / 255 else f"{255 * eps:.1f}/255"
    if norm == "l0":
        return f"{eps:.0f} value{'s' * (round(eps) != 1)}"
    return f"{eps:.3g}"


def _name(threat: Threat) -> str:
    """The norm as people write it."""
    return str(threat).partition(" ")[0]
