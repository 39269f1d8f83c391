"""`import holdfast as hf`: what it offers, that all of it is explained, and that it costs nothing
until it is used."""

from __future__ import annotations

import ast
import inspect
import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from models import digits

import holdfast as hf
from holdfast.certification.run import Certification
from holdfast.models import load_checkpoint
from holdfast.uncertainty.run import figures as run_figures
from holdfast.uncertainty.run import measurements
from holdfast.version import VERSION

PUBLIC = {
    "Evaluation",
    "HoldfastError",
    "HttpModel",
    "InputError",
    "Threat",
    "__version__",
    "attacks",
    "certify",
    "compare",
    "data",
    "defences",
    "evaluate",
    "export",
    "figures",
    "judge",
    "load",
    "measure_uncertainty",
    "mix",
    "read",
    "require",
    "train",
    "try_image",
    "uncertainty",
    "view",
    "write_leaderboard",
    "write_report",
}
EXPLAINED = [  # functions whose parameters, and an example, stand in the docstring
    "evaluate", "certify", "compare", "export", "measure_uncertainty", "mix", "train", "load",
    "read", "require", "write_report", "judge", "try_image", "write_leaderboard", "view",
]  # fmt: skip
HEAVY = ("torch", "numpy", "scipy", "sklearn", "matplotlib", "lightning", "PIL", "rich", "typer")


def test_nothing_but_the_public_names_is_offered() -> None:
    assert set(dir(hf)) == set(hf.__all__) == PUBLIC
    with pytest.raises(AttributeError, match="no attribute 'checks'"):
        _ = hf.checks  # type: ignore[attr-defined]
    assert hf.__version__ == VERSION == "0.2.0"


def test_type_checkers_see_every_public_name() -> None:
    tree = ast.parse(Path(hf.__file__).read_text())
    (block,) = (node for node in tree.body if isinstance(node, ast.If))
    seen = {a.asname or a.name for i in block.body for a in i.names}  # type: ignore[attr-defined]
    assert seen == PUBLIC


def test_the_import_alone_takes_less_than_a_tenth_of_a_second() -> None:
    program = (
        "import json, sys, time; began = time.process_time(); import holdfast; "
        "print(json.dumps([time.process_time() - began, sorted(sys.modules)]))"
    )
    taken = []
    for _ in range(3):  # the machine may be busy with other things
        done = subprocess.run([sys.executable, "-c", program], capture_output=True, check=True)
        seconds, modules = json.loads(done.stdout)
        taken.append(seconds)
        assert not set(modules) & set(HEAVY)
    assert min(taken) < 0.1


@pytest.mark.parametrize("name", sorted(PUBLIC - {"__version__"}))
def test_every_public_name_is_explained(name: str) -> None:
    thing = getattr(hf, name)
    assert inspect.getdoc(thing)
    if not inspect.ismodule(thing):
        return
    public = getattr(thing, "__all__", [])
    assert public
    silent = [
        inner
        for inner in public
        if (inspect.ismodule(part := getattr(thing, inner)) or callable(part))
        and not (part.__doc__ or "").strip()
    ]
    assert not silent


@pytest.mark.parametrize(
    "name",
    EXPLAINED,
)
def test_every_parameter_of_a_public_function_is_explained(name: str) -> None:
    function = getattr(hf, name)
    explained = inspect.getdoc(function) or ""
    for parameter in inspect.signature(function).parameters:
        assert parameter in explained, parameter


@pytest.mark.parametrize(
    "name",
    EXPLAINED,
)
def test_every_public_function_has_an_example(name: str) -> None:
    assert ">>> " in (inspect.getdoc(getattr(hf, name)) or "")  # run by test_doctests


@pytest.mark.parametrize("part", ["metrics", "calibration", "conformal", "scores", "detection"])
def test_the_parts_of_uncertainty_are_within_reach(part: str) -> None:
    assert inspect.ismodule(getattr(hf.uncertainty, part))


def test_load_is_a_function_whatever_was_imported_before() -> None:
    import holdfast.loading  # noqa: F401

    assert inspect.isfunction(hf.load)


# --- the calls of the design, word for word ------------------------------------------------------


def test_certify_by_smoothing(tmp_path: Path) -> None:
    model, x, y = digits(6)
    found = hf.certify(model, x, y, sigma=0.1, n0=10, n=100, alpha=0.05, run=tmp_path / "run")
    assert isinstance(found, Certification) and found.method == "smoothing" and found.n == 6
    assert (tmp_path / "run" / "certificates.csv").is_file()
    again = hf.certify(model, x.numpy(), y.tolist(), sigma=0.1, n0=10, n=100, alpha=0.05)
    assert [row.radius for row in again.rows] == [row.radius for row in found.rows]
    assert again.identity == found.identity


def test_certify_by_interval_bounds() -> None:
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 10))
    _, x, y = digits(5)
    found = hf.certify(model, x, y, eps=0.01)
    assert found.method == "interval bounds"
    assert [point.radius for point in found.certified] == [0, 0.005, 0.01]


def test_certify_says_what_is_wrong_in_a_line() -> None:
    model, x, y = digits(2)
    for wrong, options, says in (
        ("a-name", {}, "holdfast.load"),
        (lambda images: model(images), {}, "no torch.nn.Module"),
        (model, {"sigma": 0.1, "alpha": 2.0}, "alpha"),
        (model, {"sigma": 0.1, "batch_size": 0}, "batch_size must be a whole number of at least 1"),
    ):
        with pytest.raises(hf.InputError, match=says) as caught:
            hf.certify(wrong, x, y, **options)
        assert "\n" not in str(caught.value)


def test_mix_two_modules_without_a_folder() -> None:
    model, x, y = digits(20)
    other = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 10))
    mixed = hf.mix(model, other, x, y, hf.Threat("linf", 0.05), steps=2, rounds=1)
    assert mixed.choice.n == 20 and not mixed.finished
    assert mixed.model(x).shape == (20, 10)
    again = hf.mix(model, other, x, y, ("linf", 0.05), steps=2, rounds=1)  # type: ignore[arg-type]
    assert again.choice == mixed.choice
    with pytest.raises(hf.InputError, match="the robust model has no card"):
        hf.mix(model, other, x, y, hf.Threat("linf", 0.05), run="somewhere")


def test_measure_uncertainty_of_tensors(monkeypatch) -> None:
    for name, value in (
        ("STEPS", 2),
        ("SET_STEPS", 2),
        ("CURVE_IMAGES", 6),
        ("CURVE_STEPS", 2),
        ("ROBUST_STEPS", 2),
    ):
        monkeypatch.setattr(measurements, name, value)
    monkeypatch.setattr(run_figures, "RESAMPLES", 10)
    monkeypatch.setattr("holdfast.uncertainty.measure_uncertainty.OTHERS", 6)
    model, x, y = digits(220)
    found = hf.measure_uncertainty(
        model,
        x[:20],
        y[:20],
        calibration=(x[20:], y[20:]),
        attack="fgsm",
        threat=hf.Threat("linf", 0.1),
        alpha=0.2,
        ood=("noise",),
    ).to_dict()
    assert found["n"] == 20 and found["suite"] == "fgsm" and found["classes"] == list("0123456789")
    assert found["settings"]["alpha"] == 0.2
    for calibration, says in (
        ((x[:4], y[:4]), "4 calibration images are too few for alpha = 0.1: give at least 20"),
        ((x[:4], y[:4], y[:4]), "must be a pair"),
        ((x[:20], y[:1].repeat(20)), "has no image of class"),
        (None, "must be a pair"),
    ):
        with pytest.raises(hf.InputError, match=says) as caught:
            hf.measure_uncertainty(model, x[:20], y[:20], calibration=calibration)
        assert "\n" not in str(caught.value)


def test_train_takes_the_name_of_a_recipe(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    result = hf.train(
        "digits-gaussian",
        data="digits",
        out="runs/one",
        changes=["epochs=1", "validation.images=10", "validation.steps=1"],
    )
    assert result.epochs == 1
    card = load_checkpoint("runs/one/model").card
    assert card["recipe"]["objective"]["name"] == "gaussian"
    with pytest.raises(hf.InputError, match="did you mean 'digits-gaussian'"):
        hf.train("digits-gausian", data="digits", out="runs/two")
