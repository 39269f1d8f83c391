"""Recipes: YAML files that fix a training run completely."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import math
import os
import re
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, Self

import yaml
from pydantic import (
    AfterValidator,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationError,
    model_serializer,
    model_validator,
)

from ..attacks import FGSM
from ..data.augment import Augment
from ..data.base import TRAINED_ON, held_back
from ..errors import InputError
from ..models import ARCHITECTURES, arguments_of
from ..models.own_networks import is_code
from ..parsing import nearest, parse_seconds, split_options
from ..runs.files import read_text
from ..runs.records.base import Part, complaint, must_be
from ..shipped import recipe_file
from ..threat import Threat
from .objectives import objective_named

LONGEST = 2**20  # bytes of a recipe
DEEPEST = 20  # levels of nesting in it


def _number(value: Any) -> Any:
    if isinstance(value, str):  # if it was quoted
        with contextlib.suppress(ValueError):
            return float(value)
    return value


def _whole(value: Any) -> Any:
    return int(value) if isinstance(value, float) and value.is_integer() else value  # 1e4


def _text(value: Any) -> Any:
    return str(value) if isinstance(value, int | float) and not isinstance(value, bool) else value


def _plain(value: dict[str, Any]) -> dict[str, Any]:
    """A recipe is written into request.json and into the card."""
    try:
        json.dumps(value, allow_nan=False)
    except TypeError as error:
        raise ValueError(error) from None
    return value


# Kinds of fields, and the words for them.
Number = Annotated[float, BeforeValidator(_number), must_be("a finite number")]
Above0 = Annotated[Number, Field(gt=0), must_be("a finite number above 0")]
AtLeast0 = Annotated[Number, Field(ge=0), must_be("a finite number of at least 0")]
Share = Annotated[Number, Field(ge=0, le=1), must_be("a number in [0, 1]")]
ShareBelow1 = Annotated[Number, Field(ge=0, lt=1), must_be("a number in [0, 1)")]
ShareWithin = Annotated[Number, Field(gt=0, lt=1), must_be("a number in (0, 1)")]
Whole = Annotated[int, BeforeValidator(_whole), must_be("a whole number")]
WholeAtLeast0 = Annotated[Whole, Field(ge=0), must_be("a whole number of at least 0")]
WholeAtLeast1 = Annotated[Whole, Field(ge=1), must_be("a whole number of at least 1")]
WholeAtLeast2 = Annotated[Whole, Field(ge=2), must_be("a whole number of at least 2")]
Text = Annotated[str, BeforeValidator(_text), must_be("text")]
Arguments = Annotated[
    dict[str, Any],
    AfterValidator(_plain),
    must_be("a mapping of names to numbers, text and lists of them"),
]


def _by_name(value: Any) -> Any:
    """YAML reads the names of some classes as other things than text: those of digits, `yes`."""
    if isinstance(value, dict):
        named = {True: "true", False: "false", None: "null"}
        return {
            key if isinstance(key, str) else named.get(key, str(key)): _number(each)
            for key, each in value.items()
        }
    return [_number(each) for each in value] if isinstance(value, list | tuple) else value


ClassWeights = Annotated[
    Literal["balanced"] | list[AtLeast0] | dict[str, AtLeast0] | None,
    BeforeValidator(_by_name),
    must_be("balanced, a list of numbers of at least 0, or a mapping of classes to such numbers"),
]


class Spec(Part):
    """A part of a recipe.

    Attributes:
        LATER: keys that came after the first runs. What is written leaves them out while they are
            at their default, so that a run from before is still known as the same run.
    """

    OBJECT = "a mapping of keys to values"

    model_config = ConfigDict(extra="forbid")
    LATER: ClassVar[tuple[str, ...]] = ()

    @model_serializer(mode="wrap")
    def _held(self, handler: Any) -> dict[str, Any]:
        fields = type(self).model_fields
        unsaid = {key for key in self.LATER if getattr(self, key) == fields[key].default}
        return {key: value for key, value in handler(self).items() if key not in unsaid}

    def to_dict(self) -> dict[str, Any]:
        """Nested mappings, as `recipe_from` reads them; a number stays the whole one that it is,
        for a run's identity is a hash of them."""
        held: dict[str, Any] = self.model_dump()
        return held


class ModelSpec(Spec):
    """The network that is trained, and what it starts from.

    Attributes:
        architecture: a registered name; or `path/file.py:build` or `package.module:build`, a
            function, a class or a ready module of one's own, which a person has to name: on the
            command line or in Python. A recipe file may not.
        arguments: the architecture's own. `classes`, `num_classes` and `channels` are filled in
            where it takes them.
        weights: to start from: a file of weights, a checkpoint or run folder, or a name from the
            zoo; null for a random start. With a folder or a name, and neither `architecture` nor
            `arguments` given, these are those of its card. Its classifier is replaced where the
            classes are others; all else must fit.
        classifier: the layer that answers one logit a class, by its name in the network, such as
            `linear`; null for the last layer called that does.
    """

    LATER = ("weights", "classifier")

    architecture: Text = "preact-resnet"
    arguments: Arguments = {}  # noqa: RUF012 - pydantic copies it
    weights: Text | None = None
    classifier: Text | None = None


class ThreatSpec(Spec):
    """What the attacks of training and validation may do; ε in image units, such as `8/255`."""

    norm: Text = "linf"
    eps: Text = "8/255"


class ObjectiveSpec(Spec):
    """What is minimised.

    Attributes:
        name: a key of `objectives.OBJECTIVES`.
        arguments: that objective's own.
        awp: γ of adversarial weight perturbation around it, such as 0.005; 0 for none.
        awp_warmup: share of the schedule that goes by before it begins.
        eps_warmup: share of the schedule over which the ε of training attacks grows, linearly
            from 0 to the threat model's (Pang et al., "Bag of tricks for adversarial training",
            ICLR 2021); 0 for all of it from the beginning.
        self_distillation: at the end of the schedule, the weight of the averaged weights' answers
            in the labels; it grows linearly from 0 (`self_distillation.softened`).
    """

    LATER = ("awp", "awp_warmup", "eps_warmup", "self_distillation")

    name: Text = "n-fgsm"
    arguments: Arguments = {}  # noqa: RUF012 - pydantic copies it
    awp: ShareBelow1 = 0.0
    awp_warmup: Share = 0.05
    eps_warmup: Share = 0.0
    self_distillation: ShareBelow1 = 0.0


class OptimiserSpec(Spec):
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
        backbone_rate, classifier_rate: the learning rates of the network but for its classifier,
            and of its classifier, in units of what they would be.
        frozen_epochs: for so many epochs from the beginning only the classifier's weights are
            changed; a fraction is allowed.
    """

    LATER = ("bias_rate", "hold", "floor", "backbone_rate", "classifier_rate", "frozen_epochs")

    name: Annotated[Literal["sgd", "muon", "adam"], must_be("sgd, muon or adam")] = "sgd"
    learning_rate: Above0 = 0.1
    matrix_rate: Above0 = 0.05
    warmup: ShareWithin = 0.2
    momentum: ShareBelow1 = 0.9
    weight_decay: AtLeast0 = 5e-4
    clip_gradient: AtLeast0 = 0.0
    bias_rate: Above0 = 1.0
    hold: Share = 0.0
    floor: Share = 0.0
    backbone_rate: Above0 = 1.0
    classifier_rate: Above0 = 1.0
    frozen_epochs: AtLeast0 = 0.0

    @property
    def parts_differ(self) -> bool:
        """Whether the classifier is stepped otherwise than the rest of the network."""
        return not self.backbone_rate == self.classifier_rate == 1 or self.frozen_epochs > 0


class AugmentSpec(Spec):
    """How each image is changed before it is trained on: the attributes of `data.Augment`, and

    Attributes:
        warmup: share of the schedule over which `crop_shift` and the probabilities rise linearly
            from 0 to what they are; 0 for all of it from the beginning.
    """

    LATER = ("crop_shift", "colour", "erase", "cutmix", "mixup", "mix_alpha", "warmup")

    crop_padding: WholeAtLeast0 = 4
    flip: Text = "random"
    pad_mode: Text = "zeros"
    crop_shift: Whole = 0
    colour: Number = 0.0
    erase: Number = 0.0
    cutmix: Number = 0.0
    mixup: Number = 0.0
    mix_alpha: Number = 1.0
    warmup: Share = 0.0

    def operations(self) -> Augment:
        return Augment(**{f.name: getattr(self, f.name) for f in dataclasses.fields(Augment)})


class ExtraSpec(Spec):
    """Other images to train on besides the data's own; see `data.extra`.

    Attributes:
        file: an `.npz` with `image` uint8 (N, H, W, C) and `label` (N,); null for none.
        share: of every batch that they make up.
    """

    file: Text | None = None
    share: ShareWithin = 0.7


class ValidationSpec(Spec):
    """What is measured after every `every` epochs, on the first `images` validation images.

    Attributes:
        every: epochs between validations; a fraction is allowed.
        images: how many validation images.
        steps: of the PGD attack that decides which weights are kept.
    """

    every: Above0 = 1.0
    images: WholeAtLeast1 = 500
    steps: WholeAtLeast1 = 10


class Recipe(Spec):
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
        class_weights: by which the loss of each image is multiplied, according to its class:
            `balanced`, inversely as there are images of the class; a list of numbers in the order
            of the classes; or a mapping of classes' names to numbers, 1 for those not named. They
            are scaled so that their mean over the training images is 1. null for none.
        patience: training stops where robust accuracy on validation images has not risen for so
            many validations; 0 for never. Where no robustness is trained, what chooses the weights
            counts in its place.
    """

    LATER = ("extra", "averaging_share", "class_weights", "patience")

    model: ModelSpec = ModelSpec()
    threat: ThreatSpec = ThreatSpec()
    objective: ObjectiveSpec = ObjectiveSpec()
    optimiser: OptimiserSpec = OptimiserSpec()
    augment: AugmentSpec = AugmentSpec()
    validation: ValidationSpec = ValidationSpec()
    epochs: Above0 = 15
    budget: Text | None = None
    batch_size: WholeAtLeast2 = 128
    averaging: ShareBelow1 = 0.998
    train_on: Annotated[
        Text,
        Field(pattern=f"^({TRAINED_ON.pattern})$"),
        must_be(
            "train, train+validation or, to hold back the first 1,000 validation images, "
            "train+validation-1000"
        ),
    ] = "train"
    precision: Annotated[Literal["bf16", "float32"], must_be("bf16 or float32")] = "bf16"
    extra: ExtraSpec = ExtraSpec()
    averaging_share: ShareBelow1 = 0.0
    class_weights: ClassWeights = None
    patience: WholeAtLeast0 = 0

    def __init__(self, **values: Any) -> None:
        try:
            super().__init__(**values)
        except ValidationError as error:
            raise InputError(complaint(error, Recipe).removeprefix(":").strip()) from None

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        # The attacks of training and validation must know the norm.
        FGSM().check_norm(Threat(self.threat.norm, self.threat.eps))  # type: ignore[arg-type]
        augment, spec = self.augment.operations(), self.objective
        objective = objective_named(spec.name, spec.arguments, spec.awp, spec.awp_warmup)
        if (augment.cutmix or augment.mixup) and not objective.mixes:
            raise InputError(
                f"objective {spec.name!r} cannot be combined with augment.cutmix or augment.mixup"
            )
        if self.budget is not None:
            parse_seconds(self.budget)
        if self.patience and held_back(self.train_on) == 0:
            raise InputError(
                "patience needs validation images that are not trained on: train_on=train or, say, "
                "train_on=train+validation-1000"
            )
        return self


def recipe_from(values: dict[str, Any], where: str = "recipe") -> Recipe:
    """A recipe from nested mappings; InputError naming an unknown key or a value of wrong type."""
    odd = [key for key in values if not isinstance(key, str)] if isinstance(values, dict) else []
    if odd:
        raise InputError(f"{where}: unknown key {odd[0]!r}{nearest('', Recipe.model_fields)}")
    return Recipe.checked(values, where)


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
_PATHS = (("extra", "file"), ("objective", "arguments", "helper"), ("model", "weights"))


def _check_paths(values: Any, path: Path, overrides: Sequence[str]) -> None:
    """InputError where a recipe file leads out of the working folder: only a person may."""
    said = {text.partition("=")[0] for text in overrides}
    for keys in _PATHS:
        if said & {".".join(keys[:n]) for n in range(1, len(keys) + 1)}:
            continue  # in place of what the file says
        named = values
        for key in keys:
            named = named.get(key) if isinstance(named, dict) else None
        if isinstance(named, str) and (os.path.isabs(named) or ".." in Path(named).parts):
            dotted = ".".join(keys)
            raise InputError(
                f"recipe {path}: {dotted} {named!r} leads out of the working folder; if it should, "
                f"say so on the command line: --set {dotted}={shlex.quote(named)}"
            )


def _check_code(values: dict[str, Any], path: Path, overrides: Sequence[str]) -> None:
    """InputError where a recipe file names code that no person did: it may run none by itself.

    Where a person names another network than the file, the file's arguments are dropped: they are
    not that network's.
    """
    model = values.get("model")
    if not isinstance(model, dict):
        return
    named = model.get("architecture")
    said = [text for text in overrides if re.match(r"model(\.architecture)?=", text)]
    if isinstance(named, str) and is_code(named) and not said:
        raise InputError(
            f"recipe {path}: the network is built by code, {named}, and a recipe may run none; if "
            f"you know that code, name it on the command line: --architecture {shlex.quote(named)}"
        )
    other = [text.partition("=")[2].strip("\"' ") for text in said]
    if other and is_code(other[-1]) and other[-1] != named:
        model.pop("arguments", None)


def load_recipe(path: Path | str, overrides: Sequence[str] = ()) -> Recipe:
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
    _check_paths(values, path, overrides)
    _check_code(values, path, overrides)
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
    if not is_code(recipe.model.architecture):
        try:
            arguments_of(recipe.model.architecture)  # one of Holdfast's own
        except InputError as error:
            own = "; or write path/file.py:build" if "." in recipe.model.architecture else ""
            raise InputError(f"{path}: model: {error}{own}") from None
    return recipe


def architecture_changes(architecture: str) -> list[str]:
    """What `--architecture` changes of a recipe: the architecture, and its arguments with it.

    Args:
        architecture: `NAME` or `NAME:key=value,…` of Holdfast's own, or `path/file.py:build`.

    Raises:
        InputError: options that are not written key=value, or not known.

    Example:
        >>> architecture_changes("small-cnn:width=8")
        ['model.architecture=small-cnn', 'model.arguments={"width": 8}']
    """
    if architecture.partition(":")[0] not in ARCHITECTURES:
        return [f"model.architecture={json.dumps(architecture)}"]
    name, arguments = parse_architecture(architecture)
    return [f"model.architecture={name}", f"model.arguments={json.dumps(arguments)}"]


def parse_architecture(text: str) -> tuple[str, dict[str, Any]]:
    """Name and arguments of `NAME:key=value,…`, an architecture of Holdfast's own.

    Raises:
        InputError: an unknown name or key, or what is not written so.
    """
    name, _, options = text.partition(":")
    given = split_options(f"architecture {name}", options, list(arguments_of(name)))
    try:
        return name, {key: _parsed(value) for key, value in given.items()}
    except ValueError as error:
        raise InputError(f"architecture {text!r}: {error}") from None
