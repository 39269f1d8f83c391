"""The house has floors: nothing imports upward, and no files import each other in a circle."""

from __future__ import annotations

import ast
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "holdfast"

# From the ground up. A room, which is a folder or a file of the package, imports from its own
# floor only itself, and otherwise from the floors below. Packages that only load each other's
# results at run time are no arrows.
FLOORS: list[set[str]] = [
    {"version", "lazy", "terminal", "palette"},
    {"errors", "types", "stored"},
    {"parsing", "intervals", "draws", "spatial", "launchers", "picture_files", "placeholders"},
    {"threat", "shipped"},
    {"inputs", "distributed"},
    {"runs", "charts"},
    {"models", "canvas"},
    {"data", "attacks", "defences"},
    {"loading", "search", "repair"},
    {"evaluation"},
    {"certification"},
    {"uncertainty", "mixing", "training"},
    {"report"},
    {"exporting", "figures", "leaderboard"},
    {"one_image", "viewer"},
    {"playground"},
    {"cli"},
    {"", "__main__"},
]


def modules() -> dict[str, Path]:
    """Every module of the package by its dotted name below `holdfast`; "" is the package."""
    found = {}
    for file in PACKAGE.rglob("*.py"):
        parts = file.relative_to(PACKAGE).with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = file
    return found


def imports(name: str, file: Path, known: dict[str, Path]) -> set[str]:
    """The modules of the package that one imports, inside functions too."""
    package = ["holdfast", *(name.split(".") if name else [])]
    if file.name != "__init__.py":
        package = package[:-1]
    found = set()
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            path = [*base, *(node.module.split(".") if node.module else [])]
            if path[0] == "holdfast":
                inner = ".".join(path[1:])
                for alias in node.names:
                    whole = f"{inner}.{alias.name}".lstrip(".")
                    found.add(whole if whole in known else inner)
        elif isinstance(node, ast.Import):
            found |= {a.name[9:].lstrip(".") for a in node.names if a.name.startswith("holdfast")}
    return found - {name}


@pytest.fixture(scope="module")
def arrows() -> dict[str, set[str]]:
    known = modules()
    return {name: imports(name, file, known) for name, file in known.items()}


def room(module: str) -> str:
    return module.split(".")[0]


def test_every_room_is_on_a_floor(arrows) -> None:
    assert {room(module) for module in arrows} == set().union(*FLOORS)


def test_nothing_imports_upward(arrows) -> None:
    floor = {name: number for number, names in enumerate(FLOORS) for name in names}
    upward = [
        f"{module} → {other}"
        for module, others in arrows.items()
        for other in others
        if room(module) != room(other) and floor[room(module)] <= floor[room(other)]
    ]
    assert not upward


def test_no_circle(arrows) -> None:
    # A package's __init__ hands on what its own modules define: they import each other by file.
    graph = {
        module: {o for o in others if not module.startswith(f"{o}.")}
        for module, others in arrows.items()
    }
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        pytest.fail(f"a circle: {' → '.join(error.args[1])}")
