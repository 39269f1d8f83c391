"""Attacks of other libraries: Foolbox, torchattacks, the Adversarial Robustness Toolbox (ART).

They are asked for by name, `torchattacks:APGD:steps=10`, and run as they are: one step takes a
whole batch from beginning to end. The threat model's norm and ε, the number of classes and a seed
go to the parameters by which each library knows them. What comes back is no more than a proposal:
passes are counted by the oracle, points outside the ball or the box are dropped, and the scheduler
checks every success on the original model as it does for all attacks.
"""

from __future__ import annotations

import contextlib
import importlib
import inspect
import io
import random
import re
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from math import inf
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ..errors import HoldfastError, InputError
from ..parsing import check_known, nearest, split_options, typed
from ..threat import NORMS, Threat
from ..types import Images
from .base import Attack, Model, Oracle
from .state import State, pick

# Points this little outside the ball (relative) are brought back: other libraries round otherwise.
ROUNDING = 1e-3
# The absolute step sizes that libraries state beside their own default ε.
STEP_SIZES = ("alpha", "eps_step")
# Parameters that belong to the evaluation, not to its user.
DECIDED = frozenset(
    {"constraint", "distance", "eps", "max_epsilon", "n_classes", "norm", "seed", "targeted"}
)


@dataclass(frozen=True)
class Batch:
    """What a library's attack is handed."""

    model: nn.Module  # images → logits, counted
    images: Images
    labels: Tensor
    threat: Threat
    classes: int
    seed: int
    goals: Tensor | None = None  # the classes that alone count as a success; None: any mistake


@dataclass(frozen=True)
class Library:
    """How a library is spoken to.

    Attributes:
        package: what pip calls it.
        module: where its attacks are.
        base: the class of all its attacks, `module:Class`.
        run: the adversarial images (N, C, H, W) that one of its attacks, of these settings, finds.
        norms: the norms that an attack is made for; empty where the library does not say.
        offers: the constructor's parameters that the adapter fills in, where there are such.
        reaches: whether an attack can go for a given class.
        gradient_free: attacks that use outputs alone.
    """

    package: str
    module: str
    base: str
    run: Callable[[Callable[..., Any], Batch], Images]
    norms: Callable[[type], frozenset[str]]
    offers: Callable[[Batch], dict[str, Any]]
    reaches: Callable[[type], bool]
    gradient_free: frozenset[str] = field(default_factory=frozenset)


# -- the three of them ----------------------------------------------------------------------

_CAPITALS = {"linf": "Linf", "l2": "L2", "l1": "L1", "l0": "L0"}
_ORDERS = {"linf": inf, "l2": 2, "l1": 1}


def _run_torchattacks(attack: Callable[..., Any], batch: Batch) -> Images:
    made = attack(batch.model)
    if batch.goals is None:
        return made(batch.images, batch.labels)
    made.set_mode_targeted_by_label(quiet=True)
    return made(batch.images, batch.goals)


def _torchattacks_reaches(attack: type) -> bool:
    # Each constructor states the modes of its attack.
    try:
        return "targeted" in attack(nn.utils.skip_init(nn.Linear, 1, 1)).supported_mode
    except Exception:  # it wants more than a model
        return False


def _torchattacks_norms(attack: type) -> frozenset[str]:
    # Each docstring has a line such as "Distance Measure : Linf, L2".
    line = re.search(r"Distance Measure\s*:(.*)", attack.__doc__ or "")
    words = re.findall(r"\w+", line[1]) if line else []
    return frozenset(norm for norm, word in _CAPITALS.items() if word in words)


def _torchattacks_offers(batch: Batch) -> dict[str, Any]:
    eps = batch.threat.eps
    return {
        "eps": eps,
        "max_epsilon": eps,
        "norm": _CAPITALS.get(batch.threat.norm),
        "n_classes": batch.classes,
        "seed": batch.seed,
    }


def _run_foolbox(attack: Callable[..., Any], batch: Batch) -> Images:
    foolbox = importlib.import_module("foolbox")
    model = foolbox.PyTorchModel(batch.model, bounds=(0, 1), device=batch.images.device)
    wanted: Any = batch.labels
    if batch.goals is not None:
        wanted = importlib.import_module("foolbox.criteria").TargetedMisclassification(batch.goals)
    found, _, _ = attack()(model, batch.images, wanted, epsilons=batch.threat.eps)
    return found


def _foolbox_reaches(attack: type) -> bool:
    # Their `run` refuses criteria that it does not know; those that take one name it there.
    with contextlib.suppress(OSError, TypeError):
        return "TargetedMisclassification" in "".join(
            inspect.getsource(kind)
            for kind in attack.__mro__
            if kind.__module__.startswith("foolbox") and kind.__name__ != "Attack"
        )
    return False


def _foolbox_norms(attack: type) -> frozenset[str]:
    if "constraint" in inspect.signature(attack).parameters:
        return frozenset({"linf", "l2"})
    order = getattr(getattr(attack, "distance", None), "p", None)
    return frozenset(norm for norm, p in {**_ORDERS, "l0": 0}.items() if p == order)


def _foolbox_offers(batch: Batch) -> dict[str, Any]:
    distances = importlib.import_module("foolbox.distances")
    norm = batch.threat.norm
    return {"distance": getattr(distances, norm, None), "constraint": norm}


def _run_art(attack: Callable[..., Any], batch: Batch) -> Images:
    classification = importlib.import_module("art.estimators.classification")
    estimator = classification.PyTorchClassifier(
        model=batch.model,
        loss=nn.CrossEntropyLoss(),
        input_shape=tuple(batch.images.shape[1:]),
        nb_classes=batch.classes,
        clip_values=(0.0, 1.0),
        device_type="cpu" if batch.images.device.type == "cpu" else "gpu",
    )
    wanted = batch.labels if batch.goals is None else batch.goals
    images, labels = batch.images.cpu().numpy(), wanted.cpu().numpy()
    return torch.from_numpy(attack(estimator).generate(x=images, y=labels))


_ART_NORMS = {
    "BasicIterativeMethod": "linf",
    "BoundaryAttack": "l2",
    "CarliniL0Method": "l0",
    "CarliniL2Method": "l2",
    "CarliniLInfMethod": "linf",
    "DeepFool": "l2",
    "ElasticNet": "l1",
    "GeoDA": "l2",
    "HopSkipJump": "linf l2",
    "NewtonFool": "l2",
    "PixelAttack": "l0",
    "SaliencyMapMethod": "l0",
    "SignOPTAttack": "l2",
    "SimBA": "l2",
    "ThresholdAttack": "linf",
    "ZooAttack": "l2",
}


def _art_norms(attack: type) -> frozenset[str]:
    if attack.__name__ in _ART_NORMS:
        return frozenset(_ART_NORMS[attack.__name__].split())
    return frozenset(_ORDERS if "norm" in inspect.signature(attack).parameters else ())


def _art_offers(batch: Batch) -> dict[str, Any]:
    return {
        "eps": batch.threat.eps,
        "norm": _ORDERS.get(batch.threat.norm),
        "targeted": batch.goals is not None,
        "batch_size": len(batch.images),
        "verbose": False,
    }


def _art_reaches(attack: type) -> bool:
    return "targeted" in inspect.signature(attack).parameters


LIBRARIES = {
    "torchattacks": Library(
        package="torchattacks",
        module="torchattacks",
        base="torchattacks.attack:Attack",
        run=_run_torchattacks,
        norms=_torchattacks_norms,
        offers=_torchattacks_offers,
        reaches=_torchattacks_reaches,
        gradient_free=frozenset({"GN", "OnePixel", "Pixle", "SPSA", "Square", "VANILA"}),
    ),
    "foolbox": Library(
        package="foolbox",
        module="foolbox.attacks",
        base="foolbox.attacks.base:Attack",
        run=_run_foolbox,
        norms=_foolbox_norms,
        offers=_foolbox_offers,
        reaches=_foolbox_reaches,
        gradient_free=frozenset(
            {
                "BinarySearchContrastReductionAttack",
                "BoundaryAttack",
                "DatasetAttack",
                "GaussianBlurAttack",
                "GenAttack",
                "HopSkipJumpAttack",
                "InversionAttack",
                "L2AdditiveGaussianNoiseAttack",
                "L2AdditiveUniformNoiseAttack",
                "L2RepeatedAdditiveGaussianNoiseAttack",
                "L2RepeatedAdditiveUniformNoiseAttack",
                "LinearSearchBlendedUniformNoiseAttack",
                "LinearSearchContrastReductionAttack",
                "LinfAdditiveUniformNoiseAttack",
                "LinfRepeatedAdditiveUniformNoiseAttack",
                "PointwiseAttack",
                "SaltAndPepperNoiseAttack",
            }
        ),
    ),
    "art": Library(
        package="adversarial-robustness-toolbox",
        module="art.attacks.evasion",
        base="art.attacks:EvasionAttack",
        run=_run_art,
        norms=_art_norms,
        offers=_art_offers,
        reaches=_art_reaches,
        gradient_free=frozenset(
            {
                "BoundaryAttack",
                "GeoDA",
                "HopSkipJump",
                "PixelAttack",
                "SignOPTAttack",
                "SimBA",
                "SquareAttack",
                "ThresholdAttack",
                "ZooAttack",
            }
        ),
    ),
}


# -- the adapter ----------------------------------------------------------------------------


class LibraryAttack(Attack[State]):
    """An attack of another library.

    Its random numbers are drawn for a batch as a whole, from generators seeded by all its items:
    the same batch gives the same result, but an image beside others may get another. The global
    generators of torch, NumPy and Python are left as they were.

    Args:
        library: `torchattacks`, `foolbox` or `art`.
        attack: the class's name there, such as `APGD`, `LinfPGD`, `ProjectedGradientDescent`.
        options: its constructor's, by the names that the library gives them. Norm, ε, classes
            and seed are not among them: they come from the threat model, the model and the run.
            A step size that the library states in image units keeps its ratio to ε, where it is
            not given.

    Cost: what the library spends, and 2 forwards.

    Raises:
        InputError: the library is not installed; no such attack or option there.
        HoldfastError: while it runs: the library failed.
    """

    iterations = 1
    lends = True

    def __init__(self, library: str, attack: str, **options: Any):
        if library not in LIBRARIES:
            raise InputError(f"library {library!r} is unknown{nearest(library, LIBRARIES)}")
        self.library = LIBRARIES[library]
        self.attack = _attack_named(library, attack)
        self.name = f"{library}:{attack}"
        for key in options:
            check_known(self.name, key, _free_options(library, self.attack))
        version = getattr(importlib.import_module(library), "__version__", "")
        super().__init__(library=f"{library} {version}".strip(), **options)
        self.options = options
        self.norms = self.library.norms(self.attack) or frozenset(NORMS)  # type: ignore[misc]
        self.needs_gradient = attack not in self.library.gradient_free
        self.reaches = self.library.reaches(self.attack)

    def step(self, oracle: Oracle, state: State, threat: Threat) -> State:
        x = state.images
        logits = oracle.logits(x)
        state = state.observe(logits)
        with (
            _seeded(state.seeds) as seed,
            _frozen(oracle.model),
            _silent(),
            oracle.lent(x) as lent,
        ):
            goals = state.goals if state.aimed else None
            batch = Batch(lent, x, state.labels, threat, logits.shape[1], seed, goals)
            found = self._run(batch).detach().to(x)
        if found.shape != x.shape:
            raise HoldfastError(
                f"{self.name} returned images of shape {tuple(found.shape)}, not {tuple(x.shape)}"
            )
        beyond = threat.distance(found, x) / state.eps
        found = pick(beyond <= 1 + ROUNDING, threat.project(found, x, state.eps), found)
        inside = threat.contains(found, x, state.eps)
        state = state.replace(point=pick(inside, found, x))
        return state.observe(oracle.logits(state.point)).replace(
            iteration=state.iteration + 1, finished=torch.ones_like(state.finished)
        )

    def _run(self, batch: Batch) -> Tensor:
        parameters = inspect.signature(self.attack).parameters
        offers = self.library.offers(batch)
        settings = {key: value for key, value in offers.items() if key in parameters}
        settings |= _scaled_steps(parameters, batch.threat.eps) | self.options
        try:
            return self.library.run(partial(self.attack, **settings), batch)
        except Exception as error:  # whatever the library raises
            what = " ".join(str(error).split()) or "without a word"
            raise HoldfastError(f"{self.name}: {type(error).__name__}: {what}") from error


def library_attack(text: str, **options: Any) -> LibraryAttack:
    """An attack of another library by name: `library_attack("torchattacks:APGD:steps=10")`.

    Args:
        text: `library:Attack`, or `library:Attack:key=value,key=value`; see `LibraryAttack`.
        options: more of the attack's options.

    Raises:
        InputError: as `LibraryAttack`, or a value of another type than the option's.

    Example:
        >>> library_attack("torchatacks:APGD")
        Traceback (most recent call last):
        holdfast.errors.InputError: library 'torchatacks' is unknown; did you mean 'torchattacks'?
    """
    library, _, rest = text.partition(":")
    attack, _, rest = rest.partition(":")
    if library not in LIBRARIES:
        raise InputError(f"library {library!r} is unknown{nearest(library, LIBRARIES)}")
    parameters = inspect.signature(_attack_named(library, attack)).parameters
    what = f"{library}:{attack}"
    written = split_options(what, rest, _free_options(library, _attack_named(library, attack)))
    read = {key: _value(what, key, text, parameters[key].default) for key, text in written.items()}
    return LibraryAttack(library, attack, **read, **options)


def _attack_named(library: str, name: str) -> type:
    spec = LIBRARIES[library]
    base_module, _, base_name = spec.base.partition(":")
    try:
        module = importlib.import_module(spec.module)
        base = getattr(importlib.import_module(base_module), base_name)
    except ImportError as error:
        lacking = (error.name or spec.module).partition(".")[0]
        package = spec.package if lacking == spec.module.partition(".")[0] else lacking
        raise InputError(
            f"{library}:{name} needs {lacking}, which is not installed: pip install {package}"
        ) from error
    known = {
        key: value
        for key, value in vars(module).items()
        if isinstance(value, type)
        and issubclass(value, base)
        and value is not base
        and not inspect.isabstract(value)
    }
    if name not in known:
        raise InputError(f"{library} has no attack {name!r}{nearest(name, known)}")
    needs = [
        parameter.name
        for parameter in _own_parameters(library, known[name])
        if parameter.default is parameter.empty
    ]
    if needs:
        raise InputError(f"{library}:{name} needs {', '.join(needs)}, which cannot be given here")
    return known[name]


def _own_parameters(library: str, attack: type) -> list[inspect.Parameter]:
    """The constructor's parameters, less the model that comes first (Foolbox takes it later)."""
    parameters = list(inspect.signature(attack).parameters.values())
    named = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
    return [p for p in parameters[0 if library == "foolbox" else 1 :] if p.kind in named]


def _free_options(library: str, attack: type) -> list[str]:
    """The options that a user may set: not those that the evaluation itself decides."""
    return [p.name for p in _own_parameters(library, attack) if p.name not in DECIDED]


def _value(what: str, key: str, text: str, default: Any) -> Any:
    """An option's value, of its default's type; whole numbers may turn into others."""
    if isinstance(default, bool):
        return typed(what, key, text, bool)
    if isinstance(default, str):
        return text
    if text.lower() == "none":
        return None
    for kind in (int, float):
        with contextlib.suppress(InputError):
            return typed(what, key, text, kind)
    if isinstance(default, int | float):
        raise InputError(f"{what}: {key}={text} is not a number")
    return text


def _scaled_steps(parameters: Any, eps: float) -> dict[str, float]:
    """The library's own step sizes, in proportion to ε."""
    usual = getattr(parameters.get("eps"), "default", None)
    scaled = {}
    for name in STEP_SIZES:
        step = getattr(parameters.get(name), "default", None)
        if isinstance(step, int | float) and isinstance(usual, int | float):
            scaled[name] = step / usual * eps
    return scaled


@contextlib.contextmanager
def _seeded(seeds: Tensor) -> Iterator[int]:
    """The global generators, seeded by the items, and put back as they were."""
    seed = int(seeds.sum()) % 2**31
    devices = [seeds.device] if seeds.device.type == "cuda" else []
    numpy_state, python_state = np.random.get_state(), random.getstate()  # noqa: NPY002
    with torch.random.fork_rng(devices):
        torch.manual_seed(seed)
        np.random.seed(seed)  # noqa: NPY002
        random.seed(seed)
        try:
            yield seed
        finally:
            np.random.set_state(numpy_state)  # noqa: NPY002
            random.setstate(python_state)


@contextlib.contextmanager
def _frozen(model: Model) -> Iterator[None]:
    """No gradients for weights: ART would leave them in the caller's model."""
    weights = list(model.parameters()) if isinstance(model, nn.Module) else []
    held = [weight for weight in weights if weight.requires_grad]
    for weight in held:
        weight.requires_grad_(False)
    try:
        yield
    finally:
        for weight in held:
            weight.requires_grad_(True)


@contextlib.contextmanager
def _silent() -> Iterator[None]:
    """Nobody else writes on the terminal."""
    with (
        contextlib.redirect_stdout(io.StringIO()),
        warnings.catch_warnings(),
        torch.enable_grad(),
    ):
        warnings.simplefilter("ignore")
        yield
