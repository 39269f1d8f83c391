"""A leaderboard as a static site, or as text."""

from __future__ import annotations

import os
import shlex
from collections.abc import Sequence
from pathlib import Path

from ..errors import InputError
from ..report.page import MOST_SECTIONS, style_sheet
from ..runs.files import (
    PARTIAL,
    add_seal,
    check_named,
    json_text,
    make_folder,
    read_json,
    write_named,
)
from ..runs.records import LeaderboardRecord
from ..terminal import tell
from ..version import VERSION
from . import texts
from .found import Found, find
from .pages import MARK, index, model_page, renamed, runs_of, slug
from .rows import Table, tables

INDEX, STYLE, MODELS = "index.html", "holdfast.css", "models"
STYLE_MARK = "/* The style of a Holdfast leaderboard. */\n"


def write_leaderboard(
    folder: Path | str, out: Path | str, *, robustbench: Sequence[Path | str] | Path | str = ()
) -> Path:
    """Rank all evaluations below a folder, as a site or as a table for a paper.

    There is a table for each threat model and data set. A model's robust accuracy is the lowest
    that any suite found on the most images; one found on fewer images stands in its place only
    where its whole interval lies below.

    Args:
        folder: that holds run folders. RobustBench's entries below it are read too.
        out: the folder of the site, whose `index.html` opens without a server and without a
            network; or a file that ends in .md, .csv, .json or .tex. A site that was written here
            before is written anew; files that Holdfast did not write are left alone.
        robustbench: more folders with RobustBench's published entries (`model_info/…` of its
            repository), shown as measured elsewhere.

    Returns:
        `out`.

    Raises:
        InputError: no such folder; nothing to rank in it; `out` holds something else, or cannot be
            written. A result that cannot be read is one line on standard error, and left out.

    Example:
        >>> import torch, holdfast as hf
        >>> model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(4, 2))
        >>> x, y = torch.rand(8, 1, 2, 2), torch.arange(8) % 2
        >>> result = hf.evaluate(model, x, y, ("linf", 0.1), suite="fgsm", run="boards/one")
        >>> hf.write_leaderboard("boards", "site")
        PosixPath('site')
    """
    out, folder = Path(out), Path(folder)
    places = (robustbench,) if isinstance(robustbench, str | Path) else tuple(robustbench)
    others = tuple(Path(place) for place in places)
    kind = out.suffix.lower().removeprefix(".")
    if kind in ("html", "htm"):
        raise InputError(f"{out}: a leaderboard is a folder of pages; give the name of a folder")
    if kind in texts.FORMATS:
        ranked = ranking(folder, others)
        write_text(out, ranked, kind)
        return out
    check_site(out)
    command = ["holdfast", "leaderboard", str(folder), "--out", str(out)]
    command += [word for place in others for word in ("--robustbench", str(place))]
    found = found_or_refused(folder, others)
    _write_site(out, found, tables(found, folder), shlex.join(command))
    return out


def found_or_refused(folder: Path, others: Sequence[Path] = ()) -> Found:
    """What is below the folders, with a line on standard error for all that is left out.

    Raises:
        InputError: no such folder; nothing in it.
    """
    found = find(folder, tuple(others))
    for line in found.left_out:
        tell(f"left out: {line}", error=True)
    if found.corruptions:
        tell(
            f"not shown: {found.corruptions} published entries on common corruptions, which are no "
            "attack",
            error=True,
        )
    if not found.evaluations and not found.elsewhere:
        raise InputError(f"folder {folder} holds no finished evaluation")
    return found


def ranking(folder: Path, others: Sequence[Path] = ()) -> list[Table]:
    """The tables of `write_leaderboard`; as `found_or_refused`."""
    return tables(found_or_refused(folder, others), folder)


def write_text(out: Path, ranked: Sequence[Table], kind: str) -> None:
    """The tables as a file.

    Raises:
        InputError: the file holds something that was not written here.
    """
    text = texts.as_text(ranked, kind)

    def ours(held: bytes) -> bool:
        if kind == "csv":
            return held.startswith(f"{','.join(texts.CSV_COLUMNS)}\n".encode())
        # Markdown, LaTeX and a list in JSON may be anybody's: over nothing but this very text.
        return held == text.encode("utf-8", "backslashreplace")

    write_named(out, text, ours)


def check_site(out: Path) -> None:
    """InputError where a folder is none that a site may be written to."""
    try:
        if not os.path.lexists(out):
            return
        if not out.is_dir():
            raise InputError(f"{out} is a file: a leaderboard is a folder of pages")
        held = [entry.name for entry in os.scandir(out) if not entry.name.endswith(PARTIAL)]
    except OSError as error:
        raise InputError(f"cannot write in folder {out}: {error.strerror or error}") from None
    except ValueError as error:  # a name that no file can have
        raise InputError(f"cannot write in folder {out!s}: {error}") from None
    mine = held and _is_board(out / LeaderboardRecord.FILE)
    if held and not mine:
        raise InputError(
            f"{out} holds something that is no leaderboard of Holdfast's; choose another --out, or "
            "remove it"
        )
    if mine:
        for file in (out / INDEX, out / STYLE, *out.glob(f"{MODELS}/*.html")):
            check_named(file, _is_ours)


def _is_board(path: Path) -> bool:
    try:
        return read_json(path).get("schema") == LeaderboardRecord.SCHEMA
    except InputError:
        return False


def _is_ours(content: bytes) -> bool:
    return MARK.encode() in content[:4096] or content.startswith(STYLE_MARK.encode())


def _write_site(out: Path, found: Found, ranked: list[Table], command: str) -> None:
    ranked = [
        Table(
            table.data,
            table.threat,
            table.aimed,
            tuple(
                renamed(model, f"{MODELS}/{slug(model)}.html") if model.here else model
                for model in table.models
            ),
        )
        for table in ranked
    ]
    models = [model for table in ranked for model in table.models]
    # Images of many runs would make a site that nobody can send.
    whole = len(found.evaluations) <= MOST_SECTIONS
    left_out = list(found.left_out)
    make_folder(out / MODELS)
    # First what says that the folder is a leaderboard: one that is interrupted can be made anew.
    record = LeaderboardRecord(
        rows=tuple(model.row for model in models), left_out=tuple(left_out), version=VERSION
    )
    text = json_text(add_seal(record.to_dict()))
    write_named(out / LeaderboardRecord.FILE, text, lambda held: True)
    if not whole:
        write_named(out / STYLE, STYLE_MARK + style_sheet(), _is_ours)
    written = set()
    for model in models:
        if not model.here or model.row.page is None:
            continue
        runs, why = runs_of(model, whole)
        for line in why:
            tell(f"shown without its images: {line}", error=True)
        page = model_page(
            model,
            runs,
            f"../{INDEX}",
            command,
            whole=whole,
            share=len(runs) / max(1, len(found.evaluations)),
            **({} if whole else {"script": (), "style_file": f"../{STYLE}"}),
        )
        file = out / model.row.page
        write_named(file, page.encode("utf-8", "replace"), _is_ours)
        written.add(file.name)
        left_out += why
    pages = {id(model.row): model.row.page for model in models if model.row.page}
    page = index(ranked, pages, left_out, command)
    write_named(out / INDEX, page.encode("utf-8", "replace"), _is_ours)
    for old in (out / MODELS).glob("*.html"):  # of models that are gone
        if old.name not in written and old.is_file() and not old.is_symlink():
            old.unlink()
