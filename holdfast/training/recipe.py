"""Recipes: YAML files that fix a training run completely."""

from __future__ import annotations

import dataclasses
import json
import math
import os
import re
import reprlib
import shlex
import types
import typing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from ..attacks import FGSM
from ..data.augment import Augment
from ..data.base import TRAINED_ON
from ..errors import InputError
from ..models import arguments_of
from ..parsing import nearest
from ..runs.files import read_text
from ..shipped import recipe_file
from ..threat import Threat
from .objectives import objective_named
from .schedule import parse_seconds

# Keys that came after the first runs: left out of what is written while they are at their default,
# so that a run from before is still known as the same run.
LATER = {"later": True}
LONGEST = 2**20  # bytes of a recipe
DEEPEST = 20  # levels of nesting in it


@dataclass(frozen=True)
class ModelSpec:
    architecture: str = "preact-resnet"
    arguments: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class ThreatSpec:
    norm: str = "linf"
    eps: str = "8/255"


@dataclass(frozen=True)
class ObjectiveSpec:
    """What is minimised.

    Attributes:
        name: a key of `objectives.OBJECTIVES`.
        arguments: that objective's own.
        awp: γ of adversarial weight perturbation around it, such as 0.005; 0 for none.
        awp_warmup: share of the schedule that goes by before it begins.
        eps_warmup: share of the schedule over which the ε of training attacks grows, linearly
            from 0 to the threat model's (Pang et al., "Bag of tricks for adversarial training",
            ICLR 2021); 0 for all of it from the beginning.
    """

    name: str = "n-fgsm"
    arguments: dict[str, Any] = field(default_factory=dict)
    awp: float = field(default=0.0, metadata=LATER)
    awp_warmup: float = field(default=0.05, metadata=LATER)
    eps_warmup: float = field(default=0.0, metadata=LATER)


@dataclass(frozen=True)
class OptimiserSpec:
    """How weights are stepped, with a one-cycle learning rate.

    SGD has Nesterov momentum; Muon is for the convolutions, with SGD for the rest.

    Attributes:
        name: `sgd`, `muon`, or `adam` with decoupled weight decay (Loshchilov & Hutter, 2019).
        learning_rate: the peak, reached after the share `warmup` of the schedule; from there
            it falls linearly to `floor` of it.
        matrix_rate: with Muon, the same for convolutions: the largest relative change of their
            weights in one step. `learning_rate` and `weight_decay` are then for the rest.
        weight_decay: on weights of two dimensions and more; norms and biases have none.
        clip_gradient: largest L2 norm of the whole gradient; 0 for no limit.
        bias_rate: the learning rate of batch norms' biases, in units of `learning_rate` (Jordan,
            "94% on CIFAR-10 in 3.29 seconds on a single GPU", 2024, takes 64).
        hold: share of the schedule at which the rate begins to fall (Hägele et al., "Scaling laws
            and compute-optimal training beyond fixed training durations", NeurIPS 2024); below
            `warmup`, it falls straight from the peak.
        floor: the last rate, as a share of the peak. Adversarial training loses robust accuracy on
            new images where the rate becomes small (Rice et al., "Overfitting in adversarially
            robust deep learning", ICML 2020).
    """

    name: str = "sgd"
    learning_rate: float = 0.1
    matrix_rate: float = 0.05
    warmup: float = 0.2
    momentum: float = 0.9
    weight_decay: float = 5e-4
    clip_gradient: float = 0.0
    bias_rate: float = field(default=1.0, metadata=LATER)
    hold: float = field(default=0.0, metadata=LATER)
    floor: float = field(default=0.0, metadata=LATER)


@dataclass(frozen=True)
class AugmentSpec:
    """How each image is changed before it is trained on: the attributes of `data.Augment`, and

    Attributes:
        warmup: share of the schedule over which `crop_shift` and the probabilities rise linearly
            from 0 to what they are; 0 for all of it from the beginning.
    """

    crop_padding: int = 4
    flip: str = "random"
    pad_mode: str = "zeros"
    crop_shift: int = field(default=0, metadata=LATER)
    colour: float = field(default=0.0, metadata=LATER)
    erase: float = field(default=0.0, metadata=LATER)
    cutmix: float = field(default=0.0, metadata=LATER)
    mixup: float = field(default=0.0, metadata=LATER)
    mix_alpha: float = field(default=1.0, metadata=LATER)
    warmup: float = field(default=0.0, metadata=LATER)

    def operations(self) -> Augment:
        return Augment(**{f.name: getattr(self, f.name) for f in dataclasses.fields(Augment)})


@dataclass(frozen=True)
class ExtraSpec:
    """Other images to train on besides the data's own; see `data.extra`.

    Attributes:
        file: an `.npz` with `image` uint8 (N, H, W, C) and `label` (N,); null for none.
        share: of every batch that they make up.
    """

    file: str | None = None
    share: float = 0.7


@dataclass(frozen=True)
class ValidationSpec:
    """What is measured after every `every` epochs, on the first `images` validation images.

    Attributes:
        every: epochs between validations; a fraction is allowed.
        images: how many validation images.
        steps: of the PGD attack that decides which weights are kept.
    """

    every: float = 1.0
    images: int = 500
    steps: int = 10


@dataclass(frozen=True)
class Recipe:
    """Everything that decides a training run's outcome, except its data and its seed.

    Attributes:
        epochs: length of the schedule over the training images, unless there is a budget.
        budget: wall-clock time such as `60m` or `2h`; the schedule then ends when it does.
        averaging: decay of the moving average of the weights per step; 0 for none.
        averaging_share: the average's memory as a share of the steps so far, in place of
            `averaging`: so runs of 20 and of 150 epochs need no other value; 0 for `averaging`.
        train_on: `train`, or `train+validation` for a final run (then the last averaged weights
            are kept, for there is nothing left to choose by), or `train+validation-1000`, which
            leaves out the first 1,000 validation images: to choose by, and for whatever needs
            images that the model never saw.
        precision: `bf16` or `float32`.
    """

    model: ModelSpec = ModelSpec()
    threat: ThreatSpec = ThreatSpec()
    objective: ObjectiveSpec = ObjectiveSpec()
    optimiser: OptimiserSpec = OptimiserSpec()
    augment: AugmentSpec = AugmentSpec()
    validation: ValidationSpec = ValidationSpec()
    epochs: float = 15
    budget: str | None = None
    batch_size: int = 128
    averaging: float = 0.998
    train_on: str = "train"
    precision: str = "bf16"
    extra: ExtraSpec = field(default=ExtraSpec(), metadata=LATER)
    averaging_share: float = field(default=0.0, metadata=LATER)

    def __post_init__(self) -> None:
        optimiser, validation = self.optimiser, self.validation
        for name, good, says in (
            ("epochs", self.epochs > 0, "above 0"),
            ("batch_size", self.batch_size >= 2, "at least 2"),
            ("averaging", 0 <= self.averaging < 1, "in [0, 1)"),
            ("averaging_share", 0 <= self.averaging_share < 1, "in [0, 1)"),
            (
                "train_on",
                TRAINED_ON.fullmatch(self.train_on),
                "train, train+validation or, to hold back the first 1,000 validation images, "
                "train+validation-1000",
            ),
            ("precision", self.precision in ("bf16", "float32"), "bf16 or float32"),
            ("optimiser.name", optimiser.name in ("sgd", "muon", "adam"), "sgd, muon or adam"),
            ("optimiser.matrix_rate", optimiser.matrix_rate > 0, "above 0"),
            ("optimiser.learning_rate", optimiser.learning_rate > 0, "above 0"),
            ("optimiser.warmup", 0 < optimiser.warmup < 1, "in (0, 1)"),
            ("optimiser.momentum", 0 <= optimiser.momentum < 1, "in [0, 1)"),
            ("optimiser.weight_decay", optimiser.weight_decay >= 0, "at least 0"),
            ("optimiser.clip_gradient", optimiser.clip_gradient >= 0, "at least 0"),
            ("optimiser.bias_rate", optimiser.bias_rate > 0, "above 0"),
            ("optimiser.hold", 0 <= optimiser.hold <= 1, "in [0, 1]"),
            ("optimiser.floor", 0 <= optimiser.floor <= 1, "in [0, 1]"),
            ("objective.awp", 0 <= self.objective.awp < 1, "in [0, 1)"),
            ("objective.awp_warmup", 0 <= self.objective.awp_warmup <= 1, "in [0, 1]"),
            ("objective.eps_warmup", 0 <= self.objective.eps_warmup <= 1, "in [0, 1]"),
            ("extra.share", 0 < self.extra.share < 1, "in (0, 1)"),
            ("augment.warmup", 0 <= self.augment.warmup <= 1, "in [0, 1]"),
            ("augment.crop_padding", self.augment.crop_padding >= 0, "at least 0"),
            ("validation.every", validation.every > 0, "above 0"),
            ("validation.images", validation.images >= 1, "at least 1"),
            ("validation.steps", validation.steps >= 1, "at least 1"),
        ):
            if not good:
                raise InputError(f"{name} must be {says}, not {_value(self, name)!r}")
        # The attacks of training and validation must know the norm.
        FGSM().check_norm(Threat(**vars(self.threat)))
        augment = self.augment.operations()
        spec = self.objective
        objective = objective_named(spec.name, spec.arguments, spec.awp, spec.awp_warmup)
        if (augment.cutmix or augment.mixup) and not objective.mixes:
            raise InputError(
                f"objective {spec.name!r} cannot be combined with augment.cutmix or augment.mixup"
            )
        if self.budget is not None:
            parse_seconds(self.budget)

    def to_dict(self) -> dict[str, Any]:
        """Nested mappings, as `recipe_from` reads them."""
        values = dataclasses.asdict(self)
        for spec, place in (
            (self, values),
            (self.objective, values["objective"]),
            (self.optimiser, values["optimiser"]),
            (self.augment, values["augment"]),
        ):
            for key in dataclasses.fields(spec):
                if key.metadata == LATER and getattr(spec, key.name) == key.default:
                    del place[key.name]
        return values


def _value(recipe: Recipe, dotted: str) -> Any:
    value: Any = recipe
    for part in dotted.split("."):
        value = getattr(value, part)
    return value


def _fits(value: Any, kind: Any) -> Any:
    """`value` as `kind`, or a TypeError. Whole numbers pass for floats; booleans do not."""
    options = typing.get_args(kind) if isinstance(kind, types.UnionType) else (kind,)
    for option in options:
        option = typing.get_origin(option) or option
        if isinstance(value, bool):
            continue
        if option is float and isinstance(value, int | float | str):
            try:  # text, if it was quoted
                number = float(value)
            except (ValueError, OverflowError):
                continue
            if math.isfinite(number):
                return number
        elif option is int and isinstance(value, float) and value.is_integer():
            return int(value)  # 1e4
        elif isinstance(value, option) and (option is not dict or _is_plain(value)):
            return value
        elif option is str and isinstance(value, int | float):
            return str(value)
    raise TypeError(" or ".join(_WORDS.get(option, str(option)) for option in options))


_WORDS = {
    float: "a finite number",
    int: "a whole number",
    str: "text",
    types.NoneType: "null",
    dict[str, Any]: "a mapping of names to numbers, text and lists of them",
}


def _is_plain(value: Any) -> bool:
    """Whether JSON can hold it: a recipe is written into request.json and into the card."""
    try:
        json.dumps(value, allow_nan=False)
    except (TypeError, ValueError):
        return False
    return all(isinstance(key, str) for key in value)


def _build(kind: type, values: Any, where: str) -> Any:
    if not isinstance(values, dict):
        raise InputError(f"{where} must be a mapping of keys to values, not {reprlib.repr(values)}")
    hints = typing.get_type_hints(kind)
    arguments = {}
    for key, value in values.items():
        name = f"{where}: {key}"
        if key not in hints:
            raise InputError(f"{where}: unknown key {key!r}{nearest(str(key), hints)}")
        if dataclasses.is_dataclass(hints[key]):
            arguments[key] = _build(hints[key], value, name)
        else:
            try:
                arguments[key] = _fits(value, hints[key])
            except TypeError as error:
                raise InputError(f"{name} must be {error}, not {reprlib.repr(value)}") from None
    try:
        return kind(**arguments)
    except InputError as error:
        raise InputError(f"{where}: {error}") from None


def recipe_from(values: dict[str, Any], where: str = "recipe") -> Recipe:
    """A recipe from nested mappings; InputError naming an unknown key or a value of wrong type."""
    return _build(Recipe, values, where)


class _Loader(yaml.SafeLoader):
    """Plain values only, by YAML 1.2's core schema, and no more of the language.

    PyYAML by itself reads 1.1, where `no` is false, 010 is 8, 1:30 is 90 and 1e-2 is text. Aliases
    are refused (a few lines of them unfold into gigabytes), and so are tags and keys given twice.
    Digits may be grouped: 50_000.
    """

    yaml_implicit_resolvers = {}  # none of 1.1's  # noqa: RUF012 - as its base class has it
    level = 0

    def compose_node(self, parent: Any, index: Any) -> Any:
        if self.check_event(yaml.AliasEvent):
            raise yaml.YAMLError("aliases (*name) have no place in a recipe")
        if getattr(self.peek_event(), "tag", None) is not None:
            raise yaml.YAMLError(f"tags ({self.peek_event().tag}) have no place in a recipe")
        self.level += 1
        if self.level > DEEPEST:
            raise RecursionError
        try:
            return super().compose_node(parent, index)
        finally:
            self.level -= 1

    def construct_mapping(self, node: Any, deep: bool = False) -> Any:
        keys = [key.value for key, _ in node.value if isinstance(key, yaml.ScalarNode)]
        twice = [key for i, key in enumerate(keys) if key in keys[:i]]
        if twice:
            raise yaml.YAMLError(f"the key {twice[0]!r} is given twice")
        return super().construct_mapping(node, deep)

    def number(self, node: Any) -> int | float:
        text = node.value.replace("_", "").lower()
        for base, prefix in ((8, "0o"), (16, "0x")):
            if text.startswith(prefix):
                return int(text[:18], base) if len(text) <= 18 else math.inf
        if text.lstrip("+-").isdigit():
            return int(text) if len(text) <= 20 else math.inf
        return float(text.replace(".inf", "inf").replace(".nan", "nan"))

    def date(self, node: Any) -> None:
        raise yaml.YAMLError(
            f"a date ({node.value}) has no place in a recipe; quote it if it is text"
        )


_NUMBER, _DATE = "tag:yaml.org,2002:float", "tag:yaml.org,2002:timestamp"
for _tag, _pattern, _first in (
    ("tag:yaml.org,2002:null", r"~|null|Null|NULL|", ["~", "n", "N", ""]),
    ("tag:yaml.org,2002:bool", r"true|True|TRUE|false|False|FALSE", list("tTfF")),
    (
        _NUMBER,
        r"[-+]?(?:0|[1-9]\d*(?:_\d+)*)|0o[0-7]+|0x[0-9a-fA-F]+"
        r"|[-+]?(?:\.\d+|\d+(?:_\d+)*\.\d*)(?:[eE][-+]?\d+)?|[-+]?\d+[eE][-+]?\d+"
        r"|[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN)",
        list("-+.0123456789"),
    ),
    (_DATE, r"\d{4}-\d\d?-\d\d?.*", list("0123456789")),
):
    _Loader.add_implicit_resolver(_tag, re.compile(rf"^(?:{_pattern})$", re.ASCII), _first)
_Loader.add_constructor(_NUMBER, _Loader.number)
_Loader.add_constructor(_DATE, _Loader.date)


def _parsed(text: str) -> Any:
    """The value that a YAML text stands for; ValueError in one line if it stands for none."""
    try:
        return yaml.load(text, _Loader)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None
    except Exception as error:  # PyYAML's own constructors raise whatever comes
        raise ValueError(" ".join(str(error).split()) or type(error).__name__) from None


# What a recipe names by its place.
_PATHS = (("extra", "file"), ("objective", "arguments", "helper"))


def _check_paths(values: Any, path: Path) -> None:
    """InputError where a recipe file leads out of the working folder: only a person may."""
    for keys in _PATHS:
        named = values
        for key in keys:
            named = named.get(key) if isinstance(named, dict) else None
        if isinstance(named, str) and (os.path.isabs(named) or ".." in Path(named).parts):
            dotted = ".".join(keys)
            raise InputError(
                f"recipe {path}: {dotted} {named!r} leads out of the working folder; if it should, "
                f"say so on the command line: --set {dotted}={shlex.quote(named)}"
            )


def load_recipe(path: Path | str, overrides: typing.Sequence[str] = ()) -> Recipe:
    """A recipe from a YAML file.

    Args:
        path: the file, or the name of a recipe that comes with Holdfast, such as `cifar10-cpu`.
        overrides: `key=value` with dots for nesting, such as `optimiser.learning_rate=0.2`.

    A recipe is a file like any other: it takes objectives and architectures of Holdfast's own
    only, and the files that it names lie in the working folder. Overrides may name others.

    Raises:
        InputError: no such file, no YAML, unknown keys (with the nearest known one), bad values.
    """
    path = recipe_file(path)
    try:
        values = _parsed(read_text(path, LONGEST, pipes=True))
    except InputError as error:  # it says which file
        raise InputError(f"recipe {error}") from None
    except ValueError as error:
        raise InputError(f"recipe {path} cannot be read: {error}") from None
    if not isinstance(values, dict):
        raise InputError(f"recipe {path} holds no mapping of keys to values")
    _check_paths(values, path)
    for override in overrides:
        key, sign, text = override.partition("=")
        if not sign or not key:
            raise InputError(f"--set {override!r} must be written key=value")
        place = values
        *parents, last = key.split(".")
        for parent in parents:
            place = place.setdefault(parent, {})
            if not isinstance(place, dict):
                raise InputError(f"--set {override!r}: {parent!r} holds no keys")
        try:
            place[last] = _parsed(text)
        except ValueError as error:
            raise InputError(f"--set {override!r}: the value is no YAML: {error}") from None
    recipe = recipe_from(values, str(path))
    try:
        arguments_of(recipe.model.architecture)  # one of Holdfast's own
    except InputError as error:
        raise InputError(f"{path}: model: {error}") from None
    return recipe
