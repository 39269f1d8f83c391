"""The engine: a queue that keeps every batch full.

A suite is a sequence of stages; a stage tries its attack on every image that still stands, in
work items (image, restart, target). The engine steps a batch of items at once, lets the broken and
the finished leave after every step, refills from the queue, and cancels what has become needless.
It knows nothing of any particular attack.

Search is cheap, the verdict is not: an attack may look at a fast copy, but a success counts only
once the *original* model, in its own precision, misclassifies the very point (one that draws random
numbers: by a clear vote of fresh draws), and the point lies in the ball and the box. What fails
this check goes on being searched.

Results do not depend on the schedule. An image's verdict in a stage is that of its *first* item,
in the order of the items, that succeeds; later items are cancelled as soon as an earlier one has
succeeded, and earlier ones run to their end.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from math import inf

import torch
from torch import Tensor

from .. import draws
from ..attacks.base import Model, Oracle
from ..attacks.minimum_norm import MinimumNormState
from ..attacks.state import Items, State
from ..attacks.suite import Stage, Suite
from ..errors import InputError
from ..inputs import check_logits
from ..threat import Threat
from .fast_copies import Level
from .journal import FinishedItem, FlyingItem, Journal
from .ledger import CLEAN, Ledger
from .verifier import Verifier

ACCOUNT_SECONDS = 0.5  # between entries of how long a stage has taken
CHECKPOINT_SECONDS = 30.0  # between two times that the items in flight are kept
CHECKPOINT_SHARE = 0.02  # of the time at most goes into that
NEARLY = 0.01  # of the span of an answer's logits: more than any batch rounds them
# How far along the way from the image a closest point is tried, where rounding undid it.
FURTHER = (1.0, 1.0001, 1.001, 1.01)

Report = Callable[[float, str], None]  # share of the work done, a word on how it goes


@dataclass(frozen=True)
class StageCost:
    """What a stage cost, items that were cancelled included."""

    seconds: float
    forwards: int
    backwards: int


@dataclass
class _Image:
    """An image's open business in a level."""

    open_items: set[int] = field(default_factory=set)
    costs: dict[int, tuple[int, int]] = field(default_factory=dict)
    won: int | None = None  # the first item known to have succeeded
    won_point: Tensor | None = None
    won_witness: Tensor | None = None
    won_score: float = 0.0


class Search:
    """Runs a suite over images.

    Args:
        model: the original: images (N, C, H, W) on `device` → logits (N, K).
        images, labels: on the CPU; (N, C, H, W) in [0, 1], and (N,).
        threat: ball and box.
        suite: what is tried, in order.
        levels: the fast copies that each stage searches on, in order.
        rows: which images are searched, int64 (R,); by default all.
        views: the levels of stages that look at something else, by their `view`.
        judge: who decides whether a point is a success; by default the model, asked once.
        misled: whether the model's gradients mislead: stages that wait for a sign of it run.
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
        levels: Sequence[Level],
        batch_size: int,
        device: torch.device,
        seed: int,
        ledger: Ledger,
        journal: Journal,
        report: Report = lambda share, word: None,
        rows: Tensor | None = None,
        views: Mapping[str, Sequence[Level]] | None = None,
        verifier: Verifier | None = None,
        misled: bool = False,
    ):
        self.model, self.threat, self.suite = model, threat, suite
        self.images, self.labels = images, labels
        self.levels, self.batch_size, self.device, self.seed = levels, batch_size, device, seed
        self.ledger, self.journal, self.report = ledger, journal, report
        self.views, self.verifier = {**(views or {}), "": levels}, verifier or Verifier(model)
        self.misled = misled
        self.rows = torch.arange(len(images)) if rows is None else rows
        self.classes = 0
        self.order = torch.empty(0)  # (N, K) classes by falling clean logit, the label left out
        self.costs: list[StageCost] = []
        self.idle: list[str] = []  # why a stage made no pass; empty where it did
        self.iterations = 0  # at the model, in this process
        self.next_checkpoint = time.monotonic() + CHECKPOINT_SECONDS

    def run(self) -> None:
        """Everything that is not in the journal yet."""
        self.journal.restore(self.ledger)
        self._look_again()
        self.clean()
        for number in range(len(self.suite.stages)):
            began, owed = time.monotonic(), False
            due, standing = self._is_due(self.suite.stages[number]), bool(self._standing())
            for _ in self._stage(number):
                owed = time.monotonic() - began < ACCOUNT_SECONDS
                if not owed:
                    began = self._account(number, began)
            if owed:
                self._account(number, began)
            cost = StageCost(*self.journal.cost(number))
            self.costs.append(cost)
            why = "no sign that gradients mislead" if not due else "nothing stood any more"
            if due and standing:
                why = "no image of its sample stood"
            self.idle.append("" if cost.forwards or cost.backwards else why)
        if self.suite.closest:
            self._settle()

    def _look_again(self) -> None:
        """Points that come from the journal count only if they hold: one forward each.

        Every one must be legal. One that broke its image must still be answered wrongly, or about
        as gladly: batches round differently. A random model has the last word at the end.

        Raises:
            InputError: one does not hold.
        """
        ledger, closest = self.ledger, self.suite.closest
        broke = ledger.found >= 0 if closest else ledger.broken
        for rows in (ledger.found >= 0).nonzero().squeeze(1).split(self.batch_size):
            points, x = ledger.adversarial[rows], self.images[rows]
            eps = self.threat.radii(x) + (inf if closest else 0.0)
            holds = self.threat.contains(points, x, eps, ledger.witness[rows])
            if closest:
                stated = ledger.score[rows] + self.threat.radii(x)
                off = (self.threat.distance(points, x) - stated).abs()
                holds &= off <= 1e-4 * (1 + stated.abs())
            if self.verifier.draws == 1:
                with torch.no_grad():
                    logits = self.model(points.to(self.device)).float().cpu()
                own = logits.gather(1, self.labels[rows, None]).squeeze(1)
                slack = NEARLY * (logits.amax(1) - logits.amin(1))
                others = logits.scatter(1, self.labels[rows, None], -inf).amax(1)
                holds &= ~broke[rows] | (own - others <= slack)
            if not bool(holds.all()):
                image = int(rows[~holds][0])
                raise InputError(
                    f"journal {self.journal.path} is damaged, or the model's answers depend on "
                    f"the batch: the adversarial image that it holds of image {image} does not "
                    "count any more; remove the run folder to start anew"
                )

    def _account(self, number: int, began: float) -> float:
        """Write down the time that a stage has taken since `began`; returns the time now."""
        now = time.monotonic()
        with self.journal.transaction():
            self.journal.spend(number, now - began)
        return now

    # -- clean answers --------------------------------------------------------------------

    def clean(self) -> None:
        """Answers on the clean images: mistakes are broken, logits order the targets."""
        ledger = self.ledger
        for rows in self.rows.split(self.batch_size):
            seeds = draws.item_seeds(self.seed, "clean", ledger.index[rows])
            answers = self.verifier.ask(self.images[rows].to(self.device), seeds)
            y = self.labels[rows].to(self.device)
            logits = check_logits(answers.logits, len(rows), y, first=rows).cpu()
            if not self.classes:
                self.classes = logits.shape[1]
                self.order = torch.zeros(len(self.images), self.classes, dtype=torch.int64)
            self.order[rows] = logits.scatter(1, self.labels[rows, None], -torch.inf).argsort(
                dim=1, descending=True, stable=True
            )
            prediction = answers.prediction.cpu()
            ledger.clean_prediction[rows] = prediction
            ledger.clean_confidence[rows] = answers.confidence.cpu()
            wrong = rows[prediction != self.labels[rows]]
            ledger.broken[wrong], ledger.stage[wrong] = True, CLEAN
            with self.journal.transaction():
                self.journal.clean(ledger, rows)
        # What the journal says of images that an attack broke includes the clean pass.
        ledger.forwards[ledger.stage < 0] = self.verifier.draws

    def _standing(self) -> list[int]:
        return self.rows[~self.ledger.broken[self.rows]].tolist()

    def _is_due(self, stage: Stage) -> bool:
        """Whether the stage that this one waits for, if any, broke an image: or need not have."""
        if stage.after is None or self.misled:
            return True
        return bool(torch.any(self.ledger.stage == stage.after))

    # -- one stage ------------------------------------------------------------------------

    def _stage(self, number: int) -> Iterator[None]:
        """One attack on every image that stands; yields after every step."""
        stage = self.suite.stages[number]
        if not self._is_due(stage):
            return
        tried = draws.uniform(draws.item_seeds(self.seed, self.ledger.index, "share", number), 0)
        tried = tried < stage.share_of(len(self.images))
        kept = self.journal.items(number)
        scores: dict[tuple[int, int], float] = {}  # of the level before
        every = self.views[stage.view]
        if stage.compares:
            near = [level.near for level in every]
        else:
            distances = stage.attack.minimum_norm and not self.suite.closest
            near = [level.near_in(self.threat) if distances else None for level in every]
        # Where a score does not say how far the coarse fast copy may be trusted, the search runs on
        # the exact one alone.
        first = 0 if stage.compares or near[-1] is not None else -1
        for level_number, (level, below) in enumerate(
            zip(every[first:], near[first:], strict=True)
        ):
            before = scores
            scores = {(k.image, k.item): k.score for k in kept if k.level == level_number}
            state: dict[int, _Image] = {}
            todo = []
            for item in range(stage.items_per_image(self.classes)):
                for image in self._standing():
                    if not tried[image]:
                        continue
                    # Where the level before saw no finite score, nothing is known: try again.
                    if below is not None and below < before.get((image, item), 0.0) < inf:
                        continue
                    state.setdefault(image, _Image())
                    if (image, item) not in scores:
                        state[image].open_items.add(item)
                        todo.append((item, image))
            for k in kept:
                if k.level == level_number and k.image in state:
                    state[k.image].costs[k.item] = (k.forwards, k.backwards)
            yield from self._lane(number, stage, level_number, level, todo, state, scores)
            for image, business in state.items():
                if not self.ledger.broken[image]:
                    self._charge(image, business, None)

    def _lane(
        self,
        number: int,
        stage: Stage,
        level_number: int,
        level: Level,
        todo: list[tuple[int, int]],
        images: dict[int, _Image],
        scores: dict[tuple[int, int], float],
    ) -> Iterator[None]:
        attack = stage.attack
        oracle = Oracle(level.fast_copy.model, stage.samples, attack.decisions)
        size = max(1, self.batch_size // stage.samples)
        queue = deque(todo)
        kept = self.journal.flying(number, level_number)  # when the run was interrupted
        flying = {key: kept[key] for key in todo if key in kept}
        rows: list[tuple[int, int]] = []  # (item, image) of each row of the batch
        passes = torch.zeros(0, 2, dtype=torch.int64)  # forwards, backwards of each row
        checked = torch.zeros(0)  # score at which each row was last refused
        state: State | None = None
        while True:
            fresh = self._take(queue, images, size - len(rows))
            if fresh:
                started, spent, refused = self._begin(number, fresh, flying)
                state = started if state is None else state.join(started)
                rows = rows + fresh
                passes, checked = torch.cat([passes, spent]), torch.cat([checked, refused])
            if not rows:
                with self.journal.transaction():
                    self.journal.fly(number, level_number, {})
                return
            assert state is not None
            if self.verifier.draws > 1:
                oracle.prepare(state)
            before = (oracle.forwards, oracle.backwards)
            state = attack.step(oracle, state, self.threat)
            passes += torch.tensor([oracle.forwards - before[0], oracle.backwards - before[1]])
            score = state.score.float().cpu()
            finished = state.finished.cpu()
            # A point on which the fast copy may be wrong is looked at before its item gives up.
            error = 0.0 if attack.minimum_norm else level.fast_copy.error
            slack = torch.where(finished, 2 * error, 0.0)
            # A tie counts too: at one, the model may answer either class.
            believed = (score < checked) & (score <= slack) & (not self.suite.closest)
            won = torch.zeros(len(rows), dtype=torch.bool)
            if bool(believed.any()):
                won[believed], asked = self._holds(state, believed.nonzero().squeeze(1))
                passes[believed, 0] += asked
                checked = torch.where(believed, score, checked)
                # A fast copy that answered nothing where the model does has seen nothing: the
                # search goes on as if it had not looked there.
                blank = believed & ~won & (score == -inf)
                if bool(blank.any()):
                    checked, score = (torch.where(blank, inf, t) for t in (checked, score))
                    state = state.replace(score=state.score.masked_fill(blank.to(self.device), inf))
            if self.suite.closest and bool(finished.any()):
                state, asked = self._confirm(state, finished.nonzero().squeeze(1))
                passes[finished, 0] += asked
                score = state.score.float().cpu()

            leaving = won | finished
            if bool(leaving.any()):
                with self.journal.transaction():
                    for row in leaving.nonzero().squeeze(1).tolist():
                        item, image = rows[row]
                        self._leave(
                            number,
                            level_number,
                            item,
                            image,
                            images[image],
                            bool(won[row]),
                            passes[row],
                            float(score[row]),
                            state.best[row],
                            state.witness[row],
                            scores,
                        )
                    # What an earlier item of the same image has won needs no later ones.
                    for row, (item, image) in enumerate(rows):
                        first = images[image].won
                        if first is not None and item > first and not leaving[row]:
                            leaving[row] = True
                            images[image].open_items.discard(item)
                            self.journal.spend(number, 0.0, *passes[row].tolist())
                stay = (~leaving).nonzero().squeeze(1)
                state = state.select(stay.to(self.device))
                rows = [rows[i] for i in stay.tolist()]
                passes, checked = passes[stay], checked[stay]
            if rows and self.journal.path and time.monotonic() >= self.next_checkpoint:
                self._checkpoint(number, level_number, rows, passes, checked, state, flying)
            self.iterations += len(score)
            self._tell(
                number, len(queue) * attack.iterations + int(attack.iterations_left(state).sum())
            )
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

    def _begin(
        self,
        number: int,
        fresh: list[tuple[int, int]],
        flying: dict[tuple[int, int], FlyingItem],
    ) -> tuple[State, Tensor, Tensor]:
        """Items before their first step, or where they were when the run was interrupted.

        Returns:
            their state, their passes so far, and the scores at which they were last refused.
        """
        stage = self.suite.stages[number]
        state = stage.attack.start(self._items(number, fresh), self.threat)
        passes = torch.zeros(len(fresh), 2, dtype=torch.int64)
        refused = torch.full((len(fresh),), torch.inf)
        kept = [(row, flying.pop(key)) for row, key in enumerate(fresh) if key in flying]
        for row, item in kept:
            passes[row, 0], passes[row, 1] = item.forwards, item.backwards
            refused[row] = item.refused
        if kept:
            rows = torch.tensor([row for row, _ in kept], device=self.device)
            names = state.tensors()
            stored = {name: torch.stack([item.state[name] for _, item in kept]) for name in names}
            state = state.restore(rows, stored)
        return state, passes, refused

    def _checkpoint(
        self,
        number: int,
        level: int,
        rows: list[tuple[int, int]],
        passes: Tensor,
        checked: Tensor,
        state: State,
        waiting: dict[tuple[int, int], FlyingItem],
    ) -> None:
        """Keep the batch as it is between two steps, and what waits to go on from before."""
        began = time.monotonic()
        here = state.to("cpu").tensors()
        batch = {
            key: FlyingItem(
                int(passes[row, 0]),
                int(passes[row, 1]),
                float(checked[row]),
                {name: value[row] for name, value in here.items()},
            )
            for row, key in enumerate(rows)
        }
        with self.journal.transaction():
            self.journal.fly(number, level, waiting | batch)
        took = time.monotonic() - began
        self.next_checkpoint = began + max(CHECKPOINT_SECONDS, took / CHECKPOINT_SHARE)

    def _items(self, number: int, fresh: list[tuple[int, int]]) -> Items:
        """The attack's view of work items: images, targets and random seeds of their own."""
        stage = self.suite.stages[number]
        item, image = torch.tensor(fresh).unbind(1)
        if stage.attack.targeted:
            restart, rank = item % stage.restarts, item // stage.restarts
            targets = self.order[image, rank]
        else:
            restart, targets = item, torch.full_like(item, -1)
        # A stage that comes again draws other numbers; one that is alike in two suites, the same.
        names = [stage.name for stage in self.suite.stages]
        again = names[:number].count(stage.name)
        seeds = draws.item_seeds(
            self.seed,
            self.ledger.index[image],
            stage.name,
            restart,
            targets,
            *([again] if again else []),
        )
        x = self.images[image].to(self.device)
        return Items(
            images=x,
            labels=self.labels[image].to(self.device),
            targets=targets.to(self.device),
            eps=self.threat.radii(x),
            seeds=seeds.to(self.device),
        )

    def _holds(self, state: State, rows: Tensor) -> tuple[Tensor, Tensor]:
        """Whether the original misclassifies each row's best point, and it is a legal one; and the
        forwards that it took to say so."""
        index = rows.to(self.device)
        point, x = state.best[index], state.images[index]
        legal = self.threat.contains(point, x, state.eps[index], state.witness[index])
        iteration, own = state.iteration[index].cpu(), state.seeds[index].cpu()
        fooled, asked = self.verifier.fooled(
            point, state.labels[index], draws.item_seeds(0, "verdict", own, iteration)
        )
        return (legal & fooled).cpu(), asked.cpu()

    def _confirm(self, state: State, rows: Tensor) -> tuple[State, Tensor]:
        """The closest points of finished rows, as far as the original agrees, with their distance
        less ε as their score; and the forwards that it took to say so.

        Such a point lies right on the boundary, where rounding decides. So where the original
        does not agree, one a little further along is tried.
        """
        index = rows.to(self.device)
        some = state.select(index)
        assert isinstance(some, MinimumNormState)
        x, best, eps = some.images, some.best.clone(), some.eps
        seeds = draws.item_seeds(0, "verdict", some.seeds.cpu(), some.iteration.cpu())
        score, asked = torch.full_like(eps, inf), torch.zeros(len(rows), dtype=torch.int64)
        for further in FURTHER:
            left = (score.isinf() & some.distance.isfinite()).nonzero().squeeze(1)
            if not len(left):
                break
            point = best[left]
            if further != 1:
                point = (x[left] + further * (point - x[left])).clamp(0, 1)
            fooled, passes = self.verifier.fooled(point, some.labels[left], seeds[left.cpu()])
            asked[left.cpu()] += passes.cpu()
            held = fooled & self.threat.contains(point, x[left], eps[left] + inf)
            distance = self.threat.distance(point, x[left])
            best[left[held]] = point[held]
            score[left[held]] = (distance - eps[left])[held]
        confirmed = state.replace(
            best=state.best.index_copy(0, index, best),
            score=state.score.index_copy(0, index, score.to(state.score)),
        )
        return confirmed, asked

    def _settle(self) -> None:
        """Broken are the images whose closest adversarial point lies in the ball."""
        ledger = self.ledger
        inside = self.threat.contains(ledger.adversarial, self.images) & (ledger.found >= 0)
        for image in (inside & ~ledger.broken).nonzero().squeeze(1).tolist():
            number, item = int(ledger.found[image]), int(ledger.found_item[image])
            ledger.broken[image] = True
            ledger.stage[image], ledger.item[image] = number, item
            stage = self.suite.stages[number]
            if stage.attack.targeted:
                ledger.target[image] = self.order[image, item // stage.restarts]

    def _leave(
        self,
        number: int,
        level: int,
        item: int,
        image: int,
        business: _Image,
        won: bool,
        passes: Tensor,
        score: float,
        best: Tensor,
        witness: Tensor,
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
                business.won, business.won_score = item, score
                # Copies: a row of a batch keeps the whole batch in memory.
                business.won_point, business.won_witness = best.cpu().clone(), witness.cpu().clone()
        else:
            scores[image, item] = score
            self.journal.finished(
                FinishedItem(number, level, image, item, int(passes[0]), int(passes[1]), score)
            )
            if business.won is None and self._is_strongest(number, item, image, score):
                point, witness = best.cpu(), witness.cpu()
                if self.suite.closest or bool(
                    self.threat.contains(point[None], self.images[image][None], None, witness[None])
                ):
                    ledger.score[image], ledger.adversarial[image] = score, point
                    ledger.found[image], ledger.found_item[image] = number, item
                    ledger.witness[image] = witness
                    self.journal.strongest(ledger, image)
        first = business.won
        if first is not None and not any(k < first for k in business.open_items):
            # No earlier item can succeed any more: this is the verdict.
            self._charge(image, business, first)
            stage = self.suite.stages[number]
            ledger.broken[image] = True
            ledger.stage[image], ledger.item[image] = number, first
            if stage.attack.targeted:
                ledger.target[image] = self.order[image, first // stage.restarts]
            assert business.won_point is not None and business.won_witness is not None
            ledger.score[image] = business.won_score
            ledger.adversarial[image] = business.won_point
            ledger.witness[image] = business.won_witness
            business.won_point = business.won_witness = None  # the ledger has them now
            ledger.found[image], ledger.found_item[image] = number, first
            self.journal.broken(ledger, image)

    def _is_strongest(self, number: int, item: int, image: int, score: float) -> bool:
        """Whether a point that was not enough is the strongest of its image so far: the one of
        smallest margin, or, where distances are what is sought, the closest."""
        ledger = self.ledger
        if not (self.suite.closest or self.suite.stages[number].compares):
            return False
        best = float(ledger.score[image])
        # Of several equally close ones the first item's, whichever ended first.
        tie = score == best < inf and int(ledger.found[image]) == number
        return score < best or (tie and self.suite.closest and item < int(ledger.found_item[image]))

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
        standing = len(self._standing())
        stand = standing
        if self.suite.closest:
            stand = int(((self.ledger.score > 0) & ~self.ledger.broken)[self.rows].sum())
        for later in self.suite.stages[number + 1 :]:
            if self._is_due(later):
                items = standing * later.items_per_image(self.classes)
                left += int(later.share_of(len(self.images)) * items * later.attack.iterations)
        self.report(
            self.iterations / (self.iterations + left),
            f"{self.suite.stages[number].name}: {stand} of {len(self.rows)} stand",
        )
