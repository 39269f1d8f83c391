"""What travels with Holdfast besides its code: recipes and models."""

from __future__ import annotations

from pathlib import Path

from .errors import InputError
from .parsing import nearest

PACKAGE = Path(__file__).resolve().parent


def shipped_folder(name: str) -> Path:
    """Where `recipes` or `zoo` lie: in the installed package, or beside it in a checkout."""
    inside = PACKAGE / name
    return inside if inside.is_dir() else PACKAGE.parent / name


def recipe_names() -> list[str]:
    """The names of the recipes that come with Holdfast."""
    return sorted(file.stem for file in shipped_folder("recipes").glob("*.yaml"))


def recipe_file(recipe: Path | str) -> Path:
    """The file of a recipe.

    Args:
        recipe: a file; or the name of a recipe that comes with Holdfast, such as `cifar10-cpu`.
            A file of that name in the working folder comes first.

    Raises:
        InputError: a name that is neither.
    """
    path, text = Path(recipe), str(recipe)
    names = recipe_names()
    try:
        is_there = path.exists()
    except (OSError, ValueError):  # a name that no file can have
        is_there = True  # whoever reads it says what is wrong
    if is_there or path.name != text or path.suffix:
        return path
    if text not in names:
        raise InputError(
            f"recipe {text!r} is neither a file nor one that comes with Holdfast"
            f"{nearest(text, names)}"
        )
    return shipped_folder("recipes") / f"{text}.yaml"


def recipe_summary(file: Path) -> str:
    """What a recipe is for, in a line: its first comment, up to the command."""
    said: list[str] = []
    for line in file.read_text(encoding="utf-8").splitlines():
        if not line.startswith("# "):
            break
        said.append(line[2:].strip())
    return " ".join(said).partition(": holdfast")[0]
