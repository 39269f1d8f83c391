"""`holdfast compare`: evaluations of the same images, image by image."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ..errors import InputError
from ..terminal import tell, tell_table

if TYPE_CHECKING:
    from ..runs.records import ComparisonRecord

FORMATS = ("text", "md", "csv", "json", "tex")


@dataclass(frozen=True)
class Options:
    """Compare evaluations on the same images, image by image.

    Who stands where, McNemar's exact test, and an interval of the difference.
    """

    runs: Annotated[
        list[Path],
        typer.Argument(help="Run folders of two evaluations or more, of one threat model."),
    ]
    pairs: Annotated[
        str,
        typer.Option(
            "--pairs",
            help="Which runs are compared: first, each with the first one, or all, each with "
            "every other. p-values of several pairs are corrected by Holm's method.",
        ),
    ] = "first"
    kind: Annotated[
        str,
        typer.Option(
            "--format",
            help="How the comparison is printed: text, md, tex, json, or csv, with a row an image.",
        ),
    ] = "text"
    out: Annotated[
        Path | None,
        typer.Option(
            "--out",
            help="Also write a page, FILE.html; another format, by the file's ending; or a folder "
            "with the page, the comparison as JSON and a table of all images.",
        ),
    ] = None


def run(options: Options) -> ComparisonRecord:
    """Compare, and write the page where one is wanted.

    Raises:
        InputError: options that do not exist; as `holdfast.compare`.
    """
    from ..report import compare
    from ..report.image_by_image import as_text
    from ..report.page import write_comparison
    from ..runs.files import make_folder, write_named, write_result

    if options.kind not in FORMATS:
        raise InputError(f"--format must be one of {', '.join(FORMATS)}, not {options.kind!r}")
    out = options.out
    kind = out.suffix.lower().removeprefix(".") if out is not None else ""
    if kind not in ("", "html", *FORMATS[1:]):
        raise InputError(
            f"--out takes a folder, or a file that ends in .html, .{', .'.join(FORMATS[1:])}; "
            f"not {out}"
        )
    found = compare(options.runs, pairs=options.pairs)
    if out is None:
        return found
    if kind == "html":
        write_comparison(options.runs, out, options.pairs)
        return found
    if kind == "json":
        write_result(out, found.to_dict())
        return found
    if kind:
        text = as_text(found, kind)
        # Markdown and LaTeX may be anybody's: over no other file than this very one.
        ours = _is_images if kind == "csv" else lambda held: held == text.encode()
        write_named(out, text, ours)
        return found
    make_folder(out)
    write_comparison(options.runs, out / "comparison.html", options.pairs)
    found.save(out)
    write_named(out / "images.csv", as_text(found, "csv"), _is_images)
    return found


def _is_images(content: bytes) -> bool:
    return content.startswith(b"image,label,A right,A standing,")


def show(found: ComparisonRecord, options: Options) -> None:
    """Print the comparison."""
    from ..report.image_by_image import (
        COLUMNS,
        METHODS,
        RUN_COLUMNS,
        as_text,
        only_lines,
        rows_of,
        runs_of,
        title,
    )

    if options.kind != "text":
        print(as_text(found, options.kind), end="")
        return
    rows: list[tuple[str, ...] | str] = []
    for row, compared in zip(runs_of(found), found.runs, strict=True):
        rows += [row, f"     {compared.run}"]
    tell_table(title(found), RUN_COLUMNS, rows)
    tell_table("image by image", COLUMNS, rows_of(found), "\n".join([METHODS, *only_lines(found)]))
    for note in found.notes:
        tell(f"note: {note}")
    if options.out is not None:
        tell(f"written: {options.out if options.out.suffix else options.out / 'comparison.html'}")
