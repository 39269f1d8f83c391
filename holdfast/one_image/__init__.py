"""One image and one model: what it answers, how an attack changes that, and a card to show it.

- `trial`: `try_image`
- `found`: what it found
- `picture`: a picture file, brought to a model's size and colours
- `closest`: the smallest ε that breaks one image
- `sets`: the conformal set of one image
- `card`: what was found, as a PNG, SVG or PDF
"""

from .card import write_card
from .found import Look, Trial
from .picture import Picture, Shape, brought, read_picture, shape_of
from .sets import Calibration
from .trial import try_image

__all__ = [
    "Calibration",
    "Look",
    "Picture",
    "Shape",
    "Trial",
    "brought",
    "read_picture",
    "shape_of",
    "try_image",
    "write_card",
]
