"""What a suite is: a fixed sequence of stages, each an attack with its budget."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from ..errors import InputError
from ..threat import Threat
from .base import Attack

# The view of a stage at another model, whose adversarial images are only carried over: the network
# behind a model's defences.
UNDEFENDED = "undefended"
# The view of a stage at the model with repaired gradients, where its own are hidden.
REPAIRED = "repaired"


@dataclass(frozen=True)
class Stage:
    """One attack of a suite.

    Attributes:
        attack: what is run on every image that still stands.
        restarts: independent random starts an image.
        targets: for a targeted attack, how many wrong classes are tried, the most likely
            first; None for all of them.
        samples: copies of each image over which every query averages logits and gradients
            (expectation over transformation), for models that draw random numbers.
        view: what is searched in place of the model: `exact`, `identity` or `surrogate`,
            another backward pass that its defences offer; `REPAIRED`, its repaired gradients; or
            `UNDEFENDED`, the network behind its defences. Verdicts always come from the model
            itself.
        share: the share of the standing images that it is tried on, in (0, 1]. Each image draws for
            itself whether it is among them.
        least: with N images evaluated, the share is at least `least` / N (1 at most), so that a
            small evaluation is not left with a sample of a handful.
        after: the number of an earlier stage. This one runs only if that one broke an image, or if
            it was known before the search that the model's gradients mislead.

    Raises:
        InputError: a count below 1, a share outside (0, 1], `least` below 0.

    Example:
        >>> from holdfast.attacks import APGD
        >>> Stage(APGD(loss="dlr", targeted=True), targets=9).items_per_image(classes=5)
        4
    """

    attack: Attack
    restarts: int = 1
    targets: int | None = None
    samples: int = 1
    view: str = ""
    share: float = 1.0
    least: int = 0
    after: int | None = None

    def __post_init__(self) -> None:
        for name in ("restarts", "targets", "samples"):
            count = getattr(self, name)
            if count is not None and count < 1:
                raise InputError(f"{name} of {self.attack.name} must be at least 1, not {count}")
        if not 0 < self.share <= 1:
            raise InputError(f"share of {self.attack.name} must be in (0, 1], not {self.share}")
        if self.least < 0:
            raise InputError(f"least of {self.attack.name} must be at least 0, not {self.least}")

    @property
    def name(self) -> str:
        """What reports call it: the attack, and what it searches where that is not the model, or
        not all images."""
        sample = "on a sample" if self.share < 1 else ""
        return ", ".join(word for word in (self.attack.name, self.view, sample) if word)

    @property
    def compares(self) -> bool:
        """Whether its scores are margins of the model itself: no distances, nor another's."""
        return not self.attack.minimum_norm and self.view != UNDEFENDED

    def share_of(self, images: int) -> float:
        """The share of the standing images that it is tried on, where `images` are evaluated."""
        return max(self.share, min(1.0, self.least / images))

    def items_per_image(self, classes: int) -> int:
        """Work items that an image needs at most: restarts × targets."""
        if not self.attack.targeted:
            return self.restarts
        wrong = classes - 1
        return self.restarts * (wrong if self.targets is None else min(self.targets, wrong))

    def describe(self) -> dict[str, Any]:
        """The attack's name and settings, and the stage's own."""
        return {
            **self.attack.describe(),
            "restarts": self.restarts,
            "targets": self.targets,
            "samples": self.samples,
            "view": self.view,
            "share": self.share,
            "least": self.least,
            "after": self.after,
        }


@dataclass(frozen=True)
class Suite:
    """A named sequence of stages; `describe()` is part of a run's identity.

    Attributes:
        closest: what is searched for is the closest adversarial point of every image, whatever ε
            is: every stage goes over all images, to its end, and the closest point of all counts.
            All attacks are then minimum-norm ones that do not stop inside the ball.

    Raises:
        InputError: no stages; a stage that waits for a later one; a search for the closest points
            by an attack that stops inside the ball.

    Example:
        >>> from holdfast.attacks import APGD, Square
        >>> suite = Suite("mine", (Stage(APGD(steps=20)), Stage(Square(queries=500), share=0.1)))
        >>> [stage.name for stage in suite.stages]
        ['apgd-ce', 'square, on a sample']
    """

    name: str
    stages: tuple[Stage, ...]
    closest: bool = False

    def __post_init__(self) -> None:
        if not self.stages:
            raise InputError(f"suite {self.name!r} has no attacks")
        for number, stage in enumerate(self.stages):
            if stage.after is not None and not 0 <= stage.after < number:
                raise InputError(
                    f"suite {self.name!r}: stage {number} can only run after an earlier one"
                )
        for attack in (stage.attack for stage in self.stages if self.closest):
            if getattr(attack, "stop_inside", True):
                raise InputError(f"suite {self.name!r}: {attack.name} stops inside the ball")

    def keeping(self, kept: Callable[[Stage], bool]) -> tuple[Stage, ...]:
        """Some of the stages; one that waited for another that is not kept waits no more."""
        numbers = [number for number, stage in enumerate(self.stages) if kept(stage)]
        now = {before: number for number, before in enumerate(numbers)}
        stages = (self.stages[number] for number in numbers)
        return tuple(
            stage if stage.after is None else replace(stage, after=now.get(stage.after))
            for stage in stages
        )

    def tuned(self, threat: Threat) -> Suite:
        """The suite with each attack's usual settings in a threat model.

        Example:
            >>> from holdfast.attacks import Swift
            >>> suite = Suite("mine", (Stage(Swift(targets=3)),))
            >>> [suite.tuned(Threat(norm, 1)).stages[0].attack.steps for norm in ("l2", "l1")]
            [3, 40]
        """
        stages = (replace(stage, attack=stage.attack.tuned(threat)) for stage in self.stages)
        return replace(self, stages=tuple(stages))

    def fitting(self, threat: Threat) -> Suite:
        """The suite in a threat model.

        A search for the closest points leaves out the attacks that do not know the norm.

        Raises:
            InputError: an attack of another suite, or every one of this, does not know it.
        """
        knowing = self.keeping(lambda stage: threat.norm in stage.attack.norms)
        if not (self.closest and knowing):
            for stage in self.stages:
                stage.attack.check_norm(threat)
        return replace(self, stages=knowing)

    def reaching(self, kind: str) -> Suite:
        """The suite where one class alone counts as a success: each attack goes for that, so the
        targets of a stage fall away, and attacks that cannot are left out.

        Args:
            kind: of the targets, for the suite's name: figures of different goals never mix.

        Raises:
            InputError: none of the attacks can.

        Example:
            >>> from holdfast.attacks import APGD
            >>> stage = Stage(APGD(loss="dlr", targeted=True), targets=9)
            >>> suite = Suite("mine", (stage,)).reaching("random")
            >>> suite.name, suite.stages[0].items_per_image(classes=10)
            ('mine, target random', 1)
        """
        stages = self.keeping(lambda stage: stage.attack.reaches)
        if not stages:
            self.stages[0].attack.check_reaches()
        stages = tuple(replace(stage, targets=1) for stage in stages)
        return replace(self, name=f"{self.name}, target {kind}", stages=stages)

    def without(self, kept: Suite) -> tuple[Stage, ...]:
        """The stages that are not among those of `kept`, which was made of this suite."""
        own = [replace(stage, after=None) for stage in kept.stages]
        left = []
        for stage in self.stages:
            alone = replace(stage, after=None)
            if alone in own:
                own.remove(alone)
            else:
                left.append(stage)
        return tuple(left)

    def through(self, view: str) -> Suite:
        """The suite with every gradient attack on another view as well, before the model's own.

        Attacks for the closest point are left as they are, unless they are what is searched for.
        """
        stages: list[Stage] = []
        now: dict[int, int] = {}
        for number, stage in enumerate(self.stages):
            after = None if stage.after is None else now[stage.after]
            stage = replace(stage, after=after)
            useful = stage.attack.needs_gradient and stage.view == ""
            if useful and (self.closest or not stage.attack.minimum_norm):
                stages.append(replace(stage, view=view))
            now[number] = len(stages)
            stages.append(stage)
        return replace(self, stages=tuple(stages))

    def describe(self) -> dict[str, Any]:
        """Its name and its stages: what a run's identity is made of."""
        return {
            "name": self.name,
            "stages": [stage.describe() for stage in self.stages],
            "closest": self.closest,
        }
