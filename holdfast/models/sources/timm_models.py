"""`timm:NAME`: models of PyTorch Image Models (Wightman, 2019)."""

from __future__ import annotations

import math
import os
from typing import Any

from ...errors import InputError
from ...parsing import nearest
from ..adapted import Preprocessing
from .base import Source, failed, hub, imported, load_weights, numbers, quiet, weights_file

INTERPOLATION = {"bilinear": "bilinear", "nearest": "nearest", "hamming": "bilinear", "box": "area"}


def build(name: str, options: dict[str, Any]) -> Source:
    """A model by timm's name (`resnet18`, `resnet18.a1_in1k`, `timm/resnet18.a1_in1k`,
    `hf-hub:…`) or of a folder; further options are those of `timm.create_model`.

    Raises:
        InputError: timm is missing, knows no such model, or cannot fetch it; as `load_weights`.
    """
    timm = imported("timm", "timm")
    what = f"timm:{name}"
    file = weights_file(options, what)
    pretrained = options.pop("pretrained", file is None)
    asked = _name(name, remote=file is None and pretrained)
    with quiet(), hub() as there:
        try:
            model = timm.create_model(asked, pretrained=bool(pretrained), **options).eval()
        except Exception as error:
            remote = bool(pretrained) or "/" in asked
            raise _explained(timm, name, error, there or not remote) from None
    said = []
    if file is not None:
        said += [told] if (told := load_weights(file, model, what)) else []
    elif not pretrained:
        said.append("the weights are random: pretrained=false")
    config = timm.data.resolve_model_data_config(model)
    channels = int(options.get("in_chans") or config["input_size"][0])
    return Source(model, _steps(config, channels), _names(timm, model), tuple(said))


def _name(name: str, remote: bool) -> str:
    if os.path.isdir(name):
        return f"local-dir:{name}"
    if name.startswith("timm/"):
        return f"hf-hub:{name}" if remote else name.removeprefix("timm/")
    if "/" in name and not name.startswith(("hf-hub:", "hf_hub:", "local-dir:")):
        return f"hf-hub:{name}"
    return name


def _explained(timm: Any, name: str, error: Exception, there: bool) -> InputError:
    what, text = f"timm:{name}", str(error)
    plain = name.removeprefix("timm/")
    known = timm.list_models()
    if ("Unknown model" in text or isinstance(error, KeyError)) and "/" not in plain:
        return InputError(f"model {what}: timm knows none of that name{_near(plain, known)}")
    if not there and not os.path.isdir(name) and plain.split(".")[0] in known:
        return InputError(
            f"model {what}: its weights are not on this machine, and the hub cannot be reached: "
            f"give timm:{plain},weights=FILE"
        )
    if not there and "/" in name and not os.path.isdir(name):
        return InputError(f"model {what}: not on this machine, and the hub cannot be reached")
    return failed(what, error)


def _near(name: str, known: list[str]) -> str:
    said = nearest(name.split(".")[0], known)
    return said if said.startswith("; did") else "; timm.list_models() lists them"


def _steps(config: dict[str, Any], channels: int) -> Preprocessing:
    _, height, width = config["input_size"]
    share = float(config.get("crop_pct") or 1.0)
    larger = math.floor(height / share), math.floor(width / share)
    squash = config.get("crop_mode") == "squash" or height != width
    mean, std = numbers(config.get("mean")), numbers(config.get("std"))
    if channels == 1 and len(mean) > 1:
        mean, std = (sum(mean) / len(mean),), (sum(std) / len(std),)
    return Preprocessing(
        resize=larger if squash else larger[0],
        crop=(height, width),
        interpolation=INTERPOLATION.get(str(config.get("interpolation")), "bicubic"),
        colour=channels == 3,
        mean=mean,
        std=std,
    )


def _names(timm: Any, model: Any) -> tuple[str, ...]:
    """What the outputs are called: by the model's own configuration, else as ImageNet's synsets."""
    config = getattr(model, "pretrained_cfg", None) or {}
    own = config.get("label_names")
    count = getattr(model, "num_classes", 0)
    if own and len(own) == count:
        return tuple(map(str, own))
    if count != 1000:
        return ()
    try:
        known = timm.data.ImageNetInfo("imagenet-1k")
        return tuple(
            f"{synset} {known.index_to_description(i)}"
            for i, synset in enumerate(known.label_names())
        )
    except Exception:  # names are a help, and nothing depends on them
        return ()
