"""Training: recipes, objectives, and the loop that runs them."""

from __future__ import annotations

from .recipe import Recipe, load_recipe
from .run import TrainingResult, train

__all__ = ["Recipe", "TrainingResult", "load_recipe", "train"]
