"""What every run tells that measured a model on images, as it is read from its folder."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import InputError
from ..runs.files import read_json
from ..threat import Threat
from . import format as words
from .fields import Fields


@dataclass(frozen=True)
class Flag:
    """One health check; `fired` is None where it could not be run."""

    name: str
    fired: bool | None
    detail: str
    figures: dict[str, Any]


@dataclass(frozen=True)
class Measured:
    """What every finished run tells that measured a model on images."""

    path: Path
    request: dict[str, Any] | None
    model: str
    architecture: str
    source: str
    sha256: str
    data: str
    split: str
    first: int | None
    pixels: str
    remarks: list[tuple[str, str]]
    n: int
    threat: Threat
    seconds: float | None


def measured(run: Path, result: Fields) -> dict[str, Any]:
    """The fields of `Measured`.

    Raises:
        InputError: there is no number of images.
    """
    n = result.whole("n", 1)
    if n is None:
        raise InputError(f"{result.where} has no 'n', the number of images")
    model, data = result.object("model"), result.object("data")
    return {
        "path": run,
        "request": read_request(run, result),
        "model": model.text("name"),
        "architecture": model.text("architecture"),
        "source": model.text("source"),
        "sha256": model.text("sha256"),
        "data": data.text("name"),
        "split": data.text("split"),
        "first": data.whole("first"),
        "pixels": data.text("pixels"),
        "remarks": remarks(data),
        "n": n,
        "threat": read_threat(result),
        "seconds": result.number("seconds"),
    }


def remarks(data: Fields) -> list[tuple[str, str]]:
    """What a result's `data` says against its figures, as rows of a table."""
    absent = [name for name in data.list("classes_without_images") if isinstance(name, str)]
    named = ", ".join(absent[:10]) + (", …" if len(absent) > 10 else "")
    rows = [("Classes without an image", f"{len(absent)}: {named}")] if absent else []
    for each in data.objects("overlaps"):
        count, split, other = each.whole("images"), each.text("split"), each.text("other")
        rows.append(("Images in two splits", f"{words.count(count)} of {split} are in {other} too"))
    return rows


def read_flags(result: Fields) -> list[Flag]:
    return [
        Flag(
            flag.text("name"),
            flag.truth("fired"),
            flag.text("detail"),
            flag.object("figures").value,
        )
        for flag in result.objects("flags")
    ]


def read_request(run: Path, result: Fields) -> dict[str, Any] | None:
    path = run / "request.json"
    if not path.exists():
        return None
    request = Fields(read_json(path), str(path))
    asked, predicted = request.text("identity"), result.text("identity")
    if asked and predicted and asked != predicted:
        raise InputError(f"{path} asks for another run than {result.where} answers (identity)")
    return request.value


def read_threat(result: Fields) -> Threat:
    threat = result.object("threat")
    try:
        return Threat(
            threat.text("norm"),
            threat.number("eps") or 0.0,
            **{
                name: threat.number(name) or 0.0
                for name in ("degrees", "pixels")
                if name in threat.value
            },
        )
    except InputError as error:
        raise InputError(f"{threat.where}: {error}") from None
