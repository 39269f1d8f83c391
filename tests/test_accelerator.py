"""Everything that computes, on a device that is not the CPU: the same answers, and no tensor of
another device in between. The device is the one of `pretend_accelerator`."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import models
import pytest
import test_defences
import test_objectives
import test_training
import torch
from lightning_fabric import Fabric
from lightning_fabric.accelerators import CPUAccelerator
from lightning_fabric.strategies import SingleDeviceStrategy
from pretend_accelerator import DEVICE, calls
from safetensors.torch import load_file
from torch import Tensor, nn
from verbs import certify_command, mix_command, uncertainty_command

import holdfast as hf
from holdfast import draws
from holdfast.attacks import (
    APGD,
    DDN,
    FAB,
    FGSM,
    FMN,
    PGD,
    SPSA,
    SUITES,
    Attack,
    CarliniWagner,
    DeepFool,
    HopSkipJump,
    Patch,
    RayS,
    RotationTranslation,
    SigmaZero,
    Square,
    Stage,
    Suite,
    Swift,
    suite_named,
)
from holdfast.attacks import __all__ as attack_names
from holdfast.certification import bounds as interval
from holdfast.certification.smoothing import Smoothed
from holdfast.cli import uncertainty as command
from holdfast.data import trivial_augment
from holdfast.data.augment import Augment
from holdfast.defences import DEFENCES
from holdfast.draws import fixed_draws
from holdfast.models import build, save_checkpoint
from holdfast.search import fast_copies as levels
from holdfast.search.fast_copies import fast_copy_of
from holdfast.threat import NORMS, Threat
from holdfast.training import run as fit
from holdfast.training.averaging import WeightAverage, estimate_statistics
from holdfast.training.job import TrainingJob
from holdfast.training.objectives import OBJECTIVES, Batch, objective_named
from holdfast.training.optimisers import optimiser_for
from holdfast.training.recipe import OptimiserSpec
from holdfast.uncertainty import conformal, goals, metrics, scores
from holdfast.uncertainty.attacks import Ascent, seek
from holdfast.uncertainty.calibration import IsotonicScaling, TemperatureScaling, VectorScaling
from holdfast.uncertainty.run import figures as run_figures
from holdfast.uncertainty.run import measurements, probed_model

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def _parameters_stay_themselves():
    """When a module moves, as on CUDA: optimisers hold on to them."""
    torch.__future__.set_swap_module_params_on_conversion(True)
    yield
    torch.__future__.set_swap_module_params_on_conversion(False)


RADII = {"linf": 0.02, "l2": 0.15, "l1": 1.0, "l0": 6.0, "spatial": 1.0}


def on_both(function: Callable[[torch.device], Any]) -> tuple[Any, Any]:
    """What a function gives on the CPU and on the device, which must have been used."""
    here = function(CPU)
    before = sum(calls.values())
    there = function(DEVICE)
    assert sum(calls.values()) > before
    return here, there


def problem(n: int = 4, classes: int = 4) -> tuple[nn.Module, Tensor, Tensor]:
    """A network in float64 inside, images, and labels of which one is wrong."""
    model, x = models.Net(classes=classes, seed=2, scale=12.0).eval(), models.images(n, seed=2)
    labels = models.answers(model, x)
    labels[0] = (labels[0] + 1) % classes
    return model, x, labels


# --- attacks ----------------------------------------------------------------------------------

ATTACKS: list[Attack] = [
    FGSM(),
    PGD(steps=3),
    PGD(steps=3, momentum=0.75, loss="margin", start="clean"),
    APGD(steps=3),
    APGD(steps=3, loss="dlr", targeted=True),
    FAB(steps=3),
    FAB(steps=3, targeted=True),
    FAB(steps=3, start="random"),
    Square(queries=6),
    SPSA(steps=2, samples=4),
    DDN(steps=4),
    DeepFool(steps=3),
    FMN(steps=4),
    FMN(steps=4, targeted=True),
    CarliniWagner(steps=3, searches=2),
    SigmaZero(steps=4),
    HopSkipJump(queries=16, probes=4),
    RayS(queries=16),
    Patch(steps=3, places=2, trials=2),
    Patch(steps=3, places=2, trials=2, targeted=True),
    Patch(steps=3, places=2, trials=2, start="random"),
    RotationTranslation(grid=(3, 3), draws=3, steps=2),
    Swift(steps=2, long_steps=4, long_runs=1),
]
EVERY = [(a, norm) for a in ATTACKS for norm in (*NORMS, "spatial") if norm in a.norms]


def test_every_attack_is_here():
    known = {n for n in attack_names if inspect.isclass(getattr(hf.attacks, n))}
    concrete = {
        n for n in known if issubclass(getattr(hf.attacks, n), Attack) and n not in ABSTRACT
    }
    assert {type(a).__name__ for a in ATTACKS} == concrete


ABSTRACT = {"Attack", "GradientAscent", "MinimumNorm", "LibraryAttack"}


@pytest.mark.parametrize(("attack", "norm"), EVERY, ids=lambda v: getattr(v, "name", v))
def test_an_attack_breaks_the_same_images_with_the_same_points(attack, norm):
    """In the engine, with images on the CPU; and alone, with everything on the device."""
    model, x, labels = problem()
    threat = Threat(norm, RADII[norm])
    suite = Suite("alone", (Stage(attack, targets=2 if attack.targeted else 1),))

    def judged(device: torch.device) -> hf.Evaluation:
        home = copy.deepcopy(model).to(device)
        return hf.evaluate(home, x, labels, threat, suite, precision="original", batch_size=4)

    def alone(device: torch.device) -> Tensor:
        home = copy.deepcopy(model).to(device)
        found = attack(home, x.to(device), labels.to(device), threat)
        assert found.device == device
        return found.cpu()

    here, there = on_both(judged)
    assert torch.equal(here.broken, there.broken)
    assert torch.equal(here.adversarial, there.adversarial)
    assert [v.distance for v in here.verdicts] == [v.distance for v in there.verdicts]
    assert [v.forwards for v in here.verdicts] == [v.forwards for v in there.verdicts]
    here, there = on_both(alone)
    assert torch.equal(here, there)


@pytest.mark.parametrize(("attack", "norm"), EVERY, ids=lambda v: getattr(v, "name", v))
def test_an_attack_goes_for_the_same_class(attack, norm):
    """In the engine, with chosen targets, and alone, with targets on the CPU."""
    model, x, labels = problem()
    threat, suite = Threat(norm, RADII[norm]), Suite("alone", (Stage(attack),))

    def judged(device: torch.device) -> hf.Evaluation:
        home = copy.deepcopy(model).to(device)
        aim = {"goal": "target", "targets": "random"}
        return hf.evaluate(home, x, labels, threat, suite, precision="original", **aim)

    def alone(device: torch.device) -> Tensor:
        home, targets = copy.deepcopy(model).to(device), (labels + 1) % 4
        aim = {"goal": "target", "targets": targets}
        return attack(home, x.to(device), labels, threat, **aim).cpu()

    here, there = on_both(judged)
    assert torch.equal(here.broken, there.broken)
    assert [v.target for v in here.verdicts] == [v.target for v in there.verdicts]
    assert torch.equal(here.adversarial, there.adversarial)
    here, there = on_both(alone)
    assert torch.equal(here, there)


@pytest.mark.parametrize("spread", [0.0, 1.0])
def test_images_that_are_there_already_are_judged_alike(spread):
    model, x, labels = problem()
    adversarial = (x + 0.02).clamp(0, 1)

    def judged(device: torch.device) -> hf.Evaluation:
        home = nn.Sequential(copy.deepcopy(model), Hazy(spread)).to(device)
        return hf.judge(home, x, labels, adversarial.to(device), ("linf", 0.03))

    def transferred(device: torch.device) -> hf.Evaluation:
        home, other = copy.deepcopy(model), copy.deepcopy(model).to(device)
        asked = {"threat": ("linf", 0.02), "source": other, "suite": FGSM(), "device": device}
        return hf.judge(home, x, labels, **asked)

    here, there = on_both(judged)
    assert torch.equal(here.broken, there.broken) or spread
    here, there = on_both(transferred)
    assert torch.equal(here.broken, there.broken) and here.transfer == there.transfer


class Hazy(nn.Module):
    """Noise on the logits."""

    def __init__(self, spread: float):
        super().__init__()
        self.spread = spread

    def forward(self, logits: Tensor) -> Tensor:
        return logits + self.spread * torch.randn_like(logits) if self.spread else logits


def shortened(attack: Attack) -> Attack:
    """The same attack with a few iterations."""
    most = {"steps": 3, "long_steps": 4, "queries": 6, "draws": 3, "searches": 2, "places": 2}
    most |= {"trials": 2, "samples": 4, "probes": 8}
    settings = {k: min(v, most[k]) if k in most else v for k, v in attack.settings.items()}
    if "grid" in settings and any(settings["grid"]):
        settings["grid"] = (3, 3)
    return type(attack)(**settings)


@pytest.mark.parametrize("name", SUITES)
def test_a_suite_gives_the_same_verdicts(name):
    model, x, labels = problem()
    norm = {"patch": "l0", "spatial": "spatial"}.get(name, "linf")
    whole = suite_named(name)
    stages = tuple(copy.copy(stage) for stage in whole.stages)
    for stage in stages:
        object.__setattr__(stage, "attack", shortened(stage.attack))
    suite = Suite(name, stages, closest=whole.closest)

    def judged(device: torch.device) -> hf.Evaluation:
        home = copy.deepcopy(model).to(device)
        threat = Threat(norm, RADII[norm] / (2 if norm == "linf" else 1))
        return hf.evaluate(home, x, labels, threat, suite, batch_size=8)

    here, there = on_both(judged)
    assert here.broken.any()
    assert torch.equal(here.broken, there.broken)
    assert [v.attack for v in here.verdicts] == [v.attack for v in there.verdicts]
    assert torch.allclose(here.adversarial, there.adversarial, atol=1e-5)
    assert [(f.name, f.fired) for f in here.flags] == [(f.name, f.fired) for f in there.flags]


@pytest.mark.parametrize("images", [CPU, DEVICE], ids=str)
@pytest.mark.parametrize("home", [CPU, DEVICE], ids=str)
@pytest.mark.parametrize("asked", [None, "cpu", "pretend", "pretend:0"])
def test_models_and_images_may_lie_anywhere(home, images, asked):
    model, x, labels = problem()
    threat, suite = Threat("linf", 0.02), Suite("short", (Stage(APGD(steps=3)),))
    expected = hf.evaluate(model, x, labels, threat, suite, precision="original")
    model.to(home)
    result = hf.evaluate(
        model, x.to(images), labels.to(images), threat, suite, precision="original", device=asked
    )
    assert {p.device for p in model.parameters()} == {home}
    assert result.adversarial.device == result.broken.device == CPU
    assert torch.equal(result.broken, expected.broken)
    assert torch.equal(result.adversarial, expected.adversarial)


@pytest.mark.parametrize(("norm", "eps"), [("linf", 0.013), ("l2", 0.3), ("spatial", 0.5)])
def test_an_export_writes_the_same_pngs(norm, eps, tmp_path):
    model, x, labels = problem()
    x = (x * 255).round() / 255
    suite = "rotation-translation" if norm == "spatial" else "pgd"
    hf.evaluate(model, x, labels, (norm, eps), suite, precision="original", run=tmp_path / "run")
    here = hf.export(tmp_path / "run", tmp_path / "here", model=model, data=(x, labels))
    model.to(DEVICE)
    before = calls.total()
    data = x.to(DEVICE), labels.to(DEVICE)
    there = hf.export(tmp_path / "run", tmp_path / "there", model=model, data=data)
    assert calls.total() > before + 10
    assert {p.device for p in model.parameters()} == {DEVICE}
    assert here.counts == there.counts and here.counts.broken > 0
    index = [(tmp_path / name / "index.csv").read_text() for name in ("here", "there")]
    assert index[0] == index[1]
    hf.export(tmp_path / "run", tmp_path / "cpu", model=model, data=data, device="cpu")
    assert (tmp_path / "cpu" / "index.csv").read_text() == index[0]
    assert {p.device for p in model.parameters()} == {DEVICE}


def test_labels_and_targets_may_stay_on_the_cpu():
    model, x, labels = problem()
    targets = (labels + 1) % 4
    attack, threat = PGD(steps=3, loss="margin"), Threat("linf", 0.02)
    expected = attack(model, x, labels, threat)
    model.to(DEVICE)
    assert torch.equal(attack(model, x.to(DEVICE), labels, threat).cpu(), expected)
    aimed = APGD(steps=3, loss="dlr", targeted=True)
    expected = aimed(copy.deepcopy(model).to(CPU), x, labels, threat, targets=targets)
    found = aimed(model, x.to(DEVICE), labels, threat, targets=targets)
    assert torch.equal(found.cpu(), expected)


@pytest.mark.parametrize("witness", [CPU, DEVICE], ids=str)
def test_a_turned_image_is_measured_where_it_lies(witness):
    threat, x = Threat("spatial", 0.5), models.images(4)
    said = torch.tensor([[0.0, 0, 0], [15, 0, 0], [0, 1.5, 0.3], [-3, 1, -1.4]])
    here = threat.distance(x, x, said)
    there = threat.distance(x.to(DEVICE), x.to(DEVICE), said.to(witness))
    assert torch.equal(there.cpu(), here)
    assert here.tolist() == pytest.approx([0, 0.5, 0.5, 1.4 / 3])
    within = threat.contains(x.to(DEVICE), x.to(DEVICE), witness=said.to(witness))
    assert torch.equal(within.cpu(), threat.contains(x, x, witness=said))


@pytest.mark.parametrize("precision", ["float32", "bf16"])
def test_a_fast_twin_is_made_where_the_model_is(precision):
    model, x, labels = models.digits(24)

    def made(device: torch.device) -> Tensor:
        home = copy.deepcopy(model).to(device)
        fast_copy = fast_copy_of(home, x.to(device), labels.to(device), precision)
        assert fast_copy is not None
        with torch.no_grad():
            return fast_copy.model(x.to(device)).cpu()

    here, there = on_both(made)
    assert torch.allclose(here, there, atol=1e-4 if precision == "float32" else 0.5)


# --- defences ---------------------------------------------------------------------------------


@pytest.mark.parametrize("name", DEFENCES)
def test_a_defence_answers_and_is_differentiated_alike(name):
    x = test_defences.IMAGES[:2]
    for backward in test_defences.one(name).backwards:

        def answer(device: torch.device, backward: str = backward) -> tuple[Tensor, Tensor]:
            defence = test_defences.one(name, test_defences.network()).to(device)
            defence.backward = backward
            images = x.clone().to(device).requires_grad_()
            with fixed_draws(draws.item_seeds(1, torch.arange(len(x)))):
                logits = defence(images)
            logits.square().sum().backward()
            again = defence(x.to(device))  # with draws of its own, if it draws
            assert again.device == logits.device == device
            return logits.detach().cpu(), images.grad.cpu()

        here, there = on_both(answer)
        assert all(torch.allclose(a, b, atol=1e-5) for a, b in zip(here, there, strict=True))


@pytest.mark.parametrize("name", ["noise", "jpeg"])
def test_an_adaptive_suite_goes_through_a_defence(name):
    def judged(device: torch.device) -> hf.Evaluation:
        model, x, labels = problem()
        defence = test_defences.one(name, model).eval().to(device)
        suite = Suite("s", (Stage(PGD(steps=2)), Stage(APGD(steps=3), samples=2)))
        return hf.evaluate(defence, x, labels, Threat("linf", 0.02), suite)

    here, there = on_both(judged)
    assert torch.equal(here.broken, there.broken)
    assert torch.equal(here.adversarial, there.adversarial)


# --- certificates and mixtures ----------------------------------------------------------------


def test_smoothing_certifies_alike():
    model, x, _ = problem()

    def certified(device: torch.device) -> tuple[Tensor, ...]:
        smoothed = Smoothed(copy.deepcopy(model).to(device), 0.05, batch_size=64)
        found = smoothed.certify(x.to(device), n0=10, n=60, indices=torch.arange(len(x)).to(device))
        soft = smoothed.soft(3)(x.to(device)).detach().cpu()
        return found.prediction, found.radius, smoothed.predict(x.to(device), n=40), soft

    here, there = on_both(certified)
    assert here[1].max() > 0
    assert all(torch.equal(a, b) for a, b in zip(here, there, strict=True))


def bounded() -> nn.Module:
    torch.manual_seed(0)
    return build("interval-cnn", {"width": 2, "stride": 1, "mean": [0.3], "std": [0.37]}).eval()


def test_intervals_are_alike():
    x, labels = models.images(6, (1, 8, 8)), torch.arange(6)

    def bounds(device: torch.device) -> tuple[Tensor, ...]:
        model, images, y = bounded().to(device), x.to(device), labels.to(device)
        lower, upper = interval.logit_bounds(model, images, 0.01)
        verified = interval.verified(model, images, y, 1e-4)
        escaped = interval.outside_bounds(model, images, 0.01, (lower, upper), points=2)
        loss = interval.ibp_loss(model, images, y, 0.01)
        return tuple(t.detach().cpu() for t in (lower, upper, verified, escaped, loss))

    here, there = on_both(bounds)
    assert not here[3].any()
    assert all(torch.allclose(a, b, atol=1e-6) for a, b in zip(here, there, strict=True))


def small_cnn(folder: Path, name: str = "reads-digits") -> str:
    model, _, _ = models.digits(1)
    return saved(folder / name, model, "small-cnn", {"width": 8}, Threat("linf", 0.1))


def saved(
    folder: Path, model: nn.Module, architecture: str, arguments: dict[str, Any], threat: Threat
) -> str:
    card = {
        "architecture": architecture,
        "arguments": arguments,
        "classes": [str(i) for i in range(10)],
        "threat": threat.describe(),
    }
    return str(save_checkpoint(folder, model, card))


@pytest.mark.parametrize("sigma", [0.25, None], ids=["smoothing", "intervals"])
def test_the_certify_command(sigma, tmp_path):
    if sigma is None:
        arguments = {"width": 2, "stride": 1, "mean": [0.3], "std": [0.37]}
        model = saved(tmp_path / "m", bounded(), "interval-cnn", arguments, Threat("linf", 0.01))
    else:
        model = small_cnn(tmp_path)
    options: dict[str, Any] = {"limit": 4, "n0": 5, "n": 20, "eps": 0.01}

    def certified(device: torch.device) -> dict[str, Any]:
        out = tmp_path / device.type
        result = certify_command(model, "digits", out, sigma=sigma, device=str(device), **options)
        return {
            "rows": [(r.prediction, r.radius, r.broken) for r in result.rows],
            "attacked": result.attacked_accuracy,
        }

    here, there = on_both(certified)
    assert here == there


def test_the_mix_command(tmp_path):
    robust, accurate = small_cnn(tmp_path, "robust"), small_cnn(tmp_path, "accurate")

    def mixed(device: torch.device) -> tuple[dict[str, Tensor], Any]:
        folder, choice = mix_command(
            robust, accurate, "digits", tmp_path / device.type,
            limit=4, steps=1, rounds=1, device=str(device),
        )  # fmt: skip
        return load_file(folder / "model.safetensors"), choice

    (weights, choice), (others, same_choice) = on_both(mixed)
    assert choice == same_choice
    assert weights.keys() == others.keys()
    assert all(torch.equal(weights[k], others[k]) for k in weights)


# --- uncertainty ------------------------------------------------------------------------------

GOALS = {
    "miscalibrate": goals.Miscalibrate(),
    "look familiar": goals.LookFamiliar(),
    "miscover": goals.Miscover(),
    "enlarge": goals.Enlarge(0.1),
}


@pytest.mark.parametrize("goal", GOALS)
@pytest.mark.parametrize("norm", ["linf", "l2", "l1"])
def test_a_search_of_uncertainty_finds_the_same(goal, norm):
    model, x, labels = problem()

    def found(device: torch.device) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        home = copy.deepcopy(model).to(device)
        attack, threat = Ascent(GOALS[goal], steps=3), Threat(norm, RADII[norm])
        made = seek(attack, home, x, labels, threat, batch_size=4, device=device)
        alone = attack(home, x.to(device), labels.to(device), threat).cpu()
        return made.images, made.outputs, made.moved, alone

    here, there = on_both(found)
    assert all(torch.equal(a, b) for a, b in zip(here, there, strict=True))


def test_scores_are_the_same():
    model, x, labels = models.digits(40)

    def scored(device: torch.device) -> dict[str, Tensor]:
        home = copy.deepcopy(model).to(device)
        last = scores.LayerFeatures(home, "linear", take="input")
        images, y = x.to(device), labels.to(device)
        every = {
            **{name: scores.LogitScore(home, name) for name in scores.LOGIT_SCORES},
            "ensemble": scores.deep_ensemble([home, home], "mutual-information"),
            "dropout": scores.mc_dropout(
                nn.Sequential(nn.Dropout(0.3), home), "mutual-information", samples=2
            ),
            "smoothing": scores.smoothing_spread(home, 0.15, samples=2),
            "mahalanobis": scores.Mahalanobis(last, images, y, classes=10),
            "nearest": scores.NearestNeighbour(last, images, k=3),
        }
        return {name: score.in_batches(images[:5]).cpu() for name, score in every.items()}

    here, there = on_both(scored)
    for name in here:
        assert torch.allclose(here[name], there[name], rtol=1e-4, atol=1e-5), name


def test_what_is_fitted_on_logits_takes_them_from_anywhere():
    g = torch.Generator().manual_seed(0)
    logits, labels = 3 * torch.randn(200, 4, generator=g), torch.arange(200) % 4
    logits[torch.arange(200), labels] += 3

    def fitted(device: torch.device) -> list[Any]:
        z, y = logits.to(device), labels.to(device)
        said: list[Any] = []
        for kind in (TemperatureScaling, VectorScaling, IsotonicScaling):
            said.append(kind.fit(z, y)(z).detach().cpu())
        for score in ("lac", "aps", "raps"):
            sets = conformal.SplitConformal.fit(z.softmax(1), y, 0.1, score=score)
            said.append(torch.as_tensor(sets.sets(z.softmax(1))))
        p, wrong = z.softmax(1), z.argmax(1) != y
        said.append(metrics.ece(p, y))
        said.append(metrics.brier_score(p, y))
        said.append(metrics.auroc(1 - p.amax(1), wrong))
        return said

    here, there = on_both(fitted)
    for a, b in zip(here, there, strict=True):
        assert torch.allclose(torch.as_tensor(a), torch.as_tensor(b), atol=1e-5)


def test_robust_sets_are_the_same():
    model, x, labels = problem(n=30)

    def sets(device: torch.device) -> Tensor:
        home, images = copy.deepcopy(model).to(device), x.to(device)
        robust = conformal.RobustConformal.fit(
            home, images, labels.to(device), 0.3, radius=0.01, sigma=0.1
        )
        noisy = conformal.NoisyModel(home, 0.1)(images)
        assert noisy.device == device
        return torch.as_tensor(robust.sets(images))

    here, there = on_both(sets)
    assert torch.equal(here, there)


@pytest.mark.slow
def test_the_uncertainty_command(tmp_path, monkeypatch):
    for module, name, value in (
        (measurements, "STEPS", 3),
        (measurements, "SET_STEPS", 2),
        (measurements, "CURVE_IMAGES", 6),
        (measurements, "CURVE_STEPS", 2),
        (measurements, "OOD_ATTACKED", 6),
        (measurements, "ROBUST_STEPS", 2),
        (command, "OUT_OF_DISTRIBUTION", 10),
        (command, "TRAINING", 200),
        (run_figures, "RESAMPLES", 10),
    ):
        monkeypatch.setattr(module, name, value)
    for module in (levels, probed_model):  # the same number format on both
        monkeypatch.setattr(module, "has_fast_bf16", lambda device: False)
    model = small_cnn(tmp_path)

    def measured(device: torch.device) -> dict[str, Any]:
        result = uncertainty_command(
            model, "digits", tmp_path / device.type,
            attack="fgsm", limit=16, calibration=240, device=str(device),
        )  # fmt: skip
        return result.to_dict()

    here, there = on_both(measured)
    found, expected = dict(leaves(there)), dict(leaves(here))
    assert found.keys() == expected.keys()
    assert len(expected) > 100
    for name, value in expected.items():
        if isinstance(value, float):
            assert found[name] == pytest.approx(value, abs=0.02, nan_ok=True), name
        else:
            assert found[name] == value, name


def leaves(value: Any, name: str = "") -> Iterator[tuple[str, Any]]:
    """Every figure of a result by its path, but for what the clock says."""
    if isinstance(value, dict | list):
        inside = value.items() if isinstance(value, dict) else enumerate(value)
        for key, part in inside:
            if key not in ("seconds", "stages", "finished", "files"):
                yield from leaves(part, f"{name}/{key}")
    else:
        yield name, value


# --- training ---------------------------------------------------------------------------------

THREATS = [Threat("linf", 0.05), Threat("l2", 0.7), Threat("l1", 6)]


@pytest.mark.parametrize("threat", THREATS, ids=str)
@pytest.mark.parametrize("name", test_objectives.NAMES)
def test_a_step_of_an_objective_has_the_same_loss_and_gradients(name, threat):
    few = {"steps": 2} if name in test_objectives.STEPPED else {}

    def stepped(device: torch.device) -> list[Tensor]:
        given = test_objectives.batch(n=6)
        given = Batch(*(t.to(device) for t in (given.images, given.labels, given.seeds)))
        model, objective = test_objectives.network().to(device), test_objectives.made(name, few)
        if name == "hat":
            objective.standard.to(device)
        loss = objective(model, given, threat)
        loss.value.backward()
        return [loss.value.detach().cpu(), *(p.grad.cpu() for p in model.parameters())]

    here, there = on_both(stepped)
    assert all(torch.allclose(a, b, atol=1e-5) for a, b in zip(here, there, strict=True))


def test_weight_perturbation_has_the_same_loss_and_gradients():
    def stepped(device: torch.device) -> list[Tensor]:
        given = test_objectives.batch(n=6)
        given = Batch(*(t.to(device) for t in (given.images, given.labels, given.seeds)))
        model = test_objectives.network().to(device)
        objective = objective_named("trades", {"steps": 2}, 0.05, 0.0)
        objective.progress = 0.5
        loss = objective(model, given, THREATS[0])
        loss.value.backward()
        plain = objective_named("trades", {"steps": 2})(model, given, THREATS[0]).value
        assert loss.value != plain  # the weights were perturbed
        return [loss.value.detach().cpu(), *(p.grad.cpu() for p in model.parameters())]

    here, there = on_both(stepped)
    assert all(torch.allclose(a, b, atol=1e-5) for a, b in zip(here, there, strict=True))


OTHERS = {
    "denoising": ("denoising-autoencoder", {"width": 2, "channels": 1}),
    "diffusion": ("denoising-unet", {"width": 4, "mean": [0.3], "std": [0.4]}),
    "interval": ("interval-cnn", {"width": 2, "stride": 1, "mean": [0.3], "std": [0.37]}),
}


@pytest.mark.parametrize("name", OTHERS)
def test_objectives_of_other_networks(name):
    assert set(OTHERS) == set(OBJECTIVES) - set(test_objectives.NAMES)
    architecture, arguments = OTHERS[name]

    def stepped(device: torch.device) -> list[Tensor]:
        torch.manual_seed(0)
        model = build(architecture, arguments).train().to(device)
        given = test_objectives.batch(n=6)
        given = Batch(*(t.to(device) for t in (given.images, given.labels, given.seeds)))
        loss = objective_named(name, {})(model, given, THREATS[0])
        loss.value.backward()
        grads = [p.grad for p in model.parameters() if p.grad is not None]
        return [loss.value.detach().cpu(), *(g.cpu() for g in grads)]

    here, there = on_both(stepped)
    assert len(here) > 2
    assert all(torch.allclose(a, b, atol=1e-5) for a, b in zip(here, there, strict=True))


@pytest.mark.parametrize("name", ["sgd", "muon", "adam"])
def test_optimisers_and_the_average_of_weights(name):
    def stepped(device: torch.device) -> list[Tensor]:
        model = test_objectives.network().to(device)
        average = WeightAverage(model, 0.5)
        optimiser = optimiser_for(model, OptimiserSpec(name=name))
        x, y = models.images(8, (1, 8, 8)).to(device), torch.arange(8).to(device)
        for _ in range(3):
            optimiser.zero_grad()
            nn.functional.cross_entropy(model(x), y).backward()
            optimiser.step()
            average.update(model)
        estimate_statistics(average.model, iter([x, x.flip(0)]))
        state = [*model.state_dict().values(), *average.model.state_dict().values()]
        assert {t.device for t in state} == {device}
        return [t.cpu() for t in state]

    here, there = on_both(stepped)
    assert all(torch.allclose(a, b, atol=1e-4) for a, b in zip(here, there, strict=True))


AUGMENTS = {
    "crops": {"crop_padding": 2, "flip": "alternating"},
    "reflected": {"crop_padding": 2, "pad_mode": "reflect"},
    "idbh": {"crop_padding": 0, "crop_shift": 4, "colour": 1.0, "erase": 0.9},
    "mixed": {"cutmix": 0.5, "mixup": 0.5},
}


@pytest.mark.parametrize("name", AUGMENTS)
def test_augmented_images_are_the_same(name):
    images = (models.images(40, (3, 12, 12)) * 255).to(torch.uint8)
    rows, augment = torch.arange(40), Augment(**AUGMENTS[name])

    def made(device: torch.device) -> list[Tensor]:
        x = images.to(device)
        views = [augment(x, rows, 1, 5), augment(x, rows.to(device), 1, 5)]
        mixing = augment.mixing(rows, 40, 1, 5)
        if mixing is not None:
            views += mixing(x, x[mixing.others])
        return [view.float().cpu() for view in views]

    here, there = on_both(made)
    assert len(here) == (4 if name == "mixed" else 2)
    # Where a blend is rounded, devices may differ by one of 255 grey levels.
    assert all(
        torch.allclose(a, b, atol=1 if name == "idbh" else 1e-6)
        for a, b in zip(here, there, strict=True)
    )


def test_trivially_augmented_images_are_the_same():
    images, seeds = models.images(60, (3, 12, 12)), draws.item_seeds(0, torch.arange(60))

    def made(device: torch.device) -> Tensor:
        return trivial_augment.trivial_augment(images.to(device), seeds.to(device)).cpu()

    here, there = on_both(made)
    assert torch.allclose(here, there, atol=1e-6)


class _Pretend(CPUAccelerator):
    def setup_device(self, device: torch.device) -> None:
        pass


@pytest.mark.parametrize("name", ["n-fgsm", "trades"])
def test_a_run_of_training_is_the_same_and_goes_on(name, tmp_path, monkeypatch):
    """Checkpoints are written, and taken up again, from the device."""
    few = {"steps": 2} if name == "trades" else {}
    recipe = test_training.tiny(
        objective={"name": name, "arguments": few, "awp": 0.005 if few else 0.0},
        optimiser={"name": "muon" if few else "sgd"},
        augment={"crop_padding": 1, **({"cutmix": 0.4, "mixup": 0.4} if few else {})},
        epochs=1,
    )

    def fabric(recipe: Any, device: str | None) -> Fabric:
        home = SingleDeviceStrategy(device or "cpu", accelerator=_Pretend())
        return Fabric(strategy=home, precision="32-true")

    monkeypatch.setattr(fit, "fabric_for", fabric)

    def trained(device: torch.device) -> dict[str, Tensor]:
        run = tmp_path / device.type
        home = fabric(recipe, str(device))
        stopped = fit.Trainer(TrainingJob(recipe, test_training.digits(), run, home))
        stopped._step()
        stopped.save("latest")
        assert stopped.restore("latest")
        stopped._step()
        weights = {k: v.cpu() for k, v in stopped.model.module.state_dict().items()}
        assert {v.device for v in stopped.model.module.state_dict().values()} == {device}
        result = hf.training.train(
            recipe, test_training.digits(), tmp_path / f"whole-{device.type}", device=str(device)
        )
        kept = load_file(result.run / "model" / "model.safetensors")
        return weights | {f"kept.{k}": v for k, v in kept.items()}

    here, there = on_both(trained)
    assert here.keys() == there.keys()
    for key in here:
        assert torch.allclose(here[key], there[key], atol=1e-3), key


def test_a_numbered_device_is_that_one(monkeypatch):
    asked: list[dict[str, Any]] = []

    class Told:
        def __init__(self, **settings: Any):
            asked.append(settings)

    monkeypatch.setattr("lightning_fabric.Fabric", Told)
    with monkeypatch.context() as patch:
        patch.setattr(fit, "checked_device", torch.device)  # as if this machine had them all
        for device in (None, "cpu", "cuda", "cuda:1", "mps:0"):
            fit.fabric_for(test_training.tiny(), device)
    found = [(a["accelerator"], a["devices"]) for a in asked]
    assert found == [("auto", 1), ("cpu", 1), ("cuda", 1), ("cuda", [1]), ("mps", [0])]
    with pytest.raises(hf.InputError, match="'cuda:first' cannot be used"):
        fit.fabric_for(test_training.tiny(), "cuda:first")
