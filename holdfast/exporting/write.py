"""`export`: what a run found, in whatever form another place takes it."""

from __future__ import annotations

import csv
import io
import os
import shutil
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ..errors import InputError
from ..inputs import checked_device
from ..report.runs import EvaluationRun, Run, TrainingRun, read_run
from ..runs.files import PARTIAL, inside, make_folder, write_named
from ..runs.progress import ProgressLine
from .annex import annex_of
from .card import card_of
from .found import found_in, model_of
from .images import COLUMNS, INDEX, Counts, write_arrays, write_images
from .tables import csv_files, table_of

FILES = (".npz", ".csv", ".md", ".tex")
CARD, ANNEX = "README.md", "annex.md"


@dataclass(frozen=True)
class Exported:
    """What was written.

    Attributes:
        files: or the folder of many.
        counts: what became of the images, where PNGs were written.
    """

    files: tuple[Path, ...]
    counts: Counts | None = None

    def __str__(self) -> str:
        told = [] if self.counts is None else [str(self.counts)]
        return "\n".join([*told, *map(str, self.files)])


def export(
    run: Path | str | Sequence[Path | str],
    to: Path | str,
    *,
    card: bool = False,
    annex: bool = False,
    model: Any = None,
    defences: Sequence[str] | None = None,
    data: Any = None,
    size: int | None = None,
    device: Any = None,
    force: bool = False,
    progress: bool = False,
) -> Exported:
    """Write what a run found for use elsewhere.

    Args:
        run: the folder of a finished run, or several for tables, cards and annexes.
        to: what is written, by its ending. A *folder*: every image that an attack broke, as an
            8-bit PNG that still fools the model, in one folder a class, and `index.csv`, a row for
            every image of the run. `.npz`: all points exactly, as arrays `adversarial`, `images`
            (float32, N × C × H × W), `index` and `labels` (int64, N). `.csv`: all verdicts, with
            the figures of each run in `.summary.csv` beside it. `.md`, `.tex`: a table of figures.
        card: write a model card for Hugging Face instead, with `model-index` metadata: `README.md`
            in the folder, or the `.md` file.
        annex: write an annex instead that maps what was measured, and what was not, to Article 15
            of the EU AI Act, to the NIST AI RMF and to ISO/IEC 24029: `annex.md` in the folder, or
            the `.md` file. It claims no conformity.
        model: which the PNGs are to fool, or its name; by default the one that the run names.
        defences: in front of it; by default those of the run.
        data: of the run: a folder, a name, a data set, or a pair of images and labels; by default
            what its command names.
        size: of images of one's own, in pixels; by default what the run's command says.
        device: where the model computes; by default where a model that is handed over is, and for
            one that has to be loaded the best there is.
        force: replace what is there.
        progress: show how far it is.

    Returns:
        the files, and how many PNGs still fool the model.

    Raises:
        InputError: a run that is missing, unfinished, damaged or of a kind that cannot be exported
            so; data or a model that are not those of the run; something is there already.

    Example:
        >>> import torch, holdfast as hf
        >>> model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(4, 2))
        >>> images, labels = torch.rand(8, 1, 2, 2), torch.arange(8) % 2
        >>> result = hf.evaluate(model, images, labels, ("linf", 0.1), suite="fgsm", run="runs/two")
        >>> [file.name for file in hf.export("runs/two", "verdicts.csv").files]
        ['verdicts.csv', 'verdicts.summary.csv']
    """
    folders = [run] if isinstance(run, str | Path) else list(run)
    if not folders:
        raise InputError("no run to export: give a run folder")
    to = Path(to)
    kind = to.suffix.lower()
    if kind and kind not in FILES and not to.is_dir():
        raise InputError(
            f"{to} cannot be written: give a folder, or a file that ends in {', '.join(FILES)}"
        )
    if card and annex:
        raise InputError("a card and an annex are two files: export them one after the other")
    runs = [read_run(Path(folder)) for folder in folders]
    if card or annex:
        text = card_of(runs, model) if card else annex_of(runs)
        if kind and kind != ".md":
            raise InputError(f"{to}: {'a card' if card else 'an annex'} is a folder's, or FILE.md")
        file = to if kind == ".md" and not to.is_dir() else to / (CARD if card else ANNEX)
        return Exported((_write(file, text, force),))
    if kind in (".md", ".tex") and not to.is_dir():
        return Exported((_write(to, table_of(runs, kind), force),))
    if kind == ".csv" and not to.is_dir():
        evaluated = [_evaluation(each) for each in runs]
        summary = to.with_suffix(".summary.csv")
        _check_free(to, force)
        _check_free(summary, force)
        texts = csv_files(evaluated)
        written = zip((to, summary), texts, strict=True)
        return Exported(tuple(_write(file, text, force) for file, text in written))
    if len(runs) > 1:
        raise InputError("images are exported of one run at a time; tables take several")
    one = _evaluation(runs[0])
    if kind == ".npz" and not to.is_dir():
        _check_free(to, force)
        return Exported((_write(to, write_arrays(found_in(one, data, size)), force),))
    _check_folder(to, force)
    found = found_in(one, data, size)
    network = model_of(one, model, defences)
    home = _device_of(network)
    handed_over = model is not None and not isinstance(model, str | Path)
    where = home if device is None and handed_over else checked_device(device)
    try:
        network.to(where)
        with ProgressLine(f"export {one.path}", progress) as line:
            counts = _into_folder(
                to, lambda folder: write_images(found, network, folder, where, line.update)
            )
    finally:
        network.to(home)
    return Exported((to,), counts)


def _device_of(model: nn.Module) -> torch.device:
    for tensor in (*model.parameters(), *model.buffers()):
        return tensor.device
    return torch.device("cpu")


def _evaluation(run: Run) -> EvaluationRun:
    """InputError where a run is no evaluation."""
    if not isinstance(run, EvaluationRun):
        hint = "; evaluate its model first" if isinstance(run, TrainingRun) else ""
        raise InputError(f"{run.path} is a run of {run.kind}, which has no verdicts{hint}")
    return run


# --- where it is written -------------------------------------------------------------------------


def _check_free(file: Path, force: bool) -> None:
    if os.path.isdir(file):
        raise InputError(f"{file} is a folder: give the name of a file to write")
    if os.path.lexists(file) and not force:
        raise InputError(f"{file} is there already; choose another name, or --force to replace it")


def _write(file: Path, content: bytes | str, force: bool) -> Path:
    _check_free(file, force)
    write_named(file, content, lambda _: True)
    return file


def _check_folder(folder: Path, force: bool) -> None:
    """InputError where PNGs cannot be written into a folder."""
    if os.path.lexists(folder) and not os.path.isdir(folder):
        raise InputError(f"{folder} is a file; choose another folder")
    try:
        held = sorted(os.listdir(folder)) if os.path.isdir(folder) else []
    except OSError as error:
        raise InputError(f"{folder} cannot be read: {error.strerror or error}") from None
    if held and not force:
        raise InputError(
            f"{folder} holds files already ({', '.join(held[:3])}{', …' if held[3:] else ''}); "
            "choose another folder, or --force to write among them"
        )
    make_folder(folder if held else folder.parent)


def _into_folder(folder: Path, write: Callable[[Path], Counts]) -> Counts:
    """What `write` puts into a folder appears there at once when it is whole.

    PNGs of an earlier export, by its `index.csv`, are removed; other files stay.
    """
    partial = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", suffix=PARTIAL, dir=folder.parent))
    try:
        counts = write(partial)
        os.chmod(partial, 0o755)
        if not folder.exists() or not any(folder.iterdir()):
            if folder.exists():
                folder.rmdir()
            os.replace(partial, folder)
            return counts
        _remove_earlier(folder)
        for file in sorted(partial.rglob("*")):
            if file.is_file():
                target = folder / file.relative_to(partial)
                target.parent.mkdir(parents=True, exist_ok=True)
                os.replace(file, target)
        return counts
    except OSError as error:
        raise InputError(f"cannot write in folder {folder}: {error.strerror or error}") from None
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _remove_earlier(folder: Path) -> None:
    """Remove the PNGs that the `index.csv` of an earlier export names."""
    try:
        rows = list(csv.reader(io.StringIO((folder / INDEX).read_text("utf-8"))))
    except (OSError, ValueError, csv.Error):
        return
    if not rows or tuple(rows[0]) != COLUMNS:
        return
    for row in rows[1:]:
        if row and row[-1].endswith(".png"):
            try:
                inside(folder, row[-1]).unlink(missing_ok=True)
            except (InputError, OSError):
                continue
