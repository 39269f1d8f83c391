"""What every record of a measurement holds: the model, the images, the threat model, the checks."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import AfterValidator, WithJsonSchema, model_validator
from pydantic_core import PydanticCustomError

from ...threat import NORMS, SPATIAL, Threat
from .base import Count, Integer, ListOf, Names, Part, Positive, Quantity, Record

RAN = "ran"
NOT_NEEDED = "not needed"


def threat_in(fields: dict[str, Any]) -> Threat:
    """The threat model in a record; keys that this version does not know are passed over.

    Raises:
        InputError: there is no such threat model.
    """
    known = ("norm", "eps", "degrees", "pixels")
    return Threat(**{key: fields[key] for key in known if key in fields})


def _checked_threat(fields: dict[str, Any]) -> dict[str, Any]:
    kinds: dict[str, Any] = {"norm": str, "eps": int | float}
    optional: dict[str, Any] = {"degrees": int | float, "pixels": int | float}
    for key, kind in (kinds | {k: v for k, v in optional.items() if k in fields}).items():
        value = fields.get(key)
        if not isinstance(value, kind) or isinstance(value, bool):
            raise PydanticCustomError(
                "wanted", "threat", {"wanted": "a threat model: norm (text) and eps (a number)"}
            )
    try:
        threat_in(fields)
    except OverflowError:
        raise ValueError("eps must be a finite number above 0") from None
    return fields


ThreatFields = Annotated[
    dict[str, Any],
    AfterValidator(_checked_threat),
    WithJsonSchema(
        {
            "type": "object",
            "required": ["norm", "eps"],
            "properties": {
                "norm": {"enum": [*NORMS, SPATIAL]},
                **{name: {"type": "number", "minimum": 0} for name in ("eps", "degrees", "pixels")},
            },
        }
    ),
]


class Overlap(Part):
    """Images of one split that are in another, too."""

    split: str
    other: str
    images: Count


class DataInfo(Part):
    """Which images.

    Attributes:
        name, split: of the data set.
        first: how many images of the split, from its beginning.
        pixels: what they are, in words, such as "the JPEG copy of the test images".
        seen_in_training: whether the model was trained on some of them, by its card.
        classes_without_images: names of the classes that none of these images belongs to.
        indices: which images of the split, where they are not its first.
        told: how the data were read, one line each.
        brought: how images were brought to one shape, where they were: `size`, `grey`.
    """

    name: str | None = None
    split: str | None = None
    first: Count | None = None
    pixels: str | None = None
    seen_in_training: bool | None = None
    classes_without_images: Names = ()
    overlaps: ListOf[Overlap] = ()
    indices: ListOf[Count] | None = None
    told: Names = ()
    brought: dict[str, Any] | None = None


class ModelInfo(Part):
    """Which model.

    Attributes:
        source: what it was asked for as.
        sha256: of its weights and structure; None for a bare function.
        trained_on: the splits that its card says it was trained on.
        defences: in front of it, in the order in which they see the image.
        parameters: how many numbers training changes in it; None where that is not known.
        adaptation: what was done to it, and recognised in it, so that it takes images in [0, 1] of
            the data's size and gives logits of the data's classes; one line each.
    """

    name: str | None = None
    source: str | None = None
    sha256: str | None = None
    architecture: str | None = None
    trained_on: str | None = None
    parameters: Positive | None = None
    defences: Names = ()
    adaptation: Names = ()

    @property
    def title(self) -> str:
        """The model's name, and the defences in front of it."""
        behind = f" behind {', then '.join(self.defences)}" if self.defences else ""
        return f"{self.name or '?'}{behind}"


class Flag(Part):
    """A health check in one sentence, with the figures behind it.

    Attributes:
        fired: None where the check could not be run.
    """

    name: str
    fired: bool | None = None
    detail: str = ""
    figures: dict[str, Any] = {}


class AttackCost(Part):
    """What one attack of a suite broke and cost: all passes, those of cancelled items too.

    Attributes:
        broken: images.
        forwards, backwards: passes of one image.
        outcome: tells an attack that found nothing from one that was not tried: `ran`;
            `not needed`, or `not run`, each followed by `: ` and why. Files of before do not say
            it: there an attack that made no pass was not needed, for one that is tried looks at
            the model.
    """

    name: str
    broken: Count | None = None
    forwards: Count | None = None
    backwards: Count | None = None
    seconds: Quantity | None = None
    outcome: str = RAN

    @property
    def ran(self) -> bool:
        return self.outcome == RAN

    @model_validator(mode="before")
    @classmethod
    def _outcome(cls, held: Any) -> Any:
        if isinstance(held, dict) and not held.get("outcome"):
            idle = [held.get(name) for name in ("broken", "forwards", "backwards")] == [0, 0, 0]
            return {**held, "outcome": NOT_NEEDED if idle else RAN}
        return held


class OtherCost(Part):
    """Seconds that a run spent on something else than an attack, such as health checks."""

    name: str
    seconds: Quantity


class Measurement(Record):
    """A finished run that measured a model on `n` images.

    Attributes:
        identity: the hash of everything that can change the result.
        threat: `norm` and `eps`, and of `spatial` `degrees` and `pixels`.
        finished: when, ISO 8601, UTC.
        files: SHA-256 of the files beside the record, by name.
    """

    status: Literal["complete"] = "complete"
    identity: str | None = None
    model: ModelInfo | None = None
    data: DataInfo | None = None
    n: Positive
    threat: ThreatFields
    flags: ListOf[Flag] = ()
    seconds: Quantity | None = None
    seed: Integer | None = None
    finished: str | None = None
    files: dict[str, str] | None = None

    @property
    def described_threat(self) -> str:
        """Norm and radius as a reader writes them, such as `L∞ 8/255`."""
        return str(threat_in(self.threat))

    @property
    def fired(self) -> tuple[Flag, ...]:
        """The health checks that fired."""
        return tuple(flag for flag in self.flags if flag.fired)

    @property
    def doubts(self) -> tuple[Flag, ...]:
        """The health checks that fired and say that figures may be too good."""
        return self.fired

    def measured_on(self) -> str:
        """The model, the images and the threat model, for a headline."""
        model, data = self.model or ModelInfo(), self.data or DataInfo()
        images = " ".join(word for word in (data.name, data.split) if word)
        name = f"{model.title} on " if model.name else ""
        return f"{name}{images + ', ' if images else ''}n = {self.n}, {self.described_threat}"
