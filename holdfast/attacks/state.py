"""What an attack works on (`Items`) and what it remembers between two steps (`State`).

Both are records of tensors whose first dimension is the item, so rows of them can be selected,
joined and stored: items of different iterations share a batch.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields, replace
from typing import Any, Self

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from ..types import Images
from . import losses


@dataclass(frozen=True, eq=False)
class Items:
    """What an attack is asked to break, one row an item.

    An item is an image together with a restart and a target; the same image may stand in several
    rows.

    Attributes:
        images: float32 (N, C, H, W) in [0, 1], clean.
        labels: int64 (N,), the true classes.
        targets: int64 (N,), the classes to reach; −1 where any wrong class will do.
        eps: float32 (N,), radii in image units.
        seeds: int64 (N,), each item's own random stream (see `holdfast.draws`).
        start: (N, C, H, W), where a search that begins at a given point begins; by default the
            images.
        goals: int64 (N,), the classes that alone count as a success; by default −1: any mistake
            does. Either all items of a batch have one, or none.
    """

    images: Images
    labels: Int64[Tensor, " n"]
    targets: Int64[Tensor, " n"]
    eps: Float[Tensor, " n"]
    seeds: Int64[Tensor, " n"]
    start: Images = field(default=None)  # type: ignore[assignment]
    goals: Int64[Tensor, " n"] = field(default=None)  # type: ignore[assignment]

    def __post_init__(self) -> None:
        if self.start is None:
            object.__setattr__(self, "start", self.images)
        if self.goals is None:
            object.__setattr__(self, "goals", torch.full_like(self.labels, -1))

    def __len__(self) -> int:
        return len(self.labels)

    def tensors(self) -> dict[str, Tensor]:
        """All tensors by their names, as they are."""
        return {each.name: getattr(self, each.name) for each in fields(self)}

    def select(self, rows: Tensor) -> Self:
        """Some rows, by their indices or by a mask: int64 (M,) or bool (N,)."""
        return self._each(lambda tensor: tensor[rows])

    def to(self, device: torch.device | str) -> Self:
        """The same on a device."""
        return self._each(lambda tensor: tensor.to(device))

    def replace(self, **changes: Any) -> Self:
        """The same with some tensors exchanged.

        Raises:
            TypeError: a name that this record does not have.

        Example:
            >>> y = torch.tensor([2, 0, 1])
            >>> items = Items(torch.rand(3, 1, 2, 2), y, targets=y * 0 - 1, eps=y + 0.5, seeds=y)
            >>> items.select(y > 0).replace(targets=torch.tensor([1, 2])).tensors()["targets"]
            tensor([1, 2])
            >>> items.join(items.select(torch.tensor([0]))).labels
            tensor([2, 0, 1, 2])
        """
        return replace(self, **changes)

    def join(self, *others: Self) -> Self:
        """These rows, then those of others of the same kind."""
        return self._each(lambda *tensors: torch.cat(tensors), *others)

    def restore(self, rows: Tensor, stored: Mapping[str, Tensor]) -> Self:
        """The same with some rows put back as they were stored.

        Args:
            rows: int64 (M,).
            stored: (M, …) tensors by name, as `tensors` gave them; anywhere.

        Raises:
            KeyError: a tensor is missing.
        """
        restored = {
            name: tensor.index_copy(0, rows, stored[name].to(tensor))
            for name, tensor in self.tensors().items()
        }
        return replace(self, **restored)

    def _each(self, change: Callable[..., Tensor], *others: Self) -> Self:
        """Every tensor changed. What is one tensor under several names is changed once, and stays
        one: a state begins with its image under three names."""
        made: dict[tuple[int, ...], Tensor] = {}
        changed = {}
        for name in self.tensors():
            tensors = [getattr(record, name) for record in (self, *others)]
            key = tuple(map(id, tensors))
            if key not in made:
                made[key] = change(*tensors)
            changed[name] = made[key]
        return replace(self, **changed)


@dataclass(frozen=True, kw_only=True, eq=False)
class State(Items):
    """What an attack knows of each item between two steps. Attacks add tensors of their own.

    Attributes:
        point: (N, C, H, W), where the next step queries the model.
        iteration: int64 (N,), steps done.
        score: float32 (N,), below 0 once the attack believes that `best` breaks the image. For
            attacks inside a ball the smallest margin seen (see `margin`); for minimum-norm
            attacks the smallest adversarial distance less ε. ∞ before the first step.
        best: (N, C, H, W), the point that the score belongs to, inside ball and box.
        witness: float32 (N, W), what shows that `best` is legal where the image alone does not
            (the parameters of a rotation); W is 0 in the balls of norms.
        finished: bool (N,), whether the attack has spent its budget.
    """

    point: Images
    iteration: Int64[Tensor, " n"]
    score: Float[Tensor, " n"]
    best: Images
    witness: Float[Tensor, "n w"]
    finished: Bool[Tensor, " n"]

    @classmethod
    def begin(cls, items: Items, point: Images, **own: Tensor) -> Self:
        """The state before the first step, which queries the model at `point`.

        Args:
            own: tensors that this kind of state adds, or others in place of the usual ones.
        """
        usual = {
            "point": point,
            "iteration": torch.zeros_like(items.labels),
            "score": torch.full_like(items.eps, torch.inf),
            "best": items.images,
            "witness": items.eps.new_zeros(len(items), 0),
            "finished": torch.zeros_like(items.labels, dtype=torch.bool),
        }
        return cls(**{**Items.tensors(items), **usual, **own})

    def observe(self, logits: Float[Tensor, "n k"]) -> Self:
        """`best` and `score` after the model answered `logits` at `point`: the point of the
        smallest margin so far."""
        margin = self.margin(logits)
        better = margin < self.score
        return self.replace(
            best=pick(better, self.point, self.best),
            score=torch.where(better, margin, self.score),
        )

    @property
    def aimed(self) -> bool:
        """Whether one class alone counts as a success, for each item its own."""
        return bool((self.goals >= 0).any())

    def margin(self, logits: Float[Tensor, "n k"]) -> Float[Tensor, " n"]:
        """What is left to a success, (N,): below 0 it is one. See `losses.margin`."""
        return losses.margin(logits, self.labels, self.goals)

    def climbed(self, loss: losses.Loss, logits: Float[Tensor, "n k"]) -> Float[Tensor, " n"]:
        """What an attack on this loss climbs, (N,), whatever counts as a success. See
        `losses.climbed`."""
        return losses.climbed(loss, logits, self.labels, self.targets, self.goals)


def pick(rows: Bool[Tensor, " n"], a: Tensor, b: Tensor) -> Tensor:
    """a where the item's row is true, b elsewhere; a and b (N, …)."""
    return torch.where(rows.view(-1, *([1] * (a.ndim - 1))), a, b)
