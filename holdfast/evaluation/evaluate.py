"""`evaluate`: from a model and images to a verdict for each image, in five steps."""

from __future__ import annotations

import time
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Int64
from torch import Tensor

from ..attacks import Attack, Suite
from ..attacks.adaptive import SAMPLES
from ..attacks.goal import UNTARGETED
from ..attacks.suite import REPAIRED
from ..distributed import Workers, alone, joined
from ..models.modes import evaluating
from ..models.wrapper import standard_defaults
from ..runs.lock import claimed
from ..runs.progress import ProgressLine
from ..search import Search
from ..stored import NotInMemory
from ..threat import Threat
from ..types import Images, Model
from .inspection import Inspection
from .limits import Limits
from .plan import Plan, choose
from .request import Request
from .result import Evaluation
from .run import Run
from .sample import judge_sample
from .verdicts import judge

SEARCH = "journal and order of the search"  # all of the search but its attacks


def evaluate(
    model: Model,
    images: Images | NotInMemory,
    labels: Int64[Tensor, " n"] | None = None,
    threat: Threat | None = None,
    suite: str | Suite | Attack | Sequence[Attack] = "autoattack",
    batch_size: int | None = None,
    device: str | torch.device | None = None,
    precision: str = "auto",
    seed: int = 0,
    run: Path | str | None = None,
    progress: bool = False,
    *,
    budget: str | float | Limits | None = None,
    until: str | float | None = None,
    curve: bool = False,
    samples: int = SAMPLES,
    repair: bool = True,
    described: dict[str, Any] | None = None,
    goal: str = UNTARGETED,
    targets: Int64[Tensor, " n"] | str | None = None,
    queries: int | None = None,
    outputs: str | None = None,
) -> Evaluation:
    """Standard and robust accuracy of a classifier under a suite of attacks.

    Args:
        model: anything callable from images to logits (N, K), K at least the number of classes.
            Where PyTorch cannot differentiate it, the suite falls back to attacks that need no
            gradient, and a flag says so. A module is evaluated in eval mode and handed back as it
            was. A logit of −∞ masks its class. Where a logit is NaN or +∞, the model answers
            nothing: at a point of the ball that is a success of the attack, and a flag counts
            them; at a clean image it is an error.
        images: float32 (N, C, H, W) in [0, 1]; 8-bit integers, arrays and lists are taken too, and
            so is a `DataLoader` or a data set that brings the labels (see `holdfast.inputs`).
            8-bit images that would fill more than 512 MiB are read as they are needed:
            a split of `holdfast.data`, a `numpy.memmap`, whatever is indexed like an array; then
            the result's `adversarial` is read from the run's journal, too.
        labels: int64 (N,) true classes; any whole numbers, or one-hot rows.
        threat: what the attacker may do; a pair `("linf", 8 / 255)` is taken too.
        suite: a name from `holdfast.attacks.SUITES`, a `Suite`, one attack, or a list of attacks.
        batch_size: items searched at once; measured if None. It changes no verdict of a model that
            answers each image by itself, up to floating-point rounding; a flag says whether this
            one does.
        device: where to work; by default where the model is.
        precision: what the *search* runs in: `float32` on a folded copy; `bf16` on a coarser
            copy, with everything near the boundary searched again in float32; `original` on the
            model itself; `auto` chooses by the hardware. Verdicts always come from the original.
        seed: of all random draws.
        run: a folder for journal and result; the same call goes on where it was interrupted.
        progress: show a progress bar (plain lines where there is no terminal).
        budget: how long it may take in all, seconds or a text such as `30m`: as many images are
            judged as fit, drawn at random in an order that the seed decides. The result says
            `stopped`, and how many of the `population` it is about. A larger budget with the same
            `run` goes on from there.
        until: draw images until half the width of the robust accuracy's interval is at most so
            much, `2%` or 0.02. Budget or width, whichever comes first. As the size of the sample
            then depends on what was seen, the interval is one that is valid at any time
            (`robust_accuracy_anytime_interval`, see `holdfast.intervals.anytime_interval`).
        curve: also measure the security curve on the first images.
        samples: of the suite `adaptive`: draws of a random model that each iteration averages over.
        repair: where the model hides its gradients (by rounding, `detach`, a way through NumPy, a
            custom backward pass, …), also attack it through a repaired graph; see
            `holdfast.repair`. A model that hides nothing is attacked as with False.
        described: for `result.json`: what the model and the data are.
        goal: what counts as a success of the attacker: `untargeted`, any mistake; or `target`, that
            an image's target is predicted. `robust_accuracy` is then the share of images on which
            the target was not reached; an image on which it is predicted without any attack counts
            as reached. Attacks that cannot go for a target are left out.
        targets: with the goal `target`: int64 (N,), none of them the image's label; or how they
            are chosen: `least-likely` or `most-likely`, of the wrong classes on the clean image, or
            `random`, by the seed.
        queries: a hard budget: about no image is the model asked more often, its clean prediction
            aside, by all attacks together, verification included. A query is one image shown to
            the model, with or without a gradient. No health check asks the model then.
        outputs: what the attacker may see of an answer, beside which the model is a black box:
            `scores`, or `labels`, of which the model may return (N,) whole numbers. By default all
            that it shows, gradients too; a function that returns one-hot rows is recognised as one
            of labels.

    Raises:
        InputError (a ValueError): bad images or labels, a model that fails on them, or whose
            logits are not finite there, of the wrong shape or fewer than the classes; a ball that
            holds every image there is; a folder that holds another run; a budget that is no length
            of time, a width that is none; several processes with one of these.

    Example:
        >>> import torch, holdfast as hf
        >>> model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(4, 2))
        >>> images, labels = torch.rand(8, 1, 2, 2), torch.arange(8) % 2
        >>> result = hf.evaluate(model, images, labels, ("linf", 0.1), suite="fgsm")
        >>> result.n, bool(result.robust_accuracy <= result.standard_accuracy)
        (8, True)
    """
    limits = budget if isinstance(budget, Limits) else Limits.of(budget, until)
    if limits is not None:
        alone("evaluate with a budget or a width")
    request = Request.checked(
        model,
        images,
        labels,
        threat,
        suite,
        batch_size=batch_size,
        device=device,
        precision=precision,
        samples=samples,
        seed=seed,
        run=run,
        progress=progress,
        curve=curve,
        repair=repair,
        described=described,
        goal=goal,
        targets=targets,
        limits=limits,
        queries=queries,
        outputs=outputs,
    )
    moved = request.device != request.home
    try:
        if moved:
            request.model.to(request.device)
        with (
            standard_defaults(),
            evaluating(request.model),
            joined() as workers,
            claimed(run) if run is not None and workers.leads else nullcontext(),
        ):
            return _evaluate(request, workers)
    finally:
        if moved:
            request.model.to(request.home)


def _evaluate(request: Request, workers: Workers) -> Evaluation:
    """The way of an evaluation: inspect, choose, search, judge, write."""
    began = time.monotonic()

    # 1. Inspect the model: what is known about it before it is attacked.
    known = Inspection(request)
    if request.samples is not None:  # a suite that is made for the model
        suite = known.adaptive_suite(request.samples, request.threat.norm)
        request = request.with_suite(suite)
    elif known.hides:
        request = request.with_suite(request.suite.through(REPAIRED))
    run = Run(request, known, workers)
    before = run.recalled()
    if before is not None:
        return before

    # 2. Choose the search: stages, precision levels, batch size.
    plan = choose(request, known, workers, run.key)
    run.open(plan)

    shown = request.progress and workers.leads
    title, seen = f"{plan.suite.name}, {request.threat}", run.folder if workers.leads else None
    with ProgressLine(title, shown, run=seen) as line:
        for remark in _remarks(known, plan):
            line.say(remark)

        # 3. Search: every stage on every image that stands; in journals, on all workers.
        search: Search | None
        sample = None
        if request.limits is not None:  # or on a sample, block by block
            known.spending.add("before the inspection", began - request.limits.began)
            began = request.limits.began
            with known.spending.on(SEARCH), run.sample(plan) as search_of_all:
                search, earlier = search_of_all, run.earlier(search_of_all.journal)
                sample = judge_sample(request, known, plan, search_of_all, line)
            request, plan = request.part(sample.rows), plan.part(sample.rows)
        else:
            with known.spending.on(SEARCH):
                search, earlier = run.search(plan, line)
        if search is None:  # worker 0 has all verdicts, and judges them
            return run.others()

        # 4. Judge: the original model has the last word on every adversarial image.
        result = judge(request, known, plan, search, line, sample.beside if sample else None)
        if sample is not None:
            result = sample.stated(result)

    # 5. Write the run folder.
    run.write_examples(result, plan, request)
    attacks = sum(cost.seconds for cost in result.attacks)
    known.spending.add("clean predictions", search.clean_seconds)
    known.spending.add(SEARCH, run.stages_before - attacks - search.clean_seconds)
    seconds = earlier + time.monotonic() - began
    others = known.spending.costs(seconds, attacks)
    stated = {"identity": run.key, "seconds": seconds, "other_costs": others}
    return run.write(result.model_copy(update=stated), request)


def _remarks(known: Inspection, plan: Plan) -> list[str]:
    """Lines for the terminal before the search begins."""
    remarks = [known.classes.detail] if known.classes.fired else []
    remarks += dict.fromkeys(known.log)
    if known.labels_only:
        remarks.append("the model returns labels only: it is attacked by what needs no more")
    if known.hides:
        places = "; ".join(str(repair) for repair in known.diagnosis.repairs)
        remarks.append(f"gradients are hidden, and repaired for the search: {places}")
    if plan.misled and any(stage.after is not None for stage in plan.suite.stages):
        remarks.append("gradients mislead: a short search will not do")
    return remarks
