"""What an attack is: `start` and `step` over a record of tensors, one row an item.

An attack never loops. It describes one step of a search for many items at once; somebody else
(the scheduler in `holdfast.search`, or `run` here) decides how often to step, which items to drop
and which to add. Everything that an attack remembers is therefore *per item*, in its `State`, so
items of different iterations can share a batch.

How to add an attack: write one file in this package with one class. Give the class a `name`, by
which `--suite NAME` finds it, and the hooks in which it differs from its base:

- `GradientAscent` (gradient_ascent.py), for projected steps inside the ball: `step_size`,
  `direction`, `first_point`, …; PGD with steps that fall along a cosine is six lines there;
- `MinimumNorm` (minimum_norm.py), for the closest adversarial point: `move`; DDN is an example;
- `Attack` (here), for anything else: `step`; Square is an example.

What it remembers beyond the fields of `State` it declares in a frozen dataclass of its own, which
subclasses `State` (or `MinimumNormState`, `AdamState`), and makes in `begin`. Random numbers come
from `holdfast.draws` by `items.seeds`, a counter a draw, so that a search depends on nothing but
its item. `tests/test_attack_contract.py` finds the class by itself and tests all of that. To offer
it as `holdfast.attacks.CLASS`, add it to `__init__.py`; to make it part of a suite of several
attacks, add a stage in suites.py.
"""

from __future__ import annotations

import itertools
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, ClassVar, Generic

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int64
from scipy.stats import t as student
from torch import Tensor, nn
from typing_extensions import TypeVar

from .. import draws
from ..errors import InputError
from ..inputs import (
    check_labels,
    check_logits,
    checked_data,
    checked_threat,
    whole_number,
)
from ..models.metered import rows_asked
from ..models.wrapper import standard_defaults, wrapped
from ..stored import ModelImages, in_memory
from ..threat import Threat
from ..types import Images, Labels, Logits, Model
from .goal import (
    MOST_LIKELY,
    TARGET,
    UNTARGETED,
    checked_goal,
    chosen_targets,
    nearest_of_class,
    own_targets,
    target_seeds,
)
from .losses import margin
from .state import Items, State

CANNOT_REACH = "has no form that reaches a given class"

S = TypeVar("S", bound=State, default=Any)  # the state of one kind of attack

AT_ONCE = 128

# A look at a random model begins with few draws of an item. They will do where their mean margin
# lies beyond doubt on one side of 0: for a point on the boundary that happens in `ERROR` of looks.
FEW, ERROR = 3, 0.05
FEW_OF_MANY = 5  # and at least one draw of so many


class Oracle:
    """A model as attacks see it: logits and input gradients, every pass counted.

    Args:
        model: images → logits.
        samples: expectation over transformation (Athalye et al., ICML 2018): logits and
            gradients are means over this many copies of each image, run as one batch, for
            models that draw random numbers.
        decisions: average the copies' answers (one where the class is the predicted one) in place
            of their logits, for attacks that use nothing else of an answer.

    Where random defences draw from the items' own streams (`prepare`), an item's look takes only
    as many draws as it needs: few where these say beyond doubt on which side of the boundary the
    point lies, all `samples` elsewhere. With `decisions`, it ends once the other draws could not
    change the majority.

    Attributes:
        forwards, backwards: passes over every item of the batch.
        own: int64 (N,), further forwards of single items; None while there are none. It begins
            anew with a batch of another size.
        own_backwards: the same of backwards.
        at_once: points that one call of the model gets, where an attack asks for many an item.
    """

    def __init__(self, model: Model, samples: int = 1, decisions: bool = False):
        self.model = model
        self.samples, self.decisions = samples, decisions
        self.seeds: Int64[Tensor, " n"] | None = None
        self.forwards = self.backwards = 0
        self.own: Int64[Tensor, " n"] | None = None
        self.own_backwards: Int64[Tensor, " n"] | None = None
        self.at_once = AT_ONCE
        self._items: State | None = None  # those that were prepared
        self._further: Int64[Tensor, " n"] | None = None  # draws of the last look after the first
        first = samples // 2 + 1 if decisions else max(FEW, -(-samples // FEW_OF_MANY))
        self._first = min(samples, first)
        self._sure = float(student.ppf(1 - ERROR / 2, max(1, self._first - 1)))

    def prepare(self, state: State) -> None:
        """Let random defences draw from the items' own streams, afresh at every iteration.

        So what an item sees depends neither on its batch nor on what was interrupted when.
        """
        self._items = state
        # The word is part of the seeds: it stays.
        self.seeds = draws.item_seeds(0, "look", state.seeds.cpu(), state.iteration.cpu())

    @contextmanager
    def _drawing(self) -> Iterator[None]:
        if self.seeds is None:
            yield
            return
        with draws.fixed_draws(self.seeds), draws.repeated_draws(self.samples):
            yield

    def _forward(self, x: Images) -> Logits:
        if self._few_may_do(len(x)):
            logits, further = self._answer_of_few(x, torch.arange(len(x)))
            self.forwards += self._first
            self.own = _added(self.own, further)
            self._further = further
            return logits
        self.forwards += self.samples
        self._further = None
        return self._answer(x)

    def _few_may_do(self, items: int) -> bool:
        """Whether a look at a batch of so many items may end with its first draws."""
        state = self._items
        return self._first < self.samples and state is not None and len(state) == items

    def _answer_of_few(
        self, x: Images, rows: Int64[Tensor, " m"]
    ) -> tuple[Logits, Int64[Tensor, " m"]]:
        """The mean over as many draws as each point needs, and how many it took after the first.

        Args:
            x: points (M, C, H, W).
            rows: which of the batch's items each belongs to.
        """
        assert self._items is not None and self.seeds is not None
        first = self._drawn(x, torch.arange(len(x)), 0, self._first)
        with torch.no_grad():
            if self.decisions:
                split = (first != first[:, :1]).flatten(1).any(1)  # NaN differs from itself
            else:
                at = rows.to(x.device)
                labels, goals = (t[at, None] for t in (self._items.labels, self._items.goals))
                shape = first.shape[:2]
                each = margin(
                    first.flatten(0, 1),
                    labels.expand(shape).flatten(),
                    goals.expand(shape).flatten(),
                ).view(shape)
                error = each.std(1) / self._first**0.5
                split = ~(each.mean(1).abs() > self._sure * error)
        left = split.nonzero().squeeze(1)
        total, number = _sum(first)
        if len(left):
            more = self._drawn(x, left, self._first, self.samples)
            more_total, more_number = _sum(more)
            total = total.index_add(0, left, more_total)
            number = number.index_add(0, left, more_number)
        further = split.long().cpu() * (self.samples - self._first)
        return total / number, further

    def _drawn(
        self, x: Images, points: Int64[Tensor, " m"], first: int, last: int
    ) -> Float[Tensor, "m d k"]:
        """The answers at some points by their draws of these numbers: the same draws that a look
        with all of them would take."""
        assert self.seeds is not None
        copies = last - first
        number = torch.arange(first, last).repeat(len(points))
        of = points.cpu().repeat_interleave(copies)
        own = draws.item_seeds(0, self.seeds.cpu()[of], number)
        with draws.fixed_draws(own), rows_asked(of):
            answers = self.model(x[points.to(x.device)].repeat_interleave(copies, 0)).float()
        if self.decisions:
            answers = _one_hot(answers)
        return answers.view(len(points), copies, -1)

    def _answer(self, x: Images) -> Logits:
        if self.samples == 1:
            return self.model(x).float()
        copies = self.model(x.repeat_interleave(self.samples, 0)).float()
        nothing = copies.isnan()
        if self.decisions:
            copies = _one_hot(copies)
        copies = copies.view(len(x), self.samples, -1)
        # A copy that gets no answer must not blind the search to the others.
        return copies.nanmean(1) if bool(nothing.any()) else copies.mean(1)

    def logits(self, x: Images) -> Logits:
        """The logits at x, float32 (N, K), without a gradient."""
        with torch.no_grad(), self._drawing():
            return self._forward(x)

    def logits_of(self, points: Images, rows: Int64[Tensor, " m"], items: int) -> Logits:
        """The logits at several points an item, or none, float32 (M, K), without a gradient.

        Args:
            points: (M, C, H, W).
            rows: which of the batch's items each point belongs to.
            items: how many the batch has.
        """
        rows = rows.cpu()
        batch_seeds = self.seeds
        if batch_seeds is not None:
            # Every point draws afresh.
            number = torch.arange(len(rows)) - torch.searchsorted(rows, rows)
            self.seeds = draws.item_seeds(0, "point", batch_seeds[rows], number)
        each = torch.full_like(rows, self.samples)
        try:
            with torch.no_grad(), rows_asked(rows):
                if batch_seeds is not None and self._few_may_do(items):
                    logits, further = self._answer_of_few(points, rows)
                    each = self._first + further
                else:
                    with self._drawing():
                        logits = self._answer(points)
        finally:
            self.seeds = batch_seeds
        self.own = _added(self.own, torch.zeros(items, dtype=torch.int64).index_add(0, rows, each))
        return logits

    def gradient(
        self, x: Images, loss: Callable[[Tensor], Float[Tensor, " n"]]
    ) -> tuple[Images, Logits, Float[Tensor, " n"]]:
        """∂loss/∂x, the logits and the loss values at x, all detached.

        Only the input's gradient is computed: none of the weights'. Components where it is NaN
        are 0, for one of them would spread over the whole image and blind the attack; so is a
        loss that is NaN, where the model answers nothing.
        """
        with torch.enable_grad(), self._drawing():
            x = x.detach().requires_grad_()
            logits = self._forward(x)
            values = loss(logits)
            (gradient,) = torch.autograd.grad(values.sum(), x)
        self._went_back()
        return _without_nan(gradient), logits.detach(), _or_zero(values.detach())

    def _went_back(self, times: int = 1) -> None:
        """Count backward passes through the last look."""
        if self._further is None:
            self.backwards += times * self.samples
        else:
            self.backwards += times * self._first
            self.own_backwards = _added(self.own_backwards, times * self._further)

    @contextmanager
    def lent(self, x: Images) -> Iterator[nn.Module]:
        """The model as a module, for code of other libraries to call and differentiate.

        What passed through it is counted at the end, in passes over the batch `x`, rounded up.
        Random models draw from torch's default generator: the items' own streams need whole
        batches.
        """
        lent = _Lent(self._answer, x)
        try:
            yield lent.eval()
        finally:
            forwards, backwards = (-(-count // max(len(x), 1)) for count in lent.images)
            self.forwards += forwards * self.samples
            self.backwards += backwards * self.samples

    def class_differences(
        self, x: Images, labels: Labels
    ) -> tuple[Float[Tensor, "n j c h w"], Float[Tensor, "n j"], Logits]:
        """∂(z_j − z_y)/∂x and z_j − z_y for each of the K − 1 wrong classes j, and the logits.

        Cost: 1 forward, K − 1 backwards.
        """
        with torch.enable_grad(), self._drawing():
            x = x.detach().requires_grad_()
            logits = self._forward(x)
            classes = logits.shape[1]
            others = (labels[:, None] + torch.arange(1, classes, device=x.device)) % classes
            values = logits.gather(1, others) - logits.gather(1, labels[:, None])
            gradients = [
                torch.autograd.grad(values[:, j].sum(), x, retain_graph=j < classes - 2)[0]
                for j in range(classes - 1)
            ]
        self._went_back(classes - 1)
        return (
            _without_nan(torch.stack(gradients, 1)),
            _or_zero(values.detach()),
            logits.detach(),
        )


class _Lent(nn.Module):
    """An oracle's model for code that calls it and differentiates as it likes, in batches of any
    size; counts the images that pass."""

    def __init__(self, answer: Model, like: Images):
        super().__init__()
        self.answer = answer  # a bound method, no submodule: nobody shall set its mode
        self.images = [0, 0]  # forwards, backwards
        # Where the model is, for those who ask its parameters.
        self.place = nn.Parameter(torch.empty(0, device=like.device), requires_grad=False)

    def forward(self, x: Tensor) -> Tensor:
        self.images[0] += len(x)
        logits = self.answer(x.float())  # some count in float64
        if logits.requires_grad:
            logits.register_hook(self._backward)
        return logits

    def _backward(self, gradient: Tensor) -> None:
        self.images[1] += len(gradient)


def _added(counts: Tensor | None, further: Int64[Tensor, " n"]) -> Int64[Tensor, " n"]:
    """Counts of single items, which begin anew with a batch of another size."""
    return further if counts is None or len(counts) != len(further) else counts + further


def _one_hot(answers: Logits) -> Logits:
    """1 where the predicted class is; NaN where the model answers nothing."""
    voted = F.one_hot(answers.argmax(1), answers.shape[1]).float()
    return voted.masked_fill(answers.isnan(), torch.nan)


def _sum(copies: Float[Tensor, "n d k"]) -> tuple[Logits, Logits]:
    """The sum over draws, and how many have an answer."""
    nothing = copies.isnan()
    return copies.masked_fill(nothing, 0.0).sum(1), (~nothing).sum(1)


def _without_nan(gradient: Tensor) -> Tensor:
    return gradient.nan_to_num(0.0, 1e30, -1e30)


def _or_zero(values: Tensor) -> Tensor:
    return torch.where(values.isnan(), 0.0, values)


class Attack(ABC, Generic[S]):
    """A search for an adversarial example inside a threat model.

    A subclass gives the class attributes, `step`, and where they differ `first_point` and `begin`.
    One `step` queries the model at `state.point`, keeps what was found (`State.observe`), chooses
    the next point and adds 1 to `state.iteration`; so a state that was stepped k times knows of k
    points.

    Attributes:
        name: stable: it is part of random seeds and of reports. That of the class is the one by
            which `--suite` finds it; an object's may say more (`fab-targeted`).
        norms: the norms of the threat models that it knows.
        targeted: whether an item needs a target class.
        needs_gradient: whether it differentiates the model.
        decisions: whether it uses nothing of an answer but the predicted class.
        lends: whether it hands the model to other code, which asks about the items of a batch in
            any order (see `Oracle.lent`).
        minimum_norm: whether the score is a distance less ε rather than a margin.
        reaches: whether it can go for one class that alone counts as a success (`Items.goals`),
            and not only for any mistake.
        iterations: steps until an item is finished, at most.
        settings: of the constructor, as reports and a run's identity state them.
    """

    name: str
    norms: ClassVar[frozenset[str]]
    targeted: bool = False
    needs_gradient: bool = True
    decisions: bool = False
    lends: bool = False
    minimum_norm: bool = False
    reaches: bool = False
    iterations: int = 1

    def __init__(self, **settings: Any):
        self.settings = settings

    def first_point(self, items: Items, threat: Threat) -> Images:
        """x₀, the point of the first query, (N, C, H, W) in the box: by default the image. Random
        numbers are drawn from `items.seeds`."""
        return items.images

    def begin(self, items: Items, point: Images, threat: Threat) -> S:
        """The state before the first query, at `point`, with all that this attack remembers."""
        return State.begin(items, point)  # type: ignore[return-value]

    def start(self, items: Items, threat: Threat) -> S:
        """The state before the first step.

        Raises:
            InputError: a threat model that the attack does not know.
        """
        self.check_norm(threat)
        return self.begin(items, self.first_point(items, threat), threat)

    @abstractmethod
    def step(self, oracle: Oracle, state: S, threat: Threat) -> S:
        """The state after one more iteration; the old state is not changed."""

    def iterations_left(self, state: S) -> Int64[Tensor, " n"]:
        """How many more iterations each item takes at most, (N,)."""
        return self.iterations - state.iteration

    def tuned(self, threat: Threat) -> Attack[S]:
        """The same attack; where its usual settings are not the same in all norms, with those of
        this one in place of what it was not given."""
        return self

    @property
    def needs_scores(self) -> bool:
        """Whether labels alone tell it nothing."""
        return not self.decisions

    def describe(self) -> dict[str, Any]:
        """Name and settings: what a run's identity is made of."""
        return {"name": self.name, **self.settings}

    def __repr__(self) -> str:
        settings = ", ".join(f"{k}={v!r}" for k, v in self.settings.items())
        return f"{type(self).__name__}({settings})"

    def check_norm(self, threat: Threat) -> None:
        """InputError if the attack does not know the threat model's norm."""
        if threat.norm not in self.norms:
            raise InputError(
                f"{self.name} knows the norms {', '.join(sorted(self.norms))}, not {threat.norm}"
            )

    def __call__(
        self,
        model: Model,
        images: Images,
        labels: Labels,
        threat: Threat,
        *,
        targets: Labels | str | None = None,
        goal: str = UNTARGETED,
        seed: int = 0,
        batch_size: int = 128,
    ) -> Images:
        """Run this attack alone, in the model's own precision, on the model's own device.

        Args:
            model: images → logits; call `.eval()` on it first.
            images, labels: (N, C, H, W) in [0, 1], and (N,) true classes, in any of the forms that
                `holdfast.evaluate` takes.
            threat: the norm must be one of `self.norms`.
            targets: (N,) classes to go for. Where any mistake counts, a targeted attack alone takes
                them, and goes by default for each image's strongest wrong class.
            goal: what counts as a success: `untargeted`, any mistake; or `target`, that an image's
                target is predicted. Then every attack that `reaches` takes targets, also
                `least-likely` or `most-likely` (by the clean image) or `random`.
            seed: of the attack's random draws.

        Returns:
            float32 (N, C, H, W): for each image the first point found that is a success (where any
            mistake counts, also one at which the model answers nothing), else the one with the
            smallest margin. All lie in the ball and the box. An image that is a success as it is
            comes back as it is. A search for the closest adversarial point (`minimum_norm`) returns
            that, in the box but perhaps outside the ball: `threat.contains` tells.

        Raises:
            InputError (a ValueError): images outside [0, 1] or not finite, labels out of range,
                a model whose logits are not finite at the images or not (N, K), targets for an
                attack that has none, a target that is the label, a goal that the attack cannot
                reach, a ball that holds every image there is.
        """
        with standard_defaults():
            threat = checked_threat(threat)
            self.check_norm(threat)
            model = wrapped(model)
            images, labels = checked_data(images, labels)
            labels = labels.to(images.device)
            if not self.minimum_norm:  # those search for the closest point, whatever ε is
                threat.check_reach(images)
            whole_number("batch_size", batch_size)
            if goal == UNTARGETED and targets is not None and not self.targeted:
                raise InputError(
                    f"{self.name} goes for any wrong class and takes no targets; a targeted attack "
                    "does, such as APGD(loss='dlr', targeted=True), and with goal='target' others"
                )
            if goal != UNTARGETED or isinstance(targets, str):
                goal = checked_goal(goal, targets)
            if goal == TARGET:
                self.check_reaches()
            if targets is not None and not isinstance(targets, str):
                targets = own_targets(targets, labels)
            return self._alone(
                model, images, labels, threat, targets, seed, batch_size, goal == TARGET
            )

    def check_reaches(self) -> None:
        """InputError if the attack cannot go for a class that alone counts as a success."""
        if not self.reaches:
            raise InputError(f"{self.name} {CANNOT_REACH}")

    def _alone(
        self,
        model: Model,
        images: Images,
        labels: Labels,
        threat: Threat,
        targets: Labels | str | None,
        seed: int,
        batch_size: int,
        reach: bool,
    ) -> Images:
        everything = torch.empty_like(images)
        first = 0
        for found in self.batches(
            model, images, labels, threat, targets, seed=seed, batch_size=batch_size, reach=reach
        ):
            everything[first : first + len(found)] = found
            first += len(found)
        return everything

    def batches(
        self,
        model: Model,
        images: ModelImages,
        labels: Labels,
        threat: Threat,
        targets: Labels | str | None = None,
        *,
        seed: int,
        batch_size: int,
        reach: bool = False,
        numbers: Int64[Tensor, " n"] | None = None,
    ) -> Iterator[Images]:
        """What a call returns, batch by batch; the images need not be in memory.

        Args:
            model: behind `WrappedModel`.
            images, labels, threat, targets, seed, batch_size: as in a call, and checked.
            reach: whether the targets alone count as successes.
            numbers: of the images, to which its draws belong; None: 0 … N−1.
        """
        numbers = torch.arange(len(images)) if numbers is None else numbers.cpu()
        for first in range(0, len(images), batch_size):
            x, y = images[first : first + batch_size], labels[first : first + batch_size]
            index = numbers[first : first + len(x)]
            with torch.no_grad():
                logits = check_logits(model(x), len(x), y, first)
            if targets is None or isinstance(targets, str):
                kind = targets or MOST_LIKELY
                chosen = chosen_targets(kind, logits, y, target_seeds(seed, index).to(y.device))
            else:
                chosen = targets[first : first + len(x)]
                check_labels(chosen, len(x), logits.shape[1], first, "targets")
            none = torch.full_like(y, -1)
            from_class = reach and self.decisions
            items = Items(
                images=x,
                labels=y,
                targets=chosen if self.targeted or reach else none,
                eps=threat.radii(x),
                seeds=draws.item_seeds(seed, index, self.name, 0, 0).to(x.device),
                start=nearest_of_class(x, chosen, in_memory(images), labels, threat)
                if from_class
                else x,
                goals=chosen if reach else none,
            )
            wrong = logits.argmax(1) != y
            done = logits.argmax(1) == chosen if reach else wrong
            rows = (~done).nonzero().squeeze(1)
            found = run(self.tuned(threat), Oracle(model), items.select(rows), threat).best
            yield x.index_copy(0, rows, found)


def run(
    attack: Attack[S],
    oracle: Oracle,
    items: Items,
    threat: Threat,
    *,
    steps: int | None = None,
    own_draws: bool = True,
) -> S:
    """Drive one attack alone, all items in one batch.

    Args:
        steps: exactly so many steps of every item, whatever comes of them; None: until each item
            is broken (its score is below 0) or finished, which is then stepped no more.
        own_draws: whether random defences draw from the items' own streams, so that an item's
            search does not depend on those beside it (see `Oracle.prepare`).

    Returns:
        The state of all items, in their order.

    Raises:
        InputError: a threat model that the attack does not know.

    Example:
        >>> from holdfast.attacks import FGSM
        >>> x, y = torch.full((2, 1, 2, 2), 0.3), torch.tensor([0, 1])
        >>> items = Items(x, labels=y, targets=y * 0 - 1, eps=torch.full((2,), 0.1), seeds=y)
        >>> oracle = Oracle(lambda x: x.flatten(1)[:, :2])
        >>> state = run(FGSM(), oracle, items, Threat("linf", 0.1))
        >>> oracle.forwards, state.iteration, state.score
        (2, tensor([2, 2]), tensor([-0.2000, -0.2000]))
    """
    state = attack.start(items, threat)
    rows = torch.arange(len(items), device=items.labels.device)  # of those that go on
    left: list[S] = []  # those that do not,
    places: list[Tensor] = []  # and their rows
    for _ in itertools.count() if steps is None else range(steps):
        if not len(rows):
            break
        if own_draws:
            oracle.prepare(state)
        state = attack.step(oracle, state, threat)
        if steps is None and bool((leaves := state.finished | (state.score < 0)).any()):
            left.append(state.select(leaves))
            places.append(rows[leaves])
            rows, state = rows[~leaves], state.select(~leaves)
    if not left:
        return state
    return state.join(*left).select(torch.cat([rows, *places]).argsort())
