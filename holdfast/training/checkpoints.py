"""What survives a kill: files that are whole or not there, and checked when they are read."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from ..errors import InputError
from ..runs.files import check_regular, make_folder, write_atomically
from ..runs.identity import digest


class Checkpoints:
    """The folder `checkpoints/` of a run: named points that it can go back to.

    A checkpoint is one safetensors file: tensors, and in its header how far the run was, as JSON,
    with a checksum over all of it.
    """

    def __init__(self, folder: Path):
        self.folder = folder

    def file(self, name: str) -> Path:
        """Where the checkpoint of that name is, or would be."""
        return self.folder / f"{name}.safetensors"

    def save(self, name: str, tensors: dict[str, Tensor], progress: dict[str, Any]) -> None:
        """Write a checkpoint over the one of that name.

        Raises:
            InputError: the disk is full; the old checkpoint is untouched.
        """
        said = json.dumps(progress)
        metadata = {"progress": said, "sha256": _checksum(tensors, said)}
        make_folder(self.folder)
        write_atomically(self.file(name), save(tensors, metadata))

    def load(
        self, name: str, keys: Iterable[str], later: Iterable[str] = ()
    ) -> tuple[dict[str, Tensor], dict[str, Any]] | None:
        """Tensors and progress of a checkpoint; None if there is none.

        Args:
            keys: what the progress must hold.
            later: those of them that checkpoints of earlier versions lack.

        Raises:
            InputError: it is damaged, or written by another version of the code.
        """
        file = self.file(name)
        if not file.exists():
            return None
        try:
            check_regular(file)
            with safe_open(file, "pt") as reader:
                tensors = {key: reader.get_tensor(key) for key in reader.keys()}  # noqa: SIM118
                metadata = reader.metadata() or {}
            progress = json.loads(metadata["progress"])
            if not set(keys) - set(later) <= set(progress) <= set(keys):
                raise ValueError("written by another version of the code")
            if metadata.get("sha256") not in (None, _checksum(tensors, metadata["progress"])):
                raise ValueError("its checksum differs")
        except (SafetensorError, OSError, KeyError, TypeError, ValueError) as error:
            raise InputError(
                f"checkpoint {file} is damaged: {' '.join(str(error).split())}; remove it to go on "
                "from the last validation, or from the start"
            ) from None
        return tensors, progress


def part(tensors: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """The tensors whose names begin with `prefix`, without it."""
    return {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}


def _checksum(tensors: dict[str, Tensor], progress: str) -> str:
    return digest(progress, *(part for name in sorted(tensors) for part in (name, tensors[name])))
