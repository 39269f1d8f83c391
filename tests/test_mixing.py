"""Mixtures: their ends, their gradients, and parameters that are worth choosing."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import published_networks
import pytest
import torch
import torch.nn.functional as F
from libraries import library
from models import Net, images
from safetensors.torch import load_file
from torch import nn
from verbs import mix_command

import holdfast as hf
from holdfast import data as datasets
from holdfast.attacks import FGSM, PGD
from holdfast.cli import another
from holdfast.defences import chain, views
from holdfast.errors import InputError
from holdfast.evaluation.health import MISLEADING, huge_eps
from holdfast.evaluation.inspection import reason
from holdfast.mixing import run as mix
from holdfast.mixing.parameters import (
    ROBUST_ALONE,
    WEIGHTS,
    Parameters,
    Points,
    choose,
    fit_mixture,
    grid,
)
from holdfast.models import SmallCNN, save_checkpoint
from holdfast.models.mixture import Mixture, sharpened
from holdfast.runs.files import read_json
from holdfast.search import fast_copy_of

SHARP = {"scale": 0.7, "power": 2.5, "shift": -0.4}
CLASSES = [str(i) for i in range(10)]


def pair() -> tuple[nn.Module, nn.Module]:
    return Net(seed=1), Net(seed=2)


# --- the model --------------------------------------------------------------------------------


def test_at_its_ends_a_mixture_is_either_model():
    robust, accurate = pair()
    x = images(12)
    for weight, alone in ((1.0, robust), (0.0, accurate)):
        plain = Mixture(robust, accurate, weight=weight)(x)
        assert torch.allclose(plain, alone(x).log_softmax(1), atol=1e-5)
    sharp = Mixture(robust, accurate, weight=0.0, **SHARP)(x)
    assert torch.allclose(sharp, accurate(x).log_softmax(1), atol=1e-5)
    sharp = Mixture(robust, accurate, weight=1.0, **SHARP)(x)
    assert torch.equal(sharp.argmax(1), robust(x).argmax(1))
    assert not torch.allclose(sharp, robust(x).log_softmax(1), atol=0.1)


def test_between_its_ends_it_averages_probabilities():
    robust, accurate = pair()
    x = images(5)
    both = 0.3 * robust(x).softmax(1) + 0.7 * accurate(x).softmax(1)
    assert torch.allclose(Mixture(robust, accurate, weight=0.3)(x).exp(), both, atol=1e-6)
    standard = robust(x) - robust(x).mean(1, keepdim=True)
    standard = standard / (standard.square().mean(1, keepdim=True) + 1e-5).sqrt()
    v = F.gelu(standard - 0.4)
    moved = 0.7 * v.sign() * v.abs() ** 2.5
    both = 0.6 * moved.softmax(1) + 0.4 * accurate(x).softmax(1)
    assert torch.allclose(Mixture(robust, accurate, weight=0.6, **SHARP)(x).exp(), both, atol=1e-6)


def test_gradients_flow_through_both_and_agree_with_differences():
    robust, accurate = (net.double() for net in pair())

    class Exact(nn.Module):
        """Net without its rounding to float32."""

        def __init__(self, net):
            super().__init__()
            self.net = net

        def forward(self, x):
            return torch.tanh((x.flatten(1) - 0.5) @ self.net.first) @ self.net.second

    mixed = Mixture(Exact(robust), Exact(accurate), weight=0.6, **SHARP)
    mixed_logits = _in_double(mixed)
    x = images(3).double().requires_grad_()
    loss = F.nll_loss(mixed_logits(x), torch.tensor([0, 1, 2]))
    (gradient,) = torch.autograd.grad(loss, x, retain_graph=True)
    for seed in range(5):
        way = torch.randn(x.shape, generator=torch.Generator().manual_seed(seed)).double()
        ahead, back = (
            F.nll_loss(mixed_logits(x.detach() + step * way), torch.tensor([0, 1, 2]))
            for step in (1e-5, -1e-5)
        )
        assert ((ahead - back) / 2e-5).item() == pytest.approx(
            (gradient * way).sum().item(), rel=1e-5
        )
    for net in (robust, accurate):
        found = torch.autograd.grad(loss, list(net.parameters()), retain_graph=True)
        assert all(float(g.abs().max()) > 1e-6 for g in found)


def _in_double(mixture: Mixture):
    """The same computation without `.float()`, for differences of small steps."""

    def answer(x):
        robust = sharpened(mixture.robust(x), mixture.scale, mixture.power, mixture.shift)
        accurate = mixture.accurate(x)
        out = torch.logaddexp(
            robust.log_softmax(1) + torch.tensor(mixture.weight).double().log(),
            accurate.log_softmax(1) + torch.tensor(1 - mixture.weight).double().log(),
        )
        assert torch.allclose(out.float(), mixture(x), atol=1e-5)
        return out

    return answer


def test_gradients_stay_finite_where_one_model_is_certain():
    class Certain(nn.Module):
        def forward(self, x):
            return 300 * F.one_hot(torch.zeros(len(x), dtype=torch.int64), 4) + x.flatten(1)[:, :4]

    for weight in (0.0, 0.5, 1.0):
        mixed = Mixture(Certain(), Net(), weight=weight, scale=5.0, power=4.0, shift=0.0)
        x = images(4).requires_grad_()
        logits = mixed(x)
        (gradient,) = torch.autograd.grad(F.cross_entropy(logits, torch.ones(4).long()), x)
        assert torch.isfinite(logits).all() and torch.isfinite(gradient).all()
        assert gradient.abs().sum() > 0


@pytest.mark.parametrize(
    ("bad", "says"),
    [
        ({"weight": 1.5}, "weight of a mixture must be a number from 0 to 1, not 1.5"),
        ({"scale": 0}, "scale of a mixture must be a number above 0"),
        ({"power": 0.5}, "power of a mixture must be a number of at least 1"),
        ({"shift": float("nan")}, "shift of a mixture must be a number that is finite"),
        ({"weight": True}, "weight of a mixture"),
    ],
)
def test_parameters_out_of_range_are_refused(bad, says):
    with pytest.raises(InputError, match=says):
        Mixture(*pair(), **bad)


# --- choosing ---------------------------------------------------------------------------------


def test_figures_are_those_of_the_mixtures_themselves():
    robust, accurate = pair()
    x = images(40)
    labels = accurate(x).argmax(1)
    labels[::3] = robust(x).argmax(1)[::3]
    moved = (x + 0.1 * torch.randn(x.shape, generator=torch.Generator().manual_seed(4))).clamp(0, 1)
    with torch.no_grad():
        points = Points(robust, accurate, x, labels)
        points.add(moved)
        for transformation in (Parameters(0.5), Parameters(0.5, **SHARP)):
            figures = points.figures(transformation, WEIGHTS)
            for weight in (0.5, 0.62, 0.81, 1.0):
                mixed = Mixture(
                    robust, accurate, **transformation._replace(weight=weight)._asdict()
                )
                right = torch.stack([mixed(p).argmax(1) == labels for p in (x, moved)])
                found = figures[WEIGHTS.index(weight)]
                assert found.standard == pytest.approx(float(right[0].double().mean()))
                assert found.standing == pytest.approx(float(right.all(0).double().mean()))


def test_nothing_is_chosen_that_does_not_stand():
    robust, accurate = pair()
    x = images(30)
    labels = robust(x).argmax(1)
    with torch.no_grad():
        points = Points(robust, accurate, x, labels)
        points.add((1 - x).clamp(0, 1))
    floor = points.figures_of(ROBUST_ALONE).standing
    few = list(grid())[::40]
    parameters, found = choose(points, floor, few)
    assert found.standing >= floor and found == points.figures_of(parameters)
    # A floor that no mixture reaches leaves the robust model alone.
    assert choose(points, 2.0, few)[0] == ROBUST_ALONE


class Told(nn.Module):
    """Answers by an image's first pixel: 0, ½ or 1."""

    def __init__(self, *logits: list[float]):
        super().__init__()
        self.logits = torch.tensor(logits)

    def forward(self, x):
        return self.logits[(2 * x[:, 0, 0, 0]).round().long()]


def test_a_mixture_that_falls_to_its_own_attack_is_not_chosen():
    """At 0 both are right, at ½ the robust model is hardly wrong, at 1 it is hardly right.

    So a mixture is right everywhere, until an attacker who sees it leads all images to 1.
    """
    robust = Told([4, 0, 0, 0], [2, 2.2, -2, -2], [2.2, 2, -2, -2])
    accurate = Told([10, 0, 0, 0], [10, 0, 0, 0], [0, 10, 0, 0])
    x = torch.zeros(30, 1, 2, 2)
    x[20:] = 0.5
    labels = torch.zeros(30, dtype=torch.int64)
    attacked = []

    def attack(model):
        attacked.append(type(model))
        return x if model is robust else torch.ones_like(x)

    choice = fit_mixture(robust, accurate, x, labels, attack, cost=0.0, rounds=3)
    assert attacked[:2] == [Told, Mixture]  # it looked well at first
    assert choice.parameters == ROBUST_ALONE and choice.gains_nothing
    assert choice.chosen == choice.robust_alone
    assert choice.robust_alone.standing == pytest.approx(20 / 30)
    assert choice.accurate_alone.standard == 1

    def blind(model):
        return x

    choice = fit_mixture(robust, accurate, x, labels, blind, cost=0.0)
    assert choice.chosen.standard == 1 and choice.parameters.weight < 1
    assert not choice.gains_nothing


@pytest.fixture(scope="module")
def digits():
    """A robust and an accurate reader of digits, both trained for seconds, with data."""
    held = datasets.load("digits")
    x = datasets.to_tensor(held.train.images)
    y = torch.from_numpy(held.train.labels)
    threat = hf.Threat("linf", 0.2)
    made = []
    for attacked, steps, seed in ((True, 80, 0), (False, 50, 1)):
        torch.manual_seed(seed)
        model = SmallCNN(width=8)
        optimiser = torch.optim.Adam(model.parameters(), 0.01)
        for step in range(steps):
            rows = torch.randint(0, len(x), (128,), generator=torch.Generator().manual_seed(step))
            point = x[rows]
            if attacked:
                model.eval()
                attack = FGSM(step=1.0, noise=2.0, clip=False)
                point = attack(model, point, y[rows], threat, seed=step)
                model.train()
            loss = F.cross_entropy(model(point), y[rows])
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
        made.append(model.eval())
    return *made, held, threat


@pytest.fixture(scope="module")
def mixed(digits, tmp_path_factory) -> Path:
    robust, accurate, held, threat = digits
    folder = tmp_path_factory.mktemp("mix")
    for name, model in (("robust", robust), ("accurate", accurate)):
        save_checkpoint(
            folder / name,
            model,
            {
                "architecture": "small-cnn",
                "arguments": {"width": 8},
                "classes": CLASSES,
                "threat": {"norm": "linf", "eps": threat.eps},
            },
        )
    mix_command(
        str(folder / "robust"),
        str(folder / "accurate"),
        held,
        folder / "mixed",
        limit=150,
        cost=0.02,
        steps=10,
        rounds=4,
    )
    return folder


def test_chosen_parameters_beat_the_plain_average_on_digits(digits, mixed):
    """The objective: accuracy, as long as at most the stated share of standing images is lost."""
    robust, accurate, held, threat = digits
    x = datasets.to_tensor(held.validation.images[:150])
    y = torch.from_numpy(held.validation.labels[:150].copy())
    attack = PGD(steps=20, step_size=0.2, loss="margin")

    def standing(model):
        with torch.no_grad():
            clean = model(x).argmax(1) == y
        found = attack(model, x, y, threat)
        with torch.no_grad():
            return float(clean.float().mean()), float((model(found).argmax(1) == y).float().mean())

    chosen = standing(hf.load(mixed / "mixed"))
    alone, plain = standing(robust), standing(Mixture(robust, accurate))
    assert alone[1] > 0.2  # or there is nothing to lose
    assert chosen[0] > alone[0] + 0.005
    assert chosen[1] >= alone[1] - 0.035  # an attack that did not choose
    assert plain[1] < alone[1] - 0.035  # the plain average is broken


def test_the_written_model_is_the_mixture_and_is_attacked_as_one(digits, mixed):
    robust, accurate, held, threat = digits
    model = hf.load(mixed / "mixed")
    card = json.loads((mixed / "mixed" / "card.json").read_text())
    assert isinstance(model, Mixture) and model.card == card
    x, y = datasets.to_tensor(held.test.images[:24]), torch.from_numpy(held.test.labels[:24].copy())
    again = Mixture(
        robust,
        accurate,
        **{key: card["arguments"][key] for key in ("weight", "scale", "power", "shift")},
    )
    with torch.no_grad():
        assert torch.equal(model(x), again(x))
    figures = card["figures"]["validation"]
    assert figures["standard_accuracy"] >= figures["robust_alone"]["standard_accuracy"]
    assert figures["n"] == 150 and card["threat"]["eps"] == threat.eps
    result = hf.evaluate(model, x, y, threat, suite="pgd")
    assert 0 < result.robust_accuracy < result.standard_accuracy
    assert not [flag.name for flag in result.flags if flag.fired and "gradient" in flag.name]


@pytest.fixture
def sharp(digits):
    """So sharp that nothing of the robust part's gradient is left where it decides."""
    robust, accurate, *_ = digits
    return Mixture(robust, accurate, weight=0.9, scale=50.0, power=5.0, shift=0.0).eval()


def first_digits(held, count=24):
    split = held.test
    return datasets.to_tensor(split.images[:count]), torch.from_numpy(split.labels[:count].copy())


def test_the_surrogate_answers_alike_and_has_the_robust_networks_gradient(digits, sharp):
    robust, _, held, _ = digits
    x, y = first_digits(held)
    (name, view), *more = views(sharp).items()
    assert name == "surrogate" and not more and views(view).keys() == {"exact"}
    assert view.robust is robust and sharp.backward == "exact"
    weights = torch.randn(len(x), 10)

    def answer_and_slope(model):
        at = x.clone().requires_grad_()
        answer = model(at)
        return answer.detach(), torch.autograd.grad((answer * weights).sum(), at)[0]

    answer, slope = answer_and_slope(view)
    exact_answer, exact_slope = answer_and_slope(sharp)
    assert torch.equal(answer, exact_answer)
    assert torch.equal(slope, answer_and_slope(robust)[1])
    assert not torch.allclose(slope, exact_slope, rtol=0.1)
    # The search's own copies keep it, though tracing cannot look into a backward pass.
    fast_copy = fast_copy_of(view, x, y, "float32")
    answer, found = answer_and_slope(fast_copy.model)
    assert torch.allclose(found, slope, rtol=1e-3, atol=1e-5)


def test_the_adaptive_suite_sees_through_a_mixture(digits, sharp):
    """Where the mixture's own gradients lead nowhere, those of the robust part do."""
    robust, _, held, threat = digits
    x, y = first_digits(held)
    assert "mixture" in reason(sharp) and reason(robust) == ""
    result = hf.evaluate(sharp, x, y, threat, suite="adaptive")
    broken = {cost.name: cost.broken for cost in result.attacks}
    assert broken["pgd, surrogate"] > 0
    assert not [flag.name for flag in result.flags if flag.fired and flag.name in MISLEADING]
    assert result.unaware is None  # there is no defence that an attacker could not know of
    alone = hf.evaluate(robust, x, y, threat, suite="pgd")
    assert result.robust_accuracy <= alone.robust_accuracy + 0.05
    # Nor does a defence in front of it hide the mixture.
    guarded = chain(sharp, ["bit-depth:bits=8"])
    assert "mixture" in reason(guarded)
    names = [cost.name for cost in hf.evaluate(guarded, x, y, threat, suite="adaptive").attacks]
    assert names[0] == "pgd, undefended" and "pgd, surrogate" in names


def test_a_huge_ball_is_searched_by_every_backward_pass(digits, sharp):
    """Where exact gradients stand still, the surrogate's do not: together they break all."""
    *_, held, threat = digits
    x, y = first_digits(held)
    blind = huge_eps(sharp, [lambda z: sharp(z.detach()) + 0 * z.sum()], x, y, threat, 0)
    assert blind.fired
    view = views(sharp)["surrogate"]
    both = huge_eps(sharp, [lambda z: sharp(z.detach()) + 0 * z.sum(), view], x, y, threat, 0)
    assert not both.fired and both.figures["robust_accuracy"] < blind.figures["robust_accuracy"]


def test_swift_becomes_autoattack_where_a_mixture_hides_its_gradients(digits, sharp):
    *_, held, threat = digits
    x, y = first_digits(held, 60)
    swift = hf.evaluate(sharp, x, y, threat, suite="swift")
    whole = hf.evaluate(sharp, x, y, threat, suite="autoattack")
    assert [cost.name for cost in swift.attacks][-4:] == [cost.name for cost in whole.attacks]
    assert all(cost.forwards > 0 for cost in swift.attacks)
    # Every image draws alike in both: what autoattack breaks, swift has broken too.
    assert bool((swift.broken | ~whole.broken).all())


@pytest.mark.parametrize(
    ("change", "options", "says"),
    [
        ({}, {"limit": 0}, "--limit must be at least 1"),
        ({}, {"cost": -0.1}, "cost must be a number above 0"),
        ({}, {"norm": "l7"}, "l7"),
        ({"trained_on": "train+validation"}, {}, "other was trained on the validation images too"),
        ({"classes": list("abcdefghij")}, {}, "the accurate model knows the classes a, b, c"),
        (
            {"arguments": {"width": 8, "mean": [0.5] * 3, "std": [1] * 3}},
            {},
            "takes images of 3 channels; those of digits have 1",
        ),
    ],
)
def test_bad_input_is_one_line(change, options, says, digits, mixed, tmp_path):
    card = {
        "architecture": "small-cnn",
        "arguments": {"width": 8},
        "classes": CLASSES,
        **change,
    }
    model = SmallCNN(**card["arguments"])
    save_checkpoint(tmp_path / "other", model, card)
    with pytest.raises(InputError, match=says) as raised:
        mix_command(
            str(mixed / "robust"), str(tmp_path / "other"), "digits", tmp_path / "out", **options
        )
    assert "\n" not in str(raised.value) and not (tmp_path / "out").exists()


def test_a_folder_in_use_and_a_model_without_a_card_are_refused(mixed, tmp_path):
    source = str(mixed / "robust")
    with pytest.raises(
        InputError, match=r"holds another run \(--cost 0.02, not 0.01; --steps 10, not 40"
    ):
        mix_command(source, source, "digits", mixed / "mixed")
    with pytest.raises(InputError, match="has no card"):
        mix_command("models:Net", source, "digits", tmp_path / "out")


# --- models that come as files ----------------------------------------------------------------


def _weights(folder: Path, file: Path, prefix: str = "module.") -> str:
    """The weights of a checkpoint as a file of somebody else's."""
    state = load_file(folder / "model.safetensors")
    torch.save({"state_dict": {prefix + k: v.float() for k, v in state.items()}}, file)
    return str(file)


def _architecture(folder: Path) -> str:
    arguments = json.loads((folder / "card.json").read_text())["arguments"]
    return "small-cnn:" + ",".join(f"{key}={value}" for key, value in arguments.items())


def test_files_of_weights_mix_as_their_checkpoints_do(mixed, tmp_path):
    robust, accurate = mixed / "robust", mixed / "accurate"
    files = _weights(robust, tmp_path / "r.pth"), _weights(accurate, tmp_path / "a.ckpt")
    how = {"steps": 2, "rounds": 1, "limit": 40, "norm": "linf", "eps": "0.1"}
    expected, choice = mix_command(str(robust), str(accurate), "digits", tmp_path / "one", **how)
    both = [_architecture(robust), _architecture(accurate)]
    out, other = mix_command(*files, "digits", tmp_path / "two", architecture=both, **how)
    assert other == choice
    x = images(4)[:, :1]
    with torch.no_grad():
        assert torch.equal(hf.load(out)(x), hf.load(expected)(x))
    # A folder beside a file: the one architecture is the file's.
    out, other = mix_command(
        str(robust), files[1], "digits", tmp_path / "three", architecture=both[1:], **how
    )
    assert other == choice and hf.load(out).card["parts"]["accurate"]["name"] == "a.ckpt"


def test_a_published_network_mixes_under_its_own_names(mixed, tmp_path):
    state = published_networks.resnet((2, 2, 2, 2), False, 4)
    state["conv1.weight"] = state["conv1.weight"][:, :1].clone()
    torch.save(state, tmp_path / "resnet.pt")
    out, _ = mix_command(
        str(mixed / "robust"), str(tmp_path / "resnet.pt"), "digits", tmp_path / "out",
        architecture=["resnet:width=4,channels=1"], steps=1, rounds=1, limit=10,
    )  # fmt: skip
    card = hf.load(out).card
    assert card["arguments"]["accurate"] == {
        "architecture": "resnet",
        "arguments": {"width": 4, "channels": 1},
    }


def test_what_a_mixtures_folder_cannot_hold_is_refused_before_any_work(mixed, tmp_path):
    robust = str(mixed / "robust")
    network = hf.load(robust)
    script = tmp_path / "model.pt"
    torch.jit.trace(network, images(2)[:, :1]).save(script)
    (tmp_path / "mine.py").write_text(
        "from holdfast.models import SmallCNN\nbuild = lambda: SmallCNN(width=8)\n"
    )
    defended = shutil.copytree(mixed / "robust", tmp_path / "defended")
    card = read_json(defended / "card.json")
    (defended / "card.json").write_text(json.dumps(card | {"defences": ["jpeg:quality=75"]}))
    weights = _weights(mixed / "robust", tmp_path / "r.pth")
    for source, architecture, said in (
        (str(script), None, "no card.*runs no code.*--architecture NAME"),
        (f"{tmp_path / 'mine.py'}:build", None, "no card.*runs no code"),
        (weights, [f"{tmp_path / 'mine.py'}:build"], "no card.*runs no code"),
        ("http://127.0.0.1:9", None, "no card.*runs no code"),
        (str(defended), None, "stands behind jpeg:quality=75"),
        (weights, None, f"they fit --architecture {_architecture(mixed / 'robust')}"),
        (robust, ["small-cnn"], "neither model is one"),
        (robust, ["small-cnn"] * 3, "more than twice"),
    ):
        with pytest.raises(InputError, match=said) as error:
            mix_command(robust, source, "digits", tmp_path / "out", architecture=architecture)
        assert "\n" not in str(error.value) and not (tmp_path / "out").exists()
    # In Python nothing is kept, so anything mixes.
    x, y = images(4)[:, :1, :8, :8], torch.tensor([0, 1, 2, 3])
    found = hf.mix(network, hf.load(script), x, y, hf.Threat("linf", 0.1), steps=1, rounds=1)
    assert found.choice.n == 4


def test_a_model_with_options_of_its_own_mixes_and_is_named_again(mixed, tmp_path):
    """What no card may build is on the card as the user called it, and built when he says so."""
    how = {"steps": 2, "rounds": 1, "limit": 40, "norm": "linf", "eps": "0.1"}
    robust, accurate = mixed / "robust", mixed / "accurate"
    _, expected = mix_command(str(robust), str(accurate), "digits", tmp_path / "one", **how)
    file = _weights(accurate, tmp_path / "a file.pth")
    architecture = _architecture(accurate)
    # In quotes behind it, or as options of the command: the same.
    quoted = f"{file} --architecture {architecture} --input-size=8"
    out, choice = mix_command(str(robust), quoted, "digits", tmp_path / "two", **how)
    other, again = mix_command(
        str(robust), file, "digits", tmp_path / "three", architecture=[architecture],
        input_size=["8"], **how,
    )  # fmt: skip
    assert choice == again == expected
    with pytest.raises(InputError, match=f"name them: --architecture '{file}'") as refused:
        hf.load(out)
    assert "\n" not in str(refused.value)
    with pytest.raises(InputError, match="does not name"):
        hf.load(out, architecture="timm:resnet18")
    x = images(4, (1, 8, 8))
    with torch.no_grad():
        answers = [hf.load(each, architecture=file)(x) for each in (out, other)]
        plain = hf.load(tmp_path / "one")(x)
    assert torch.equal(*answers) and torch.allclose(answers[0], plain, atol=1e-5)
    (tmp_path / "a file.pth").unlink()
    with pytest.raises(InputError, match=r"a file\.pth"):
        hf.load(out, architecture=file)


def test_a_model_of_onnx_mixes(mixed, tmp_path):
    library("onnx")
    torch.manual_seed(0)
    layers = nn.Flatten(), nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 10)
    network = nn.Sequential(*layers).eval()
    file, x = tmp_path / "accurate.onnx", images(4, (1, 8, 8))
    torch.onnx.export(
        network, (x,), str(file), dynamo=False, input_names=["images"],
        dynamic_axes={"images": {0: "n"}},
    )  # fmt: skip
    out, choice = mix_command(
        str(mixed / "robust"), f"onnx:{file}", "digits", tmp_path / "out", steps=2, rounds=1,
        limit=20,
    )  # fmt: skip
    assert choice.n == 20
    loaded = hf.load(out, architecture=f"onnx:{file}")
    with torch.no_grad():
        assert torch.allclose(loaded.accurate(x), network(x), atol=1e-4)
    assert loaded.card["classes"] == CLASSES


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("a.pth --mead 0.5", "'--mead' is no option of a model; did you mean '--mean'"),
        ("a.pth --mean", "--mean has no value"),
        ("a.pth --mean 0.5 --mean 0.4", "--mean is given twice"),
        ("a.pth --mean 'half", "its options cannot be read"),
        ("a.pth --mean 0.5 0.4", "'0.4' is no option of a model"),
    ],
)
def test_bad_options_of_a_second_model_are_one_line(text, said):
    with pytest.raises(InputError, match=said) as refused:
        another.with_options(text)
    assert "\n" not in str(refused.value)


def test_a_path_with_spaces_and_dashes_is_a_path(tmp_path):
    odd = tmp_path / "my model --mean it.pth"
    odd.write_bytes(b"")
    assert another.with_options(str(odd)) == (str(odd), {})


def test_a_network_with_something_before_it_is_no_network_of_ours(mixed):
    network = hf.load(str(mixed / "robust"))
    inside = nn.Sequential(nn.Identity(), network)
    inside.card = network.card
    with pytest.raises(InputError, match="with something before or behind it"):
        mix.card_of("robust", inside)


def test_a_damaged_mixture_is_one_line(mixed, tmp_path):
    source = json.loads((mixed / "mixed" / "card.json").read_text())
    weights = (mixed / "mixed" / "model.safetensors").read_bytes()
    for change, says in (
        ({"weight": 2}, "weight of a mixture"),
        ({"robust": 3}, "robust must have 'architecture' and 'arguments'"),
        ({"robust": {"architecture": "vit", "arguments": {}}}, "'vit' is unknown"),
    ):
        folder = tmp_path / next(iter(change))
        folder.mkdir(exist_ok=True)
        card = {**source, "arguments": {**source["arguments"], **change}}
        (folder / "card.json").write_text(json.dumps(card))
        (folder / "model.safetensors").write_bytes(weights)
        with pytest.raises(InputError, match=says):
            hf.load(folder)


def test_a_mixture_is_fitted_on_images_that_no_part_was_trained_on(mixed, tmp_path, monkeypatch):
    for name, trained_on in (("a", "train+validation-30"), ("b", "train")):
        card = shutil.copytree(mixed / "robust", tmp_path / name) / "card.json"
        card.write_text(json.dumps(read_json(card) | {"trained_on": trained_on}))
    fitted = []
    fit = mix.fit_mixture

    def seen(robust, accurate, images, *rest, **options):
        fitted.append(images)
        return fit(robust, accurate, images, *rest, **options)

    monkeypatch.setattr(mix, "fit_mixture", seen)
    out, _ = mix_command(
        str(tmp_path / "a"), str(tmp_path / "b"), "digits", tmp_path / "out", steps=2, rounds=1
    )
    held = datasets.load("digits").validation.images[:30]
    assert torch.equal((fitted[0] * 255).round().to(torch.uint8).cpu(), torch.from_numpy(held))
    assert json.loads((out / "card.json").read_text())["trained_on"] == "train+validation-30"
