"""Recipes: YAML files that fix a training run completely."""

from __future__ import annotations

import dataclasses
import types
import typing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from ..errors import InputError
from ..files import nearest
from ..threat import parse_number
from .budget import parse_seconds


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
    """`name` is a key of `objectives.OBJECTIVES`; the rest are that objective's arguments."""

    name: str = "n-fgsm"
    arguments: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class OptimiserSpec:
    """SGD with Nesterov momentum and a one-cycle learning rate.

    Attributes:
        learning_rate: the peak, reached after the share `warmup` of the schedule; from there
            it falls linearly to 0.
        weight_decay: on weights of two dimensions and more; norms and biases have none.
        clip_gradient: largest L2 norm of the whole gradient; 0 for no limit.
    """

    learning_rate: float = 0.1
    warmup: float = 0.2
    momentum: float = 0.9
    weight_decay: float = 5e-4
    clip_gradient: float = 0.0


@dataclass(frozen=True)
class AugmentSpec:
    """Random crops after padding by `crop_padding` pixels, and flips; see `data.augment`."""

    crop_padding: int = 4
    flip: str = "random"
    pad_mode: str = "zeros"


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
        train_on: `train`, or `train+validation` for a final run (then the last averaged weights
            are kept, for there is nothing left to choose by).
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

    def __post_init__(self) -> None:
        optimiser, validation = self.optimiser, self.validation
        for name, good, says in (
            ("epochs", self.epochs > 0, "above 0"),
            ("batch_size", self.batch_size >= 2, "at least 2"),
            ("averaging", 0 <= self.averaging < 1, "in [0, 1)"),
            ("train_on", self.train_on in ("train", "train+validation"), "train or train+validation"),
            ("precision", self.precision in ("bf16", "float32"), "bf16 or float32"),
            ("optimiser.learning_rate", optimiser.learning_rate > 0, "above 0"),
            ("optimiser.warmup", 0 < optimiser.warmup < 1, "in (0, 1)"),
            ("optimiser.momentum", 0 <= optimiser.momentum < 1, "in [0, 1)"),
            ("optimiser.weight_decay", optimiser.weight_decay >= 0, "at least 0"),
            ("optimiser.clip_gradient", optimiser.clip_gradient >= 0, "at least 0"),
            ("augment.crop_padding", self.augment.crop_padding >= 0, "at least 0"),
            ("validation.every", validation.every > 0, "above 0"),
            ("validation.images", validation.images >= 1, "at least 1"),
            ("validation.steps", validation.steps >= 1, "at least 1"),
        ):
            if not good:
                raise InputError(f"recipe: {name} must be {says}, not {_value(self, name)!r}")
        parse_number(self.threat.eps)
        if self.budget is not None:
            parse_seconds(self.budget)

    def to_dict(self) -> dict[str, Any]:
        return dataclasses.asdict(self)


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
        if isinstance(value, option) and not isinstance(value, bool):
            return value
        if option is float and isinstance(value, int | str) and not isinstance(value, bool):
            try:  # YAML reads 5e-4 as a string
                return float(value)
            except ValueError:
                continue
        if option is str and isinstance(value, int | float) and not isinstance(value, bool):
            return str(value)
    raise TypeError(" or ".join(getattr(option, "__name__", str(option)) for option in options))


def _build(kind: type, values: Any, where: str) -> Any:
    if not isinstance(values, dict):
        raise InputError(f"{where} must be a mapping of keys to values, not {values!r}")
    hints = typing.get_type_hints(kind)
    arguments = {}
    for key, value in values.items():
        name = f"{where}: {key}"
        if key not in hints:
            raise InputError(f"{where}: unknown key {key!r}{nearest(str(key), hints)}")
        if dataclasses.is_dataclass(hints[key]):
            arguments[key] = _build(hints[key], value, name)  # type: ignore[arg-type]
        else:
            try:
                arguments[key] = _fits(value, hints[key])
            except TypeError as error:
                raise InputError(f"{name} must be {error}, not {value!r}") from None
    return kind(**arguments)


def recipe_from(values: dict[str, Any], where: str = "recipe") -> Recipe:
    """A recipe from nested mappings; InputError naming an unknown key or a value of wrong type."""
    return _build(Recipe, values, where)


def load_recipe(path: Path | str, overrides: typing.Sequence[str] = ()) -> Recipe:
    """A recipe from a YAML file.

    Args:
        path: the file.
        overrides: `key=value` with dots for nesting, such as `optimiser.learning_rate=0.2`.

    Raises:
        InputError: no such file, no YAML, unknown keys (with the nearest known one), bad values.
    """
    path = Path(path)
    try:
        values = yaml.safe_load(path.read_text())
    except FileNotFoundError:
        raise InputError(f"recipe {path} does not exist") from None
    except (OSError, UnicodeDecodeError, yaml.YAMLError, RecursionError) as error:
        raise InputError(f"recipe {path} cannot be read: {' '.join(str(error).split())}") from None
    if not isinstance(values, dict):
        raise InputError(f"recipe {path} holds no mapping of keys to values")
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
            place[last] = yaml.safe_load(text)
        except yaml.YAMLError:
            raise InputError(f"--set {override!r}: the value is no YAML") from None
    return recipe_from(values, str(path))
