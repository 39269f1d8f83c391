"""The items that are stepped together."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from ..attacks.state import State


class Key(NamedTuple):
    """A work item: the restart and target of a stage, and the image's row in the ledger."""

    item: int
    image: int


@dataclass(frozen=True)
class StoredItem:
    """A work item between two steps, as the journal keeps it.

    Attributes:
        forwards, backwards: passes spent on it so far.
        refused: the score at which its point was last verified in vain.
        state: its row of the attack's state, without the batch dimension, on the CPU.
    """

    forwards: int
    backwards: int
    refused: float
    state: Mapping[str, Tensor]


@dataclass
class Batch:
    """Items in flight; row i of everything belongs to `keys[i]`.

    Attributes:
        keys: which items they are.
        state: what the attack remembers of them, on the model's device.
        passes: int64 (R, 2), forwards and backwards spent on each.
        refused: float32 (R,), the score at which each one's point was last verified in vain.
    """

    keys: list[Key]
    state: State
    passes: Int64[Tensor, "r 2"]
    refused: Float[Tensor, " r"]

    def __len__(self) -> int:
        return len(self.keys)

    @staticmethod
    def begin(keys: Sequence[Key], state: State, stored: Mapping[Key, StoredItem]) -> Batch:
        """Items before their first step, those that are stored where they stood."""
        batch = Batch(
            list(keys),
            state,
            torch.zeros(len(keys), 2, dtype=torch.int64),
            torch.full((len(keys),), torch.inf),
        )
        kept = [(row, stored[key]) for row, key in enumerate(keys) if key in stored]
        for row, it in kept:
            batch.passes[row, 0], batch.passes[row, 1] = it.forwards, it.backwards
            batch.refused[row] = it.refused
        if kept:
            rows = torch.tensor([row for row, _ in kept], device=state.labels.device)
            values = {n: torch.stack([it.state[n] for _, it in kept]) for n in state.tensors()}
            batch.state = state.restore(rows, values)
        return batch

    def join(self, other: Batch) -> Batch:
        """These rows, then the other's."""
        return Batch(
            self.keys + other.keys,
            self.state.join(other.state),
            torch.cat([self.passes, other.passes]),
            torch.cat([self.refused, other.refused]),
        )

    def select(self, rows: Bool[Tensor, " r"]) -> Batch:
        """The rows of a mask on the CPU."""
        index = rows.nonzero().squeeze(1)
        return Batch(
            [self.keys[row] for row in index.tolist()],
            self.state.select(index.to(self.state.labels.device)),
            self.passes[index],
            self.refused[index],
        )

    def stored(self) -> dict[Key, StoredItem]:
        """Every item as the journal keeps it."""
        here = {name: value.cpu() for name, value in self.state.tensors().items()}
        return {
            key: StoredItem(
                int(self.passes[row, 0]),
                int(self.passes[row, 1]),
                float(self.refused[row]),
                {name: value[row] for name, value in here.items()},
            )
            for row, key in enumerate(self.keys)
        }
