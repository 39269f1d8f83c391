"""`mix`: one model of a robust and an accurate one."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Int64
from torch import Tensor, nn

from ..data.base import held_back
from ..errors import InputError
from ..evaluation.cards import threat_of
from ..evaluation.classes import check_number_of_logits
from ..evaluation.quick_attack import LOSSES, strongest
from ..inputs import checked_data, checked_device, checked_threat
from ..models import save_checkpoint
from ..models.mixture import Mixture
from ..models.modes import evaluating
from ..models.wrapper import standard_defaults, wrapped
from ..runs.environment import circumstances
from ..runs.folder import claimed, finish, finished, on_date, open_run, withdraw_run
from ..runs.identity import code_version, digest, identity, settings_digest, weights_digest
from ..runs.parts import Stages
from ..runs.progress import ProgressLine
from ..threat import Images, Threat
from .parameters import Choice, Figures, Parameters, fit_mixture

SCHEMA = "holdfast/mixture/1"
FIGURES = ("chosen", "robust_alone", "accurate_alone")  # of a choice
CODE = ("attacks", "defences", "evaluation/quick_attack.py", "models", "threat.py", "draws.py")


@dataclass(frozen=True)
class Mixed:
    """A mixture, and what it achieves on the images that chose it.

    Attributes:
        model: images to logits; robust and accurate model in one.
        choice: its parameters and figures.
        finished: when, ISO 8601, UTC; empty without a run folder.
    """

    model: Mixture
    choice: Choice
    finished: str = ""


def mix(
    robust: nn.Module,
    accurate: nn.Module,
    images: Images,
    labels: Int64[Tensor, " n"] | None = None,
    threat: Threat | None = None,
    *,
    cost: float = 0.01,
    steps: int = 40,
    rounds: int = 4,
    seed: int = 0,
    device: str | None = None,
    run: Path | str | None = None,
    progress: bool = False,
    classes: Sequence[str] | None = None,
    described: dict[str, Any] | None = None,
) -> Mixed:
    """Blend a robust and an accurate model into one that has both accuracies.

    The mixture's parameters are chosen on images that neither model was trained on, and never on
    test images (after Bai et al., "MixedNUTS", TMLR 2024).

    Args:
        robust, accurate: images to logits (N, K), of the same classes.
        images: float32 (N, C, H, W) in [0, 1], or whatever else `holdfast.evaluate` takes.
        labels: int64 (N,), the true classes.
        threat: what the attacker may do; by default what the robust model was trained for, else
            L∞ 8/255.
        cost: how much of the robust model's robust accuracy may be lost, as a fraction.
        steps: iterations of each APGD attack.
        rounds: how many mixtures may be attacked on the way.
        seed: of all random draws.
        device: where to work; by default the GPU where there is one.
        run: the mixture's folder: both networks in one `model.safetensors`, and the card, so that
            `holdfast.load` takes it. The same call goes on there where it was interrupted. Both
            models need cards for it: those that `holdfast.load` gives have one.
        progress: show a progress bar (plain lines where there is no terminal).
        classes: names of the classes that the data has; by default those of the robust model's
            card.
        described: for the folder: what the models and the data are called.

    Returns:
        the mixture, and the figures on the images that chose it.

    Raises:
        InputError: models of different classes or image channels; models without a card where a
            folder is to be written; bad images, labels or options; a folder that holds something
            else already.

    Example:
        >>> import torch, holdfast as hf
        >>> one, other = (
        ...     torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(4, 2)) for _ in range(2)
        ... )
        >>> images, labels = torch.rand(3, 1, 2, 2), torch.tensor([0, 1, 1])
        >>> hf.mix(one, other, images, labels, hf.Threat("linf", 0.1), steps=2, rounds=1).choice.n
        3
    """
    models = {"robust": robust, "accurate": accurate}
    cards = {name: getattr(model, "card", {}) for name, model in models.items()}
    with standard_defaults():
        images, labels = checked_data(images, labels)
    if run is not None:
        cards = {name: card_of(name, model) for name, model in models.items()}
    if classes is None:
        classes = cards["robust"].get("classes")
    _check_alike(models, cards, classes, images.shape[1], (described or {}).get("data", {}))
    threat = threat_of(None, None, cards["robust"]) if threat is None else checked_threat(threat)
    where = checked_device(device)
    images, labels = images.to(where), labels.to(where)
    threat.check_reach(images)
    for name, model in models.items():
        model.to(where)
        with torch.no_grad(), evaluating(model):
            logits = wrapped(model)(images[:1])
        if classes is not None:
            check_number_of_logits(
                logits.shape[1], classes, exactly=True, model=f"the {name} model"
            )
    if run is None:
        with ProgressLine(f"mixing, {threat}", progress) as line:
            stages = Stages(None, ProgressLine("", enabled=False), {})
            choice = _chosen(
                models, images, labels, threat, cost, steps, rounds, seed, stages, line
            )
        return Mixed(Mixture(robust, accurate, **choice.parameters._asdict()), choice)
    out = Path(run)
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
    names = {name: str((described or {}).get(name, cards[name]["architecture"])) for name in models}
    data = (described or {}).get("data", {})
    wanted = {**told, **names, "data": data.get("name"), "n": len(images)}
    with claimed(out):
        _, begun = open_run(out, "mix", key, {"asked": wanted, **circumstances(where)})
        done = finished(out) if begun else None
        if done is not None:
            with ProgressLine("mixing", progress) as line:
                Stages(out, line, {}).forget()  # of a process that was killed at the end
                line.say(
                    f"{out} was finished on {on_date(done['finished'])}: read, not mixed again"
                )
            choice = _choice(done)
            mixture = Mixture(robust, accurate, **choice.parameters._asdict())
            return Mixed(mixture, choice, done["finished"])
        with ProgressLine(f"mixing, {threat}", progress) as line:
            stages = Stages(out, ProgressLine("", enabled=False), {})
            try:
                choice = _chosen(
                    models, images, labels, threat, cost, steps, rounds, seed, stages, line
                )
            except InputError:
                withdraw_run(out)
                raise
        mixture = Mixture(robust, accurate, **choice.parameters._asdict())
        parts = {
            name: {"architecture": card["architecture"], "arguments": card["arguments"]}
            for name, card in cards.items()
        }
        card: dict[str, Any] = {
            "architecture": "mixture",
            "arguments": {**parts, **choice.parameters._asdict()},
            "classes": list(classes or ()),
            "threat": {"norm": threat.norm, "eps": threat.eps},
            "parts": {
                name: {
                    "name": Path(names[name]).name,
                    "weights_sha256": cards[name].get("weights_sha256"),
                }
                for name in models
            },
            # That of the part that left out fewest images, for whatever is fitted next.
            "trained_on": min(
                (str(card.get("trained_on", "train")) for card in cards.values()),
                key=lambda name: math.inf if (held := held_back(name)) is None else held,
            ),
            "data": data,
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
        written = finish(out, result, ["model.safetensors", "card.json"])
        stages.forget()
    return Mixed(mixture, choice, written["finished"])


def _chosen(
    models: dict[str, nn.Module],
    images: Images,
    labels: Tensor,
    threat: Threat,
    cost: float,
    steps: int,
    rounds: int,
    seed: int,
    stages: Stages,
    line: ProgressLine,
) -> Choice:
    """The mixture's parameters; attacks that `stages` remembers are not made again."""

    def report(share: float, word: str) -> None:
        line.update(share, word)
        line.say(word)

    def attack(model: nn.Module) -> Images:
        """The strongest points, which a run that is interrupted finds once."""

        def work(_: Any) -> tuple[dict[str, Any], dict[str, Tensor]]:
            points = strongest(model, images, labels, threat, steps, seed)
            return {}, {"points": points.cpu()}

        done = stages.do(f"attack-{len(stages.seconds)}", work)
        return done.tensors["points"].to(images.device)

    return fit_mixture(
        models["robust"],
        models["accurate"],
        images,
        labels,
        attack,
        cost=cost,
        rounds=rounds,
        report=report,
    )


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


def card_of(name: str, model: nn.Module) -> dict[str, Any]:
    card = getattr(model, "card", None)
    if not isinstance(card, dict):
        raise InputError(
            f"the {name} model has no card, so a mixture could not be loaded again; "
            "give a checkpoint folder, a training run or a name from the zoo"
        )
    return card


def _check_alike(
    models: dict[str, nn.Module],
    cards: dict[str, dict[str, Any]],
    classes: Sequence[str] | None,
    channels: int,
    data: dict[str, Any],
) -> None:
    """InputError if a model knows other classes than the data, or takes other images."""
    of_data = data.get("name", "the data")
    for name, model in models.items():
        known = list(cards[name].get("classes") or classes or ())
        if classes is not None and known != list(classes):
            raise InputError(
                f"the {name} model knows the classes {', '.join(known[:3])}, …; "
                f"{of_data} has {', '.join(classes[:3])}, …"
            )
        # Each part normalises by itself, so they may differ in that, but not in the channels.
        means = [b for key, b in model.named_buffers() if key.endswith("normalise.mean")]
        own = means[0].shape[1] if means else channels
        if own != channels:
            raise InputError(
                f"the {name} model takes images of {own} channels; those of {of_data} "
                f"have {channels}"
            )
