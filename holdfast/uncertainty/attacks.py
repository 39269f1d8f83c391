"""Attacks on uncertainty: one ascent for every goal, and a search whose results are verified.

The search may look at a fast copy; a point counts only once the *original* model, in its own
precision, has answered on it, the goal's condition holds there, and it lies in the ball and the
box. So every figure measured on what `seek` returns is the original model's.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from .. import draws
from ..attacks import GradientAscent, Items, Oracle, State
from ..attacks.goal import UNTARGETED
from ..attacks.state import pick
from ..errors import InputError
from ..inputs import checked_stored_data
from ..models.wrapper import standard_defaults, wrapped
from ..search.batch import Batch, Key
from ..search.journal import FinishedItem, Journal
from ..search.ledger import Ledger
from ..search.scheduler import Checkpoints, Scheduler, Task
from ..stored import TOGETHER, ModelImages, in_memory, in_parts, room_for
from ..threat import Threat
from ..types import Images, Model, Report
from .goals import Goal, Outputs, Values

BACKTRACKS = 5  # halvings of the way to a point that the original refused
# Lengths of the first and the last step of an ascent, in ε: for any model, and for a smooth one.
SHORT, LONG = (0.5, 0.02), (2.0, 0.03)


@dataclass(frozen=True, kw_only=True, eq=False)
class AscentState(State):
    """What an ascent remembers; `score` falls below 0 once the aim is exceeded."""

    value: Float[Tensor, " n"]  # of the goal at `best`; −∞ while its condition held nowhere


class Ascent(GradientAscent[AscentState]):
    """Projected ascent on a goal among the points where its condition holds.

    Where the condition does not hold, the step restores it instead: the *selective* variant of
    Bryniarski, Hingun, Pachuca, Wang & Carlini, "Evading adversarial example detection defenses
    with orthogonal projected gradient descent", ICLR 2022. With `orthogonal`, the step's gradient
    is also made orthogonal to the other objective's, so that neither undoes the other. Steps
    shrink geometrically: the condition's boundary is met ever more closely.

    Args:
        goal: what to raise.
        steps: moves; the end is looked at too.
        lengths: of the first and the last step, in ε. Where the model is smooth, few steps that
            begin with long ones reach as far as many short ones.
        orthogonal: as above.
        aim: a value at which an item has all it wants; None never has.
        slack: by how much the condition must hold during the search, in its own units: what a
            fast copy may be wrong by.

    It starts at `items.start`; `items.targets` are the classes answered on the clean images.

    Cost: steps + 1 forwards and as many backwards; twice that with `orthogonal`.
    """

    targeted = True
    reaches = False

    def __init__(
        self,
        goal: Goal,
        *,
        steps: int = 20,
        lengths: tuple[float, float] = SHORT,
        orthogonal: bool = False,
        aim: float | None = None,
        slack: float = 0.0,
    ):
        super().__init__(steps=steps)
        self.settings = {
            "goal": goal.name,
            "steps": steps,
            "lengths": list(lengths),
            "orthogonal": orthogonal,
            "aim": aim,
            "slack": slack,
        }
        self.goal, self.orthogonal, self.slack = goal, orthogonal, slack
        self.aim = torch.inf if aim is None else aim
        self.name = goal.name + ("-orthogonal" if orthogonal else "")
        # From a table: computed in a batch, powers depend on its size in their last bit.
        first, last = lengths
        ratio = last / first
        self.lengths = torch.tensor([first * ratio ** (k / steps) for k in range(steps + 1)])

    def first_point(self, items: Items, threat: Threat) -> Images:
        return items.start

    def begin(self, items: Items, point: Images, threat: Threat) -> AscentState:
        nothing = torch.full_like(items.eps, -torch.inf)
        return AscentState.begin(items, point, best=point, value=nothing)

    def value(self, outputs: Outputs, state: AscentState) -> Values:
        """The goal where its condition holds, the condition elsewhere."""
        kept = self.goal.kept(outputs, state)
        return torch.where(kept > self.slack, self.goal.value(outputs, state), kept)

    def gradient(self, oracle: Oracle, state: AscentState) -> tuple[Images, Outputs]:
        gradient, outputs = super().gradient(oracle, state)
        if self.orthogonal:
            holds = self.goal.kept(outputs, state) > self.slack

            def undone(outputs: Outputs) -> Tensor:
                kept, value = self.goal.kept(outputs, state), self.goal.value(outputs, state)
                return torch.where(holds, kept, value)

            gradient = _orthogonal(gradient, oracle.gradient(state.point, undone)[0])
        return gradient, outputs

    def observe(self, outputs: Outputs, state: AscentState) -> AscentState:
        holds = self.goal.kept(outputs, state) > self.slack
        value = torch.where(holds, self.goal.value(outputs, state), -torch.inf)
        value = value.nan_to_num(-torch.inf, posinf=torch.inf, neginf=-torch.inf)
        better = value > state.value
        best_value = torch.where(better, value, state.value)
        return state.replace(
            value=best_value,
            best=pick(better, state.point, state.best),
            score=torch.where(best_value > self.aim, -1.0, 1.0),
        )

    def step_size(self, state: AscentState) -> Float[Tensor, " n"]:
        return state.eps * self.lengths.to(state.eps)[state.iteration]

    def __call__(
        self,
        model: Model,
        images: Images,
        labels: Int64[Tensor, " n"],
        threat: Threat,
        *,
        targets: Int64[Tensor, " n"] | str | None = None,
        goal: str = UNTARGETED,
        seed: int = 0,
        batch_size: int = 128,
    ) -> Images:
        """Run it alone: the images that `seek` finds. `targets` are the answers to hold."""
        if goal != UNTARGETED or isinstance(targets, str):
            self.check_reaches()
        held = None if isinstance(targets, str) else targets
        found = seek(
            self, model, images, labels, threat, held=held, seed=seed, batch_size=batch_size
        )
        return in_memory(found.images).to(images.device)


def _orthogonal(gradient: Images, other: Images) -> Images:
    """`gradient` without its part along `other`, item by item; as it is where that leaves 0."""
    # Scaled to unit length in float64: the squares of tiny gradients underflow.
    g, o = gradient.flatten(1).double(), other.flatten(1).double()
    o = o / o.norm(dim=1, keepdim=True).clamp_min(1e-300)
    rest = g - (g * o).sum(1, keepdim=True) * o
    vanished = rest.norm(dim=1, keepdim=True) <= 1e-6 * g.norm(dim=1, keepdim=True)
    return torch.where(vanished, g, rest).to(gradient).view_as(gradient)


class Found(NamedTuple):
    """What a search found, an image a row, on the CPU; all of it said by the original model.

    Attributes:
        images: (N, C, H, W) in the ball and the box; the start where nothing better was found. In
            memory, or in a temporary file, as the images are that were searched.
        outputs: (N, O) of the original model on them.
        holds: bool (N,), whether the goal's condition holds there.
        moved: bool (N,), whether the search improved on the start.
    """

    images: ModelImages
    outputs: Outputs
    holds: Bool[Tensor, " n"]
    moved: Bool[Tensor, " n"]


def seek(
    attack: Ascent,
    model: Model,
    images: ModelImages,
    labels: Int64[Tensor, " n"],
    threat: Threat,
    *,
    search: Model | None = None,
    held: Int64[Tensor, " n"] | None = None,
    starts: ModelImages | None = None,
    known: Outputs | None = None,
    items: Int64[Tensor, " n"] | None = None,
    samples: int = 1,
    seed: int = 0,
    batch_size: int = 128,
    device: torch.device | str | None = None,
    journal: Journal | None = None,
    report: Report = lambda share: None,
) -> Found:
    """Climb a goal on every image in full batches, and verify what was found on the original.

    A point that the original refuses is drawn back towards its start, by halves, until it is
    accepted; where none is, the start itself is returned.

    Args:
        attack: what to climb.
        model: the original, in eval mode on `device`: images to outputs, in full precision.
        device: where the model is; None: where the images are.
        images, labels: (N, C, H, W) in [0, 1] and (N,).
        threat: ball, around `images`, and box.
        search: a fast copy to look at; None: the original.
        held: (N,), for a goal that `holds_answers`: which; None: the original's on `images`.
        starts: where to start, inside the ball, such as images that are broken already; None:
            `images`.
        known: (N, O), what the original answers where the search starts, if that was asked before.
        items: the number of each image in its data set, to which the draws of random models
            belong (`holdfast.draws.fixed_draws`); None: 0 … N−1.
        samples: draws of a random model that every look, and the verdict, averages over.
        journal: keeps what is found, so that the same call goes on where it was interrupted; it
            belongs to this very call. None: in memory.
        report: told how far the work is.

    Raises:
        InputError: bad images or labels; starts outside the ball or the box.
    """
    with standard_defaults():
        images, labels = checked_stored_data(images, labels)
    model = wrapped(model)
    attack.check_norm(threat)
    device = images.device if device is None else device
    # What waits for its batch, and what was found, is in main memory.
    images, labels = images.to("cpu"), labels.cpu()
    held = None if held is None else held.cpu()
    begin = images if starts is None else starts.to("cpu")
    if not bool(in_parts(threat.contains, begin, images).all()):
        raise InputError("starts must lie inside the ball around their images, and in the box")
    items = torch.arange(len(images)) if items is None else items.cpu()

    def ask(x: ModelImages, rows: Tensor) -> Outputs:
        original, answers = Oracle(model, samples), []
        for own in torch.arange(len(x)).split(batch_size):
            original.seeds = draws.item_seeds(seed, "verdict", items[rows[own]])
            answers.append(original.logits(x[own].to(device)).cpu())
        return torch.cat(answers)

    everything = torch.arange(len(images))
    first = ask(begin, everything) if known is None else known.cpu()
    if held is None:
        held = labels
        if attack.goal.holds_answers:
            held = (first if starts is None else ask(images, everything)).argmax(1)
    wanted = _Wanted(
        images=images,
        labels=labels,
        targets=held,
        eps=threat.radii(labels),
        seeds=draws.item_seeds(seed, items, attack.name, 0, held),
        start=begin,
    )
    oracle = Oracle(search or model, samples)
    kept = journal or Journal(None, attack.name)
    try:
        best = _climb(attack, oracle, wanted, threat, batch_size, device, kept, report)
        return _verified(attack.goal, ask, wanted, first, best, threat)
    finally:
        if journal is None:
            kept.close()


@dataclass(frozen=True, eq=False)
class _Wanted:
    """What is searched, an image a row, as `Items` says; images that need not be in memory."""

    images: ModelImages
    labels: Int64[Tensor, " n"]
    targets: Int64[Tensor, " n"]
    eps: Float[Tensor, " n"]
    seeds: Int64[Tensor, " n"]
    start: ModelImages

    def __len__(self) -> int:
        return len(self.labels)

    def select(self, rows: Tensor) -> Items:
        """Some of them, read. A start that is the image stays one tensor with it."""
        read = {each.name: getattr(self, each.name)[rows] for each in fields(self)}
        return Items(**read | ({"start": read["images"]} if self.start is self.images else {}))


class _Climb(Task):
    """One item an image; each runs until it has its aim, or to its end."""

    def __init__(
        self, wanted: _Wanted, ledger: Ledger, journal: Journal, device: torch.device | str
    ):
        self.wanted, self.ledger, self.journal, self.device = wanted, ledger, journal, device

    def keys(self) -> list[Key]:
        """The items that the journal does not know to be over."""
        self.journal.restore(self.ledger)
        over = {it.image for it in self.journal.items(0)}
        return [Key(0, image) for image in range(len(self.wanted)) if image not in over]

    def items(self, keys: Sequence[Key]) -> Items:
        return self.wanted.select(torch.tensor([key.image for key in keys])).to(self.device)

    def examine(self, batch: Batch) -> Bool[Tensor, " r"]:
        return (batch.state.finished | (batch.state.score < 0)).cpu()

    def leave(self, batch: Batch, row: int) -> None:
        ledger, image = self.ledger, batch.keys[row].image
        forwards, backwards = batch.passes[row].tolist()
        ledger.adversarial[image] = batch.state.best[row].cpu()
        ledger.score[image] = score = float(batch.state.score[row])
        ledger.found[image] = ledger.found_item[image] = 0
        self.journal.finished(FinishedItem(0, 0, image, 0, forwards, backwards, score))
        self.journal.strongest(ledger, image)


def _climb(
    attack: Ascent,
    oracle: Oracle,
    wanted: _Wanted,
    threat: Threat,
    batch_size: int,
    device: torch.device | str,
    journal: Journal,
    report: Report,
) -> ModelImages:
    """The best point that the search believes in; the start where it believes in none. Of starts
    that are not in memory the journal has it."""
    start, everything = wanted.start, torch.arange(len(wanted))
    points = None if isinstance(start, Tensor) else journal.lend(start)
    ledger = Ledger.of(start, wanted.labels, everything, adversarial=points)
    task = _Climb(wanted, ledger, journal, device)
    scheduler = Scheduler(
        attack, oracle, threat, task, batch_size=batch_size, checkpoints=Checkpoints(journal)
    )
    total = len(wanted) * attack.iterations
    for left in scheduler.run(task.keys()):
        report(1 - left / total)
    return ledger.adversarial


def _verified(
    goal: Goal,
    ask: Callable[[ModelImages, Tensor], Outputs],
    wanted: _Wanted,
    first: Outputs,
    best: ModelImages,
    threat: Threat,
) -> Found:
    """The best points as far as the original accepts them, a part of the images at a time."""
    images, outputs = room_for(wanted.start), first.clone()
    holds, moved = (torch.zeros(len(wanted), dtype=torch.bool) for _ in range(2))
    for part in torch.arange(len(wanted)).split(TOGETHER):
        items, points = wanted.select(part), best[part]
        begin = items.start
        kept, own = begin.clone(), outputs[part]  # copies, which are filled in and written back
        held_before, value = goal.kept(own, items) > 0, goal.value(own, items)
        has_moved = torch.zeros_like(held_before)
        rows = (points != begin).flatten(1).any(1).nonzero().squeeze(1)
        points = points[rows]
        for _ in range(BACKTRACKS + 1):
            if not len(rows):
                break
            some, answer = items.select(rows), ask(points, part[rows])
            legal = threat.contains(points, some.images, some.eps) & (goal.kept(answer, some) > 0)
            better = goal.value(answer, some) > value[rows]
            accepted = legal & (better | ~held_before[rows])
            where = rows[accepted]
            kept[where], own[where], has_moved[where] = points[accepted], answer[accepted], True
            rows = rows[~accepted]
            # Ball and box are convex: whatever lies between two of their points is inside.
            points = begin[rows] + (points[~accepted] - begin[rows]) / 2
        images[part], outputs[part] = kept, own
        holds[part], moved[part] = held_before | has_moved, has_moved
    return Found(images, outputs, holds, moved)
