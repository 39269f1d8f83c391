"""`MeteredModel`, which counts what is asked about each image and keeps to a budget of queries.

A query is one image shown to the model. Whoever asks says by `about` which images the rows of its
batches belong to; so one place counts for every attack, and none can ask for more. What was asked
before is answered from memory, and is no query.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor, nn

from ..errors import HoldfastError
from ..types import Images
from .wrapper import WrappedModel, blank_filling

# The margin by which an answer that is not to be had names the label: it breaks no image, and no
# search prefers it to an answer.
REFUSED = 1000.0
CLEAN = 0  # the number of the query that predicts the clean image


class About(NamedTuple):
    """Whose the rows of a batch are.

    Attributes:
        images: int64 (N,), the images' numbers.
        clean: whether the batch asks for the clean predictions, which no budget limits.
    """

    images: Int64[Tensor, " n"]
    clean: bool


_about: ContextVar[About | None] = ContextVar("about", default=None)


@contextmanager
def about(images: Int64[Tensor, " n"], clean: bool = False) -> Iterator[None]:
    """Inside, rows of batches belong to these images, in this order.

    A batch of k rows an image (`images.repeat_interleave(k)`) is understood too, and so is any
    batch where there is one image only.

    Args:
        images: int64 (N,), their numbers.
        clean: whether the clean images are predicted.
    """
    token = _about.set(About(images.cpu(), clean))
    try:
        yield
    finally:
        _about.reset(token)


@contextmanager
def rows_asked(rows: Int64[Tensor, " m"]) -> Iterator[None]:
    """Inside `about`: batches hold these of its rows, some perhaps several times."""
    asked = _about.get()
    if asked is None:
        yield
        return
    with about(asked.images[rows.cpu()], asked.clean):
        yield


class Answer(NamedTuple):
    """What the model said.

    Attributes:
        number: of the query among those about the image, from 1 on; `CLEAN` for the clean image.
        logits: float32 (K,), on the CPU.
    """

    number: int
    logits: Float[Tensor, " k"]


class QueryLog(Protocol):
    """Where queries are written down, so that a run that is killed neither asks again what it
    knows nor forgets what it asked."""

    def asking(self, queries: Mapping[int, int]) -> None:
        """Before the model is asked: how many queries about each image there will have been."""

    def answered(self, answers: Sequence[tuple[int, bytes, Answer]]) -> None:
        """What the model said: image, point and answer."""

    def keep(self, answers: Sequence[tuple[int, bytes, Answer]]) -> None:
        """Forget all answers but these."""


@dataclass
class _Plan:
    """What becomes of the rows of a batch.

    Attributes:
        asked: the rows that the model is asked.
        answered: what it has answered before.
        place: where each row's answer stands, in a list of the asked ones' answers, those of
            before, and one refusal a row of the batch.
    """

    asked: list[int]
    answered: list[Answer]
    place: list[int]


def point_key(point: Images) -> bytes:
    """What a point (C, H, W) is known by in memory: 16 bytes."""
    content = point.detach().cpu().contiguous().numpy()
    return hashlib.blake2b(content.tobytes(), digest_size=16).digest()


class Account:
    """The queries about each image, and what was answered; one for all views of a model.

    Args:
        labels: int64 (N,) of the images, by their numbers.
        budget: queries an image; None: they are only counted.

    Attributes:
        queries: int64 (N,), what was asked about each image, its clean prediction aside.
        outside: rows that belong to no image's budget: clean predictions, and what is asked
            outside of `about`.
        remembers: whether what was asked before is answered from memory; not of a model that
            draws random numbers.
        sealed: whether the model is asked no more; then only memory answers.
        log: where queries are written down; None: nowhere.
        classes: how many logits an answer has; 0 before the first.
    """

    def __init__(self, labels: Int64[Tensor, " n"], budget: int | None = None):
        self.labels, self.budget = labels.cpu(), budget
        self.queries = torch.zeros(len(labels), dtype=torch.int64)
        self.outside, self.sealed, self.remembers = 0, False, True
        self.log: QueryLog | None = None
        self.classes = 0
        self._memory: dict[int, dict[bytes, Answer]] = {}

    def spent(self, images: Sequence[int]) -> Bool[Tensor, " n"]:
        """Which images have used up their budget."""
        if self.budget is None:
            return torch.zeros(len(images), dtype=torch.bool)
        return self.queries[list(images)] >= self.budget

    def recall(self, image: int, point: Images) -> Answer | None:
        """What the model answered at a point (C, H, W); None if it is not known."""
        return self.known(image, point_key(point))

    def known(self, image: int, key: bytes) -> Answer | None:
        """The same, of a point by its `point_key`."""
        return self._memory.get(image, {}).get(key)

    def ask(self, images: Sequence[int], clean: bool) -> list[int]:
        """Enter one query about each of the images, before the model is asked: the answer may
        never come.

        Returns:
            the numbers of the queries.
        """
        if clean:
            self.outside += len(images)
            return [CLEAN] * len(images)
        numbers = []
        for image in images:
            self.queries[image] += 1
            numbers.append(int(self.queries[image]))
        if self.log is not None:
            self.log.asking({image: int(self.queries[image]) for image in images})
        return numbers

    def answered(self, answers: Sequence[tuple[int, bytes, Answer]]) -> None:
        """Keep answers: image, point and answer. The first to a point stays, for it says when an
        image was broken."""
        for image, key, answer in answers:
            self._memory.setdefault(image, {}).setdefault(key, answer)
        asked = [each for each in answers if each[2].number != CLEAN]
        if asked and self.log is not None:
            self.log.answered(asked)

    def restore(
        self, queries: Mapping[int, int], answers: Sequence[tuple[int, bytes, Answer]]
    ) -> None:
        """Bring back what was written down."""
        for image, count in queries.items():
            self.queries[image] = count
        for image, key, answer in answers:
            self._memory.setdefault(image, {})[key] = answer

    def keep(self, points: Mapping[int, Sequence[bytes]]) -> None:
        """Forget all answers but those at these points of each image, by their `point_key`, and at
        the clean images."""
        self._memory = {
            image: {
                key: answer
                for key, answer in known.items()
                if answer.number == CLEAN or key in points.get(image, ())
            }
            for image, known in self._memory.items()
        }
        if self.log is not None:
            self.log.keep(
                [
                    (image, key, answer)
                    for image, known in self._memory.items()
                    for key, answer in known.items()
                    if answer.number != CLEAN
                ]
            )


class MeteredModel(WrappedModel):
    """A model that counts the queries about each image, and answers no more than a budget of them.

    Beyond the budget of its image, a row is answered without the model: the label, by far. So it
    breaks no image and no search prefers it.

    Args:
        inner: behind a `WrappedModel`, with all defences.
        labels, budget: of the account.

    Attributes:
        account: of the queries; copies of the model, with other backward passes, share it.

    Example:
        >>> images, labels = torch.rand(2, 1, 2, 2), torch.tensor([0, 1])
        >>> model = MeteredModel(WrappedModel(lambda x: x.flatten(1)[:, :2]), labels, budget=1)
        >>> with about(torch.arange(2), clean=True):
        ...     clean = model(images)
        >>> with about(torch.arange(2)), torch.no_grad():
        ...     first, second = model(images / 2), model(images / 3)
        >>> torch.equal(first, clean / 2), second.argmax(1).tolist()
        (True, [0, 1])
        >>> model.account.queries.tolist(), model.account.outside
        ([1, 1], 2)
    """

    def __init__(self, inner: nn.Module, labels: Int64[Tensor, " n"], budget: int | None = None):
        super().__init__(inner)
        self.account = Account(labels, budget)

    def forward(self, images: Images) -> Float[Tensor, "n k"]:
        asked = _about.get()
        if asked is None:
            self.account.outside += len(images)
            return self.inner(images)
        if not len(images):
            return images.new_zeros(0, self.account.classes)
        return self._answer(images, _owners(asked.images, len(images)), asked.clean)

    def _answer(self, images: Images, owners: Sequence[int], clean: bool) -> Float[Tensor, "n k"]:
        account = self.account
        # A remembered answer has no gradient.
        climbs = torch.is_grad_enabled() and images.requires_grad
        keys = [point_key(point) for point in images]
        plan = self._planned(owners, keys, climbs, clean)
        parts: list[Tensor] = []
        if plan.asked:
            parts.append(self._ask(images, owners, keys, plan.asked, clean))
            account.classes = parts[0].shape[1]
        if plan.answered:
            parts.append(torch.stack([answer.logits for answer in plan.answered]).to(images))
            account.classes = parts[-1].shape[1]
        known = len(plan.asked) + len(plan.answered)
        if any(place >= known for place in plan.place):
            refusals = images.new_zeros(len(images), account.classes)
            refusals[torch.arange(len(images)), account.labels[list(owners)].to(images.device)] = (
                REFUSED
            )
            parts.append(refusals)
        logits = torch.cat(parts)
        if plan.place != list(range(len(logits))):
            logits = logits[torch.tensor(plan.place, device=logits.device)]
        if climbs and not plan.asked:
            # Nothing was asked: there is a gradient all the same, of zeros.
            logits = logits + 0 * images.flatten(1).sum(1, keepdim=True)
        return logits

    def _planned(
        self, owners: Sequence[int], keys: Sequence[bytes], climbs: bool, clean: bool
    ) -> _Plan:
        asked: list[int] = []
        answered: list[Answer] = []
        about_to: dict[int, int] = {}  # how many queries of each image are asked
        account = self.account
        remembers = account.remembers or account.sealed
        first: dict[tuple[int, bytes], int] = {}  # row at which a point of an image stands first
        fate: list[tuple[str, int]] = []
        for row, (image, key) in enumerate(zip(owners, keys, strict=True)):
            if remembers and first.setdefault((image, key), row) != row:
                fate.append(fate[first[image, key]])
                continue
            known = account.known(image, key) if remembers else None
            left = not account.sealed and (
                clean
                or account.budget is None
                or int(account.queries[image]) + about_to.get(image, 0) < account.budget
            )
            if left and (known is None or climbs):
                fate.append(("asked", len(asked)))
                asked.append(row)
                about_to[image] = about_to.get(image, 0) + 1
            elif known is not None:
                fate.append(("answered", len(answered)))
                answered.append(known)
            else:
                fate.append(("refused", row))
        begins = {"asked": 0, "answered": len(asked), "refused": len(asked) + len(answered)}
        return _Plan(asked, answered, [begins[kind] + number for kind, number in fate])

    def _ask(
        self,
        images: Images,
        owners: Sequence[int],
        keys: Sequence[bytes],
        rows: Sequence[int],
        clean: bool,
    ) -> Float[Tensor, "m k"]:
        """Ask the model about some rows."""
        numbers = self.account.ask([owners[row] for row in rows], clean)
        whole = len(rows) == len(images)
        batch = images if whole else images[torch.tensor(rows, device=images.device)]
        with blank_filling():
            logits = self.inner(batch)
        kept = logits.detach().float().cpu()
        self.account.answered(
            [
                (owners[row], keys[row], Answer(number, kept[place].clone()))
                for place, (row, number) in enumerate(zip(rows, numbers, strict=True))
            ]
        )
        return logits


def _owners(images: Int64[Tensor, " n"], rows: int) -> list[int]:
    """The image that each row of a batch belongs to."""
    if len(images) == 1:
        return [int(images[0])] * rows
    if not len(images) or rows % len(images):
        raise HoldfastError(
            f"a batch of {rows} rows about {len(images)} images: nobody can tell whose they are"
        )
    return images.repeat_interleave(rows // len(images)).tolist()
