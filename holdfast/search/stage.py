"""One stage of a suite on one precision level: which items there are, when one has succeeded.

Search is cheap, the verdict is not: an attack may query a fast copy, but a success counts only once
the *original* model, in its own precision, misclassifies the very point (one that draws random
numbers: by a clear vote of fresh draws), and the point lies in the ball and the box. What fails
this check goes on being searched.

Results do not depend on the schedule. An image's verdict in a stage is that of its *first* item,
in the order of the items, that succeeds; later items are dropped as soon as an earlier one has
succeeded, and earlier ones run to their end.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from math import inf

import torch
from jaxtyping import Bool, Int32, Int64
from torch import Tensor

from .. import draws
from ..attacks.goal import nearest_of_class
from ..attacks.minimum_norm import MinimumNormState
from ..attacks.state import Items
from ..attacks.suite import Stage, Suite
from ..models.metered import Account, about, point_key
from ..stored import ModelImages, StoredImages
from ..threat import Threat
from .batch import Batch, Key, StoredItem
from .fast_copies import Level
from .journal import FinishedItem, Journal
from .ledger import Ledger
from .scheduler import Task
from .verifier import Verifier

# How far along the way from the image a closest point is tried, where rounding undid it.
FURTHER = (1.0, 1.0001, 1.001, 1.01)


@dataclass
class Problem:
    """What is searched, and all that is known of it so far.

    Attributes:
        images, labels: on the CPU; (N, C, H, W) in [0, 1], and (N,).
        threat: ball and box.
        suite: what is tried, in order.
        verifier: who decides whether a point is a success.
        device: where the model is.
        seed: of all random draws.
        rows: the images that are searched, int64 (R,).
        ledger: what is known of every image; filled in as verdicts fall.
        journal: where verdicts are kept.
        account: of the queries, where the model counts them; else None.
        order: int32 (N, K), the classes by falling clean logit, the label last; (0, 0) before the
            clean images were predicted.
    """

    images: ModelImages
    labels: Tensor
    threat: Threat
    suite: Suite
    verifier: Verifier
    device: torch.device
    seed: int
    rows: Int64[Tensor, " r"]
    ledger: Ledger
    journal: Journal
    account: Account | None = None
    order: Int32[Tensor, "n k"] = field(default_factory=lambda: torch.zeros(0, 0).int())

    @property
    def classes(self) -> int:
        """How many logits the model has."""
        return self.order.shape[1]

    def standing(self) -> list[int]:
        """The images that are searched and not broken."""
        return self.rows[~self.ledger.broken[self.rows]].tolist()

    def target(self, stage: Stage, item: int, image: int) -> int:
        """The class that an item goes for; −1 where any wrong one will do."""
        if self.aimed:
            return int(self.ledger.goal[image])
        return int(self.order[image, item // stage.restarts]) if stage.attack.targeted else -1

    @property
    def aimed(self) -> bool:
        """Whether one class alone counts as a success, for each image its own."""
        return bool((self.ledger.goal >= 0).any())


@dataclass
class _Image:
    """An image's open business in a pass."""

    open_items: set[int] = field(default_factory=set)
    costs: dict[int, tuple[int, int]] = field(default_factory=dict)
    won: int | None = None  # the first item known to have succeeded
    won_point: Tensor | None = None
    won_witness: Tensor | None = None
    won_score: float = 0.0


class StagePass(Task):
    """A stage's items on one level.

    Args:
        problem: what is searched.
        number: which stage of the suite.
        level_number, level: on which level.

    Attributes:
        keys: the items that are still to be done.
        scores: the scores at which items ended without success.
    """

    def __init__(self, problem: Problem, number: int, level_number: int, level: Level):
        self.problem, self.number = problem, number
        self.level_number, self.level = level_number, level
        self.stage = problem.suite.stages[number]
        self.keys: list[Key] = []
        self.scores: dict[Key, float] = {}
        self.images: dict[int, _Image] = {}

    def plan(
        self,
        tried: Bool[Tensor, " n"],
        finished: Sequence[FinishedItem],
        before: dict[Key, float],
        below: float | None,
    ) -> None:
        """Work out which items there are.

        Args:
            tried: which images the stage is tried on.
            finished: the stage's items that ended earlier, by the journal.
            before: the scores of the level before.
            below: only items that ended below this score there are tried again; None: all.
        """
        mine = [it for it in finished if it.level == self.level_number]
        self.scores = {Key(it.item, it.image): it.score for it in mine}
        for item in range(self.stage.items_per_image(self.problem.classes)):
            for image in self.problem.standing():
                key = Key(item, image)
                # Where the level before saw no finite score, nothing is known: try again.
                settled = below is not None and below < before.get(key, 0.0) < inf
                if not tried[image] or settled:
                    continue
                business = self.images.setdefault(image, _Image())
                if key not in self.scores:
                    business.open_items.add(item)
                    self.keys.append(key)
        for it in mine:
            if it.image in self.images:
                self.images[it.image].costs[it.item] = (it.forwards, it.backwards)

    def close(self) -> None:
        """Charge the images that stand with what their items have cost."""
        for image, business in self.images.items():
            if not self.problem.ledger.broken[image]:
                self._charge(image, business, None)

    # -- what a scheduler asks ------------------------------------------------------------

    def items(self, keys: Sequence[Key]) -> Items:
        problem, stage = self.problem, self.stage
        item, image = torch.tensor(keys).unbind(1)
        restart, targets = item, torch.full_like(item, -1)
        if stage.attack.targeted:
            restart, targets = item % stage.restarts, problem.order[image, item // stage.restarts]
        goals = problem.ledger.goal[image]
        targets = torch.where(goals >= 0, goals, targets)
        # A stage that comes again draws other numbers; one that is alike in two suites, the same.
        names = [each.name for each in problem.suite.stages]
        again = names[: self.number].count(stage.name)
        index = problem.ledger.index[image]
        repeat = [again] if again else []
        seeds = draws.item_seeds(problem.seed, index, stage.name, restart, targets, *repeat)
        device = problem.device
        x = problem.images[image].to(device)
        return Items(
            images=x,
            labels=problem.labels[image].to(device),
            targets=targets.to(device),
            eps=problem.threat.radii(x),
            seeds=seeds.to(device),
            start=self._start(x, goals),
            goals=goals.to(device),
        )

    def coming(self, keys: Sequence[Key]) -> None:
        if isinstance(self.problem.images, StoredImages):
            self.problem.images.prefetch([key.image for key in keys if self.needed(key)])

    def _start(self, x: Tensor, goals: Tensor) -> Tensor:
        """Where a search that knows only predicted classes begins: at an image of the goal."""
        if not (self.stage.attack.decisions and self.problem.aimed):
            return x
        problem = self.problem
        return nearest_of_class(x, goals, problem.images, problem.labels, problem.threat)

    def needed(self, key: Key) -> bool:
        account = self.problem.account
        if account is not None and bool(account.spent([key.image])):
            return False
        won = self.images[key.image].won
        return not (self.problem.ledger.broken[key.image] or (won is not None and won < key.item))

    def ready(self, key: Key) -> bool:
        # The items of an image that share a budget go one after the other: how much is left for
        # each then depends on no batch.
        return self.problem.account is None or min(self.images[key.image].open_items) == key.item

    def asking(self, batch: Batch) -> AbstractContextManager[None]:
        return self.about(torch.arange(len(batch)), batch)

    def about(self, rows: Tensor, batch: Batch) -> AbstractContextManager[None]:
        """Inside, the model is asked about the images of some rows of a batch."""
        if self.problem.account is None:
            return nullcontext()
        return about(torch.tensor([batch.keys[row].image for row in rows.tolist()]))

    def spent(self, batch: Batch) -> Bool[Tensor, " r"]:
        """Which items' images have no query left."""
        account = self.problem.account
        if account is None:
            return torch.zeros(len(batch), dtype=torch.bool)
        return account.spent([key.image for key in batch.keys])

    def kept(self, items: Mapping[Key, StoredItem]) -> None:
        """Of the answers so far, those are needed at the best points of items and of images."""
        if self.problem.account is None:
            return
        ledger = self.problem.ledger
        rows = (ledger.found >= 0).nonzero().squeeze(1)
        points = {image: [point_key(ledger.adversarial[image])] for image in rows.tolist()}
        for key, it in items.items():
            points.setdefault(key.image, []).append(point_key(it.state["best"]))
        self.problem.account.keep(points)

    def drop(self, key: Key, passes: Sequence[int]) -> None:
        self.images[key.image].open_items.discard(key.item)
        if passes:
            self.problem.journal.spend(self.number, 0.0, *passes)

    def leave(self, batch: Batch, row: int) -> None:
        problem, key = self.problem, batch.keys[row]
        ledger, business = problem.ledger, self.images[key.image]
        passes = tuple(batch.passes[row].tolist())
        won, score = self._won(row), float(batch.state.score[row].float())
        business.open_items.discard(key.item)
        if won or ledger.broken[key.image]:
            problem.journal.spend(self.number, 0.0, *passes)
        if ledger.broken[key.image]:  # by an earlier item, in this very step
            return
        business.costs[key.item] = passes
        if not won:
            self._keep_strongest(batch, row, score, passes)
        elif business.won is None or key.item < business.won:
            business.won, business.won_score = key.item, score
            # Copies: a row of a batch keeps the whole batch in memory.
            business.won_point = batch.state.best[row].cpu().clone()
            business.won_witness = batch.state.witness[row].cpu().clone()
        first = business.won
        if first is not None and not any(item < first for item in business.open_items):
            self._decide(key.image, business, first)

    # -- what is found --------------------------------------------------------------------

    def _won(self, row: int) -> bool:
        """Whether the item of a row has succeeded in the step that was examined last."""
        return False

    @abstractmethod
    def _is_stronger(self, key: Key, score: float) -> bool:
        """Whether a point that was not enough is the strongest of its image so far."""

    def _keep_strongest(
        self, batch: Batch, row: int, score: float, passes: tuple[int, ...]
    ) -> None:
        """Take down an item that ended without success."""
        problem, key, ledger = self.problem, batch.keys[row], self.problem.ledger
        self.scores[key] = score
        where = self.number, self.level_number, key.image, key.item
        problem.journal.finished(FinishedItem(*where, passes[0], passes[1], score))
        image = key.image
        if self.images[image].won is not None or not self._is_stronger(key, score):
            return
        point, witness = batch.state.best[row].cpu(), batch.state.witness[row].cpu()
        account = problem.account
        if (
            account is not None
            and account.budget is not None
            and account.recall(image, point) is None
        ):
            return  # the budget ended before the model was asked there
        if not problem.suite.closest:
            x = batch.state.images[row].cpu()
            if not bool(problem.threat.contains(point[None], x[None], None, witness[None])):
                return
        ledger.score[image], ledger.adversarial[image] = score, point
        ledger.found[image], ledger.found_item[image] = self.number, key.item
        ledger.witness[image] = witness
        problem.journal.strongest(ledger, image)

    def _decide(self, image: int, business: _Image, first: int) -> None:
        """The verdict: no item before the first that succeeded can succeed any more."""
        problem, ledger = self.problem, self.problem.ledger
        self._charge(image, business, first)
        assert business.won_point is not None and business.won_witness is not None
        ledger.broken[image] = True
        ledger.stage[image], ledger.item[image] = self.number, first
        ledger.target[image] = problem.target(self.stage, first, image)
        ledger.score[image] = business.won_score
        ledger.adversarial[image] = business.won_point
        ledger.witness[image] = business.won_witness
        business.won_point = business.won_witness = None  # the ledger has them now
        ledger.found[image], ledger.found_item[image] = self.number, first
        problem.journal.broken(ledger, image)

    def _charge(self, image: int, business: _Image, last: int | None) -> None:
        """Add the passes of the items up to `last` (all, if None) to the image's own account."""
        ledger = self.problem.ledger
        for item, (forwards, backwards) in business.costs.items():
            if last is None or item <= last:
                ledger.forwards[image] += forwards
                ledger.backwards[image] += backwards


class BallPass(StagePass):
    """Any point inside the ball that breaks the image ends an item."""

    def examine(self, batch: Batch) -> Bool[Tensor, " r"]:
        state, attack = batch.state, self.stage.attack
        score, finished = state.score.float().cpu(), state.finished.cpu() | self.spent(batch)
        # A point on which the fast copy may be wrong is verified before its item gives up.
        error = 0.0 if attack.minimum_norm else self.level.fast_copy.error
        slack = torch.where(finished, 2 * error, 0.0)
        # A tie counts too: at one, the model may answer either class.
        believed = (score < batch.refused) & (score <= slack)
        self.won = torch.zeros(len(batch), dtype=torch.bool)
        if bool(believed.any()):
            self.won[believed], asked = self._verify(batch, believed.nonzero().squeeze(1))
            batch.passes[believed, 0] += asked
            batch.refused = torch.where(believed, score, batch.refused)
            # A fast copy that answered nothing where the model does has seen nothing: the search
            # goes on as if it had not queried there.
            blank = believed & ~self.won & (score == -inf)
            if bool(blank.any()):
                batch.refused = torch.where(blank, inf, batch.refused)
                blank = blank.to(self.problem.device)
                batch.state = state.replace(score=state.score.masked_fill(blank, inf))
        return self.won | finished

    def _won(self, row: int) -> bool:
        return bool(self.won[row])

    def _verify(self, batch: Batch, rows: Tensor) -> tuple[Bool[Tensor, " m"], Int64[Tensor, " m"]]:
        """Whether the original misclassifies each row's best point, and it is a legal one; and the
        forwards that it took to say so."""
        problem = self.problem
        state = batch.state.select(rows.to(problem.device))
        legal = problem.threat.contains(state.best, state.images, state.eps, state.witness)
        seeds = draws.item_seeds(0, "verdict", state.seeds.cpu(), state.iteration.cpu())
        with self.about(rows, batch):
            fooled, asked = problem.verifier.fooled(state.best, state.labels, seeds, state.goals)
        return (legal & fooled).cpu(), asked.cpu()

    def _is_stronger(self, key: Key, score: float) -> bool:
        return self.stage.compares and score < float(self.problem.ledger.score[key.image])


class ClosestPass(StagePass):
    """Items run to their end; what counts is the closest point that breaks the image."""

    def examine(self, batch: Batch) -> Bool[Tensor, " r"]:
        finished = batch.state.finished.cpu() | self.spent(batch)
        if bool(finished.any()):
            self._verify(batch, finished.nonzero().squeeze(1))
        return finished

    def _verify(self, batch: Batch, rows: Tensor) -> None:
        """Replace the closest points of finished rows by those that the original agrees to, and
        their scores by the distances less ε.

        Such a point lies right on the boundary, where rounding decides. So where the original
        does not agree, one a little further along is tried.
        """
        problem, threat, index = self.problem, self.problem.threat, rows.to(self.problem.device)
        state = batch.state.select(index)
        assert isinstance(state, MinimumNormState)
        x, eps, best = state.images, state.eps, state.best.clone()
        seeds = draws.item_seeds(0, "verdict", state.seeds.cpu(), state.iteration.cpu())
        score, asked = torch.full_like(eps, inf), torch.zeros(len(rows), dtype=torch.int64)
        for further in FURTHER:
            left = (score.isinf() & state.distance.isfinite()).nonzero().squeeze(1)
            if not len(left):
                break
            point = best[left]
            if further != 1:
                point = (x[left] + further * (point - x[left])).clamp(0, 1)
            with self.about(rows[left.cpu()], batch):
                fooled, passes = problem.verifier.fooled(
                    point, state.labels[left], seeds[left.cpu()], state.goals[left]
                )
            asked[left.cpu()] += passes.cpu()
            held = fooled & threat.contains(point, x[left], eps[left] + inf)
            best[left[held]] = point[held]
            score[left[held]] = (threat.distance(point, x[left]) - eps[left])[held]
        batch.passes[rows, 0] += asked
        batch.state = batch.state.replace(
            best=batch.state.best.index_copy(0, index, best),
            score=batch.state.score.index_copy(0, index, score.to(batch.state.score)),
        )

    def _is_stronger(self, key: Key, score: float) -> bool:
        ledger, image = self.problem.ledger, key.image
        best = float(ledger.score[image])
        # Of several equally close ones the first item's, whichever ended first.
        tie = score == best < inf and int(ledger.found[image]) == self.number
        return score < best or (tie and key.item < int(ledger.found_item[image]))
