"""`transformers:FOLDER-or-NAME`: image classifiers of Hugging Face's transformers."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ...errors import InputError
from ...parsing import one_line
from ..adapted import Preprocessing
from .base import Source, failed, hub, imported, load_weights, numbers, quiet, weights_file

# Pillow's numbers of interpolations; Lanczos and Hamming have their nearest relatives.
INTERPOLATION = {0: "nearest", 1: "bicubic", 2: "bilinear", 3: "bicubic", 4: "area", 5: "bilinear"}
CONFIG, PROCESSORS = "config.json", ("preprocessor_config.json", "processor_config.json")
SQUARE = ("ConvNext", "DeiT", "Bit", "CLIP", "Siglip", "Mobile", "PoolFormer", "LevIT")


def build(name: str, options: dict[str, Any]) -> Source:
    """An image classifier of a folder that `save_pretrained` wrote, or of the hub. `weights` is a
    file of its own; further options go to `from_pretrained`, as `revision`.

    No code of a folder is run, and no weights are read that would run any.

    Raises:
        InputError: transformers is missing; a folder without its files, or with damaged ones; a
            name that is neither in the cache nor to be fetched; as `load_weights`.
    """
    what = f"transformers:{name}"
    local = os.path.isdir(name)
    if local:
        _check_folder(Path(name), what, "weights" in options)
    elif os.path.exists(name) or name.startswith((".", "/", "~")) or name.count("/") > 1:
        raise InputError(f"model {what}: there is no such folder")
    transformers = imported("transformers", "transformers")
    file = weights_file(options, what)
    random = options.pop("pretrained", True) is False
    told: tuple[str, ...] = ()
    settings = {"trust_remote_code": False, "local_files_only": local, **options}
    with quiet(), hub() as there:
        try:
            kind = transformers.AutoModelForImageClassification
            if file is None and not random:
                model, report = kind.from_pretrained(name, output_loading_info=True, **settings)
                _check_complete(what, report)
            else:
                config = transformers.AutoConfig.from_pretrained(name, **settings)
                model = kind.from_config(config)
            told, steps = _processing(transformers, name, local, model.config, settings)
        except InputError:
            raise
        except Exception as error:
            raise _explained(what, error, local or there) from None
    if file is not None:
        said = load_weights(file, model, what, key="num_labels")
        told = (*([said] if said else []), *told)
    elif random:
        told = ("the weights are random: pretrained=false", *told)
    return Source(model.float().eval(), steps, _names(model.config), told)


def _check_folder(folder: Path, what: str, brings_weights: bool) -> None:
    if not (folder / CONFIG).is_file():
        raise InputError(f"model {what}: the folder holds no {CONFIG}")
    try:
        config = json.loads((folder / CONFIG).read_text())
    except (OSError, ValueError, RecursionError) as error:
        raise InputError(
            f"model {what}: {CONFIG} cannot be read: {one_line(error)[:150]}"
        ) from None
    if not isinstance(config, dict) or not config.get("model_type"):
        raise InputError(f"model {what}: {CONFIG} says no model_type, so it is not transformers'")
    if config.get("auto_map") and "model_type" in config and not brings_weights:
        # Such a model may still be one of the library's own: then its own code is taken.
        pass
    if not brings_weights and not any(
        entry.suffix in (".safetensors", ".bin") or entry.name.endswith(".index.json")
        for entry in folder.iterdir()
    ):
        raise InputError(f"model {what}: the folder holds no weights (model.safetensors)")


def _check_complete(what: str, report: Mapping[str, Any]) -> None:
    """InputError where weights are missing, which transformers would make up, or do not fit."""
    missing = sorted(report.get("missing_keys") or ())
    shapes = sorted(str(item[0]) for item in report.get("mismatched_keys") or ())
    if missing or shapes:
        names = missing or shapes
        kind = "missing" if missing else "of another shape"
        raise InputError(
            f"model {what}: {len(names)} weights are {kind}: {', '.join(names[:3])}"
            f"{', …' if len(names) > 3 else ''}; is it an image classifier?"
        )


def _explained(what: str, error: Exception, there: bool) -> InputError:
    text = one_line(error)
    if "Unrecognized configuration class" in text or "AutoModelForImageClassification" in text:
        return InputError(f"model {what} is no image classifier")
    if "trust_remote_code" in text:
        return InputError(f"model {what} would run code of its own, which is not done")
    if "weights_only" in text.lower() or "UnpicklingError" in text:
        return InputError(f"model {what}: its weights would run code when they are read: refused")
    if not there:
        return InputError(
            f"model {what}: neither a folder nor in the cache, and the hub cannot be reached"
        )
    return failed(what, error)


def _processing(
    transformers: Any, name: str, local: bool, config: Any, settings: Mapping[str, Any]
) -> tuple[tuple[str, ...], Preprocessing]:
    """What the image processor beside the model says, as steps; and what is remarkable about it."""
    held = _processor(transformers, name, local, settings)
    if held is None:
        size = _pair(getattr(config, "image_size", None))
        told = (
            f"there is no {PROCESSORS[0]} beside the model: nothing is normalised unless --mean "
            "and --std say so"
        )
        channels = getattr(config, "num_channels", 3)
        return (told,), Preprocessing(resize=size, colour=channels == 3)
    return (), steps_of(held, getattr(config, "num_channels", 3))


def _processor(
    transformers: Any, name: str, local: bool, settings: Mapping[str, Any]
) -> dict[str, Any] | None:
    for file in PROCESSORS:
        if local:
            path: Any = Path(name) / file
        else:
            from transformers.utils import cached_file

            try:
                path = cached_file(name, file, revision=settings.get("revision"))
            except Exception:  # not every model has each
                continue
        if path is None or not os.path.isfile(path):
            continue
        try:
            held = json.loads(Path(path).read_text())
        except (OSError, ValueError, RecursionError) as error:
            raise InputError(
                f"model {name}: {file} cannot be read: {one_line(error)[:150]}"
            ) from None
        held = held.get("image_processor", held) if isinstance(held, dict) else held
        if not isinstance(held, dict):
            raise InputError(f"model {name}: {file} holds no image processor")
        return held
    return None


def steps_of(held: Mapping[str, Any], channels: int = 3) -> Preprocessing:
    """The steps of an image processor's configuration.

    Example:
        >>> steps_of({"size": 224, "image_mean": [0.5], "image_std": [0.5], "do_normalize": True})
        ... # doctest: +ELLIPSIS
        Preprocessing(resize=(224, 224), crop=None, ..., mean=(0.5,), std=(0.5,))
    """
    resize, crop = None, None
    size = held.get("size")
    if held.get("do_resize", size is not None) and size is not None:
        resize = _size(size, held)
    share = held.get("crop_pct")
    if isinstance(share, int | float) and share and isinstance(size, Mapping | int):
        edge = size.get("shortest_edge") if isinstance(size, Mapping) else size
        if isinstance(edge, int) and edge < 384:  # as ConvNeXt's processor
            resize, crop = int(edge / share), (edge, edge)
        elif isinstance(edge, int):
            resize = (edge, edge)
    if held.get("do_center_crop") and held.get("crop_size") is not None:
        crop = _pair(held["crop_size"])
    scale = 1.0
    if not held.get("do_rescale", True):
        scale = 255.0
    elif isinstance(held.get("rescale_factor"), int | float):
        scale = held["rescale_factor"] * 255.0
        scale = 1.0 if math.isclose(scale, 1.0, rel_tol=1e-3) else scale
    mean: tuple[float, ...] = ()
    std: tuple[float, ...] = ()
    if held.get("do_normalize", held.get("image_mean") is not None):
        mean, std = numbers(held.get("image_mean")), numbers(held.get("image_std"))
    return Preprocessing(
        resize=resize,
        crop=crop,
        interpolation=INTERPOLATION.get(held.get("resample", 2), "bilinear"),
        colour=channels == 3,
        bgr=bool(held.get("do_flip_channel_order")),
        scale=scale,
        mean=mean,
        std=std,
    )


def _size(size: Any, held: Mapping[str, Any]) -> Any:
    """What images are resized to: a height and width, or a shorter side."""
    if isinstance(size, Mapping) and isinstance(size.get("shortest_edge"), int):
        return size["shortest_edge"]
    if isinstance(size, int) and held.get("do_center_crop"):
        return size
    return _pair(size)


def _pair(size: Any) -> tuple[int, int] | None:
    if isinstance(size, Mapping):
        size = (size.get("height"), size.get("width"))
    if isinstance(size, int):
        size = (size, size)
    if isinstance(size, list | tuple) and len(size) == 2 and all(isinstance(n, int) for n in size):
        return size[0], size[1]
    return None


def _names(config: Any) -> tuple[str, ...]:
    """The outputs' names, where they are more than LABEL_0, LABEL_1, …"""
    held = getattr(config, "id2label", None) or {}
    try:
        names = [str(held[i]) for i in range(len(held))]
    except KeyError:
        return ()
    return () if all(name == f"LABEL_{i}" for i, name in enumerate(names)) else tuple(names)
