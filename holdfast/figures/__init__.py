"""Figures for papers, slides and README files, each by one call: SVG, PNG or PDF.

`example` shows an adversarial example as an equation, `defence` what a defence does to attacked
images, `classes` a data set, and `augment` what a recipe trains on.
"""

from .augment import augment
from .classes import classes
from .defence import Strips, defence
from .example import Example, example
from .subject import Answer

__all__ = ["Answer", "Example", "Strips", "augment", "classes", "defence", "example"]
