"""Odd models in `uncertainty`, `certify` and `mix`: the plain model's figures, or one line at the
start."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import models
import numpy as np
import pytest
import torch
from torch import Tensor, nn
from verbs import certify_command, mix_command, uncertainty_command

import holdfast as hf
from holdfast import cli
from holdfast.cli import uncertainty as command
from holdfast.errors import InputError
from holdfast.uncertainty.run import figures as run_figures
from holdfast.uncertainty.run import measurements

HERE = __name__
WRITES = "writes-to-its-input"


@pytest.fixture(scope="module", autouse=True)
def small():
    """Budgets of a test; every stage runs all the same."""
    with pytest.MonkeyPatch.context() as patch:
        for module, name, value in (
            (measurements, "STEPS", 2),
            (measurements, "SET_STEPS", 2),
            (measurements, "CURVE_IMAGES", 6),
            (measurements, "CURVE_STEPS", 1),
            (measurements, "OOD_ATTACKED", 4),
            (measurements, "ROBUST_STEPS", 1),
            (command, "OUT_OF_DISTRIBUTION", 10),
            (command, "TRAINING", 200),
            (run_figures, "RESAMPLES", 10),
        ):
            patch.setattr(module, name, value)
        yield


# -- models, as `module:function` names them ----------------------------------------------------


def plain() -> nn.Module:
    return models.digits(1)[0]


def in_place() -> nn.Module:
    return models.Wrapped(plain(), lambda x: x.mul_(2).div_(2))


def masking() -> nn.Module:
    """Of 10 classes, as all others; the logits of classes far behind are −∞."""
    return models.Wrapped(
        plain(), after=lambda z: z.masked_fill(z < z.amax(1, keepdim=True) - 8, -torch.inf)
    )


def raising() -> Callable[[Tensor], Tensor]:
    def model(x: Tensor) -> Tensor:
        raise KeyError("pixel_values")

    return model


def raising_module() -> nn.Module:
    return models.Wrapped(plain(), before=raising())


def silent_off_the_grid() -> nn.Module:
    """NaN at every image that is no data: whose values are not k/255."""

    class Silent(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = plain()

        def forward(self, x: Tensor) -> Tensor:
            off = ((x * 255 - (x * 255).round()).abs() > 1e-3).flatten(1).any(1)
            return torch.where(off[:, None], torch.nan, self.net(x))

    return Silent()


def of_12() -> nn.Module:
    return models.Wrapped(plain(), after=lambda z: torch.cat([z, z[:, :2] - 9], 1))


def of_8() -> nn.Module:
    return models.Wrapped(plain(), after=lambda z: z[:, :8])


def of_the_batch() -> nn.Module:
    return models.Wrapped(plain(), before=lambda x: x - x.mean() + 0.3)


def uncertainty(model: str, out: Path, **more: Any) -> dict[str, Any]:
    options = {"attack": "fgsm", "limit": 12, "calibration": 400, "eps": 0.1}
    result = uncertainty_command(f"{HERE}:{model}", "digits", out, **{**options, **more})
    return result.to_dict()


def certify(model: str, out: Path, **more: Any):
    options = {"sigma": 0.1, "n0": 10, "n": 50, "limit": 4, "eps": 0.3}
    return certify_command(f"{HERE}:{model}", "digits", out, **{**options, **more})


def without_seconds(value: Any) -> Any:
    """The same without times, nor what is said of models that write to their images."""
    if isinstance(value, list):
        kept = (v for v in value if not (isinstance(v, dict) and v.get("name") == WRITES))
        return [without_seconds(v) for v in kept]
    if isinstance(value, dict):
        return {k: without_seconds(v) for k, v in value.items() if k != "seconds"}
    return value


# -- uncertainty --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (
            "raising",
            r"cannot answer images of shape \(8, 1, 8, 8\) on cpu: KeyError: 'pixel_values'",
        ),
        ("of_12", "answers 12 classes, the data has 10"),
        ("of_8", "answers 8 classes, the data has 10"),
    ],
)
def test_uncertainty_says_at_the_start_what_is_wrong(tmp_path, model, message):
    with pytest.raises(InputError, match=message) as caught:
        uncertainty(model, tmp_path / "run")
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "run" / "result.json").exists()


def test_uncertainty_says_where_a_model_answers_nothing(tmp_path):
    with pytest.raises(InputError, match=r"on \d+ of 12 images .* predicts nothing"):
        uncertainty("silent_off_the_grid", tmp_path / "run")


def test_uncertainty_of_a_model_that_writes_to_its_images_is_that_of_the_plain_one(tmp_path):
    result, expected = (uncertainty(model, tmp_path / model) for model in ("in_place", "plain"))
    told = {"identity", "model", "seconds", "stages", "files", "seal", "finished", "log"}
    for key in expected.keys() - told:
        assert without_seconds(result[key]) == without_seconds(expected[key]), key


# -- certify ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("model", "message"),
    [
        ("raising_module", r"cannot answer images of shape \(4, 1, 8, 8\) on cpu: KeyError"),
        ("of_8", "answers 8 classes, the data has 10"),
        ("raising", "no torch.nn.Module"),
    ],
)
def test_certify_says_at_the_start_what_is_wrong(tmp_path, model, message):
    with pytest.raises(InputError, match=message) as caught:
        certify(model, tmp_path / "run")
    assert "\n" not in str(caught.value) and not (tmp_path / "run").exists()


def test_certificates_of_odd_models_are_those_of_the_plain_one(tmp_path):
    def rows(result: Any) -> list[Any]:
        return [replace(row, seconds=0.0) for row in result.rows]

    expected = certify("plain", tmp_path / "plain")
    for model in ("in_place", "masking", "of_12"):
        result = certify(model, tmp_path / model)
        assert rows(result) == rows(expected), model
        fired = {flag.name for flag in result.flags if flag.fired}
        assert (
            fired
            == {
                "in_place": {"writes-to-its-input"},
                "masking": set(),
                "of_12": {"more-logits-than-classes"},
            }[model]
        )


def test_certify_flags_and_abstains(tmp_path):
    batch = certify("of_the_batch", tmp_path / "batch")
    assert "answers-depend-on-batch" in {f.name for f in batch.flags if f.fired}
    silent = certify("silent_off_the_grid", tmp_path / "silent")
    assert silent.abstained == 1 and silent.standard_accuracy == 0


# -- mix ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (raising_module, r"cannot answer images of shape \(1, 1, 8, 8\) on cpu: KeyError"),
        (of_12, "the accurate model answers 12 classes, the data has 10"),
        (of_8, "the accurate model answers 8 classes, the data has 10"),
    ],
)
def test_mix_says_at_the_start_what_is_wrong(tmp_path, monkeypatch, model, message):
    def load(name: str, **_: object) -> nn.Module:
        made = plain() if name == "robust" else model()
        made.card = {"architecture": "small-cnn", "arguments": {}, "classes": list("0123456789")}  # type: ignore[assignment]
        return made

    monkeypatch.setattr("holdfast.loading.load", load)
    # Whether its folder could hold the two is another question, asked before.
    monkeypatch.setattr("holdfast.mixing.run.card_of", lambda name, model: model.card)
    with pytest.raises(InputError, match=message) as caught:
        mix_command("robust", "accurate", "digits", tmp_path / "out", eps=0.1, limit=20)
    assert "\n" not in str(caught.value) and not (tmp_path / "out").exists()


def test_a_mixture_of_models_that_write_is_that_of_plain_ones():
    from holdfast.mixing.parameters import fit_mixture

    x = torch.from_numpy(np.asarray(hf.data.load("digits").validation.images[:30])).float() / 255
    y = models.answers(plain(), x)
    y[:5] = (y[:5] + 1) % 10

    def attack(model: nn.Module) -> Tensor:
        return hf.attacks.FGSM()(model, x, y, ("linf", 0.1))

    before = x.clone()
    expected = fit_mixture(plain(), masking(), x, y, attack)
    assert fit_mixture(in_place(), models.Wrapped(masking(), torch.relu_), x, y, attack) == expected
    assert torch.equal(x, before)


def test_no_answer_at_an_attacked_point_counts_as_wrong_in_a_mixture():
    from holdfast.mixing.parameters import ROBUST_ALONE, Points

    x = torch.from_numpy(hf.data.load("digits").validation.images[:10]).float() / 255
    net = silent_off_the_grid()
    y = models.answers(net, x)
    points = Points(net, plain(), x, y)
    assert points.figures_of(ROBUST_ALONE).standing == 1
    points.add((x + 0.001).clamp(0, 1))
    assert points.figures_of(ROBUST_ALONE).standing == 0


# -- every command's device ---------------------------------------------------------------------


@pytest.mark.parametrize("verb", ["evaluate", "uncertainty", "certify", "mix", "train"])
@pytest.mark.parametrize("device", ["xla", "abacus"])
def test_a_device_that_is_not_there_is_one_short_line_of_every_command(
    tmp_path, monkeypatch, capsys, verb, device
):
    from holdfast.models import save_checkpoint

    card = {
        "architecture": "small-cnn",
        "arguments": {"width": 8},
        "classes": [str(i) for i in range(10)],
        "threat": {"norm": "linf", "eps": 0.1},
    }
    model = save_checkpoint(tmp_path / "model", plain(), card)
    recipe = tmp_path / "tiny.yaml"
    recipe.write_text(
        "epochs: 1\nmodel: {architecture: small-cnn, arguments: {width: 4}}\n"
        "objective: {name: standard}\nvalidation: {images: 20, steps: 1}\n"
    )
    named = {"mix": [model, model], "train": [recipe], "certify": [model, "--sigma", "0.1"]}
    given = [*named.get(verb, [model]), "--data", "digits", "--device", device]
    arguments = ["holdfast", verb, *given, "--out", tmp_path / "out"]
    monkeypatch.setattr(sys, "argv", [str(argument) for argument in arguments])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    told = capsys.readouterr().err.strip()
    assert ended.value.code == 2 and "\n" not in told, told
    assert f"device '{device}' cannot be used" in told and len(told) < 200
    assert not (tmp_path / "out").exists()
