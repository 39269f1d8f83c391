"""A page that a figure is drawn on: words and images at their places, as SVG, PNG or PDF.

Drawn by matplotlib, which writes all three. Every figure is a white card with round corners, so
that it can be read on a dark page too; the words of an SVG are paths, so that it looks the same
wherever it is shown. The same page is the same bytes.
"""

from __future__ import annotations

import functools
import io
import re
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from jaxtyping import UInt8
from markupsafe import escape
from PIL import Image

from .charts import CARD, FAINT, INK, SOFT
from .errors import InputError
from .runs.files import check_named, write_named
from .terminal import page_text

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["CARD", "FAINT", "INK", "SOFT"]  # the words' colours, for those who draw

KINDS = ("svg", "png", "pdf")
WIDTH = 900.0  # of a page, in pixels: a README's
MARGIN = 28.0
SCALE = 2.0  # pixels of a PNG for each pixel of the page: sharp on screens of high density
MADE_BY = "Holdfast figure"
# Told apart by all readers: blue and vermilion differ in hue for whoever sees no green or no red,
# and each has 4.5 : 1 against white. A sign always stands beside them.
RIGHT, WRONG = "#005f9e", "#b34700"
EDGE = "#d5d9de"  # around images

# Formats in which a picture can say what made it, and under which name; what cannot say so is
# never overwritten.
_MARKS = {"png": "Software", "pdf": "Creator", "svg": "Creator", "ps": "Creator", "eps": "Creator"}
_FONT = "DejaVu Sans"  # comes with matplotlib
_OTHER_FONTS = (  # for what it lacks, where they are installed
    "Noto Sans CJK SC", "Noto Sans CJK JP", "Hiragino Sans", "PingFang SC", "Microsoft YaHei",
    "Yu Gothic", "Malgun Gothic", "WenQuanYi Zen Hei", "Noto Sans Devanagari", "Noto Sans Thai",
)  # fmt: skip
_NO_CHARACTERS = re.compile("[\ufffe\uffff]")  # Unicode has them and XML has not
_MISSING = "Glyph .* missing from font"  # it is drawn as a box
_ROOM_USED = 0.84  # of the side that is asked for, at least, by a whole factor
_DOTS = 72  # an inch: a point is then a pixel of the page
_ROUND = 14.0  # of the card's corners

Align = Literal["left", "center", "right"]


class Canvas:
    """A page of `width` × `height`. Places and sizes are in its pixels, from the top left.

    Args:
        title: what the figure is, in a few words, for a screen reader and the file's own fields.
        description: what it shows, in place of the drawing.
        scale: pixels of a PNG for each pixel of the page.
    """

    def __init__(
        self,
        width: float,
        height: float,
        title: str,
        description: str,
        scale: float = SCALE,
    ):
        self.width, self.height, self.scale = width, height, scale
        self.title, self.description = plain(title), plain(description)
        self._parts: list[Callable[[Axes], Any]] = []  # what is on it, from the ground up

    def words(
        self,
        text: str,
        x: float,
        y: float,
        size: float = 13,
        colour: str = INK,
        bold: bool = False,
        align: Align = "left",
        room: float | None = None,
    ) -> None:
        """One line whose base line is at `y`; cut with an ellipsis where it is longer than
        `room`."""
        shown = plain(text) if room is None else fitted(text, room, size, bold)
        weight = "bold" if bold else "normal"
        self._parts.append(
            lambda axes: axes.text(
                x, y, shown, fontsize=size, color=colour, fontweight=weight, ha=align, va="baseline"
            )
        )

    def image(self, tile: Tile, left: float, top: float, edge: str | None = EDGE) -> None:
        """A tile with a thin frame around it; `edge` None draws no frame."""
        extent = (left, left + tile.width, top + tile.height, top)
        if edge is not None:
            self.box(left - 1, top - 1, tile.width + 2, tile.height + 2, edge)
        self._parts.append(
            lambda axes: axes.imshow(tile.pixels, extent=extent, interpolation="none", zorder=2)
        )

    def box(self, left: float, top: float, width: float, height: float, fill: str) -> None:
        """A filled rectangle."""
        from matplotlib.patches import Rectangle

        self._parts.append(
            lambda axes: axes.add_patch(
                Rectangle((left, top), width, height, facecolor=fill, linewidth=0)
            )
        )

    def encoded(self, kind: str) -> bytes:
        """The page as a file of that kind holds it."""
        marks: dict[str, Any] = {_MARKS[kind]: MADE_BY} if kind in _MARKS else {}
        if kind == "svg":
            marks |= {"Title": self.title, "Date": None}
        elif kind == "pdf":
            marks |= {"Title": self.title, "Subject": self.description, "CreationDate": None}
        elif kind == "png":
            marks |= {"Title": self.title, "Description": self.description}
        held = io.BytesIO()
        with _settings():
            self._drawn().savefig(
                held,
                format=kind,
                dpi=_DOTS * self.scale,
                metadata=marks or None,
                facecolor="none" if kind in KINDS else CARD,
            )
        return self._told(held.getvalue()) if kind == "svg" else held.getvalue()

    def _drawn(self) -> Figure:
        from matplotlib.figure import Figure
        from matplotlib.patches import FancyBboxPatch

        page = Figure(figsize=(self.width / _DOTS, self.height / _DOTS), dpi=_DOTS)
        axes = page.add_axes((0, 0, 1, 1))
        axes.set_axis_off()
        card = FancyBboxPatch(
            (_ROUND, _ROUND),
            self.width - 2 * _ROUND,
            self.height - 2 * _ROUND,
            boxstyle=f"round,pad={_ROUND}",
            facecolor=CARD,
            linewidth=0,
        )
        axes.add_patch(card)
        for part in self._parts:
            part(axes)
        axes.set(xlim=(0, self.width), ylim=(self.height, 0), aspect="auto")
        return page

    def _told(self, svg: bytes) -> bytes:
        """An SVG that says that it is one picture, and which."""
        text = svg.decode("utf-8")
        size = f'width="{self.width:g}" height="{self.height:g}"'
        text = re.sub(r'width="[\d.]+pt" height="[\d.]+pt"', size, text, count=1)
        text = text.replace("<svg ", '<svg role="img" ', 1)
        told = f"</title>\n <desc>{escape(self.description)}</desc>"
        return text.replace("</title>", told, 1).encode("utf-8")

    def save(self, path: str | Path, kinds: Sequence[str] = KINDS) -> Path:
        """Write the page to a file, over nothing but a figure.

        Raises:
            InputError: as `check_picture`; the file cannot be written.
        """
        path = Path(path)
        kind = check_picture(path, kinds)
        write_named(path, self.encoded(kind), is_figure)
        return path


class Tile:
    """An image as it stands on a page.

    Enlarged by a whole factor, so that every pixel stays a sharp square, or as far as there is room
    where pixels are too small for that to be seen; larger images are made smaller.

    Args:
        image: (C, H, W), C of 1 (grey) or 3: uint8, or floats in [0, 1], which are rounded.
        side: of the longer side at most, in pixels of the page.
        scale: of the page.

    Attributes:
        pixels: uint8 (h, w, 3).
        width, height: on the page.

    Example:
        >>> tile = Tile(np.zeros((3, 32, 32), np.uint8), side=230)
        >>> tile.width, tile.pixels.shape
        (224.0, (448, 448, 3))
    """

    pixels: UInt8[np.ndarray, "h w 3"]

    def __init__(self, image: np.ndarray, side: float, scale: float = SCALE):
        if image.dtype != np.uint8:
            image = np.rint(np.clip(np.nan_to_num(image), 0, 1) * 255).astype(np.uint8)
        if image.shape[0] not in (1, 3):
            raise InputError(
                f"a figure shows images of 1 or 3 channels (grey or colours), not {image.shape[0]}"
            )
        height, width = image.shape[1:]
        room = side * scale / max(height, width)
        # A whole factor of the page's own pixels is sharp on every screen, one of a PNG's pixels at
        # least there. Of large images, whose pixels nobody sees one by one, either may waste room.
        whole = [room // step * step for step in (max(1, scale // 1), 1)]
        factor = next((each for each in whole if each >= _ROOM_USED * room), room)
        size = (max(1, round(width * factor)), max(1, round(height * factor)))
        pixels = np.broadcast_to(image.transpose(1, 2, 0), (height, width, 3))
        method = Image.Resampling.BOX if factor >= 1 else Image.Resampling.LANCZOS
        self.pixels = np.asarray(Image.fromarray(np.ascontiguousarray(pixels)).resize(size, method))
        self.width, self.height = size[0] / scale, size[1] / scale


def plain(text: str) -> str:
    """Words on one line that every kind of file can hold."""
    return _NO_CHARACTERS.sub("\ufffd", str(page_text(text))).replace("\n", " ").replace("\t", " ")


def width_of(text: str, size: float = 13, bold: bool = False) -> float:
    """How wide a line is, in pixels of the page."""
    from matplotlib.font_manager import FontProperties
    from matplotlib.textpath import text_to_path

    font = FontProperties(_fonts(), size=size, weight="bold" if bold else "normal")
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", _MISSING)
        width, _, _ = text_to_path.get_text_width_height_descent(text, font, ismath=False)
    return float(width)


def fitted(text: str, room: float, size: float = 13, bold: bool = False) -> str:
    """The line, or as much of it as fits, with an ellipsis.

    Example:
        >>> fitted("aeroplane", 200), fitted("aeroplane", 45)
        ('aeroplane', 'aero…')
    """
    text = plain(text)[:400]
    if width_of(text, size, bold) <= room:
        return text
    low, high = 0, len(text)  # so many letters fit; so many do not
    while high - low > 1:
        middle = (low + high) // 2
        fits = width_of(text[:middle].rstrip() + "…", size, bold) <= room
        low, high = (middle, high) if fits else (low, middle)
    return text[:low].rstrip() + "…"


def wrapped(text: str, room: float, size: float = 13) -> list[str]:
    """Words broken into lines that fit."""
    lines = [""]
    for word in plain(text).split(" "):  # and not at a space that holds words together
        longer = f"{lines[-1]} {word}".strip()
        if lines[-1] and width_of(longer, size) > room:
            lines.append(word)
        else:
            lines[-1] = longer
    return [fitted(line, room, size) for line in lines]


def check_picture(path: str | Path, kinds: Sequence[str] = KINDS) -> str:
    """What kind of file a path names; long work asks before it begins.

    Raises:
        InputError: an ending that is none of `kinds`; a file that is there and is no figure.
    """
    path = Path(path)
    kind = path.suffix[1:].lower()
    if kind not in kinds:
        raise InputError(f"{path}: name a picture file, ending in .{', .'.join(kinds)}")
    check_named(path, is_figure)
    return kind


def is_figure(content: bytes) -> bool:
    """Whether these bytes are a picture that was saved here."""
    return MADE_BY.encode() in content


@contextmanager
def _settings() -> Iterator[None]:
    """Inside, matplotlib draws by its own settings and no user's, and one run as the next."""
    # Matplotlib takes long to import, which only those who draw should wait for.
    import matplotlib

    with matplotlib.rc_context(), warnings.catch_warnings():
        warnings.filterwarnings("ignore", _MISSING)
        matplotlib.rcdefaults()
        matplotlib.rcParams.update(
            {
                "font.family": _fonts(),
                "text.parse_math": False,  # a $ in a name is a $
                "image.composite_image": False,
                "svg.fonttype": "path",
                "svg.hashsalt": MADE_BY,
                "pdf.fonttype": 42,
            }
        )
        yield


@functools.cache
def _fonts() -> list[str]:
    from matplotlib import font_manager

    there = set(font_manager.get_font_names())
    return [_FONT, *(name for name in _OTHER_FONTS if name in there)]
