"""A data set's classes, ten images each."""

from __future__ import annotations

from pathlib import Path

from ..canvas import KINDS, check_picture
from ..data import DataSet, load
from ..data import figure as contact_sheet


def classes(data: str | Path | DataSet, out: str | Path, *, seed: int = 0) -> Path:
    """Draw each class of a data set as a row of 10 random training images.

    Args:
        data: as `holdfast.data.load` takes it: `digits`, a folder, or a data set; its first 50
            classes are drawn.
        out: the file, ending in `.svg`, `.png` or `.pdf`; over nothing but a figure.
        seed: another seed draws other images.

    Returns:
        the file.

    Raises:
        InputError: no such data; a file that cannot be written, or is no figure.

    Example:
        >>> import holdfast as hf, tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     hf.figures.classes("digits", f"{folder}/classes.svg").name
        'classes.svg'
    """
    check_picture(out, KINDS)
    contact_sheet(load(data), out, seed)
    return Path(out)
