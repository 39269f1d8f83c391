"""By lunch: a random sample of the images, as large as a budget of time or a precision makes it.

The images are taken in an order that only the seed decides, in blocks, and the whole suite judges
each block before the next begins. What came of the first n of that order is the same whatever the
blocks are, and however often the run was interrupted.
"""

from __future__ import annotations

import os
import time
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from jaxtyping import Bool, Int64
from torch import Tensor

from ..intervals import anytime_interval
from ..runs.progress import ProgressLine, clock
from ..search import ASIDE, Block, Search
from .aside import Aside
from .inspection import Inspection
from .limits import ALL, BUDGET, UNTIL, Limits
from .plan import Plan
from .request import Request
from .result import Evaluation
from .verdicts import Beside, final_predictions

FIRST = 8  # images of the first block: few, for nothing is known yet of what one takes
FIRST_SHARE = 0.2  # of the budget, after which that block is made smaller where it does not fit
GROWTH = 4  # a block is at most so many times as large as the one before
BLOCK_SHARE = 0.1  # of the budget that a block takes at most
LEAST_BLOCK = 32  # images of later blocks, where only a precision is asked for
ASIDE_SHARE = 0.1  # of the time so far that goes into what is measured beside the verdicts
# Seconds of the processor from the last block to the end: for each image, in any case, and until a
# program that does nothing else is gone.
ENDING_PER_IMAGE, ENDING, CLOSING = 2e-4, 0.3, 0.4


@dataclass(frozen=True)
class Sample:
    """What was judged.

    Attributes:
        places: int64 (n,), the images in the order in which they were drawn.
        population: how many there are in all.
        stopped: why no more: `BUDGET`, `UNTIL` or `ALL`.
        limits: what was asked for.
        beside: what was measured beside the verdicts; None where there was time for that later.
    """

    places: Int64[Tensor, " n"]
    population: int
    stopped: str
    limits: Limits
    beside: Beside | None

    @property
    def rows(self) -> Int64[Tensor, " n"]:
        """The images in their own order."""
        return self.places.sort().values

    def stated(self, result: Evaluation) -> Evaluation:
        """The result on these images, with what is to be said of the sample."""
        drawn = torch.searchsorted(self.rows, self.places)
        right = torch.tensor([v.clean_prediction == v.label for v in result.verdicts])
        intervals = [
            anytime_interval(outcomes[drawn].double().numpy(), self.population)
            for outcomes in (right, ~result.broken)
        ]
        return result.model_copy(
            update={
                "population": self.population,
                "stopped": self.stopped,
                "budget": self.limits.budget,
                "until": self.limits.until,
                "standard_accuracy_anytime_interval": intervals[0],
                "robust_accuracy_anytime_interval": intervals[1],
            }
        )


@dataclass
class Sampler:
    """Judges block after block until the sample is large enough.

    Attributes:
        earlier: seconds that the run took before this session.
        places: the order of all images.
        n: how many of them, from the first, are judged whole.
        blocks: of which sizes, and what each took.
        standing: of the images that are judged, block by block, which stand.
        first: of which size the first block is.
        began, block, share: when the block began that is searched now, its size, and how much of it
            is done.
        robust, width, interval: the share that stands, half the width of its interval, and that.
    """

    request: Request
    plan: Plan
    search: Search
    aside: Aside | None
    line: ProgressLine
    limits: Limits
    places: Int64[Tensor, " all"]
    earlier: float
    n: int = 0
    blocks: list[Block] = field(default_factory=list)
    standing: list[Bool[Tensor, " b"]] = field(default_factory=list)
    first: int = FIRST
    began: float = 0.0
    block: int = 0
    share: float = 0.0
    robust: float = 0.0
    width: float = 0.5  # half of the interval's
    interval: tuple[float, float] = (0.0, 1.0)

    # -- time -----------------------------------------------------------------------------

    @property
    def elapsed(self) -> float:
        """Seconds that the run has taken, in all sessions."""
        return self.earlier + time.monotonic() - self.limits.began

    def left(self, n: int) -> float:
        """Seconds left for searching where `n` images are to be judged in the end."""
        if self.limits.budget is None:
            return float("inf")
        search = self.search
        # The last word, and of a random model its figures, ask of each image what `clean` asked.
        asked = 2 if self.plan.verifier.draws > 1 else 1
        each = asked * search.clean_seconds / max(1, search.clean_images) + ENDING_PER_IMAGE
        rest = waiting() * (ENDING + (CLOSING if self.limits.program else 0.0))
        return self.limits.budget - self.elapsed - rest - n * each

    @property
    def each(self) -> float:
        """Seconds that an image takes."""
        images = sum(block.images for block in self.blocks)
        return sum(block.seconds for block in self.blocks) / max(1, images)

    # -- how large ------------------------------------------------------------------------

    @property
    def needed(self) -> int:
        """How many images the precision that is asked for will take, about."""
        everything = len(self.places)
        if not self.n or self.limits.until is None:
            return everything
        more = self.n * (self.width / self.limits.until) ** 2
        return min(everything, max(self.n + 1, round(more)))

    def size(self) -> int:
        """Of the next block."""
        if not self.blocks:
            return min(self.first, len(self.places))
        size: float = GROWTH * self.blocks[-1].images
        if self.limits.until is not None:
            size = min(size, max(LEAST_BLOCK, (self.needed - self.n) // 2))
        if self.limits.budget is not None:
            seconds = min(BLOCK_SHARE * self.limits.budget, self.left(self.n) / 2)
            size = min(size, seconds / max(self.each, 1e-9))
        return min(max(1, int(size)), len(self.places) - self.n)

    def enough(self) -> str:
        """Why no further block is begun; empty where one is."""
        if self.n == len(self.places):
            return ALL
        if not self.n:
            return ""
        if self.limits.until is not None and self.width <= self.limits.until:
            return UNTIL
        return BUDGET if self.left(self.n) <= 0 else ""

    # -- the way --------------------------------------------------------------------------

    def run(self) -> str:
        """Block after block; returns why no more."""
        self._go_on()
        while not (why := self.enough()):
            size, called = self.size(), self.search.called
            rows, self.began = self.places[self.n : self.n + size], time.monotonic()
            self.block, self.share = size, 0.0
            # Without a single image there would be no result, however late it is.
            alone = not self.n and size == 1
            stop = partial(bool, False) if alone else partial(self._is_late, self.n + size)
            whole = self.search.judge(rows, stop)
            if self.search.called != called:
                self._anew()
            elif whole:
                self._keep(Block(self.n, size, called, time.monotonic() - self.began))
                self._measure_aside(ASIDE_SHARE * self.elapsed)
            elif not self.n:
                self.first = max(1, min(size - 1, int(size * self.left(size) / self._missing())))
        self._measure_aside(0.0 if why == BUDGET else float("inf"))
        self.account_time()
        return why

    def _is_late(self, n: int) -> bool:
        """Whether a block ends now that was to make it `n` images: the time is up; or it is the
        first one, and will not get to its end."""
        left = self.left(n)
        first = not self.n and self.limits.budget is not None
        if first and self.elapsed > FIRST_SHARE * (self.limits.budget or 0.0):
            return self._missing() > left
        return left <= 0

    def _missing(self) -> float:
        """Seconds that a block takes yet, judged by the share of it that is done."""
        return (time.monotonic() - self.began) * (1 / max(self.share, 1e-3) - 1) + 1e-9

    def _measure_aside(self, allowance: float) -> None:
        """In so many seconds, and no more than are left."""
        if self.aside is not None:
            most = self.aside.seconds + self.left(self.n)
            first = self.blocks[0].seconds if self.blocks else 0.0  # as many steps, about
            self.aside.measure(self.places[: self.n], min(allowance, most), first)

    def _go_on(self) -> None:
        """From where an earlier session ended."""
        self.search.recall()
        called = self.search.called
        self.blocks = [b for b in self.search.journal.blocks() if b.called == called]
        if self.blocks and self.blocks[0].first == 0:
            n = sum(block.images for block in self.blocks)
            self.search.judge(self.places[:n])
            self._count(self.places[:n])
        else:
            self.blocks = []

    def _anew(self) -> None:
        """Stages are called for that were not run on the images before."""
        if self.n:
            self.line.say(
                "an attack without gradients broke an image: the images before are searched again, "
                "with the whole suite"
            )
        self.n, self.blocks, self.standing = 0, [], []
        if self.aside is not None:
            self.aside.forget()

    def _keep(self, block: Block) -> None:
        journal = self.search.journal
        with journal.transaction():
            journal.judged(block)
        self.blocks.append(block)
        self._count(self.places[block.first : block.first + block.images])
        self.block, self.share = 0, 0.0
        self.account_time()
        self.tell()

    def account_time(self) -> None:
        """Write down what this session has taken beside the stages."""
        journal = self.search.journal
        more = self.elapsed - self.earlier - journal.seconds(journal.session)
        if more > 0:
            with journal.transaction():
                journal.spend(ASIDE, more)

    def _count(self, rows: Int64[Tensor, " b"]) -> None:
        """The figures with these images."""
        self.n += len(rows)
        self.standing.append(self._stand(rows))
        standing = torch.cat(self.standing).double().numpy()
        low, high = anytime_interval(standing, len(self.places))
        self.robust, self.width = float(standing.mean()), (high - low) / 2
        self.interval = low, high

    def _stand(self, rows: Int64[Tensor, " n"]) -> Bool[Tensor, " n"]:
        """Which images stand; of a random model, in draws that no search has seen."""
        ledger, verifier = self.search.ledger, self.plan.verifier
        if verifier.draws == 1:
            return ~ledger.broken[rows]
        known, request = ledger.select(rows), self.request
        final_predictions(
            verifier, known, request.images[rows], request.threat, self.plan.batch_size,
            request.device, request.seed,
        )  # fmt: skip
        return ~known.broken

    # -- progress -------------------------------------------------------------------------

    def hear(self, share: float, stage: str) -> None:
        """Of a step of the search."""
        self.share = share
        self.tell(stage)

    def tell(self, stage: str = "") -> None:
        """`robust 41.2 % ± 3.1, 412 images, 9:40 left`."""
        shares, left = [], []
        if self.limits.budget is not None:
            left.append(max(0.0, self.limits.budget - self.elapsed))
            shares.append(self.elapsed / self.limits.budget)
        if self.limits.until is not None and self.n:
            left.append(self._to_go())
            shares.append(self.n / self.needed)
        known = f"robust {100 * self.robust:.1f} % ± {100 * self.width:.1f}, {self.n} images"
        word = known if self.n else f"first images, {stage}"
        if left:
            word += f", {clock(min(left))} left"
        self.line.known = self._known
        self.line.show(min(1.0, max(shares, default=0.0)), word)

    def _to_go(self) -> float:
        """Seconds until the precision asked for is reached, about. The block under way counts: the
        images before it may have been searched by an earlier session, or have been easy."""
        here = self.share * self.block
        seconds = sum(block.seconds for block in self.blocks)
        if self.block:
            seconds += time.monotonic() - self.began
        done = sum(block.images for block in self.blocks) + here
        return seconds / max(1.0, done) * max(0.0, self.needed - self.n - here)

    def _known(self) -> dict[str, Any]:
        """For who looks on."""
        return {
            "n": len(self.places),
            "judged": self.n,
            "robust_accuracy_interval": self.interval,
        }


def waiting() -> float:
    """How many times as long as alone a program takes where others want the processor, too."""
    if not hasattr(os, "getloadavg"):  # Windows
        return 1.0
    return max(1.0, os.getloadavg()[0] / (os.cpu_count() or 1))


def judge_sample(
    request: Request, known: Inspection, plan: Plan, search: Search, line: ProgressLine
) -> Sample:
    """As large a sample as the limits of a request allow.

    Args:
        search: of all images, before it is run; afterwards it knows of the sample alone.
    """
    limits, places = request.limits, search.sample
    assert limits is not None and places is not None
    earlier = search.journal.seconds()
    aside = None if limits.budget is None else Aside(request, known, plan, search)
    sampler = Sampler(request, plan, search, aside, line, limits, places, earlier)
    search.report = sampler.hear
    if limits.budget is not None and earlier == 0 and sampler.elapsed > limits.budget / 2:
        line.say(
            f"before the first image, {clock(sampler.elapsed)} of {clock(limits.budget)} are gone: "
            "the model had to be loaded and inspected"
        )
    try:
        stopped = sampler.run()
    except KeyboardInterrupt:
        sampler.account_time()
        raise
    search.account()
    beside = None if aside is None else Beside(aside.curve, aside.unaware)
    sample = Sample(places[: sampler.n], len(places), stopped, limits, beside)
    search.ledger = search.ledger.select(sample.rows)
    return sample
