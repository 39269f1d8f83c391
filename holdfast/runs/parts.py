"""Finished parts of a run, each kept in a file that appears whole or not at all.

Images that are not in memory have a file of their own beside it.
"""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from ..distributed import Workers
from ..errors import InputError
from ..stored import TOGETHER, ImageFile, ModelImages, NotInMemory
from ..types import Report
from .files import check_regular, make_folder, write_atomically
from .identity import digest
from .progress import ProgressLine


class Done(NamedTuple):
    """What a stage came to.

    Attributes:
        figures: anything JSON can hold.
        tensors: by name; images that are not in memory are read when they are indexed.
        seconds: what it took, when it was done.
    """

    figures: dict[str, Any]
    tensors: dict[str, Any]
    seconds: float


Work = Callable[[Report], tuple[dict[str, Any], dict[str, Any]]]


class Stages:
    """Does stages in order, and remembers them: a run that is interrupted loses one at most.

    Args:
        folder: the run folder; None remembers nothing beyond this process.
        line: where progress is shown.
        weights: about how long each stage takes beside the others, by name; a stage that is not
            named takes 1.
        workers: who does each stage at the same time; worker 0's outcome is that of all, and it
            keeps the files. By default nobody else.
    """

    def __init__(
        self,
        folder: Path | None,
        line: ProgressLine,
        weights: dict[str, float],
        workers: Workers | None = None,
    ):
        self.workers = workers or Workers()
        self.folder = None if folder is None else folder / "stages"
        self.line, self.weights = line, weights
        self.passed, self.total = 0.0, sum(weights.values()) or 1.0
        self.seconds: dict[str, float] = {}

    def do(self, name: str, work: Work) -> Done:
        """The stage's outcome: from its file if it was done before, else from `work`."""
        weight = self.weights.get(name, 1.0)
        file = None if self.folder is None else self.folder / f"{name}.safetensors"
        leads = self.workers.leads
        before = _read(file) if leads and file is not None and file.exists() else None
        if self.workers.share(before is not None):
            done = before
        else:
            began = time.monotonic()
            figures, tensors = work(
                lambda share: self.line.update((self.passed + share * weight) / self.total, name)
            )
            # By name, as they are read again: what is written of them keeps their order.
            done = Done(figures, dict(sorted(tensors.items())), time.monotonic() - began)
            if file is not None and leads:
                done = _written(file, done)
        done = self.workers.share(done)
        assert done is not None
        self.passed += weight
        self.line.update(min(self.passed / self.total, 1.0), name)
        self.seconds[name] = done.seconds
        return done

    def forget(self) -> None:
        """Remove the files: what they were kept for is written."""
        if self.folder is not None:
            shutil.rmtree(self.folder, ignore_errors=True)


def _written(file: Path, done: Done) -> Done:
    """The same, with images that are not in memory in a file of the run's."""
    make_folder(file.parent)
    held: dict[str, ModelImages] = {}
    for name, tensor in done.tensors.items():
        if isinstance(tensor, NotInMemory):
            rows = torch.arange(len(tensor)).split(TOGETHER)
            pieces = (tensor[some].contiguous().numpy().astype("<f4").tobytes() for some in rows)
            write_atomically(_images_of(file, name), pieces)
            held[name] = ImageFile(tensor.shape, _images_of(file, name))
        else:
            held[name] = tensor.contiguous()
    shapes = {n: list(t.shape) for n, t in held.items() if not isinstance(t, Tensor)}
    metadata = {
        "figures": json.dumps(done.figures),
        "seconds": repr(done.seconds),
        **({"images": json.dumps(shapes)} if shapes else {}),
    }
    inside = {name: tensor for name, tensor in held.items() if isinstance(tensor, Tensor)}
    write_atomically(file, save(inside, metadata | {"sha256": _checksum(held, metadata)}))
    return done._replace(tensors=held)


def _images_of(file: Path, name: str) -> Path:
    return file.with_suffix(f".{name}.f32")


def _read(file: Path) -> Done:
    try:
        check_regular(file)
        with safe_open(file, framework="pt") as opened:
            metadata = opened.metadata()
            tensors = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118
        for name, shape in json.loads(metadata.get("images", "{}")).items():
            check_regular(_images_of(file, name))
            tensors[name] = ImageFile(shape, _images_of(file, name))
        tensors = dict(sorted(tensors.items()))
        if metadata["sha256"] != _checksum(tensors, metadata):
            raise ValueError("its checksum differs")
        return Done(json.loads(metadata["figures"]), tensors, float(metadata["seconds"]))
    except (SafetensorError, OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(
            f"{file} is damaged ({' '.join(str(error).split())}); remove it and run again"
        ) from None


def _checksum(tensors: Mapping[str, Any], metadata: dict[str, str]) -> str:
    named = (part for name in sorted(tensors) for part in (name, tensors[name]))
    return digest(metadata["figures"], metadata["seconds"], *named)
