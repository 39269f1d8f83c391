"""`holdfast mix`: one model of a robust and an accurate one."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from .. import data as datasets
from ..data.base import DataSet, held_back
from ..errors import InputError
from ..evaluation.cards import remark, threat_of, unseen_validation
from ..evaluation.classes import check_number_of_logits
from ..evaluation.quick_attack import LOSSES, strongest
from ..inputs import checked_device
from ..load import load
from ..models import save_checkpoint
from ..models.mixture import Mixture
from ..models.modes import evaluating
from ..models.wrapper import wrapped
from ..runs.environment import circumstances
from ..runs.folder import claimed, finish, finished, on_date, open_run, withdraw_run
from ..runs.identity import code_version, digest, identity, settings_digest, weights_digest
from ..runs.parts import Stages
from ..runs.progress import ProgressLine
from ..threat import Images
from .parameters import Choice, Figures, Parameters, fit_mixture

SCHEMA = "holdfast/mixture/1"
FIGURES = ("chosen", "robust_alone", "accurate_alone")  # of a choice
CODE = ("attacks", "defences", "evaluation/quick_attack.py", "models", "threat.py", "draws.py")


def mix_command(
    robust: str,
    accurate: str,
    data: str | DataSet,
    out: Path,
    *,
    norm: str | None = None,
    eps: str | float | None = None,
    limit: int = 1000,
    cost: float = 0.01,
    steps: int = 40,
    rounds: int = 4,
    size: int | None = None,
    seed: int = 0,
    device: str | None = None,
    progress: bool = False,
) -> tuple[Path, Choice]:
    """Choose a mixture's parameters on validation images and write it as a model.

    Args:
        robust, accurate: checkpoints, training runs or names from the zoo.
        data: whose validation split decides; the test split is not looked at.
        out: the model's folder: both networks in one `model.safetensors`, and the card. The same
            command goes on there where it was interrupted, and tells what came of it once it is
            done.
        norm, eps: what the attacker may do; by default what the robust model was trained for.
        limit: how many validation images.
        cost: how much of the robust model's robust accuracy may be lost, as a fraction.
        steps: of each APGD attack.
        rounds: how many mixtures may be attacked on the way.

    Returns:
        the folder, and what was chosen.

    Raises:
        InputError: models without a card, of different classes or image channels, or of other
            classes than the data; one that was trained on the validation images; a folder that
            holds something already; options out of range.
    """
    if limit < 1:
        raise InputError(f"--limit must be at least 1, not {limit}")
    models = {"robust": load(robust), "accurate": load(accurate)}
    cards = {name: _card(name, model) for name, model in models.items()}
    dataset = data if isinstance(data, DataSet) else datasets.load(data, size=size)
    _check_alike(models, cards, dataset)
    split = unseen_validation(
        dataset, {str(robust): cards["robust"], str(accurate): cards["accurate"]}
    )
    threat = threat_of(norm, eps, cards["robust"])
    where = checked_device(device)
    count = min(limit, len(split))
    remark(dataset, "validation", count)
    images = datasets.to_tensor(split.images[:count]).to(where)
    labels = torch.from_numpy(split.labels[:count].copy()).to(where)
    threat.check_reach(images)
    for name, model in models.items():
        model.to(where)
        with torch.no_grad(), evaluating(model):
            logits = wrapped(model)(images[:1])
        check_number_of_logits(
            logits.shape[1], dataset.classes, exactly=True, model=f"the {name} model"
        )
    told: dict[str, Any] = {
        "weights": {name: weights_digest(model) for name, model in models.items()},
        "images": digest(images, labels),
        "threat": threat.describe(),
        "cost": cost,
        "steps": steps,
        "rounds": rounds,
        "seed": seed,
        "settings_sha256": {name: settings_digest(model) for name, model in models.items()},
        "code": code_version(*CODE),
    }
    key = identity(**told)
    wanted = {**told, "robust": robust, "accurate": accurate, "data": dataset.name, "n": count}
    with claimed(out):
        _, begun = open_run(out, "mix", key, {"asked": wanted, **circumstances(where)})
        done = finished(out) if begun else None
        if done is not None:
            with ProgressLine("mixing", progress) as line:
                Stages(out, line, {}).forget()  # of a process that was killed at the end
                line.say(
                    f"{out} was finished on {on_date(done['finished'])}: read, not mixed again"
                )
            return out, _choice(done)
        with ProgressLine(f"mixing, {threat}", progress) as line:
            stages = Stages(out, ProgressLine("", enabled=False), {})

            def report(share: float, word: str) -> None:
                line.update(share, word)
                line.say(word)

            def attack(model: nn.Module) -> Images:
                """The strongest points, which a run that is interrupted finds once."""

                def work(_: Any) -> tuple[dict[str, Any], dict[str, Tensor]]:
                    points = strongest(model, images, labels, threat, steps, seed)
                    return {}, {"points": points.cpu()}

                return stages.do(f"attack-{len(stages.seconds)}", work).tensors["points"].to(where)

            try:
                choice = fit_mixture(
                    models["robust"],
                    models["accurate"],
                    images,
                    labels,
                    attack,
                    cost=cost,
                    rounds=rounds,
                    report=report,
                )
            except InputError:
                withdraw_run(out)
                raise
        mixture = Mixture(models["robust"], models["accurate"], **choice.parameters._asdict())
        parts = {
            name: {"architecture": card["architecture"], "arguments": card["arguments"]}
            for name, card in cards.items()
        }
        card: dict[str, Any] = {
            "architecture": "mixture",
            "arguments": {**parts, **choice.parameters._asdict()},
            "classes": list(dataset.classes),
            "threat": {"norm": threat.norm, "eps": threat.eps},
            "parts": {
                name: {
                    "name": Path(source).name,
                    "weights_sha256": cards[name].get("weights_sha256"),
                }
                for name, source in (("robust", robust), ("accurate", accurate))
            },
            # That of the part that left out fewest images, for whatever is fitted next.
            "trained_on": min(
                (str(card.get("trained_on", "train")) for card in cards.values()),
                key=lambda name: math.inf if (held := held_back(name)) is None else held,
            ),
            "data": {
                "name": dataset.name,
                "split": "validation",
                "pixels": split.pixels,
                **dataset.result_fields("validation", count),
            },
            "seed": seed,
            "figures": {
                "validation": {
                    **_figures(choice.chosen),
                    "robust_alone": _figures(choice.robust_alone),
                    "accurate_alone": {"standard_accuracy": choice.accurate_alone.standard},
                    "n": choice.n,
                    "measured": f"first validation images, which chose the parameters; "
                    f"attacked by APGD-{steps} ({', '.join(LOSSES)}) on {choice.attacks} models, "
                    "through each backward pass that they offer",
                }
            },
        }
        save_checkpoint(out, mixture, card)
        result = {"schema": SCHEMA, "status": "complete", "identity": key, **_plain(choice)}
        finish(out, result, ["model.safetensors", "card.json"])
        stages.forget()
    return out, choice


def _plain(choice: Choice) -> dict[str, Any]:
    """A choice as JSON holds it."""
    return {
        "parameters": choice.parameters._asdict(),
        **{name: getattr(choice, name)._asdict() for name in FIGURES},
        "n": choice.n,
        "attacks": choice.attacks,
    }


def _choice(done: dict[str, Any]) -> Choice:
    """The choice that `_plain` wrote."""
    return Choice(
        Parameters(**done["parameters"]),
        **{name: Figures(**done[name]) for name in FIGURES},
        n=done["n"],
        attacks=done["attacks"],
    )


def _figures(figures: Figures) -> dict[str, float]:
    return {"standard_accuracy": figures.standard, "attacked_accuracy": figures.standing}


def _card(name: str, model: nn.Module) -> dict[str, Any]:
    card = getattr(model, "card", None)
    if not isinstance(card, dict):
        raise InputError(
            f"the {name} model has no card, so a mixture could not be loaded again; "
            "give a checkpoint folder, a training run or a name from the zoo"
        )
    return card


def _check_alike(
    models: dict[str, nn.Module], cards: dict[str, dict[str, Any]], dataset: DataSet
) -> None:
    channels = dataset.train.images.shape[1]
    for name, model in models.items():
        known = list(cards[name]["classes"])
        if known != list(dataset.classes):
            raise InputError(
                f"the {name} model knows the classes {', '.join(known[:3])}, …; "
                f"{dataset.name} has {', '.join(dataset.classes[:3])}, …"
            )
        # Each part normalises by itself, so they may differ in that, but not in the channels.
        means = [b for key, b in model.named_buffers() if key.endswith("normalise.mean")]
        own = means[0].shape[1] if means else channels
        if own != channels:
            raise InputError(
                f"the {name} model takes images of {own} channels; those of {dataset.name} "
                f"have {channels}"
            )
