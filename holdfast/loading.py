"""Loading a model by whatever a user calls it: a folder, a name, a function."""

from __future__ import annotations

import difflib
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import yaml
from torch import nn

from .distributed import leads
from .errors import InputError
from .models import adapted as adaptation
from .models.adapted import Adaptation, Adapted, adaptation_lines, adapted
from .models.checkpoint import load_checkpoint, named_parts, read_card
from .models.http import HttpModel, is_address
from .models.layers import Normalise
from .models.own_networks import built_by_code
from .models.programs import is_program, load_program
from .models.registry import ARCHITECTURES, arguments_of, build
from .models.sources import Source, opened, source_of
from .models.weights import (
    ENDINGS,
    hint_of,
    load_weights_file,
    read_states,
    weights_in,
)
from .models.wrapper import WrappedModel, unwrapped, wrapped
from .models.zoo import ADDRESS, zoo_folders, zoo_index, zoo_names
from .parsing import defined_in, import_named, nearest, one_line, split_options
from .runs.files import read_json
from .runs.records import RESULT, check_files
from .terminal import tell


def load(
    source: Path | str,
    code: bool = True,
    *,
    architecture: str | None = None,
    mean: Any = None,
    std: Any = None,
    input_size: Any = None,
    outputs: str | None = None,
    classes: Any = None,
    dtype: Any = None,
    data_classes: Sequence[str] | None = None,
) -> nn.Module:
    """Load a model by what it is called on the command line.

    Args:
        source: a checkpoint folder; a training run's folder; a name from `holdfast models`;
            `http://…` or `https://…`, a black box, with the settings that `holdfast.HttpModel` has
            by itself; `package.module:name` or `path/file.py:name`, a function or a class that is
            called without arguments, or a module that is there already (modules of the working
            folder are found too); a file of TorchScript or of `torch.export`; or with
            `architecture` a file of weights alone (`.pth`, `.pt`, `.ckpt`, `.safetensors`);
            `timm:NAME`, `torchvision:NAME`, `transformers:FOLDER`, `robustbench:NAME` or
            `onnx:FILE`, each with `,key=value`, such as `timm:resnet18,weights=FILE`.
        code: whether `package.module:function`, or an address, is allowed. A file that names a
            model may run no code, and ask nobody.
        architecture: what a file of weights belongs to: `name` or `name:key=value,…` of ours, such
            as `preact-resnet:depth=18`, or `path/file.py:build`; or the code that builds the
            network of a checkpoint whose card names code: `path/file.py:build`; or the models that
            a mixture was made of, where they are no networks of ours: `timm:NAME + onnx:FILE`.
        mean, std: what the model's images are normalised by: a number, or one a channel, in units
            of [0, 1]. In place of what a library says.
        input_size: height and width, `224` or `(224, 256)`, to which images are resized inside the
            model. In place of the size and the crop that a library says.
        outputs: `logits` (as by default), or `probabilities`, of which the logarithm is taken; 0
            counts as 1.2e-38.
        classes: which of the model's outputs stand for which class of the data: a file (see
            docs/models.md), a list of numbers or of lists of them, or a dictionary by name. Of
            several outputs of one class the log-sum-exp is taken.
        dtype: `float32`, `float16`, `bfloat16` or `float64`, in which the model is run.
        data_classes: the names of the data's classes in their order, for models and files that
            name theirs.

    Returns:
        the model in eval mode, from images (N, C, H, W) in [0, 1] to logits (N, K), behind the
        defences on its card (`defences`, a list such as `["jpeg:quality=75"]`). `model.card` holds
        the card, where there is one. A model of code or of a file is `model.inner` of it.

    Raises:
        InputError: nothing has that name, or it cannot be loaded.

    Example:
        >>> import torch, holdfast as hf
        >>> hf.load("cifar10-linf-slim")(torch.rand(2, 3, 32, 32)).shape
        torch.Size([2, 10])
    """
    asked = Adaptation.checked(mean, std, input_size, outputs, dtype)
    text = str(source)
    if architecture is not None and not (_carded(text) or os.path.isfile(text)):
        file = weights_in(Path(text))
        if file is None:
            what = "holds none" if os.path.isdir(text) else "is no file"
            raise InputError(f"--architecture is for a file of weights, and {text!r} {what}")
        source = file
        text = str(file)
    found = _of_library(text, code, asked)
    if found is None:
        found = _found(source, code, architecture, asked)
        if asked.given:
            found = adapted(found, asked)
        _tell(found)
    found = in_classes(found, classes, data_classes)
    return found.eval() if isinstance(found, Adapted | WrappedModel) else found


def in_classes(model: Any, classes: Any, data: Sequence[str] | None) -> Any:
    """A model whose outputs are the data's classes, told of in a line; as
    `holdfast.models.adapted.in_classes`."""
    before = adaptation_lines(model)
    fitting = adaptation.in_classes(model, classes, data)
    if fitting is not model:
        _tell(fitting, before)
    return fitting


def adapted_as(model: Any, architecture: str | None = None, **asked: Any) -> Any:
    """A model as `load` would adapt it; for one that is there already.

    Raises:
        InputError: as `load`.
    """
    if architecture is not None:
        raise InputError("--architecture is for a file of weights")
    wish = Adaptation.checked(**asked)
    if not wish.given:
        return model
    model = adapted(model, wish)
    _tell(model)
    return model


def _of_library(text: str, code: bool, asked: Adaptation) -> Any:
    """A model of another library, adapted and told of; None where `text` names none."""
    kind = source_of(text)
    if kind is None:
        return None
    if not code:
        raise InputError(f"model {text!r} is no folder, and a file may name no library's model")
    built: Source = opened(text)
    if built.outputs is not None:
        asked = replace(asked, outputs=built.outputs)
    model = adapted(
        built.model, asked, built.steps, names=built.names, said=built.said, card=built.card
    )
    _tell(model)
    return model


def _tell(model: Any, known: Sequence[str] = ()) -> None:
    """Tell what was done to a model, but for what is known already."""
    for line in adaptation_lines(model):
        if leads() and line not in known:
            tell(f"note: {line}", error=True)


def _found(source: Path | str, code: bool, architecture: str | None, asked: Adaptation) -> Any:
    """The model itself, without what was asked for besides."""
    text = str(source)
    if isinstance(source, str) and is_address(source):
        if not code:
            raise InputError(f"model {text!r} is no folder, and a file may name no address")
        return HttpModel(source)
    folder, carded = Path(source), _carded(text)
    if carded:
        if os.path.isfile(folder / RESULT):  # a run knows what its model is
            check_files(folder, read_json(folder / RESULT).get("files"))
        _check_normalised(text, asked)
        own = None if architecture is None else partial(built_by_code, architecture)
        part = None
        if architecture is not None and named_parts(read_card(carded[0], False).to_dict()):
            own, part = None, partial(_named_part, carded[0], architecture)
        return _behind_its_defences(load_checkpoint(carded[0], network=own, part=part), carded[0])
    if ":" in text and not os.path.exists(folder):
        if not code:
            raise InputError(f"model {text!r} is no folder, and a file may name no code")
        return wrapped(_call(text))
    if os.path.isdir(folder):
        raise InputError(f"{folder} holds no model: neither card.json nor model/card.json is there")
    if os.path.isfile(folder):
        model = _of_file(folder, code, architecture, asked)
        return model if hasattr(model, "card") else wrapped(model)  # ours, or anybody's
    if os.sep in text or _ends_as_a_file(text):
        kind = "file" if _ends_as_a_file(text) else "folder"
        raise InputError(f"model {text!r}: there is no such {kind}")
    if text in zoo_index():
        size = zoo_index()[text].size / 1e6
        raise InputError(
            f"model {text!r} is not on this machine: `holdfast models --fetch {text}` fetches it "
            f"({size:.1f} MB) from {ADDRESS}; or set HOLDFAST_ZOO to a folder that holds it"
        )
    known = zoo_names()
    if difflib.get_close_matches(text, known, n=1):
        raise InputError(f"model {text!r} is unknown{nearest(text, known)}")
    raise InputError(
        f"model {text!r} is neither a folder, nor package.module:function, nor in the zoo "
        f"({', '.join(known) or 'none'})"
    )


def _named_part(folder: Path, named: str, part: Mapping[str, Any]) -> nn.Module:
    """A part of a mixture that the user has named as its card does, `MODEL` or `MODEL + MODEL`."""
    text, options = str(part["architecture"]), {str(k): v for k, v in part["arguments"].items()}
    if text not in re.split(r"\s+\+\s+", named.strip()):
        raise InputError(
            f"{folder / 'card.json'}: a part of the mixture is {text!r}, which --architecture "
            f"{named!r} does not name"
        )
    known = {"architecture", "mean", "std", "input_size", "outputs", "classes", "dtype"}
    if options.keys() - known - {"data_classes"}:
        other = sorted(options.keys() - known)[0]
        raise InputError(f"{folder / 'card.json'}: a part of the mixture has an unknown {other!r}")
    model = unwrapped(load(text, **options))
    assert isinstance(model, nn.Module)  # `mix` has taken no other
    return model


def _carded(text: str) -> list[Path]:
    """The folders with a card that a name may mean."""
    shelves = [shelf / text for shelf in zoo_folders()]
    places = (Path(text), Path(text) / "model", *shelves)
    return [place for place in places if os.path.isfile(place / "card.json")]  # never an error


def _behind_its_defences(model: nn.Module, folder: Path) -> nn.Module:
    from .defences import chain

    declared = model.card.get("defences") or []  # type: ignore[union-attr, operator]
    try:
        defended = chain(model, declared, folder)
    except InputError as error:
        raise InputError(f"{folder / 'card.json'}: {error}") from None
    defended.card = model.card  # type: ignore[union-attr]
    return defended  # type: ignore[return-value]


def _check_normalised(text: str, asked: Adaptation) -> None:
    if asked.mean or asked.std:
        raise InputError(f"model {text} normalises its images itself: leave out --mean and --std")


def _of_file(file: Path, code: bool, architecture: str | None, asked: Adaptation) -> nn.Module:
    """A model of a file: a program, or weights alone."""
    if not code:
        raise InputError(f"model {str(file)!r} is no folder, and a file may name no other")
    if is_program(file):
        if architecture is not None:
            raise InputError(f"model {file} brings its own network: --architecture is not needed")
        return load_program(file)
    if file.suffix == ".py" and architecture is None:
        raise InputError(
            f"model {str(file)!r} is code: say which function, class or module of it builds the "
            f"network, {file}:NAME{_defined(file)}"
        )
    if architecture is None and not file.name.endswith(ENDINGS):
        raise InputError(
            f"model {str(file)!r} is a file; what can be loaded is a "
            "folder with model.safetensors and card.json, a name from the zoo, a file of weights "
            f"({', '.join(ENDINGS)}) with --architecture, TorchScript, or package.module:function"
        )
    if architecture is None:
        fits = hint_of(read_states(file)) or f"names are {', '.join(ARCHITECTURES)}"
        raise InputError(
            f"model {str(file)!r} is a file of weights alone: say what network they belong to, "
            f"--architecture NAME or --architecture file.py:build; {fits}"
        )
    model = _built(architecture)
    told = load_weights_file(file, model, architecture)
    layers = [part for part in model.modules() if isinstance(part, Normalise)]
    if any(bool(layer.mean.any()) or bool((layer.std != 1).any()) for layer in layers):
        _check_normalised(f"{file} of {architecture}", asked)
    if told:
        model.told = told  # type: ignore[assignment]  # one of `adaptation_lines`
    return model.eval()


def _defined(file: Path) -> str:
    """The end of a line that names what a Python file defines; empty where nothing is known."""
    try:
        names = defined_in(file.read_bytes())
    except (OSError, SyntaxError, ValueError):
        return ""
    return f"; it has {', '.join(names[:10])}" if names else ""


def _ends_as_a_file(text: str) -> bool:
    """Whether a name ends as files of models do."""
    return text.endswith((*ENDINGS, ".py", ".pt2", ".onnx"))


def _built(architecture: str) -> nn.Module:
    """A network by its name and options, or by a function in a file."""
    name, _, options = architecture.partition(":")
    if name in ARCHITECTURES:
        known = list(arguments_of(name))
        given = split_options(f"architecture {name}", options, known) if options else {}
        arguments = {key: yaml.safe_load(value) for key, value in given.items()}
        model = build(name, arguments)
        model.card = {"architecture": name, "arguments": arguments}  # type: ignore[assignment]
        return model
    if not options:
        raise InputError(
            f"architecture {name!r} is unknown{nearest(name, ARCHITECTURES)}; or write "
            "path/file.py:build"
        )
    return _call(architecture, "architecture")


def _call(text: str, what: str = "model") -> nn.Module:
    build = import_named(text, what)
    if isinstance(build, nn.Module):
        return build.eval()
    if not callable(build):
        raise InputError(f"{what} {text!r} is a {type(build).__name__}, which is not callable")
    try:
        model = build()
    except InputError:
        raise
    except (Exception, SystemExit) as error:  # the user's own code: say what it said
        raise InputError(f"{what} {text!r} cannot be built: {one_line(error)}") from None
    if not callable(model):
        raise InputError(f"{what} {text!r} built a {type(model).__name__}, which cannot be called")
    return model.eval() if isinstance(model, nn.Module) else model
