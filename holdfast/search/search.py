"""A suite over images: stage after stage on whatever still stands.

A stage tries its attack on every image that stands, in work items (image, restart, target), on one
precision level after the other: a coarse fast copy first, then only what ended near the boundary
on a finer one. `stage` says what counts as a success, `scheduler` keeps the batches full.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import inf

import torch
from torch import Tensor

from .. import draws
from ..attacks.base import Model, Oracle
from ..attacks.losses import margin
from ..attacks.suite import Stage, Suite
from ..errors import InputError
from ..inputs import check_logits
from ..models.metered import MeteredModel, about
from ..stored import ModelImages, in_parts
from ..threat import Threat
from .batch import Key
from .fast_copies import Level
from .journal import Journal
from .ledger import CLEAN, Ledger
from .scheduler import Checkpoints, Scheduler
from .stage import BallPass, ClosestPass, Problem, StagePass
from .verifier import Verifier, succeeded

ACCOUNT_SECONDS = 0.5  # between entries of how long a stage has taken
ROUNDING = 0.01  # of the span of an image's logits: more than batches change them

SearchReport = Callable[[float, str], None]  # share of the work done, a word on how it goes


@dataclass(frozen=True)
class StageCost:
    """What a stage cost, items that were dropped included."""

    seconds: float
    forwards: int
    backwards: int


class Search:
    """Runs a suite over images.

    Args:
        model: the original: images (N, C, H, W) on `device` → logits (N, K). One that counts its
            queries (`MeteredModel`) is told whose they are.
        images, labels: on the CPU; (N, C, H, W) in [0, 1], which need not all be in memory, and
            (N,).
        threat: ball and box.
        suite: what is tried, in order.
        levels: the fast copies that each stage searches on, in order.
        rows: which images are searched, int64 (R,); by default all.
        views: the levels of stages that query another view of the model, by its name.
        verifier: decides whether a point is a success; by default the model's one prediction.
        misled: whether the model's gradients mislead: stages that wait for a sign of it run.
        batch_size: items stepped together.
        device: where the model is.
        seed: of all random draws.
        ledger: what is known so far; filled in as verdicts fall.
        journal: where verdicts are kept.
        report: called after every step with the share that is done, and a word on it.
        sample: the order in which images are searched where they are a growing sample of all.

    Attributes:
        costs: of every stage, once the search has run.
        idle: why a stage made no pass; empty where it did.
        clean_seconds, clean_images: what the clean predictions took, and of how many images.
    """

    def __init__(
        self,
        model: Model,
        images: ModelImages,
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
        report: SearchReport | None = None,
        rows: Tensor | None = None,
        views: Mapping[str, Sequence[Level]] | None = None,
        verifier: Verifier | None = None,
        misled: bool = False,
        sample: Tensor | None = None,
    ):
        self.problem = Problem(
            images=images,
            labels=labels,
            threat=threat,
            suite=suite,
            verifier=verifier or Verifier(model),
            device=device,
            seed=seed,
            rows=torch.arange(len(images)) if rows is None else rows,
            ledger=ledger,
            journal=journal,
            account=model.account if isinstance(model, MeteredModel) else None,
        )
        self.model, self.suite, self.batch_size = model, suite, batch_size
        self.ledger, self.journal = ledger, journal
        self.report = report or (lambda share, word: None)
        self.views, self.misled = {**(views or {}), "": levels}, misled
        self.costs: list[StageCost] = []
        self.idle: list[str] = []
        self.iterations = 0  # steps of single items, in this process
        self.checkpoints = Checkpoints(journal)
        self.sample = sample
        self.clean_seconds, self.clean_images = 0.0, 0
        # Stage and pass now, and below which scores items come to the stage's next level, if any.
        self._at: tuple[int, StagePass, list[float | None]] | None = None
        self._was_due = [False] * len(suite.stages)
        self._had_images = [False] * len(suite.stages)

    def run(self) -> None:
        """Everything that is not in the journal yet."""
        self.recall()
        self.judge(self.problem.rows)
        self.account()

    def recall(self) -> None:
        """What is in the journal already."""
        self.journal.restore(self.ledger)
        account = self.problem.account
        if account is not None:
            account.restore(self.journal.queries(), self.journal.answers())
            account.log = self.journal if self.journal.path is not None else None
        # What an attack reached stays its goal, should two classes tie when goals are chosen anew.
        reached = (self.ledger.stage >= 0) & (self.ledger.goal >= 0)
        self.ledger.goal[reached] = self.ledger.target[reached]
        self._verify_restored()

    def judge(self, rows: Tensor, stop: Callable[[], bool] = lambda: False) -> bool:
        """The whole suite on some of the images.

        Args:
            rows: which, int64 (R,).
            stop: asked after every step whether the time is up.

        Returns:
            whether they are judged whole. Where they are not, what was found so far, and the items
            in flight, are kept: the same call goes on from there.
        """
        self.problem.rows = rows
        self.clean()
        for number, stage in enumerate(self.suite.stages):
            due = self._is_due(stage)
            self._was_due[number] |= due
            self._had_images[number] |= due and bool(self.problem.standing())
            if due and not self._run_stage(number, stop):
                return False
        if self.suite.closest:
            self._settle()
        return True

    def account(self) -> None:
        """What every stage has cost, and why one made no pass; all is written down by now."""
        if self.problem.account is not None:
            self.problem.account.log = None
        for number in range(len(self.suite.stages)):
            cost = StageCost(*self.journal.cost(number))
            self.costs.append(cost)
            why = "nothing stood any more"
            if not self._was_due[number]:
                why = "no sign that gradients mislead"
            elif self._had_images[number] and self._all_asked():
                why = "the budget of queries was spent"
            elif self._had_images[number]:
                why = "no image of its sample stood"
            self.idle.append("" if cost.forwards or cost.backwards else why)

    @property
    def called(self) -> int:
        """The stages that wait for a sign, and whose sign was seen, as bits."""
        waiting = [
            (n, stage) for n, stage in enumerate(self.suite.stages) if stage.after is not None
        ]
        return sum(1 << number for number, stage in waiting if self._is_due(stage))

    def _all_asked(self) -> bool:
        """Whether what stands does so because no query is left."""
        account, standing = self.problem.account, self.problem.standing()
        return account is not None and bool(account.spent(standing).all()) and bool(standing)

    def bounds(self) -> tuple[int, int]:
        """How many of the images will stand in the end, at least and at most, as far as is known.

        At most: those that are not broken. At least: those on which no attack is left to be tried;
        stages that wait for a sign that was not seen, and those on a sample of the images, aside.
        """
        standing = self.problem.standing()
        if self._at is None or self.suite.closest:
            return 0, len(standing)
        number, one_pass, again = self._at
        later = self.suite.stages[number + 1 :]
        if any(self._is_due(stage) and stage.share == 1 for stage in later):
            return 0, len(standing)
        left = {image for image, held in one_pass.images.items() if held.open_items}
        for key, score in one_pass.scores.items():
            if again and (again[0] is None or not again[0] < score < inf):
                left.add(key.image)  # the next level tries it again
        return len(set(standing) - left), len(standing)

    # -- before and after the stages ------------------------------------------------------

    def _verify_restored(self) -> None:
        """Points that come from the journal count only if they hold: one forward each.

        Each must lie in ball and box. One that broke its image must still be misclassified, up to
        rounding, which differs between batches. Those of a random model are judged at the end.

        Raises:
            InputError: one does not hold.
        """
        ledger, threat, closest = self.ledger, self.problem.threat, self.suite.closest
        broke = ledger.found >= 0 if closest else ledger.broken
        for rows in (ledger.found >= 0).nonzero().squeeze(1).split(self.batch_size):
            points, x = ledger.adversarial[rows], self.problem.images[rows]
            eps = threat.radii(x) + (inf if closest else 0.0)
            holds = threat.contains(points, x, eps, ledger.witness[rows])
            if closest:
                stated = ledger.score[rows] + threat.radii(x)
                off = (threat.distance(points, x) - stated).abs()
                holds &= off <= 1e-4 * (1 + stated.abs())
            if self.problem.verifier.draws == 1:
                with torch.no_grad(), about(rows):
                    logits = self.model(points.to(self.problem.device)).float().cpu()
                slack = ROUNDING * (logits.amax(1) - logits.amin(1))
                lacks = margin(logits, self.problem.labels[rows], ledger.goal[rows])
                holds &= ~broke[rows] | ~(lacks > slack)
            if not bool(holds.all()):
                image = int(rows[~holds][0])
                raise InputError(
                    f"journal {self.journal.path} is damaged, or the model's answers depend on "
                    f"the batch: the adversarial image that it holds of image {image} does not "
                    "count any more; remove the run folder to start anew"
                )

    def clean(self) -> None:
        """Predictions on the clean images: mistakes are broken (with a goal, those that are it),
        logits order the targets."""
        problem, ledger, began = self.problem, self.ledger, time.monotonic()
        for rows in problem.rows.split(self.batch_size):
            seeds = draws.item_seeds(problem.seed, "clean", ledger.index[rows])
            with about(rows, clean=True):
                answers = problem.verifier.predict(problem.images[rows].to(problem.device), seeds)
            y = problem.labels[rows].to(problem.device)
            logits = check_logits(answers.logits, len(rows), y, first=rows).cpu()
            if not problem.classes:
                problem.order = torch.zeros(len(problem.images), logits.shape[1]).int()
            problem.order[rows] = (
                logits.scatter(1, problem.labels[rows, None], -torch.inf)
                .argsort(dim=1, descending=True, stable=True)
                .int()
            )
            prediction = answers.prediction.cpu()
            ledger.clean_prediction[rows] = prediction
            ledger.clean_confidence[rows] = answers.confidence.cpu()
            won = rows[succeeded(prediction, problem.labels[rows], ledger.goal[rows])]
            ledger.broken[won], ledger.stage[won] = True, CLEAN
            with self.journal.transaction():
                self.journal.clean(ledger, rows)
        # What the journal says of images that an attack broke includes the clean pass.
        mine = problem.rows[ledger.stage[problem.rows] < 0]
        ledger.forwards[mine], ledger.backwards[mine] = problem.verifier.draws, 0
        self.clean_seconds += time.monotonic() - began
        self.clean_images += len(problem.rows)

    def _settle(self) -> None:
        """Broken are the images whose closest adversarial point lies in the ball."""
        ledger, problem = self.ledger, self.problem
        inside = in_parts(problem.threat.contains, ledger.adversarial, problem.images)
        inside &= ledger.found >= 0
        for image in problem.rows[(inside & ~ledger.broken)[problem.rows]].tolist():
            number, item = int(ledger.found[image]), int(ledger.found_item[image])
            stage = self.suite.stages[number]
            ledger.broken[image] = True
            ledger.stage[image], ledger.item[image] = number, item
            ledger.target[image] = problem.target(stage, item, image)

    # -- one stage ------------------------------------------------------------------------

    def _is_due(self, stage: Stage) -> bool:
        """Whether a stage runs: one that waits for another does if that broke an image."""
        if stage.after is None or self.misled:
            return True
        return bool(torch.any(self.ledger.stage == stage.after))

    def _run_stage(self, number: int, stop: Callable[[], bool]) -> bool:
        """One attack on every image that stands, and the account of its time; whether it came to
        its end."""
        began, unaccounted, ended = time.monotonic(), False, True
        for left, scheduler in self._steps(number):
            self._tell(number, left)
            if stop():
                scheduler.keep()
                unaccounted, ended = True, False
                break
            unaccounted = time.monotonic() - began < ACCOUNT_SECONDS
            if not unaccounted:
                began = self._account(number, began)
        if unaccounted:
            self._account(number, began)
        return ended

    def _account(self, number: int, began: float) -> float:
        """Write down the time that a stage has taken since `began`; returns the time now."""
        now = time.monotonic()
        with self.journal.transaction():
            self.journal.spend(number, now - began)
        return now

    def _steps(self, number: int) -> Iterator[tuple[int, Scheduler]]:
        """A stage on one level after the other. Yields after every step: the steps left at most,
        and who makes them."""
        problem, stage = self.problem, self.suite.stages[number]
        share = draws.uniform(draws.item_seeds(problem.seed, self.ledger.index, "share", number), 0)
        images = len(problem.images)
        tried = share < stage.share_of(images)
        if self.sample is not None and stage.share * images > stage.least:
            # The sample may end long before a share of all images is worth much: every second one
            # is tried too, after the very first, which are to be judged soon.
            tried[self.sample[stage.least // 4 :: 2][: stage.least]] = True
        finished = self.journal.items(number)
        before: dict[Key, float] = {}
        levels = self._levels(stage)
        for level_number, (level, below) in enumerate(levels):
            kind = ClosestPass if self.suite.closest else BallPass
            one_pass = kind(problem, number, level_number, level)
            one_pass.plan(tried, finished, before, below)
            self._at = number, one_pass, [below for _, below in levels[level_number + 1 :]]
            scheduler = Scheduler(
                stage.attack,
                Oracle(level.fast_copy.model, stage.samples, stage.attack.decisions),
                problem.threat,
                one_pass,
                batch_size=self._batch_size(stage),
                checkpoints=self.checkpoints,
                stage=number,
                level=level_number,
                own_draws=problem.verifier.draws > 1,
            )
            # Without any, what is in flight of images further on in a sample stays as it is.
            idle = self.sample is not None and not one_pass.keys
            for left in () if idle else scheduler.run(one_pass.keys):
                self.iterations += scheduler.stepped
                yield left, scheduler
            one_pass.close()
            before = one_pass.scores

    def _batch_size(self, stage: Stage) -> int:
        if self.problem.account is not None and stage.attack.lends:
            return 1  # so that nobody needs to say whose its queries are
        return max(1, self.batch_size // stage.samples)

    def _levels(self, stage: Stage) -> list[tuple[Level, float | None]]:
        """The levels that a stage runs on, and the scores below which items come to each."""
        levels = self.views[stage.view]
        if stage.compares:
            return [(level, level.near) for level in levels]
        distances = stage.attack.minimum_norm and not self.suite.closest
        near = [level.near_in(self.problem.threat) if distances else None for level in levels]
        every = list(zip(levels, near, strict=True))
        # Where a score does not say how far the coarse fast copy may be trusted, the search runs on
        # the exact one alone.
        return every if near[-1] is not None else every[-1:]

    def _tell(self, number: int, left: int) -> None:
        """Report the share done: steps so far, beside those that are left at most.

        What later stages will need is estimated from the images that stand now.
        """
        standing, images = len(self.problem.standing()), len(self.problem.images)
        stand, rows = standing, self.problem.rows
        if self.suite.closest:
            stand = int(((self.ledger.score > 0) & ~self.ledger.broken)[rows].sum())
        for later in self.suite.stages[number + 1 :]:
            if self._is_due(later):
                items = standing * later.items_per_image(self.problem.classes)
                left += int(later.share_of(images) * items * later.attack.iterations)
        self.report(
            self.iterations / (self.iterations + left),
            f"{self.suite.stages[number].name}: {stand} of {len(rows)} stand",
        )
