"""`torchvision:NAME`: the classifiers of torchvision.models."""

from __future__ import annotations

import os
from typing import Any
from urllib.parse import urlsplit

from ...errors import InputError
from ...parsing import nearest
from ..adapted import Preprocessing
from .base import Source, failed, imported, load_weights, numbers, quiet, reachable, weights_file


def build(name: str, options: dict[str, Any]) -> Source:
    """A classifier by torchvision's name, such as `resnet18`. `weights` is a file, or one of
    torchvision's own sets (`IMAGENET1K_V1`, by default the best one); further options are those of
    the builder.

    Raises:
        InputError: torchvision is missing, knows no such classifier, or cannot fetch its weights;
            as `load_weights`.
    """
    torchvision = imported("torchvision", "torchvision")
    models, what = torchvision.models, f"torchvision:{name}"
    name = name.lower()
    known = models.list_models(module=models)
    if name not in known:
        if name in models.list_models():
            raise InputError(f"model {what} is no classifier")
        raise InputError(
            f"model {what}: torchvision knows none of that name{nearest(name, known)[:200]}"
        )
    sets = models.get_model_weights(name)
    given = options.get("weights")
    enum = _set_named(sets, given)
    file = None if enum is not None else weights_file(options, what)
    options.pop("weights", None)
    pretrained = bool(options.pop("pretrained", file is None))
    said = []
    if file is not None:
        enum = next((each for each in sets if _file_name(each) == file.name), None)
        if enum is None:
            enum = sets.DEFAULT
            said.append(f"preprocessing is that of torchvision's own weights {enum.name}")
    else:
        enum = enum or sets.DEFAULT
    with quiet():
        try:
            taken = enum if file is None and pretrained else None
            if taken is not None:
                _check_there(taken, what)
            model = models.get_model(name, weights=taken, **options).eval()
        except InputError:
            raise
        except Exception as error:
            raise failed(what, error) from None
    if file is not None:
        said += [told] if (told := load_weights(file, model, what)) else []
    elif not pretrained:
        said.append("the weights are random: pretrained=false")
    return Source(model, _steps(enum.transforms()), _names(enum, options), tuple(said))


def _set_named(sets: Any, given: Any) -> Any:
    """One of torchvision's own sets of weights by its name; None where it is none."""
    if given is None or os.path.exists(str(given)):
        return None
    name = str(given).rpartition(".")[2].upper()
    return sets.DEFAULT if name == "DEFAULT" else sets.__members__.get(name)


def _file_name(weights: Any) -> str:
    return os.path.basename(urlsplit(weights.url).path)


def _check_there(weights: Any, what: str) -> None:
    """InputError where weights are neither on this machine nor to be had."""
    import torch

    cached = os.path.join(torch.hub.get_dir(), "checkpoints", _file_name(weights))
    if not os.path.exists(cached) and not reachable(weights.url):
        raise InputError(
            f"model {what}: its weights are not on this machine, and cannot be fetched: give "
            f"{what},weights=FILE"
        )


def _names(weights: Any, options: dict[str, Any]) -> tuple[str, ...]:
    names = tuple(map(str, weights.meta.get("categories") or ()))
    return names if options.get("num_classes", len(names)) == len(names) else ()


def _steps(transforms: Any) -> Preprocessing:
    (crop,) = set(transforms.crop_size) if len(set(transforms.crop_size)) == 1 else (None,)
    height, width = (crop, crop) if crop else tuple(transforms.crop_size)[:2]
    resize = list(transforms.resize_size)
    return Preprocessing(
        resize=resize[0] if len(resize) == 1 else (resize[0], resize[1]),
        crop=(height, width),
        interpolation=str(getattr(transforms.interpolation, "value", "bilinear")),
        colour=True,
        mean=numbers(transforms.mean),
        std=numbers(transforms.std),
    )
