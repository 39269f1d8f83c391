"""What an evaluation found, from its run folder: the points, the images and the model."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor, nn

from .. import data as datasets
from ..defences import chain, steps, undefended
from ..errors import InputError
from ..evaluation.cards import in_classes_of
from ..inputs import checked_data
from ..loading import load
from ..models.wrapper import unwrapped, wrapped
from ..report.runs import EvaluationRun, Verdicts
from ..runs.identity import digest, fingerprint, weights_digest
from ..search import AdversarialImages, Journal, Ledger
from ..search.shards import NAME as JOURNAL
from ..stored import ModelImages, NotInMemory, each, in_parts, part
from ..types import Model


@dataclass(frozen=True)
class Found:
    """The images of an evaluation and the points that it found, row by row of `verdicts`.

    Attributes:
        images: float32 (N, C, H, W), clean.
        adversarial: float32 (N, C, H, W): the breaking image, or the strongest found; the image
            itself where it is wrong without an attack.
        attacked: bool (N,), which an attack broke.
        goals: int64 (N,), the class that alone counted as a success; −1 where any mistake did.
        witness: (N, P), see `holdfast.search.Ledger`.
    """

    run: EvaluationRun
    verdicts: Verdicts
    images: ModelImages
    labels: Int64[Tensor, " n"]
    adversarial: AdversarialImages
    attacked: Bool[Tensor, " n"]
    goals: Int64[Tensor, " n"]
    witness: Float[Tensor, "n p"]


def found_in(run: EvaluationRun, data: Any = None, size: int | None = None) -> Found:
    """The images and points of a run.

    Args:
        data: as `holdfast.export` takes it; None for what the run's command names.
        size: of images of one's own, as `--image-size`; None for what the run's command says.

    Raises:
        InputError: a file of the run that is needed is not there; data that cannot be read, or are
            not those that were judged.
    """
    verdicts = run.verdicts
    if verdicts is None:
        raise InputError(f"{run.path} holds no verdicts.csv; issue its command again")
    journal = _journal(run)
    images, labels = _images(run, verdicts, data, size)
    ledger = _points(run, journal, verdicts.index, images, labels)
    attacked = torch.tensor([attack not in ("", "clean") for attack in verdicts.attack])
    attacked &= torch.from_numpy(verdicts.broken)
    reached = _distances(run, ledger, images)
    told = torch.from_numpy(verdicts.distance)
    if not torch.allclose(reached[attacked].double(), told[attacked], rtol=1e-3, atol=1e-6):
        raise InputError(
            f"{run.path}: its journal holds other points than verdicts.csv tells of; issue the "
            "run's command again, which writes it anew"
        )
    goals = verdicts.target if run.aimed else np.full_like(verdicts.target, -1)
    return Found(
        run,
        verdicts,
        images,
        labels,
        ledger.adversarial,
        attacked,
        torch.from_numpy(goals),
        ledger.witness,
    )


def _distances(run: EvaluationRun, ledger: Ledger, images: ModelImages) -> Tensor:
    return in_parts(run.threat.distance, ledger.adversarial, images, ledger.witness)


# --- the points ----------------------------------------------------------------------------------


def _journal(run: EvaluationRun) -> Path:
    """The file that keeps the points; InputError where there is none."""
    path = run.path / JOURNAL
    if run.record.given is not None:
        raise InputError(
            f"{run.path} judged images that were handed to it: they are where they came from"
        )
    if not path.is_file() or path.is_symlink() or not run.record.identity:
        raise InputError(
            f"{run.path} holds no {JOURNAL}, which keeps the adversarial images; issue the run's "
            "command again"
        )
    return path


def _points(
    run: EvaluationRun, path: Path, index: np.ndarray, images: ModelImages, labels: Tensor
) -> Ledger:
    """What the run's journal keeps of each image; the file is read, and not touched.

    Args:
        index: (N,), of the images among those that were handed to the evaluation, which judges a
            sample of them where it has a budget.
    """
    rows = torch.from_numpy(index)
    size = int(rows.max()) + 1
    place = torch.zeros(size, dtype=torch.int64)  # of each in `images`; of the others, anywhere
    place[rows] = torch.arange(len(rows))
    every, number = part(images, place), torch.arange(size)
    journal = Journal(None, run.record.identity or "")
    points = journal.lend(every) if isinstance(every, NotInMemory) else None
    ledger = Ledger.of(every, labels[place], number, run.threat.witness_size, adversarial=points)
    try:
        journal.absorb(path, index.tolist())
        journal.restore(ledger)
    finally:
        journal.close()
    found = part(ledger.adversarial, rows)
    return replace(ledger, adversarial=found, witness=ledger.witness[rows])


# --- the images ----------------------------------------------------------------------------------


def _images(
    run: EvaluationRun, verdicts: Verdicts, data: Any, size: int | None
) -> tuple[ModelImages, Tensor]:
    """The clean images and their labels, which are checked to be those that were judged."""
    images: ModelImages
    if isinstance(data, tuple | list) and len(data) == 2 and not isinstance(data[0], str):
        images, labels = (tensor.detach().cpu() for tensor in checked_data(*data))
        source = "the data given"
    else:
        words = run.request.command if run.request else ()
        named = data if data is not None else _option(words, "--data", "datasets")
        if named is None:
            raise InputError(
                f"{run.path} does not name its data: give them (--data, or data=(images, labels))"
            )
        brought = run.data.brought or {}
        told = _option(words, "--image-size", None) if data is None else None
        known = int(told) if told and told.isdigit() else brought.get("size")
        try:
            dataset = datasets.load(
                named,
                size=size if size is not None else known,
                grey=bool(brought.get("grey")),
                labels=_option(words, "--labels", None),
                class_order=_option(words, "--class-order", None),
            )
            card = {"classes": list(run.record.classes)}
            split = in_classes_of(str(run.path), card, dataset).split(run.data.split or "test")
        except InputError as error:
            if data is not None:
                raise
            raise InputError(
                f"{error}; the command of {run.path} names these data: where they lie elsewhere by "
                "now, give them by --data"
            ) from None
        images = datasets.model_images(split.images)
        labels = torch.from_numpy(split.labels.copy())
        source = f"data {getattr(named, 'name', named)}"
    rows = _rows(run, verdicts, images, labels, source)
    return part(images, rows), labels[rows]


def _option(words: Sequence[str], name: str, usual: str | None) -> str | None:
    """What a stored command says for an option, or its default; None where it is no command of
    Holdfast's."""
    if "evaluate" not in words[:4]:
        return None
    for word, value in zip(words, [*words[1:], ""], strict=True):
        if word == name:
            return value
        if word.startswith(f"{name}="):
            return word.partition("=")[2]
    return usual


def _rows(
    run: EvaluationRun, verdicts: Verdicts, images: ModelImages, labels: Tensor, source: str
) -> Int64[Tensor, " n"]:
    """Which of the images were judged, in the order of the verdicts.

    Raises:
        InputError: they are not among these.
    """
    n, asked = run.n, run.request.asked if run.request else {}
    handed = asked.get("n")
    whole = isinstance(handed, int) and int(verdicts.index.max()) < handed <= len(images)
    if whole and asked.get("images") == digest(part(images, slice(handed)), labels[:handed]):
        return torch.from_numpy(verdicts.index)
    place = {fingerprint(image): row for row, image in enumerate(each(images))}
    rows = [place.get(int(known), -1) for known in verdicts.fingerprint]
    gone = [row for row, at in enumerate(rows) if at < 0]
    if gone:
        raise InputError(
            f"{source}: {len(gone)} of the {n} images that {run.path} judged are not there; give "
            "the data of the run (--data)"
        )
    chosen = torch.tensor(rows)
    if not bool((labels[chosen] == torch.from_numpy(verdicts.label)).all()):
        raise InputError(
            f"{source}: the labels are others than those that {run.path} was judged by"
        )
    return chosen


# --- the model -----------------------------------------------------------------------------------


def model_of(
    run: EvaluationRun, model: Any = None, defences: Sequence[str] | None = None
) -> nn.Module:
    """The model that a run judged, behind its defences, as `holdfast.evaluate` calls it.

    Args:
        model: a model or its name; None for the one that the record names, which runs no code.
        defences: in front of it; None for those in the record.

    Raises:
        InputError: there is none of that name, or it has other weights than the one judged.
    """
    told = run.model
    network: Model
    if model is None:
        if not told.source:
            raise InputError(f"{run.path} does not name its model: give it (--model, or model=…)")
        try:
            network = load(told.source, code=False)
        except InputError as error:
            raise InputError(f"{error}; give the model that {run.path} judged by --model") from None
    elif isinstance(model, str | Path):
        network = load(model)
    else:
        network = model
    own = [step.spec for step in steps(network)]
    if defences is not None:
        network = chain(network, defences)
    elif list(told.defences) != own and told.defences:
        rest = list(told.defences)
        if own and rest[len(rest) - len(own) :] == own:
            rest = rest[: len(rest) - len(own)]
        # The record may be anybody's: it may name no code.
        network = chain(network, rest, run.path)
    sha256 = weights_digest(unwrapped(undefended(network)))
    if told.sha256 and sha256 and sha256 != told.sha256:
        raise InputError(
            f"the model has other weights ({sha256[:12]}…) than the one that {run.path} judged "
            f"({told.sha256[:12]}…)"
        )
    return wrapped(network)


def class_names(run: EvaluationRun, labels: np.ndarray) -> list[str]:
    """The name of each label's class, or its number."""
    names = run.record.classes
    return [names[k] if 0 <= k < len(names) else str(k) for k in labels.tolist()]
