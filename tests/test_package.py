"""The wheel is whole: what a stranger installs can train, list, load and judge, from an empty
folder, in an environment without this checkout."""

from __future__ import annotations

import ast
import json
import os
import shutil
import subprocess
import sys
import sysconfig
import tomllib
import venv
import zipfile
from email.parser import BytesParser
from pathlib import Path

import pytest
from data_files import write_image
from run_folders import CIFAR10

ROOT = Path(__file__).resolve().parents[1]
PARTS = ("holdfast", "recipes", "zoo")
FILES = ("pyproject.toml", "setup.py", "README.md", "LICENSE")
MODEL = "cifar10-linf-slim"


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    source = tmp_path_factory.mktemp("source")
    for part in PARTS:
        shutil.copytree(ROOT / part, source / part, ignore=shutil.ignore_patterns("__pycache__"))
    for file in FILES:
        shutil.copy(ROOT / file, source)
    out = tmp_path_factory.mktemp("wheel")
    pip("wheel", "--no-build-isolation", "--wheel-dir", out, source)
    (built,) = out.glob("*.whl")
    return built


def pip(*arguments: object, python: Path | str = sys.executable) -> None:
    verb, *rest = map(str, arguments)
    command = [sys.executable, "-m", "pip", "--python", str(python), verb]
    done = subprocess.run(
        [*command, "--no-deps", "--no-index", "--quiet", *rest], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The `holdfast` of an environment of its own, which borrows everything but Holdfast."""
    folder = tmp_path_factory.mktemp("environment")
    venv.create(folder, with_pip=False)
    site = sysconfig.get_path("purelib", "venv", {"base": str(folder), "platbase": str(folder)})
    borrowed = [sysconfig.get_path("purelib"), sysconfig.get_path("platlib")]
    (Path(site) / "borrowed.pth").write_text("\n".join(dict.fromkeys(borrowed)) + "\n")
    pip("install", wheel, python=folder / "bin" / "python")
    return folder / "bin" / "holdfast"


def asked(program: Path, folder: Path, *arguments: object) -> str:
    """Standard output of `holdfast ARGUMENTS`, from a folder, without this checkout."""
    own = ("PYTHONPATH", "HOLDFAST_ZOO", "HOLDFAST_DATA", "HOLDFAST_HUMAN")
    environment = {k: v for k, v in os.environ.items() if k not in own}
    done = subprocess.run(
        [program, *map(str, arguments)],
        cwd=folder,
        env={**environment, "XDG_CACHE_HOME": str(folder / "cache")},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_the_wheel_holds_every_module_and_is_small(wheel: Path) -> None:
    names = set(zipfile.ZipFile(wheel).namelist())
    there = {str(file.relative_to(ROOT)) for file in (ROOT / "holdfast").rglob("*.py")}
    assert there <= names
    assert {f"holdfast/recipes/{file.name}" for file in ROOT.glob("recipes/*.yaml")} <= names
    assert f"holdfast/zoo/{MODEL}/model.safetensors" in names
    assert {"holdfast/models/zoo.json", "holdfast/py.typed"} <= names
    assert {str(f.relative_to(ROOT)) for f in (ROOT / "holdfast").rglob("*.html")} <= names
    assert "holdfast/report/page.js" in names
    assert wheel.stat().st_size < 20e6


def test_the_metadata_say_whose_it_is(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as content:
        (file,) = (name for name in content.namelist() if name.endswith("/METADATA"))
        told = BytesParser().parsebytes(content.read(file))
        assert any(name.endswith("licenses/LICENSE") for name in content.namelist())
    assert told["Version"] == "0.2.0"
    assert told["License-Expression"] == "MIT"
    assert told["Author"] == "The Holdfast authors"
    urls = told.get_all("Project-URL") or []
    assert all("https://github.com/holdfast-robustness/holdfast" in url for url in urls) and urls
    assert told.get_all("Classifier")


def declared(extras: bool = False) -> set[str]:
    """What Holdfast needs; with `extras`, also what it imports only where it is asked for."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    more = project["optional-dependencies"].values() if extras else ()
    wanted = [*project["dependencies"], *(name for extra in more for name in extra)]
    return {plain(name.partition(">")[0]) for name in wanted}


def plain(name: str) -> str:
    return name.lower().replace("_", "-")


def test_everything_that_is_imported_is_declared() -> None:
    called = {"PIL": "pillow", "yaml": "pyyaml", "sklearn": "scikit-learn"}
    comes_with = {"pydantic_core": "pydantic", "markupsafe": "jinja2", "sympy": "torch"}
    for file in (ROOT / "holdfast").rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.Import):
                modules = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom) and node.level == 0:
                modules = [str(node.module)]
            else:
                continue
            for module in (name.partition(".")[0] for name in modules):
                if module not in sys.stdlib_module_names and module != "holdfast":
                    name = called.get(module, comes_with.get(module, module))
                    assert plain(name) in declared(extras=True), f"{file}: {module}"


def test_make_installs_exact_versions_of_what_is_declared() -> None:
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    pinned = {plain(line.partition("==")[0]) for line in lines if "==" in line}
    assert declared() - {"torch"} <= pinned


def test_from_an_empty_folder(installed: Path, tmp_path: Path) -> None:
    models = {m["name"]: m for m in json.loads(asked(installed, tmp_path, "models", "--json"))}
    assert models["cifar10-linf-2h"]["folder"] is None
    inside = Path(models[MODEL]["folder"])
    assert ROOT not in inside.parents and installed.parents[1] in inside.parents
    assert "to be fetched" in asked(installed, tmp_path, "models")
    assert "cifar10-cpu " in asked(installed, tmp_path, "list", "recipes")

    told = asked(
        installed, tmp_path, "train", "digits-gaussian", "--data", "digits", "--out", "runs/one",
        "--set", "epochs=1", "--set", "validation.images=20", "--quiet",
    )  # fmt: skip
    assert "run folder   runs/one" in told
    for label, name in enumerate(CIFAR10):
        for i in range(6):
            write_image(tmp_path / "pictures" / name / f"{i}.png", 100 * label + i, (32, 32))
    told = asked(
        installed, tmp_path, "evaluate", MODEL, "--data", "pictures", "--suite", "fgsm",
        "--limit", 10, "--precision", "original", "--out", "runs/verdict", "--no-curve", "--quiet",
    )  # fmt: skip
    assert "robust accuracy" in told and "L∞ 8/255" in told
    result = json.loads((tmp_path / "runs" / "verdict" / "result.json").read_text())
    assert result["model"]["name"] == MODEL


@pytest.mark.slow
def test_the_demo_from_an_empty_folder(installed: Path, tmp_path: Path) -> None:
    assert "report: runs/demo/report.html" in asked(installed, tmp_path, "demo", "--quiet")
    assert (tmp_path / "runs" / "demo" / "report.html").stat().st_size > 10_000
