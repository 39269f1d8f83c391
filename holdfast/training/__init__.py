"""Training: recipes, objectives, and the loop that runs them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from .. import data as datasets
from ..data.base import DataSet
from .recipe import Recipe, load_recipe
from .run import TrainingResult, fit_recipe

__all__ = ["Recipe", "TrainingResult", "fit_recipe", "load_recipe", "train"]


def train(
    recipe: Recipe | Path | str,
    data: DataSet | Path | str = "datasets",
    out: Path | str = "runs/train",
    *,
    changes: Sequence[str] = (),
    seed: int = 0,
    device: str | None = None,
    progress: bool = False,
    log: Sequence[str] = (),
) -> TrainingResult:
    """Train a model by a recipe.

    Args:
        recipe: a YAML file, or a `Recipe`.
        data: a folder (see `holdfast.data.load`), `digits`, or a loaded data set.
        out: the run folder; the same call goes on where it was interrupted.
        changes: `key=value` overrides of a recipe file, dots for nesting.
        seed, device, progress, log: as in `fit_recipe`.

    Returns:
        the trained model, in eval mode, and its validation figures.

    Raises:
        InputError (a ValueError): bad recipe, bad data, or a folder that holds another run.
    """
    if not isinstance(recipe, Recipe):
        recipe = load_recipe(recipe, changes)
    if not isinstance(data, DataSet):
        data = datasets.load(data)
    return fit_recipe(
        recipe,
        data,
        out,
        seed=seed,
        device=device,
        progress=progress,
        log=log,
        # Test images are looked at for one thing alone: whether extra images are among them.
        held_out={"test": data.test.images} if recipe.extra.file else {},
    )
