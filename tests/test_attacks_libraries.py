"""Attacks of other libraries: with fakes that do known things, and with the real ones if there."""

from __future__ import annotations

import importlib.util
import random
import sys
import types
from typing import Any

import models
import numpy as np
import pytest
import torch
from torch import nn

import holdfast as hf
from holdfast.attacks import Items, Oracle, library_attack, suite_named
from holdfast.errors import HoldfastError, InputError
from holdfast.threat import Threat

SHAPE = (1, 4, 4)
SEEN: dict[str, Any] = {}  # what the fake attacks were given


def problem(n: int = 6):
    model, x = models.linear(3, SHAPE), models.images(n, SHAPE)
    return model, x, models.answers(model, x), Threat("linf", 0.2)


def items(x, labels, eps, first: int = 0) -> Items:
    n = len(x)
    return Items(
        images=x,
        labels=labels,
        targets=torch.full((n,), -1),
        eps=torch.full((n,), eps),
        seeds=torch.arange(first, first + n),
    )


def stepped(attack, model, x, labels, threat, first: int = 0):
    oracle = Oracle(model)
    state = attack.step(oracle, attack.start(items(x, labels, threat.eps, first), threat), threat)
    return state, oracle


# -- fake libraries -----------------------------------------------------------------------


@pytest.fixture(autouse=True)
def forget():
    SEEN.clear()


def library(monkeypatch, name: str, **attributes: Any) -> types.ModuleType:
    """A module that `import name` finds."""
    module = types.ModuleType(name)
    vars(module).update(attributes)
    monkeypatch.setitem(sys.modules, name, module)
    return module


@pytest.fixture
def fake(monkeypatch):
    """A torchattacks with a few attacks."""

    class Attack:
        def __call__(self, images, labels):
            return self.forward(images, labels)

    class Sign(Attack):
        """One signed step.

        Distance Measure : Linf
        """

        def __init__(self, model, eps=8 / 255, alpha=2 / 255, steps=3, loss="ce", seed=None):
            self.model, self.eps = model, eps
            SEEN.update(eps=eps, alpha=alpha, steps=steps, loss=loss, seed=seed)

        def forward(self, images, labels):
            print("noise on the terminal")
            x = images.clone().requires_grad_()
            logits = self.model(x)
            loss = nn.functional.cross_entropy(logits, labels, reduction="sum")
            loss.backward()  # into the weights, too, if they let it
            return (images + self.eps * x.grad.sign()).clamp(0, 1)

    class Draws(Attack):
        """Distance Measure : Linf, L2"""

        def __init__(self, model, norm="Linf", eps=0.1):
            SEEN.update(norm=norm)

        def forward(self, images, labels):
            SEEN["drawn"] = [float(torch.rand(1)), float(np.random.rand()), random.random()]  # noqa: NPY002
            return images

    class Outside(Sign):
        """Distance Measure : L2, Linf"""

        def forward(self, images, labels):
            return super().forward(images, labels) + SEEN.get("further", 0.3)

    class Breaks(Attack):
        def __init__(self, model):
            pass

        def forward(self, images, labels):
            raise SEEN["raises"]

    class Shapeless(Breaks):
        def forward(self, images, labels):
            return images[:, :, 1:]

    class Halves(Attack):
        """Looks at each half of the batch by itself, twice, and once backwards."""

        def __init__(self, model):
            self.model = model

        def forward(self, images, labels):
            for x in images.split(-(-len(images) // 2)):
                x = x.clone().requires_grad_()
                torch.autograd.grad(self.model(x).sum(), x)
                with torch.no_grad():
                    self.model(x)
            return images

    class Demanding(Attack):
        def __init__(self, model, loader):
            pass

    attacks = (Sign, Draws, Outside, Breaks, Shapeless, Halves, Demanding)
    named = {attack.__name__: attack for attack in attacks}
    module = library(monkeypatch, "torchattacks", __version__="0.1", **named)
    module.attack = library(monkeypatch, "torchattacks.attack", Attack=Attack)
    return module


def test_the_threat_model_reaches_the_library_and_the_result_is_checked(fake, capsys):
    model, x, labels, threat = problem()
    attack = library_attack("torchattacks:Sign:steps=5,loss=dlr")
    assert attack.norms == {"linf"} and attack.needs_gradient and attack.iterations == 1
    state, oracle = stepped(attack, model, x, labels, threat)
    # The step keeps the library's own ratio to ε, 1 : 4.
    assert SEEN["eps"] == 0.2 and SEEN["alpha"] == pytest.approx(0.05)
    assert SEEN["steps"] == 5 and SEEN["loss"] == "dlr" and isinstance(SEEN["seed"], int)
    wrong = models.answers(model, state.best) != labels
    assert wrong.any() and torch.equal(state.score < 0, wrong)
    assert threat.contains(state.best, x).all() and state.finished.all()
    assert (oracle.forwards, oracle.backwards) == (3, 1)  # the library's, the first and the last
    assert capsys.readouterr().out == ""


def test_an_option_given_beats_the_scaled_step(fake):
    model, x, labels, threat = problem()
    stepped(library_attack("torchattacks:Sign:alpha=1/4"), model, x, labels, threat)
    assert SEEN["alpha"] == 0.25
    stepped(library_attack("torchattacks:Sign", alpha=0.5), model, x, labels, threat)
    assert SEEN["alpha"] == 0.5


def test_passes_are_counted_whatever_the_batches(fake):
    model, x, labels, threat = problem(5)
    counted = models.Counted(model)
    _, oracle = stepped(library_attack("torchattacks:Halves"), counted, x, labels, threat)
    assert (oracle.forwards, oracle.backwards) == (2 + 2, 1)
    assert counted.forwards == 5 * oracle.forwards and counted.backwards == 5 * oracle.backwards


@pytest.mark.parametrize(("further", "inside"), [(0.3, False), (1e-5, True), (torch.nan, False)])
def test_points_outside_are_dropped_and_rounding_is_repaired(fake, further, inside):
    model, x, labels, threat = problem()
    SEEN["further"] = further
    state, _ = stepped(library_attack("torchattacks:Outside"), model, x, labels, threat)
    assert threat.contains(state.best, x).all()
    assert bool((state.score < 0).any()) == inside
    if not inside:
        assert torch.equal(state.best, x)
    torch.testing.assert_close(Threat("linf", 0.2).distance(state.best, x).amax() > 0.19,
                               torch.tensor(inside))  # fmt: skip


def test_draws_belong_to_the_items_and_the_world_is_left_as_it_was(fake):
    model, x, labels, threat = problem()
    attack = library_attack("torchattacks:Draws")

    def world():
        return [float(torch.rand(1)), float(np.random.rand()), random.random()]  # noqa: NPY002

    torch.manual_seed(7), np.random.seed(7), random.seed(7)  # noqa: NPY002
    untouched = world()
    torch.manual_seed(7), np.random.seed(7), random.seed(7)  # noqa: NPY002
    stepped(attack, model, x, labels, threat)
    first = SEEN["drawn"]
    assert world() == untouched
    stepped(attack, model, x, labels, threat)
    assert SEEN["drawn"] == first
    stepped(attack, model, x, labels, threat, first=1)
    assert all(a != b for a, b in zip(SEEN["drawn"], first, strict=True))
    assert SEEN["norm"] == "Linf"
    stepped(attack, model, x, labels, Threat("l2", 1))
    assert SEEN["norm"] == "L2"


def test_weights_get_no_gradients_and_keep_their_wish_for_them(fake):
    _, x, _, threat = problem()
    net = models.Net(3, SHAPE)
    net.second.requires_grad_(False)
    stepped(library_attack("torchattacks:Sign"), net, x, models.answers(net, x), threat)
    assert net.first.grad is None and net.second.grad is None
    assert net.first.requires_grad and not net.second.requires_grad


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("torchattack:Sign", "did you mean 'torchattacks'"),
        ("torchattacks:Sing", "did you mean 'Sign'"),
        ("torchattacks:", "known: Breaks, Demanding"),
        ("torchattacks:Sign:step=3", "no option 'step'; did you mean 'steps'"),
        ("torchattacks:Sign:steps", "'steps' is not written key=value"),
        ("torchattacks:Sign:steps=1,steps=2", "'steps' is given twice"),
        ("torchattacks:Sign:steps=many", "steps=many is not a number"),
        ("torchattacks:Sign:eps=0.3", "no option 'eps'"),
        ("torchattacks:Sign:model=x", "no option 'model'"),
        ("torchattacks:Demanding", "needs loader, which cannot be given here"),
    ],
)
def test_bad_names_are_one_line(fake, text, says):
    with pytest.raises(InputError) as caught:
        suite_named(text)
    assert says in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("name", "module", "package"),
    [
        ("torchattacks:PGD", "torchattacks", "torchattacks"),
        ("foolbox:LinfPGD", "foolbox", "foolbox"),
        ("art:DeepFool", "art", "adversarial-robustness-toolbox"),
    ],
)
def test_a_missing_library_says_what_to_install(monkeypatch, name, module, package):
    for known in list(sys.modules):
        if known.partition(".")[0] == module:
            monkeypatch.delitem(sys.modules, known)
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(InputError, match=f"needs {module}, .*pip install {package}$"):
        library_attack(name)


def test_a_library_that_lacks_another_names_that(monkeypatch, fake):
    class Finder:
        @staticmethod
        def find_spec(name, path, target=None):
            if name == "foolbox":
                raise ModuleNotFoundError("No module named 'git'", name="git")

    monkeypatch.setattr(sys, "meta_path", [Finder, *sys.meta_path])
    for known in list(sys.modules):
        if known.partition(".")[0] == "foolbox":
            monkeypatch.delitem(sys.modules, known)
    with pytest.raises(InputError, match=r"needs git, .*pip install git$"):
        library_attack("foolbox:LinfPGD")


def test_a_library_that_fails_is_one_line(fake):
    model, x, labels, threat = problem()
    SEEN["raises"] = AssertionError("two\nlines")
    with pytest.raises(HoldfastError, match="torchattacks:Breaks: AssertionError: two lines"):
        stepped(library_attack("torchattacks:Breaks"), model, x, labels, threat)
    with pytest.raises(HoldfastError, match="returned images of shape"):
        stepped(library_attack("torchattacks:Shapeless"), model, x, labels, threat)
    with pytest.raises(InputError, match="knows the norms linf, not l2"):
        hf.evaluate(model, x, labels, Threat("l2", 1), "torchattacks:Sign")


def test_the_engine_runs_it_as_any_attack(fake, tmp_path):
    model, x, labels, threat = problem(12)
    result = hf.evaluate(model, x, labels, threat, "torchattacks:Sign", run=tmp_path / "run")
    answers = models.answers(model, result.adversarial)
    assert torch.equal(result.broken, answers != labels) and result.broken.sum() > 0
    assert threat.contains(result.adversarial, x).all()
    assert result.suite == "torchattacks:Sign" and result.attacks[0].name == "torchattacks:Sign"
    assert result.attacks[0].backwards == 12
    alone = library_attack("torchattacks:Sign")(model, x, labels, threat)
    assert torch.equal(models.answers(model, alone) != labels, result.broken)


def test_what_identifies_a_run(fake):
    told = suite_named("torchattacks:Sign:steps=5").describe()["stages"][0]
    assert told["name"] == "torchattacks:Sign"
    assert told["library"] == "torchattacks 0.1" and told["steps"] == 5


def test_foolbox_and_art_are_spoken_to_in_their_own_words(monkeypatch):
    """Fakes that check what they are handed."""
    model, x, labels, threat = problem()

    class Attack:
        distance = types.SimpleNamespace(p=float("inf"))

        def __init__(self, *, steps: int = 2, rel_stepsize: float | None = None):
            SEEN.update(steps=steps, rel_stepsize=rel_stepsize)

    class Step(Attack):
        def __call__(self, model, inputs, criterion, *, epsilons):
            SEEN["eps"] = epsilons
            found = inputs + epsilons * torch.ones_like(inputs)
            return found.clamp(0, 1), None, None

    base = library(monkeypatch, "foolbox.attacks.base", Attack=Attack)
    attacks = library(monkeypatch, "foolbox.attacks", base=base, Step=Step)
    foolbox = library(monkeypatch, "foolbox", attacks=attacks, __version__="0.1")
    foolbox.PyTorchModel = lambda model, bounds, device: SEEN.update(bounds=bounds) or model
    library(monkeypatch, "foolbox.distances")
    attack = library_attack("foolbox:Step:steps=4,rel_stepsize=none")
    assert attack.norms == {"linf"}
    state, _ = stepped(attack, model, x, labels, threat)
    assert SEEN == {"steps": 4, "rel_stepsize": None, "eps": 0.2, "bounds": (0, 1)}
    assert threat.contains(state.best, x).all()

    class EvasionAttack:
        pass

    class Normed(EvasionAttack):
        def __init__(self, estimator, norm=np.inf, eps=0.3, eps_step=0.1, batch_size=32):
            SEEN.update(estimator, norm=norm, eps=eps, eps_step=eps_step, batch_size=batch_size)

        def generate(self, x, y):
            assert isinstance(x, np.ndarray) and x.dtype == np.float32 and y.shape == (6,)
            return x

    library(monkeypatch, "art", __version__="0.1")
    library(monkeypatch, "art.attacks", EvasionAttack=EvasionAttack)
    library(monkeypatch, "art.attacks.evasion", Normed=Normed)
    library(monkeypatch, "art.estimators")
    library(monkeypatch, "art.estimators.classification", PyTorchClassifier=lambda **given: given)
    stepped(library_attack("art:Normed"), model, x, labels, Threat("l1", 3))
    assert SEEN["norm"] == 1 and SEEN["eps"] == 3 and SEEN["eps_step"] == pytest.approx(1)
    assert SEEN["nb_classes"] == 3 and SEEN["input_shape"] == SHAPE and SEEN["batch_size"] == 6
    assert SEEN["clip_values"] == (0.0, 1.0) and SEEN["device_type"] == "cpu"


# -- the libraries themselves ---------------------------------------------------------------

REAL = [
    ("torchattacks:APGD:steps=5", "linf", 0.2),
    ("torchattacks:PGDL2", "l2", 0.6),
    ("torchattacks:FAB:steps=5", "l2", 0.6),
    ("torchattacks:Square:n_queries=50", "l2", 1.5),
    ("foolbox:LinfPGD:rel_stepsize=1/4", "linf", 0.2),
    ("foolbox:L2DeepFoolAttack", "l2", 0.6),
    ("foolbox:L0FMNAttack:steps=20", "l0", 4.0),
    ("art:ProjectedGradientDescent:max_iter=5", "linf", 0.2),
    ("art:SquareAttack:max_iter=50", "linf", 0.2),
    ("art:AutoProjectedGradientDescent:max_iter=5,nb_random_init=1", "l2", 0.6),
    ("art:DeepFool:max_iter=10", "l2", 0.6),
]


@pytest.mark.parametrize(("text", "norm", "eps"), REAL, ids=[text for text, *_ in REAL])
def test_real_attacks_break_what_can_be_broken(text, norm, eps):
    name = text.partition(":")[0]
    if importlib.util.find_spec(name) is None:
        pytest.skip(f"{name} is not installed (make benchmarks)")
    shape = (1, 8, 8)
    model, x = models.linear(3, shape), models.images(4, shape)
    labels = models.answers(model, x)
    threat, counted = Threat(norm, eps), models.Counted(model)
    state, oracle = stepped(library_attack(text), counted, x, labels, threat)
    assert threat.contains(state.best, x).all()
    wrong = models.answers(model, state.best) != labels
    clear = state.score.abs() > 1e-5  # not right on the boundary, where DeepFool ends
    assert wrong.any() and torch.equal(state.score[clear] < 0, wrong[clear])
    # Rounded up to whole passes over the batch, nothing is missing.
    assert 0 <= 4 * oracle.forwards - counted.forwards < 4
    assert 0 <= 4 * oracle.backwards - counted.backwards < 4
    assert model.weight.grad is None
