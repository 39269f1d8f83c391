"""Weights under published names: translated into ours, and their network worked out of the shapes.

Each publication is one row of `PUBLISHED`: which of our architectures computes the same, and what
its weights are called there. Nothing here looks at values, only at names and shapes.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..errors import InputError
from .published import DEPTHS
from .registry import arguments_of, build

State = dict[str, Tensor]
Options = dict[str, Any]

# What wrappers put before the names of weights.
PREFIXES = (
    "module.", "model.", "net.", "network.", "encoder.", "backbone.", "1.",
)  # fmt: skip
# Of torch.compile, activation checkpointing, FSDP and Lightning Fabric: anywhere in a name, since
# parts of a network are wrapped too.
WRAPPERS = re.compile(
    r"(?:(?<=\.)|^)(?:_orig_mod|_checkpoint_wrapped_module|_fsdp_wrapped_module|_forward_module)\."
)
# Left in files by publications, and part of no forward pass.
LEFTOVERS = (
    r"sub_block1\.", r"model_preact_hl1\.", r"attacker\.", r"n_averaged$",
    r"(.*\.)?total_(ops|params)$",  # of thop
    r"(criterion|loss|loss_fn|loss_function)\.",  # such as weights of classes, by Lightning
)  # fmt: skip
MEANS, STDS = ("mean", "mu", "new_mean"), ("std", "sigma", "new_std")
NORMALISE = ("normalise.mean", "normalise.std")


class Naming(NamedTuple):
    """How a publication names weights.

    Attributes:
        architecture: our network that computes the same.
        rules: patterns of published names, without the last part (`weight`, …), and our names for
            them; `{0}` and `{1}` are the stage and the block's place in it.
    """

    architecture: str
    rules: Mapping[str, str]


PUBLISHED = (
    Naming(
        "wide-resnet-trades",
        {
            r"conv1": "stem",
            r"block(\d+)\.layer\.(\d+)\.bn1": "blocks.{0}.{1}.norm1",
            r"block(\d+)\.layer\.(\d+)\.bn2": "blocks.{0}.{1}.norm2",
            r"block(\d+)\.layer\.(\d+)\.conv1": "blocks.{0}.{1}.conv1",
            r"block(\d+)\.layer\.(\d+)\.conv2": "blocks.{0}.{1}.conv2",
            r"block(\d+)\.layer\.(\d+)\.convShortcut": "blocks.{0}.{1}.shortcut",
            r"bn1": "norm",
            r"fc": "linear",
        },
    ),
    Naming(
        "wide-resnet-deepmind",
        {
            r"init_conv": "stem",
            r"layer\.(\d+)\.block\.(\d+)\.batchnorm_0": "blocks.{0}.{1}.norm1",
            r"layer\.(\d+)\.block\.(\d+)\.batchnorm_1": "blocks.{0}.{1}.norm2",
            r"layer\.(\d+)\.block\.(\d+)\.conv_0": "blocks.{0}.{1}.conv1",
            r"layer\.(\d+)\.block\.(\d+)\.conv_1": "blocks.{0}.{1}.conv2",
            r"layer\.(\d+)\.block\.(\d+)\.shortcut": "blocks.{0}.{1}.shortcut",
            r"batchnorm": "norm",
            r"logits": "linear",
        },
    ),
    Naming(
        "preact-resnet-deepmind",
        {
            r"conv_2d": "stem",
            r"layer_(\d+)\.(\d+)\.batchnorm_0": "blocks.{0}.{1}.norm1",
            r"layer_(\d+)\.(\d+)\.batchnorm_1": "blocks.{0}.{1}.norm2",
            r"layer_(\d+)\.(\d+)\.conv_2d_1": "blocks.{0}.{1}.conv1",
            r"layer_(\d+)\.(\d+)\.conv_2d_2": "blocks.{0}.{1}.conv2",
            r"layer_(\d+)\.(\d+)\.shortcut": "blocks.{0}.{1}.shortcut",
            r"batchnorm": "norm",
            r"logits": "linear",
        },
    ),
    Naming(
        "preact-resnet-kuangliu",
        {
            r"conv1": "stem",
            r"layer(\d+)\.(\d+)\.bn1": "blocks.{0}.{1}.norm1",
            r"layer(\d+)\.(\d+)\.bn2": "blocks.{0}.{1}.norm2",
            r"layer(\d+)\.(\d+)\.conv1": "blocks.{0}.{1}.conv1",
            r"layer(\d+)\.(\d+)\.conv2": "blocks.{0}.{1}.conv2",
            r"layer(\d+)\.(\d+)\.shortcut\.0": "blocks.{0}.{1}.shortcut",
            r"bn": "norm",
            r"linear|fc": "linear",
        },
    ),
    Naming(
        "resnet",  # the names of pytorch-cifar and of torchvision
        {
            r"conv1": "stem",
            r"bn1": "norm",
            **{
                rf"layer(\d+)\.(\d+)\.{theirs}{i}": f"blocks.{{0}}.{{1}}.{ours}{i}"
                for theirs, ours in (("bn", "norm"), ("conv", "conv"))
                for i in (1, 2, 3)
            },
            r"layer(\d+)\.(\d+)\.(?:shortcut|downsample)\.0": "blocks.{0}.{1}.shortcut.0",
            r"layer(\d+)\.(\d+)\.(?:shortcut|downsample)\.1": "blocks.{0}.{1}.shortcut.1",
            r"linear|fc": "linear",
        },
    ),
)


class Translated(NamedTuple):
    """Weights under our names.

    Attributes:
        architecture: whose names they are.
        state: the weights.
        normalised: whether a normalisation was among them.
        left_out: names of leftovers.
    """

    architecture: str
    state: State
    normalised: bool
    left_out: tuple[str, ...] = ()


def bare(state: State) -> State:
    """Weights without what wrappers put into their names, and without the name of a part that
    holds all of a network's parts.

    Example:
        >>> list(bare({"module.fc.weight": torch.zeros(1), "module.fc.bias": torch.zeros(1)}))
        ['fc.weight', 'fc.bias']
    """
    unwrapped = {WRAPPERS.sub("", name): value for name, value in state.items()}
    state = unwrapped if len(unwrapped) == len(state) else state
    while True:
        for prefix in (*PREFIXES, _whole(state)):
            if state and prefix and all(name.startswith(prefix) for name in state):
                state = {name.removeprefix(prefix): value for name, value in state.items()}
                break
        else:
            return state


def _whole(state: State) -> str:
    """The name of what holds all parts of a network, with its dot; empty where nothing does.

    Example:
        >>> _whole(dict.fromkeys(["classifier.conv.weight", "classifier.fc.weight"]))
        'classifier.'
        >>> _whole(dict.fromkeys(["fc.weight", "fc.bias"]))
        ''
    """
    first, last = min(state, default=""), max(state, default="")  # what both begin with, all do
    prefix = ""
    for one, other in zip(first.split(".")[:-1], last.split(".")[:-1], strict=False):
        if one != other:
            break
        prefix += f"{one}."
    rest = [name.removeprefix(prefix) for name in state]
    parts = {name.partition(".")[0] for name in rest if "." in name}
    return prefix if len(parts) > 1 else ""


def translations(state: State) -> Iterator[Translated]:
    """A file's weights under our names, once for each publication whose names they are."""
    kept, left_out = without_leftovers(state)
    rest, normalise = _without_normalisation(kept)
    for naming in PUBLISHED:
        renamed = _renamed(rest, naming)
        if renamed is not None:
            yield Translated(naming.architecture, renamed | normalise, bool(normalise), left_out)


def without_leftovers(state: State) -> tuple[State, tuple[str, ...]]:
    """Weights without prefixes and without `LEFTOVERS`, and the leftovers' names."""
    left_out: tuple[str, ...] = ()
    while True:
        state = bare(state)
        found = tuple(n for n in state if any(re.match(pattern, n) for pattern in LEFTOVERS))
        if not found:
            return state, left_out
        left_out += found
        state = {name: value for name, value in state.items() if name not in found}


def _without_normalisation(state: State) -> tuple[State, State]:
    """The weights, and the mean and standard deviation of a normalisation, if they are there."""
    found: dict[str, list[str]] = {}
    for own, called in zip(NORMALISE, (MEANS, STDS), strict=True):
        found[own] = [name for name in state if name.rpartition(".")[2] in called]
    if not all(found.values()):
        return bare(state), {}
    normalise = {own: state[names[0]].reshape(1, -1, 1, 1) for own, names in found.items()}
    taken = {name for names in found.values() for name in names}
    return bare({name: value for name, value in state.items() if name not in taken}), normalise


def _renamed(state: State, naming: Naming) -> State | None:
    """The weights under our names; None if one of them is not of this publication."""
    placed: dict[str, Tensor] = {}
    places: set[tuple[int, int]] = set()
    for name, value in state.items():
        part, _, last = name.rpartition(".")
        for pattern, ours in naming.rules.items():
            match = re.fullmatch(pattern, part)
            if match:
                if match.groups():
                    places.add((int(match[1]), int(match[2])))
                placed[f"{ours.format(*match.groups())}.{last}"] = value
                break
        else:
            return None
    order = {place: i for i, place in enumerate(sorted(places))}

    def numbered(match: re.Match[str]) -> str:
        return f"blocks.{order[int(match[1]), int(match[2])]}."

    return {re.sub(r"^blocks\.(\d+)\.(\d+)\.", numbered, k): v for k, v in placed.items()}


# --- which of our networks would fit ----------------------------------------------------------


class Fitting(NamedTuple):
    """A network of ours that weights fit exactly.

    Attributes:
        architecture: as `--architecture` takes it.
        open: what names and shapes do not tell, and how to say it.
    """

    architecture: str
    open: tuple[str, ...]


def fitting(state: State) -> Fitting | None:
    """The network of ours that weights fit, with its options worked out of their shapes.

    Example:
        >>> weights = build("small-cnn", {"width": 8, "classes": 5}).state_dict()
        >>> fitting(weights).architecture
        'small-cnn:width=8,classes=5'
    """
    plain = bare(state)
    ours = [Translated(name, plain, NORMALISE[0] in plain) for name in OWN]
    for translated in (*ours, *translations(state)):
        found = _fits(translated)
        if found is not None:
            return found
    return None


# Names by which other libraries' networks are known, and how MODEL names these.
LIBRARIES = {
    r"patch_embed\.|blocks\.\d+\.attn\.|conv_stem\.|stages\.\d+\.blocks\.": (
        "timm:NAME,weights=FILE"
    ),
    r"(vit|deit|beit|swin|swinv2|resnet|convnext|dinov2)\.(embeddings|encoder|embedder)\.": (
        "transformers:FOLDER,weights=FILE"
    ),
    r"features\.\d+\.|encoder\.layers\.encoder_layer_\d+\.": "torchvision:NAME,weights=FILE",
}


def resembling(state: State) -> str:
    """What weights look like that fit no network of ours: a publication's, or another library's.

    Returns:
        a line; empty if they look like nothing known.
    """
    kept, _ = without_leftovers(state)
    rest, _ = _without_normalisation(kept)
    strangers = {
        naming.architecture: [name for name in rest if _renamed({name: rest[name]}, naming) is None]
        for naming in PUBLISHED
    }
    nearest = min(strangers, key=lambda name: len(strangers[name]))
    others = strangers[nearest]
    if len(rest) > 4 and len(others) < len(rest) / 3:
        few = (
            f", but not {', '.join(others[:3])}{', …' if len(others) > 3 else ''}" if others else ""
        )
        sizes = "" if others else ", but the sizes are not of one"
        return f"their names are those of {nearest}{few}{sizes}"
    for pattern, model in LIBRARIES.items():
        if any(re.match(pattern, name) for name in kept):
            return f"their names look like those of a library, for which there is {model}"
    return ""


def _fits(translated: Translated) -> Fitting | None:
    name, state = translated.architecture, translated.state
    try:
        options = OPTIONS[name](state)
        with torch.device("meta"):  # shapes without memory
            wanted = build(name, options).state_dict()
    except (InputError, KeyError, IndexError, ZeroDivisionError):
        return None
    published = "normalise" in arguments_of(name)
    for key, value in wanted.items():
        if key.endswith("num_batches_tracked") or (published and key in NORMALISE):
            continue
        if key not in state or state[key].shape != value.shape:
            return None
    if state.keys() - wanted.keys():
        return None
    known = arguments_of(name)
    written = ",".join(
        f"{key}={_written(value)}"
        for key, value in options.items()
        if key in SAID or value != known[key].default
    )
    return Fitting(f"{name}:{written}", tuple(_open(translated)))


SAID = ("depth", "width", "widen", "classes")  # options that are always written


def _written(value: Any) -> str:
    return str(value).lower().replace(" ", "")


def _open(translated: Translated) -> Iterator[str]:
    known = arguments_of(translated.architecture)
    if "activation" in known:
        yield f"the activation, {known['activation'].default} unless activation=… is given"
    if "stride" in known:
        yield f"the stride, {known['stride'].default} unless stride=… is given"
    if "shortcut" in known:
        yield "what shortcuts see, the activated input unless shortcut=input is given"
    if "normalise" in known and not translated.normalised:
        usual = known["normalise"].default.replace("published", "as published")
        yield f"the normalisation, {usual} unless normalise=cifar10 or another is given"
    if "border" in known:
        yield "zeros around the image, none unless border=2 or so is given"


def _classes(state: State, layer: str = "linear") -> int:
    return int(state[f"{layer}.weight"].shape[0])


def _blocks(state: State) -> int:
    return len({name.split(".")[1] for name in state if name.startswith("blocks.")})


def _channels(state: State) -> Options:
    """Of the images: an option of published networks, the length of the mean of ours."""
    return {"channels": int(state["stem.weight"].shape[1])}


def _normalised(state: State, stem: str) -> Options:
    n = int(state[f"{stem}.weight"].shape[1])
    return {} if n == 3 else {"mean": [0.0] * n, "std": [1.0] * n}


def _wide(state: State) -> Options:
    widen = int(state["blocks.0.conv2.weight"].shape[0]) // 16
    return {"depth": 4 + 2 * _blocks(state), "widen": widen, "classes": _classes(state)}


def _preact(state: State) -> Options:
    return {
        "depth": 2 + 2 * _blocks(state),
        "width": int(state["stem.weight"].shape[0]),
        "classes": _classes(state),
    }


def _own_preact(state: State) -> Options:
    widths = {int(v.shape[0]) for k, v in state.items() if re.match(r"blocks\.\d+\.conv2\.", k)}
    return {
        **_preact(state),
        "stages": len(widths),
        "stem_stride": int(state["stem.weight"].shape[2]) - 2,
        **_normalised(state, "stem"),
    }


def _resnet(state: State) -> Options:
    deep = "blocks.0.conv3.weight" in state
    depth = {(sum(counts), d): depth for depth, (counts, d) in DEPTHS.items()}
    width = int(state["stem.weight"].shape[0])
    inner = int(state["blocks.0.conv1.weight"].shape[0])
    return {
        "depth": depth[_blocks(state), deep],
        "width": width,
        **({"widen": inner // width} if inner != width else {}),
        "stem": "imagenet" if state["stem.weight"].shape[2] == 7 else "cifar",
        "classes": _classes(state),
        **_channels(state),
    }


# Whose files have our names.
OWN = ("wide-resnet", "preact-resnet", "small-cnn", "interval-cnn", "resnet")

# How the options of each architecture follow from weights under our names.
OPTIONS: dict[str, Callable[[State], Options]] = {
    "wide-resnet": lambda s: {**_wide(s), **_normalised(s, "stem")},
    "preact-resnet": _own_preact,
    "small-cnn": lambda s: {
        "width": int(s["body.0.weight"].shape[0]),
        "classes": _classes(s),
        **(
            {"mean": [0.0] * n, "std": [1.0] * n} if (n := s["body.0.weight"].shape[1]) != 1 else {}
        ),
    },
    "interval-cnn": lambda s: {
        "width": int(s["conv1.weight"].shape[0]),
        "classes": _classes(s, "linear2"),
        **_normalised(s, "conv1"),
    },
    "wide-resnet-trades": lambda s: {**_wide(s), **_channels(s)},
    "wide-resnet-deepmind": lambda s: {**_wide(s), **_channels(s)},
    "preact-resnet-deepmind": lambda s: {**_preact(s), **_channels(s)},
    "preact-resnet-kuangliu": lambda s: {
        **_preact(s),
        **_channels(s),
        "last_norm": "norm.weight" in s,
    },
    "resnet": _resnet,
}
