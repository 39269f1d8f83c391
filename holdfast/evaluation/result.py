"""The outcome of an evaluation, and how it is written down."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Annotated, Any, Self

import numpy as np
import torch
from jaxtyping import Bool
from pydantic import ConfigDict, Field, SkipValidation
from safetensors.torch import load, save
from torch import Tensor

from ..models.adapted import described_with
from ..models.wrapper import unwrapped
from ..runs import records
from ..runs.files import csv_text, make_folder, write_atomically
from ..runs.folder import finish
from ..runs.records import EvaluationRecord
from ..runs.records.base import Count, Fraction, Integer, Interval, ListOf, Positive, Quantity
from ..search import AdversarialImages
from ..stored import ModelImages
from .pictures import write_pictures

EXAMPLES = 24  # images kept for the report
FILES = (".csv", ".safetensors")  # how the names of a run's files for readers end
VERDICTS = "verdicts.csv"


@dataclass(frozen=True)
class Verdict:
    """All that is known about one image.

    `attack` is `clean` for a clean mistake, the name of the attack that broke the image, or
    empty where it stands; then the adversarial columns describe the strongest point found.
    `adversarial_prediction` is −1 where the model answers nothing. `distance` is in the threat
    model's norm (spatial: the ε at which the move is just allowed); from the suite `minimum` it is
    the smallest found, ∞ where there is none. Passes are those spent up to the verdict.
    `fingerprint` tells the clean image from others, see `holdfast.runs.identity`. `queries` are
    those about the image up to the one that broke it, or all where it stands; −1 where they were
    not counted.
    """

    index: int
    label: int
    clean_prediction: int
    clean_confidence: float
    broken: bool
    attack: str
    target: int
    adversarial_prediction: int
    adversarial_confidence: float
    distance: float
    forwards: int
    backwards: int
    fingerprint: int = -1  # of files of before, which do not say it
    queries: int = -1


class Flag(records.Flag):
    """A health check that was run; as in the record, and it is said whether it fired."""

    fired: bool
    figures: dict[str, Any]


class AttackCost(records.AttackCost):
    """What one stage of the suite broke and cost; as in the record, and every figure is there."""

    broken: Count
    forwards: Count
    backwards: Count
    seconds: Quantity


class Unaware(records.Unaware):
    """Robust accuracy against an attacker who does not know of the defence; as in the record, and
    every figure is there."""

    n: Positive
    robust_accuracy: Fraction
    robust_accuracy_interval: Interval


class Evaluation(EvaluationRecord):
    """The outcome of `holdfast.evaluate`: the record of the run, and what is known of each image.

    Attributes (besides those of `EvaluationRecord`):
        broken: bool (N,); a clean mistake is broken.
        adversarial: float32 (N, C, H, W): the breaking image, or the strongest found. A tensor; of
            images that are not in memory, `holdfast.search.StoredPoints`, which is indexed like a
            tensor and reads them from the run's journal.
        verdicts: one row an image.
    """

    model_config = ConfigDict(extra="forbid", arbitrary_types_allowed=True)

    standard_accuracy: Fraction
    standard_accuracy_interval: Interval
    robust_accuracy: Fraction
    robust_accuracy_interval: Interval
    suite: str
    attacks: ListOf[AttackCost]
    flags: ListOf[Flag]
    unaware: Unaware | None = None
    forwards: Count
    backwards: Count
    seconds: Quantity
    seed: Integer
    finished: str
    broken: Annotated[Bool[Tensor, " n"], SkipValidation] = Field(exclude=True)
    adversarial: Annotated[AdversarialImages, SkipValidation] = Field(exclude=True)
    verdicts: Annotated[tuple[Verdict, ...], SkipValidation] = Field(exclude=True)

    def save(self, folder: Path | str) -> Path:
        """As `Record.save`, with `verdicts.csv` beside it: one row an image."""
        write_verdicts(make_folder(Path(folder)) / VERDICTS, self.verdicts)
        return super().save(folder)

    def to_bytes(self, adversarial: bool = True) -> bytes:
        """All of it, for the other workers of a run and for the journal: tensors and JSON, no
        pickle.

        Args:
            adversarial: with the adversarial images.
        """
        held = {**self.to_dict(), "verdicts": [asdict(verdict) for verdict in self.verdicts]}
        tensors = {
            "record": torch.frombuffer(bytearray(json.dumps(held).encode()), dtype=torch.uint8),
            "broken": self.broken.contiguous(),
        }
        if adversarial:
            tensors["adversarial"] = self.adversarial[:].contiguous()
        return save(tensors)

    @classmethod
    def from_bytes(cls, data: bytes, adversarial: AdversarialImages | None = None) -> Self:
        """What `to_bytes` made.

        Args:
            adversarial: the adversarial images, where they are not in it.
        """
        tensors: dict[str, Any] = load(data)
        held = json.loads(bytes(tensors.pop("record").numpy()))
        if adversarial is not None:
            tensors["adversarial"] = adversarial
        held["verdicts"] = tuple(Verdict(**row) for row in held["verdicts"])
        return cls.checked({**held, **tensors}, "the evaluation")


def write_verdicts(path: Path, verdicts: tuple[Verdict, ...]) -> None:
    """`verdicts.csv`: one row an image; `broken` is 0 or 1."""
    names = [f.name for f in fields(Verdict)]
    rows = [{**asdict(verdict), "broken": int(verdict.broken)} for verdict in verdicts]
    cells = (
        [f"{row[name]:.6g}" if isinstance(row[name], float) else row[name] for name in names]
        for row in rows
    )
    write_atomically(path, csv_text(names, cells))


def write_examples(path: Path, images: ModelImages, result: Evaluation) -> None:
    """`examples.safetensors`: some images with their adversarial counterparts.

    Broken by an attack first, spread over the classes and over the confidence of the clean
    answer, then images that stand: what a reader needs to see how the model is fooled.
    """
    fooled = [i for i, v in enumerate(result.verdicts) if v.broken and v.attack != "clean"]
    standing = [i for i, v in enumerate(result.verdicts) if not v.broken]
    chosen = _spread(fooled, EXAMPLES * 3 // 4, result) + _spread(standing, EXAMPLES // 4, result)
    if not chosen:
        chosen = list(range(min(EXAMPLES, result.n)))
    rows = torch.tensor(chosen)
    payload = {
        "images": images[rows].contiguous(),
        "adversarial": result.adversarial[rows].contiguous(),
        "index": torch.tensor([result.verdicts[i].index for i in chosen]),
    }
    write_atomically(path, save(payload))


def _spread(rows: list[int], count: int, result: Evaluation) -> list[int]:
    """Up to `count` rows, taking turns between the labels."""
    by_label: dict[int, list[int]] = {}
    for row in rows:
        by_label.setdefault(result.verdicts[row].label, []).append(row)
    turns = np.argsort(
        [turn for label in sorted(by_label) for turn in range(len(by_label[label]))], kind="stable"
    )
    flat = [row for label in sorted(by_label) for row in by_label[label]]
    return [flat[i] for i in turns[:count]]


def write_run(folder: Path, images: ModelImages, result: Evaluation, request: Any) -> None:
    """The files of a finished evaluation; `result.json` last, so that its presence means done.

    Args:
        request: the `Request`; what it describes (`model`, `data` and `classes`) is for a reader.
    """
    # Where more was judged since, the old result must not stand beside the new verdicts.
    (folder / records.RESULT).unlink(missing_ok=True)
    write_verdicts(folder / VERDICTS, result.verdicts)
    write_examples(folder / "examples.safetensors", images, result)
    index = torch.tensor([verdict.index for verdict in result.verdicts], dtype=torch.int64)
    write_pictures(folder, images, result.adversarial, index)
    described = described_with(request.described, request.model)
    if count := parameters(request.model):
        described["model"] = {**described.get("model", {}), "parameters": count}
    record = EvaluationRecord.checked({**described, **result.to_dict()}, str(folder))
    others = sorted(file.name for file in folder.iterdir() if file.suffix in FILES)
    finish(folder, record, others)


def parameters(model: Any) -> int:
    """How many numbers training changes in a model, those of networks in front of it included; 0
    where that is not known."""
    plain = unwrapped(model)
    return sum(p.numel() for p in plain.parameters()) if isinstance(plain, torch.nn.Module) else 0


def distinct_names(names: Sequence[str], weights: Sequence[str]) -> list[str]:
    """Names of models side by side; those of one name but of other weights say which weights.

    Args:
        weights: their SHA-256; empty where it is unknown.
    """
    of: dict[str, set[str]] = {}
    for name, own in zip(names, weights, strict=True):
        of.setdefault(name, set()).add(own)
    return [
        f"{name}, weights {own[:8] or 'unknown'}" if len(of[name]) > 1 else name
        for name, own in zip(names, weights, strict=True)
    ]
