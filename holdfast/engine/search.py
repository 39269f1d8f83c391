"""The engine: a queue that keeps every batch full.

A suite is a sequence of stages; a stage tries its attack on every image that still stands, in
work items (image, restart, target). The engine steps a batch of items at once, lets the broken and
the finished leave after every step, refills from the queue, and cancels what has become needless.
It knows nothing of any particular attack.

Search is cheap, the verdict is not: an attack may look at a fast twin, but a success counts only
once the *original* model, in its own precision, misclassifies the very point, and the point lies
in the ball and the box. What fails this check goes on being searched.

Results do not depend on the schedule. An image's verdict in a stage is that of its *first* item,
in the order of the items, that succeeds; later items are cancelled as soon as an earlier one has
succeeded, and earlier ones run to their end.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from math import inf

import torch
from torch import Tensor

from .. import draws
from ..attacks.base import Items, Model, Oracle, State
from ..attacks.suites import Stage, Suite
from ..checks import check_logits
from ..threat import Threat
from .journal import FinishedItem, Journal
from .ledger import CLEAN, Ledger
from .twin import Twin

Report = Callable[[float, str], None]  # share of the work done, a word on how it goes


@dataclass(frozen=True)
class StageCost:
    """What a stage cost, items that were cancelled included."""

    seconds: float
    forwards: int
    backwards: int


@dataclass(frozen=True)
class Lane:
    """A pass over a stage's items on one twin.

    Attributes:
        twin: what the search looks at.
        near: only items whose score in the lane before ended below this are tried again here;
            None tries all.
    """

    twin: Twin
    near: float | None = None


@dataclass
class _Image:
    """An image's open business in a lane."""

    open_items: set[int] = field(default_factory=set)
    costs: dict[int, tuple[int, int]] = field(default_factory=dict)
    won: int | None = None  # the first item known to have succeeded
    won_point: Tensor | None = None
    won_score: float = 0.0


class Search:
    """Runs a suite over images.

    Args:
        model: the original: images (N, C, H, W) on `device` → logits (N, K).
        images, labels: on the CPU; (N, C, H, W) in [0, 1], and (N,).
        threat: ball and box.
        suite: what is tried, in order.
        lanes: the twins that each stage searches on, in order.
        batch_size: items stepped together.
        device: where the model is.
        seed: of all random draws.
        ledger: what is known so far; filled in as verdicts fall.
        journal: where verdicts are kept.
        report: told how far the work is, after every step.
    """

    def __init__(
        self,
        model: Model,
        images: Tensor,
        labels: Tensor,
        threat: Threat,
        suite: Suite,
        *,
        lanes: Sequence[Lane],
        batch_size: int,
        device: torch.device,
        seed: int,
        ledger: Ledger,
        journal: Journal,
        report: Report = lambda share, word: None,
    ):
        self.model, self.threat, self.suite = model, threat, suite
        self.images, self.labels = images, labels
        self.lanes, self.batch_size, self.device, self.seed = lanes, batch_size, device, seed
        self.ledger, self.journal, self.report = ledger, journal, report
        self.classes = 0
        self.order = torch.empty(0)  # (N, K) classes by falling clean logit, the label left out
        self.costs: list[StageCost] = []
        self.looks = 0  # at the model, in this process

    def run(self) -> None:
        """Everything that is not in the journal yet."""
        self.journal.restore(self.ledger)
        self.clean()
        for number in range(len(self.suite.stages)):
            began = time.monotonic()
            for _ in self._stage(number):
                with self.journal.transaction():
                    self.journal.spend(number, time.monotonic() - began)
                began = time.monotonic()
            self.costs.append(StageCost(*self.journal.cost(number)))

    # -- clean answers --------------------------------------------------------------------

    def clean(self) -> None:
        """Answers on the clean images: mistakes are broken, logits order the targets."""
        ledger = self.ledger
        orders = []
        for rows in torch.arange(len(self.images)).split(self.batch_size):
            with torch.no_grad():
                logits = self.model(self.images[rows].to(self.device))
            y = self.labels[rows].to(self.device)
            logits = check_logits(logits, len(rows), y, first=int(rows[0])).cpu()
            orders.append(
                logits.scatter(1, self.labels[rows, None], -torch.inf).argsort(
                    dim=1, descending=True, stable=True
                )
            )
            prediction = logits.argmax(1)  # of the logits: the softmax rounds close ones to a tie
            ledger.clean_prediction[rows] = prediction
            ledger.clean_confidence[rows] = logits.softmax(1).amax(1)
            wrong = rows[prediction != self.labels[rows]]
            ledger.broken[wrong], ledger.stage[wrong] = True, CLEAN
            with self.journal.transaction():
                self.journal.clean(ledger, rows)
        self.order = torch.cat(orders)
        self.classes = self.order.shape[1]
        # What the journal says of images that an attack broke includes the clean pass.
        ledger.forwards[ledger.stage < 0] = 1

    # -- one stage ------------------------------------------------------------------------

    def _stage(self, number: int) -> Iterator[None]:
        """One attack on every image that stands; yields after every step."""
        stage = self.suite.stages[number]
        kept = self.journal.items(number)
        scores: dict[tuple[int, int], float] = {}  # of the lane before
        # The score of a search for the closest point is no margin: it says nothing of how far the
        # coarse twin may be trusted, so such a search runs on the exact one alone.
        lanes = self.lanes[-1:] if stage.attack.minimum_norm else self.lanes
        for lane_number, lane in enumerate(lanes):
            before = scores
            scores = {(k.image, k.item): k.score for k in kept if k.lane == lane_number}
            state: dict[int, _Image] = {}
            todo = []
            for item in range(stage.items_per_image(self.classes)):
                for image in (~self.ledger.broken).nonzero().squeeze(1).tolist():
                    # Where the lane before saw no finite score, nothing is known: try again.
                    if lane.near is not None and lane.near < before.get((image, item), 0.0) < inf:
                        continue
                    state.setdefault(image, _Image())
                    if (image, item) not in scores:
                        state[image].open_items.add(item)
                        todo.append((item, image))
            for k in kept:
                if k.lane == lane_number and k.image in state:
                    state[k.image].costs[k.item] = (k.forwards, k.backwards)
            yield from self._lane(number, stage, lane_number, lane, todo, state, scores)
            for image, business in state.items():
                if not self.ledger.broken[image]:
                    self._charge(image, business, None)

    def _lane(
        self,
        number: int,
        stage: Stage,
        lane_number: int,
        lane: Lane,
        todo: list[tuple[int, int]],
        images: dict[int, _Image],
        scores: dict[tuple[int, int], float],
    ) -> Iterator[None]:
        attack = stage.attack
        oracle = Oracle(lane.twin.model, stage.samples)
        queue = deque(todo)
        rows: list[tuple[int, int]] = []  # (item, image) of each row of the batch
        passes = torch.zeros(0, 2, dtype=torch.int64)  # forwards, backwards of each row
        checked = torch.zeros(0)  # score at which each row was last refused
        state: State = {}
        while True:
            fresh = self._take(queue, images, self.batch_size - len(rows))
            if fresh:
                started = attack.start(self._items(stage, fresh), self.threat)
                state = (
                    {k: torch.cat([v, started[k]]) for k, v in state.items()} if rows else started
                )
                rows = rows + fresh
                passes = torch.cat([passes, torch.zeros(len(fresh), 2, dtype=torch.int64)])
                checked = torch.cat([checked, torch.full((len(fresh),), torch.inf)])
            if not rows:
                return
            before = (oracle.forwards, oracle.backwards)
            state = attack.step(oracle, state, self.threat)
            passes += torch.tensor([oracle.forwards - before[0], oracle.backwards - before[1]])
            score = state["score"].float().cpu()
            finished = state["finished"].cpu()
            # A point on which the twin may be wrong is looked at before its item gives up.
            slack = torch.where(finished, 2 * lane.twin.error, 0.0)
            # A tie counts too: at one, the model may answer either class.
            believed = (score < checked) & (score <= slack)
            won = torch.zeros(len(rows), dtype=torch.bool)
            if bool(believed.any()):
                passes[believed, 0] += 1
                won[believed] = self._holds(state, believed.nonzero().squeeze(1))
                checked = torch.where(believed, score, checked)

            leaving = won | finished
            with self.journal.transaction():
                for row in leaving.nonzero().squeeze(1).tolist():
                    item, image = rows[row]
                    self._leave(
                        number,
                        lane_number,
                        item,
                        image,
                        images[image],
                        bool(won[row]),
                        passes[row],
                        float(score[row]),
                        state["best"][row],
                        scores,
                    )
                for row, (item, image) in enumerate(rows):
                    first = images[image].won
                    if first is not None and item > first and not leaving[row]:
                        leaving[row] = True
                        images[image].open_items.discard(item)
                        self.journal.spend(number, 0.0, *passes[row].tolist())
            if bool(leaving.any()):
                stay = (~leaving).nonzero().squeeze(1)
                index = stay.to(self.device)
                state = {k: v[index] for k, v in state.items()}
                rows = [rows[i] for i in stay.tolist()]
                passes, checked = passes[stay], checked[stay]
            self.looks += len(score)
            self._tell(number, len(queue) * attack.looks + int((attack.looks - state["age"]).sum()))
            yield

    def _take(
        self, queue: deque[tuple[int, int]], images: dict[int, _Image], room: int
    ) -> list[tuple[int, int]]:
        taken: list[tuple[int, int]] = []
        while queue and len(taken) < room:
            item, image = queue.popleft()
            won = images[image].won
            if self.ledger.broken[image] or (won is not None and won < item):
                images[image].open_items.discard(item)
            else:
                taken.append((item, image))
        return taken

    def _items(self, stage: Stage, fresh: list[tuple[int, int]]) -> Items:
        """The attack's view of work items: images, targets and random seeds of their own."""
        item, image = torch.tensor(fresh).unbind(1)
        if stage.attack.targeted:
            restart, rank = item % stage.restarts, item // stage.restarts
            targets = self.order[image, rank]
        else:
            restart, targets = item, torch.full_like(item, -1)
        seeds = draws.item_seeds(
            self.seed, self.ledger.index[image], stage.attack.name, restart, targets
        )
        x = self.images[image].to(self.device)
        return Items(
            images=x,
            labels=self.labels[image].to(self.device),
            targets=targets.to(self.device),
            eps=self.threat.radii(x),
            seeds=seeds.to(self.device),
        )

    def _holds(self, state: State, rows: Tensor) -> Tensor:
        """Whether the original misclassifies each row's best point, and it is a legal one."""
        index = rows.to(self.device)
        point, x = state["best"][index], state["x"][index]
        legal = self.threat.contains(point, x, state["eps"][index])
        with torch.no_grad():
            answer = self.model(point).argmax(1)
        return (legal & (answer != state["labels"][index])).cpu()

    def _leave(
        self,
        number: int,
        lane: int,
        item: int,
        image: int,
        business: _Image,
        won: bool,
        passes: Tensor,
        score: float,
        best: Tensor,
        scores: dict[tuple[int, int], float],
    ) -> None:
        """An item is over, with or without success."""
        ledger = self.ledger
        business.open_items.discard(item)
        if won or ledger.broken[image]:
            self.journal.spend(number, 0.0, *passes.tolist())
        if ledger.broken[image]:  # by an earlier item, in this very step
            return
        business.costs[item] = (int(passes[0]), int(passes[1]))
        if won:
            if business.won is None or item < business.won:
                business.won, business.won_point, business.won_score = item, best.cpu(), score
        else:
            scores[image, item] = score
            self.journal.finished(
                FinishedItem(number, lane, image, item, int(passes[0]), int(passes[1]), score)
            )
            # The strongest point is the one of smallest margin: distances do not compare.
            margins = not self.suite.stages[number].attack.minimum_norm
            if margins and business.won is None and score < float(ledger.score[image]):
                point = best.cpu()
                if bool(self.threat.contains(point[None], self.images[image][None])):
                    ledger.score[image], ledger.adversarial[image] = score, point
                    self.journal.strongest(image, score, point)
        first = business.won
        if first is not None and not any(k < first for k in business.open_items):
            # No earlier item can succeed any more: this is the verdict.
            self._charge(image, business, first)
            stage = self.suite.stages[number]
            ledger.broken[image] = True
            ledger.stage[image], ledger.item[image] = number, first
            if stage.attack.targeted:
                ledger.target[image] = self.order[image, first // stage.restarts]
            assert business.won_point is not None
            ledger.score[image] = business.won_score
            ledger.adversarial[image] = business.won_point
            self.journal.broken(ledger, image)

    def _charge(self, image: int, business: _Image, last: int | None) -> None:
        """Add the passes of the items up to `last` (all, if None) to the image's own account."""
        for item, (forwards, backwards) in business.costs.items():
            if last is None or item <= last:
                self.ledger.forwards[image] += forwards
                self.ledger.backwards[image] += backwards

    def _tell(self, number: int, left: int) -> None:
        """Report the share done: looks so far, beside those that are left at most.

        What later stages will need is estimated from the images that stand now.
        """
        standing = int((~self.ledger.broken).sum())
        for later in self.suite.stages[number + 1 :]:
            left += standing * later.items_per_image(self.classes) * later.attack.looks
        self.report(
            self.looks / (self.looks + left),
            f"{self.suite.stages[number].attack.name}: {standing} of {len(self.labels)} stand",
        )
