"""What a checkpoint's card says of its model."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar

from pydantic import AfterValidator

from .base import Integer, Names, Record
from .measured import ThreatFields, threat_in


def _no_others(threat: dict[str, Any]) -> dict[str, Any]:
    unknown = threat.keys() - {"norm", "eps", "degrees", "pixels"}
    if unknown:
        raise ValueError(f"{min(unknown)!r} is no part of a threat model")
    return threat


class Card(Record):
    """`card.json`, beside `model.safetensors`.

    Attributes:
        architecture: a registered name, or `file.py:build` for code of somebody's own, which a
            person has to name when the model is loaded; `arguments` are its own.
        classifier: the layer of such a network that was given an output for each class.
        classes: label names, in the order of the labels; a denoiser may have none.
        images: what it was trained on: `height`, `width`, `channels`, and how images were `brought`
            to that.
        threat: the threat model that it was trained for; None for an undefended model.
        started_from: the weights that training began with: `source`, `sha256`, and what became of
            the `classifier`.
        trained_on: the splits, such as `train+validation-1000`.
        defences: which the model stands behind, such as `jpeg:quality=75`, relative to its folder.
        recipe: what it was trained by.
        data: what its parameters were chosen on.
        figures: on validation images, and how each was measured.
        weights_sha256: of `model.safetensors`.
    """

    SCHEMA: ClassVar[str] = "holdfast/card/1"
    FILE: ClassVar[str] = "card.json"

    architecture: str
    arguments: dict[str, Any]
    classes: Names = ()
    images: dict[str, Any] | None = None
    threat: Annotated[ThreatFields, AfterValidator(_no_others)] | None = None
    recipe: dict[str, Any] | None = None
    seed: Integer | None = None
    trained_on: str | None = None
    classifier: str | None = None
    started_from: dict[str, Any] | None = None
    defences: Names = ()
    data: Any = None
    figures: dict[str, Any] | None = None
    weights_sha256: str | None = None

    def headline(self) -> str:
        threat = "none" if self.threat is None else str(threat_in(self.threat))
        return f"Model: {self.architecture}, {len(self.classes)} classes, trained for {threat}"

    def key_figures(self) -> list[tuple[str, str]]:
        return [("trained on", self.trained_on or "?")]
