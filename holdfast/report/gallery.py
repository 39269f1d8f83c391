"""All images of a run, for the page's script to look through: sheets of small pictures.

The clean images are WebP, a little lossy; what the attack changed is lossless in few levels, and
the script adds the two. Sheets stay text in the page until the reader comes to them.
"""

from __future__ import annotations

import base64
import io
import os
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image

from ..errors import InputError
from ..evaluation.pictures import FILE
from ..runs.tensors import read_tensors
from ..terminal import page_text
from . import format
from .runs import EvaluationRun

BUDGET = 9_500_000  # bytes of the pictures of one page; in base64 a third more
SHEET = 1024  # pixels, the side of a sheet
# How well pictures are kept, the best first: quality of WebP, and steps of a change up and down.
QUALITIES = ((90, 31), (75, 7), (50, 3), (30, 2), (15, 1))
FATES = ("standing", "broken", "mistake")


@dataclass(frozen=True)
class Gallery:
    """What the page's script is given, and how many of the run's images it holds."""

    data: dict[str, Any]
    shown: int


@dataclass(frozen=True)
class _Pictures:
    images: np.ndarray  # uint8 (M, C, h, w)
    change: np.ndarray  # int8, of which 127 is `scale`
    scale: float
    rows: np.ndarray  # of the verdicts, (M,)


def gallery(run: EvaluationRun, budget: int = BUDGET) -> Gallery | None:
    """None where the run holds no images that can be shown.

    Args:
        budget: bytes that the pictures may take.

    Raises:
        InputError: the file of pictures is damaged, or shows images that the verdicts do not hold.
    """
    held = _read(run) or _examples(run)
    if held is None or run.verdicts is None:
        return None
    width = held.images.shape[3]
    channels = held.images.shape[1]
    columns = max(1, SHEET // (width * channels))
    per_sheet = columns * max(1, SHEET // held.images.shape[2])
    held, clean, change, levels = _encoded(held, columns, per_sheet, budget)
    v, rows = run.verdicts, held.rows
    before = np.array([name == "clean" for name in v.attack]) if run.aimed else ~v.clean_right
    attacks = sorted({v.attack[row] for row in rows} - {"", "clean"})
    place = {name: i for i, name in enumerate(attacks)}
    data = {
        "width": width,
        "height": held.images.shape[2],
        "channels": channels,
        "columns": columns,
        "perSheet": per_sheet,
        "scale": held.scale,
        "clean": clean,
        "change": change,
        "levels": levels,
        "classes": [page_text(run.class_name(i)) for i in range(_most(run) + 1)],
        "attacks": [page_text(name) for name in attacks],
        "index": v.index[rows].tolist(),
        "label": v.label[rows].tolist(),
        "before": v.clean_prediction[rows].tolist(),
        "after": v.adversarial_prediction[rows].tolist(),
        "fate": np.where(before, 2, np.where(v.broken, 1, 0))[rows].tolist(),
        "attack": [place.get(v.attack[row], -1) for row in rows],
        "beforeSure": _rounded(v.clean_confidence[rows]),
        "afterSure": _rounded(v.adversarial_confidence[rows]),
        "distance": _rounded(v.distance[rows]),
        "norm": format.norm(run.threat),
        "steps": format.in_steps(run.threat),
        "aimed": run.aimed,
    }
    return Gallery(data, len(rows))


def _most(run: EvaluationRun) -> int:
    v = run.verdicts
    assert v is not None
    return int(max(*v.label, *v.clean_prediction, *v.adversarial_prediction, 0))


def _rounded(values: np.ndarray) -> list[float | None]:
    return [float(f"{value:.4g}") if np.isfinite(value) else None for value in values]


def _read(run: EvaluationRun) -> _Pictures | None:
    path = run.path / FILE
    if run.verdicts is None or not os.path.lexists(path):
        return None
    tensors = read_tensors(path)
    try:
        images, change, scale, index = (
            tensors[name].numpy() for name in ("images", "change", "scale", "index")
        )
    except KeyError as error:
        raise InputError(f"{path} holds no tensor {error}") from None
    alike = images.shape == change.shape and index.shape == images.shape[:1]
    kinds = [array.dtype for array in (images, change, scale, index)]
    if (
        not alike
        or images.ndim != 4
        or images.shape[1] not in (1, 3)
        or scale.shape != (1,)
        or kinds != [np.uint8, np.int8, np.float32, np.int64]
        or not np.isfinite(scale).all()
        or not images.size
    ):
        raise InputError(f"{path}: its images, changes and indices do not belong together")
    row_of = {int(i): row for row, i in enumerate(run.verdicts.index)}
    unknown = [int(i) for i in index if int(i) not in row_of]
    if unknown:
        raise InputError(f"{path} shows image {unknown[0]}, which has no row in verdicts.csv")
    rows = np.array([row_of[int(i)] for i in index], np.int64)
    return _Pictures(images, change, float(scale[0]), rows)


def _examples(run: EvaluationRun) -> _Pictures | None:
    """What runs of before hold: a few images."""
    held = run.examples
    if held is None or not len(held.rows) or held.images.shape[1] not in (1, 3):
        return None
    delta = held.adversarial - held.images
    scale = float(np.abs(delta).max(initial=0)) or 1.0
    return _Pictures(
        np.rint(np.clip(held.images, 0, 1) * 255).astype(np.uint8),
        np.rint(delta / scale * 127).astype(np.int8),
        scale,
        held.rows,
    )


def _encoded(
    held: _Pictures, columns: int, per_sheet: int, budget: int
) -> tuple[_Pictures, list[str], list[str], int]:
    """Both kinds of sheets, as well as they fit: judged by the first one, and made smaller again
    where the others turn out larger. Where nothing fits, the first images alone."""
    sheets = -(-len(held.images) // per_sheet)
    for quality, levels in QUALITIES:
        first = _sheets(held, columns, per_sheet, quality, levels, 1)
        if sum(map(len, first)) * sheets > budget * 4 / 3 and (quality, levels) != QUALITIES[-1]:
            continue
        clean, change = [], []
        spent = 0
        for number in range(sheets):
            pair = _sheets(held, columns, per_sheet, quality, levels, number + 1)
            spent += sum(map(len, pair))
            if spent > budget * 4 / 3 and number:
                break
            clean.append(pair[0])
            change.append(pair[1])
        if len(clean) == sheets or (quality, levels) == QUALITIES[-1]:
            kept = len(clean) * per_sheet
            cut = _Pictures(held.images[:kept], held.change[:kept], held.scale, held.rows[:kept])
            return cut, clean, change, levels
    raise AssertionError("the last quality is taken whatever comes of it")


def _sheets(
    held: _Pictures, columns: int, per_sheet: int, quality: int, levels: int, number: int
) -> tuple[str, str]:
    """One sheet of clean images and one of changes, as data URIs; `number` counts from 1."""
    rows = slice((number - 1) * per_sheet, number * per_sheet)
    images, change = held.images[rows], held.change[rows]
    steps = np.rint(change / 127 * levels)
    grey = np.rint(127.5 + 127.5 * steps / levels).astype(np.uint8)
    # The channels of a change lie beside each other, so that each is grey and few values are used.
    n, channels, height, width = grey.shape
    flat = grey.transpose(0, 2, 1, 3).reshape(n, 1, height, channels * width)
    return (
        _webp(_sheet(images, columns), quality=quality, method=2),
        _webp(_sheet(flat, columns), lossless=True, quality=20, method=1),
    )


def _sheet(images: np.ndarray, columns: int) -> np.ndarray:
    """(N, C, h, w) as one picture (rows · h, columns · w, C)."""
    n, channels, height, width = images.shape
    rows = -(-n // columns)
    whole = np.zeros((rows * columns, channels, height, width), np.uint8)
    whole[:n] = images
    whole = whole.reshape(rows, columns, channels, height, width).transpose(0, 3, 1, 4, 2)
    return whole.reshape(rows * height, columns * width, channels)


def _webp(picture: np.ndarray, **how: Any) -> str:
    if picture.shape[2] == 1:
        picture = picture.repeat(3, axis=2)
    buffer = io.BytesIO()
    Image.fromarray(picture).save(buffer, "WEBP", **how)
    return "data:image/webp;base64," + base64.b64encode(buffer.getvalue()).decode()
