"""`robustbench:NAME`: models of RobustBench's zoo (Croce et al., 2021)."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ...errors import InputError
from ...parsing import nearest, parse_number
from .base import Source, failed, imported, quiet

DATA = ("cifar10", "cifar100", "imagenet")
THREATS = ("Linf", "L2", "corruptions", "corruptions_3d")
NORMS = {"Linf": "linf", "L2": "l2"}
USUAL = {("cifar10", "L2"): 0.5, ("imagenet", "Linf"): 4 / 255}  # its benchmarks' radii, else 8/255
CIFAR10 = ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"]


def build(name: str, options: dict[str, Any]) -> Source:
    """A model by its name there: `NAME`, or `cifar10/Linf/NAME`; with `dataset` (cifar10, cifar100,
    imagenet), `threat` (Linf, L2, corruptions) and `model_dir`, where its files are kept.

    Raises:
        InputError: robustbench is missing, knows no such model, or cannot fetch it.
    """
    what = f"robustbench:{name}"
    *place, short = name.split("/")
    if len(place) not in (0, 2):
        raise InputError(f"model {what}: write robustbench:NAME or robustbench:cifar10/Linf/NAME")
    dataset, threat = place or ("cifar10", "Linf")
    dataset = _one_of(what, "dataset", str(options.pop("dataset", dataset)), DATA)
    threat = _one_of(what, "threat", str(options.pop("threat", threat)), THREATS)
    folder = str(options.pop("model_dir", options.pop("dir", "models")))
    if options:
        raise InputError(
            f"model {what} has no option {next(iter(options))!r}; known: dataset, threat, model_dir"
        )
    robustbench = imported("robustbench", "robustbench", _ADDRESS)
    entry = _entry(robustbench, dataset, threat, short, what)
    load = imported("robustbench.utils", "robustbench", _ADDRESS).load_model
    with quiet():
        try:
            model = load(model_name=short, model_dir=folder, dataset=dataset, threat_model=threat)
        except Exception as error:
            raise failed(what, error) from None
    card, said = _card(robustbench, dataset, threat, short, entry)
    return Source(model.eval(), names=(), said=said, card=card)


_ADDRESS = "git+https://github.com/RobustBench/robustbench"


def _one_of(what: str, key: str, value: str, known: tuple[str, ...]) -> str:
    for each in known:
        if each.lower() == value.lower().replace("-", ""):
            return each
    raise InputError(f"model {what}: {key} {value!r} is unknown{nearest(value, known)}")


def _entry(robustbench: Any, dataset: str, threat: str, name: str, what: str) -> Mapping[str, Any]:
    """The model's entry in the zoo's list; empty where the list is kept otherwise."""
    lists = getattr(imported("robustbench.model_zoo", "robustbench", _ADDRESS), "model_dicts", None)
    if not isinstance(lists, Mapping):
        return {}
    by_threat = _by_value(lists, dataset)
    models = _by_value(by_threat, threat.replace("_3d", "")) if by_threat else None
    if not isinstance(models, Mapping):
        return {}
    if name not in models:
        raise InputError(
            f"model {what}: RobustBench lists none of that name for {dataset}, {threat}"
            f"{nearest(name, models)[:200]}"
        )
    entry = models[name]
    return entry if isinstance(entry, Mapping) else {}


def _by_value(lists: Mapping[Any, Any], value: str) -> Any:
    """What stands under a key that is this text, or an enumeration of this value."""
    for key, held in lists.items():
        if getattr(key, "value", key) == value:
            return held
    return None


def _card(
    robustbench: Any, dataset: str, threat: str, name: str, entry: Mapping[str, Any]
) -> tuple[dict[str, Any], tuple[str, ...]]:
    """A card of the entry, and of the file in `model_info/` where it is installed."""
    info = _info(robustbench, dataset, threat, name)
    card: dict[str, Any] = {
        "architecture": str(info.get("architecture") or name),
        "source": f"RobustBench, {dataset}, {threat}",
        "paper": {k: info[k] for k in ("name", "authors", "venue", "link") if info.get(k)},
        "data": dataset,
    }
    if threat in NORMS:
        eps = USUAL.get((dataset, threat), 8 / 255 if threat == "Linf" else 0.5)
        if info.get("eps") is not None:
            with contextlib.suppress(InputError):
                eps = parse_number(info["eps"])
        card["threat"] = {"norm": NORMS[threat], "eps": eps}
    if dataset == "cifar10":
        card["classes"] = list(CIFAR10)
    said = [f"RobustBench's {name}: {dataset}, {threat}"]
    figures = {
        key: float(info[field]) / 100
        for key, field in (
            ("standard_accuracy", "clean_acc"),
            ("robust_accuracy", "autoattack_acc"),
        )
        if _is_number(info.get(field))
    }
    if figures:
        card["figures"] = {**figures, "measured": "as RobustBench states it, on all test images"}
        told = ", ".join(f"{key.replace('_', ' ')} {value:.2%}" for key, value in figures.items())
        said.append(f"RobustBench states {told}")
    if entry.get("preprocessing"):
        card["preprocessing"] = str(entry["preprocessing"])
        said.append(
            f"RobustBench's images for it went through {entry['preprocessing']}: prepare the data "
            "so, or say --input-size"
        )
    return card, tuple(said)


def _info(robustbench: Any, dataset: str, threat: str, name: str) -> dict[str, Any]:
    import json

    beside = Path(getattr(robustbench, "__file__", None) or ".").resolve().parent
    for root in (beside, beside.parent, Path(".")):
        file = root / "model_info" / dataset / threat / f"{name}.json"
        if os.path.isfile(file):
            try:
                held = json.loads(file.read_text())
                return held if isinstance(held, dict) else {}
            except (OSError, ValueError):
                return {}
    return {}


def _is_number(value: Any) -> bool:
    try:
        return 0 <= float(value) <= 100
    except (TypeError, ValueError):
        return False
