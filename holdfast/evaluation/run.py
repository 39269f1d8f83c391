"""An evaluation's run folder: which run it is, whether it was finished before, its files."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor

from ..attacks import PGD
from ..defences import steps
from ..distributed import Workers
from ..errors import InputError
from ..intervals import clopper_pearson
from ..models.wrapper import unwrapped
from ..runs.environment import circumstances
from ..runs.folder import finished, holds, on_date, open_run, withdraw_run
from ..runs.identity import code_version, digest, identity
from ..runs.progress import ProgressLine
from ..runs.records import REQUEST, EvaluationRecord
from ..search import ASIDE, Journal, Ledger, Search, SearchReport, Shard, stored_points
from ..search.shards import NAME as JOURNAL
from ..search.shards import OTHERS
from ..stored import NotInMemory, StoredImages, part
from . import health
from .defence_examples import write_defence_examples
from .inspection import Inspection
from .limits import is_enough, sample_order
from .plan import Plan
from .request import Request
from .result import Evaluation, write_run

# Whose source a run goes on with only as it was.
CODE = ("attacks", "search", "threat.py", "spatial.py", "draws.py")


class Run:
    """The run of a request, in its folder if it has one.

    Attributes:
        key: its identity, a hash of all that can change its result.
        at_work: the search, once it has begun.
        stages_before: seconds that earlier sessions spent on attacks.
    """

    def __init__(self, request: Request, known: Inspection, workers: Workers):
        self.request, self.workers, self.folder = request, workers, request.folder
        self.spending, self.stages_before = known.spending, 0.0
        self.at_work: Search | None = None
        self.settings = known.settings
        self.code = code_version(*CODE, *(["defences"] if steps(unwrapped(request.model)) else []))
        self.readers = request.images.readers if isinstance(request.images, StoredImages) else None
        self.asked = {
            "model": known.known_by,
            "images": self._images_digest(),
            "threat": request.threat.describe(),
            "suite": request.suite.describe(),
            "seed": request.seed,
            "precision": request.precision,
            **({} if request.queries is None else {"queries": request.queries}),
            **({} if request.outputs is None else {"outputs": request.outputs}),
        }
        if isinstance(request.targets, Tensor):
            self.asked["targets"] = digest(request.targets)
        elif request.targets is not None:
            self.asked["targets"] = request.targets
        self.key = identity(**self.asked, settings=self.settings, code=self.code)

    def _images_digest(self) -> str:
        """Of images and labels; where a worker has only some of them, worker 0 reads all."""
        request = self.request
        if self.readers is None:
            return digest(request.images, request.labels)
        mine = digest(request.images, request.labels) if self.workers.leads else ""
        return str(self.workers.share(mine))

    def recalled(self) -> Evaluation | None:
        """The outcome of this very run where it is known already; in all workers alike.

        The journal keeps it. Where the process was killed before all files were written, they are
        written now.
        """
        result = self._from_journal() if self.workers.leads else None
        if not self.workers.share(result is not None):
            return None
        if result is not None and self.folder is not None:
            if not self._is_written(result):
                open_run(self.folder, "evaluate", self.key, {})  # clears away what is half written
                rows = [verdict.index for verdict in result.verdicts]
                images = part(self.request.images, rows)
                write_run(self.folder, images, result, self.request)
            with ProgressLine("evaluation", self.request.progress) as line:
                date = on_date(result.finished)
                line.say(f"{self.folder} was finished on {date}: read, not run again")
        return self._everywhere(result)

    def _from_journal(self) -> Evaluation | None:
        folder, request = self.folder, self.request
        if folder is None or not (folder / JOURNAL).is_file():
            return None
        if not holds(folder, "evaluate", self.key):
            return None
        journal = Journal(folder / JOURNAL, self.key)
        try:
            packed = journal.outcome()
            if packed is None:
                return None
            ledger = self._ledger(None, journal)
            journal.restore(ledger)
        finally:
            journal.close()
        record = Evaluation.from_bytes(packed, ledger.adversarial)
        rows = [verdict.index for verdict in record.verdicts]
        result = record.model_copy(update={"adversarial": part(ledger.adversarial, rows)})
        if not is_enough(result, request.limits):
            return None
        # What is missing is measured; no attack is made again.
        lacks = request.curve and result.stopped is None and _lacks_curve(result)
        return None if lacks else result

    def _is_written(self, result: Evaluation) -> bool:
        """Whether the folder's files are those of this very result."""
        assert self.folder is not None
        held = finished(self.folder, EvaluationRecord)
        return held is not None and (held.n, held.finished) == (result.n, result.finished)

    def _everywhere(self, result: Evaluation | None) -> Evaluation:
        """Worker 0's result, in all workers. Where adversarial images lie in a journal, all read it
        there, if they can."""
        images, shown, told = self.request.images, None, result
        if result is not None and not isinstance(result.adversarial, Tensor):
            shown = result.adversarial
            held = shown[:] if self.folder is None and self.workers.size > 1 else None
            told = result.model_copy(update={"adversarial": held})
        shared: Evaluation | None = self.workers.share(told)
        assert shared is not None
        if shared.adversarial is not None:
            return shared
        if shown is None:
            assert self.folder is not None and isinstance(images, NotInMemory)
            shown = stored_points(self.folder / JOURNAL, images)
        return shared.model_copy(update={"adversarial": shown})

    def _ledger(self, goals: Tensor | None, journal: Journal) -> Ledger:
        images, labels = self.request.images, self.request.labels
        index = torch.arange(len(images))
        goals = None if goals is None else goals.clone()
        points = journal.lend(images) if isinstance(images, NotInMemory) else None
        return Ledger.of(images, labels, index, self.request.threat.witness_size, goals, points)

    def open(self, plan: Plan) -> None:
        """Begin the run in its folder, or go on with it.

        Raises:
            InputError: the folder holds another run.
        """
        if self.folder is None:
            return
        if not self.workers.leads:
            # On a machine of its own file system, worker 0 does not see what is there.
            if (self.folder / REQUEST).exists():
                open_run(self.folder, "evaluate", self.key, {"asked": self.asked})
            return
        suite = self.request.suite
        asked: dict[str, Any] = {
            **self.asked,
            "suite": plan.suite.name,
            "attacks": digest(json.dumps(suite.describe(), sort_keys=True)),
            **({} if self.request.samples is None else {"samples": self.request.samples}),
            **({} if self.request.kind is None else {"goal": self.request.goal}),
            "n": len(self.request.images),
            "settings_sha256": self.settings,
            "code": self.code,
            **self.request.described,
        }
        where = circumstances(self.request.device)
        request = {"asked": asked, "workers": self.workers.size, **where}
        open_run(self.folder, "evaluate", self.key, request, besides=f"{OTHERS}*")

    def search(self, plan: Plan, line: ProgressLine) -> tuple[Search | None, float]:
        """Every stage on every image that stands.

        Returns:
            the search at its end (None in all workers but worker 0), and the seconds that other
            processes spent on this run before.
        """
        count = len(self.request.images)
        shard = Shard(self.workers, self.folder, self.key, count, self.readers)
        earlier = self.earlier(shard.journal)

        def known() -> dict[str, Any]:
            if self.at_work is None:
                return {}
            n = len(self.at_work.problem.rows)
            least, most = self.at_work.bounds()
            ends = clopper_pearson(least, n)[0], clopper_pearson(most, n)[1]
            return {"n": n, "robust_accuracy_interval": ends}

        def report(share: float, word: str) -> None:
            self.workers.check()
            line.update(share, word, known)

        with self._withdrawn_if_bare(shard):
            return shard.search(partial(self._search, plan, report)), earlier

    @contextmanager
    def sample(self, plan: Plan) -> Iterator[Search]:
        """A search of all images, in the order of a sample, that has not begun; inside, its journal
        is open."""
        shard = Shard(self.workers, self.folder, self.key, len(self.request.images))
        sample = sample_order(len(self.request.images), self.request.seed)
        with self._withdrawn_if_bare(shard):
            try:
                yield self._search(plan, None, shard.journal, shard.rows, sample)
            finally:
                shard.journal.close()

    def earlier(self, journal: Journal) -> float:
        """The seconds that other processes spent on this run before."""
        aside, seconds = journal.cost(ASIDE)[0], journal.seconds()
        self.spending.add("earlier sessions, besides the attacks", aside)
        self.stages_before = seconds - aside
        return seconds

    def _search(
        self,
        plan: Plan,
        report: SearchReport | None,
        journal: Journal,
        rows: torch.Tensor,
        sample: torch.Tensor | None = None,
    ) -> Search:
        request = self.request
        self.at_work = Search(
            request.model,
            request.images,
            request.labels,
            request.threat,
            plan.suite,
            levels=plan.levels,
            batch_size=plan.batch_size,
            device=request.device,
            seed=request.seed,
            ledger=self._ledger(plan.goals, journal),
            journal=journal,
            report=report,
            rows=rows,
            views=plan.views,
            verifier=plan.verifier,
            misled=plan.misled,
            sample=sample,
        )
        return self.at_work

    @contextmanager
    def _withdrawn_if_bare(self, shard: Shard) -> Iterator[None]:
        """Where a search fails before it has come to anything, its folder is free again."""
        try:
            yield
        except InputError:
            if shard.discard_if_bare() and self.folder is not None and self.workers.leads:
                withdraw_run(self.folder)
            raise

    def write_examples(self, result: Evaluation, plan: Plan, request: Request) -> None:
        """Of a defended model, images at every step of the defence.

        Args:
            request: of the images that were judged.
        """
        if self.folder is not None and result.unaware is not None:
            with self.spending.on("examples of the defence"):
                write_defence_examples(
                    self.folder,
                    plan.network,
                    plan.verifier,
                    request.images,
                    result,
                    request.threat,
                    request.device,
                )

    def write(self, result: Evaluation, request: Request) -> Evaluation:
        """Keep the result in journal and files; in all workers.

        Args:
            request: of the images that were judged.
        """
        if self.folder is not None:
            journal = Journal(self.folder / JOURNAL, self.key)
            try:
                with journal.transaction():
                    journal.spend(ASIDE, max(0.0, result.seconds - journal.seconds()))
                journal.conclude(result.to_bytes(adversarial=False))
            finally:
                journal.close()
            write_run(self.folder, request.images, result, request)
        return self._everywhere(result)

    def others(self) -> Evaluation:
        """Worker 0's result, in a worker that has none."""
        return self._everywhere(None)


def _lacks_curve(result: Evaluation) -> bool:
    """Whether there is no security curve, and could be one."""
    known = {flag.name: flag for flag in result.flags}
    climbable = health.differentiable(known["gradients-vanish"])
    return result.curve is None and climbable and result.threat["norm"] in PGD.norms
