"""The zoo: trained models by name, where they lie, and how those are fetched that do not.

`zoo.json` beside this file lists every model with its size, checksums and figures; it is written
by `python benchmarks/zoo_index.py`.
"""

from __future__ import annotations

import functools
import hashlib
import json
import os
import tempfile
import urllib.request
from pathlib import Path
from typing import Any, NamedTuple

from ..errors import HoldfastError, InputError
from ..parsing import nearest
from ..shipped import shipped_folder
from ..version import PROJECT, VERSION

ADDRESS = f"{PROJECT}/raw/v{VERSION}/zoo"  # of each model's folder
INDEX = Path(__file__).with_name("zoo.json")
CARD = "card.json"
SECONDS = 30  # of silence after which a server counts as unreachable


class ZooModel(NamedTuple):
    """What is known of a model without having it.

    Attributes:
        architecture: by name.
        threat: norm and eps that it was trained for; None where it was not trained for any.
        files: SHA-256 by the name of the file.
        size: of all files together, in bytes.
        results: what evaluations found, each a part of its `result.json`.
        certificates: what certifications found, likewise.
    """

    architecture: str
    threat: dict[str, Any] | None
    files: dict[str, str]
    size: int
    results: list[dict[str, Any]]
    certificates: list[dict[str, Any]]


@functools.cache
def zoo_index() -> dict[str, ZooModel]:
    """Every published model by name, on this machine or not."""
    listed = json.loads(INDEX.read_text(encoding="utf-8"))["models"]
    return {name: ZooModel(**model) for name, model in listed.items()}


def zoo_folders() -> list[Path]:
    """Where models of the zoo lie: `$HOLDFAST_ZOO` alone if it is set; else those that came with
    Holdfast, and those that were fetched."""
    if "HOLDFAST_ZOO" in os.environ:
        return [Path(os.environ["HOLDFAST_ZOO"])]
    return [shipped_folder("zoo"), fetched_folder()]


def fetched_folder() -> Path:
    """Where models are fetched to: `$HOLDFAST_ZOO`, else the user's cache."""
    if "HOLDFAST_ZOO" in os.environ:
        return Path(os.environ["HOLDFAST_ZOO"])
    cache = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(cache) / "holdfast" / "zoo"


def zoo_models() -> dict[str, Path]:
    """The folders of the models that are on this machine, by name."""
    found: dict[str, Path] = {}
    for folder in zoo_folders():
        for card in sorted(folder.glob(f"*/{CARD}")):
            found.setdefault(card.parent.name, card.parent)
    return dict(sorted(found.items()))


def zoo_names() -> list[str]:
    """The names of all models of the zoo: those on this machine, and those to be fetched."""
    return sorted({*zoo_models(), *zoo_index()})


def fetch(name: str) -> Path:
    """Bring a model onto this machine: each file is compared with its checksum.

    Returns:
        the model's folder.

    Raises:
        InputError: no model of that name.
        HoldfastError: it cannot be reached, or is not what the index says; nothing is kept then.
    """
    if name in zoo_models():
        return zoo_models()[name]
    if name not in zoo_index():
        raise InputError(f"the zoo has no model {name!r}{nearest(name, zoo_names())}")
    folder = fetched_folder()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder, prefix=".fetching-") as place:
            whole = Path(place) / name
            whole.mkdir()
            for file, checksum in zoo_index()[name].files.items():
                content = _read(f"{ADDRESS}/{name}/{file}")
                if hashlib.sha256(content).hexdigest() != checksum:
                    raise HoldfastError(
                        f"{ADDRESS}/{name}/{file} is not what was published (its checksum "
                        "differs); nothing of it is kept"
                    )
                (whole / file).write_bytes(content)
            whole.rename(folder / name)
    except OSError as error:
        raise HoldfastError(f"{folder}: {error.strerror or error}") from None
    return folder / name


def _read(address: str) -> bytes:
    try:
        with urllib.request.urlopen(address, timeout=SECONDS) as answer:
            content: bytes = answer.read()
            return content
    except (OSError, ValueError) as error:
        said = " ".join(str(getattr(error, "reason", error)).split())
        raise HoldfastError(
            f"{address} cannot be reached ({said}); if you have the model's folder from elsewhere, "
            "set HOLDFAST_ZOO to the folder that holds it"
        ) from None
