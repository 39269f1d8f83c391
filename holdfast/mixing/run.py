"""`mix`: one model of a robust and an accurate one."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Int64
from torch import Tensor, nn

from ..data.base import held_back
from ..defences import steps as steps_of
from ..errors import InputError
from ..evaluation.cards import threat_of
from ..evaluation.classes import check_number_of_logits
from ..evaluation.quick_attack import LOSSES, quick_attack
from ..inputs import checked_device, checked_stored_data, checked_threat
from ..models import build, save_checkpoint
from ..models.black_box import innermost
from ..models.mixture import Mixture
from ..models.modes import evaluating
from ..models.wrapper import standard_defaults, unwrapped, wrapped
from ..runs.environment import circumstances
from ..runs.folder import finish, finished, on_date, open_run, withdraw_run
from ..runs.identity import code_version, digest, identity, settings_digest, weights_digest
from ..runs.lock import claimed
from ..runs.parts import Stages
from ..runs.progress import ProgressLine
from ..runs.records import MixtureFigures, MixtureRecord
from ..runs.records.base import ShownAsRecord
from ..stored import ModelImages, NotInMemory
from ..threat import Threat
from ..types import Images, Model
from .parameters import Choice, Figures, Parameters, fit_mixture

FIGURES = ("chosen", "robust_alone", "accurate_alone")  # of a choice
CODE = (
    "attacks",
    "defences",
    "evaluation/quick_attack.py",
    "mixing",
    "models",
    "threat.py",
    "draws.py",
)


@dataclass(frozen=True, repr=False)
class Mixed(ShownAsRecord):
    """A mixture, and what it achieves on the images that chose it.

    Attributes:
        model: images to logits; robust and accurate model in one.
        choice: its parameters and figures.
        finished: when, ISO 8601, UTC; empty without a run folder.
    """

    model: Mixture
    choice: Choice
    finished: str = ""

    def as_record(self) -> MixtureRecord:
        return _record(self.choice, finished=self.finished or None)


def mix(
    robust: nn.Module,
    accurate: nn.Module,
    images: Images | NotInMemory,
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
    sources: Mapping[str, dict[str, Any]] | None = None,
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
        sources: for the folder, of models that are no networks of ours: under `robust` or
            `accurate` what `holdfast.load` is called with, `{"architecture": "timm:resnet18",
            "arguments": {"mean": "0.5"}}`. Whoever loads the folder has to name them again:
            `hf.load(folder, architecture="timm:resnet18")`.

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
    described = described or {}
    models = {"robust": robust, "accurate": accurate}
    cards = {name: getattr(model, "card", {}) for name, model in models.items()}
    with standard_defaults():
        everything, labels = checked_stored_data(images, labels)
    if run is not None:
        given = sources or {}
        cards = {name: part_card(name, model, given.get(name)) for name, model in models.items()}
        models = {name: unwrapped(model) for name, model in models.items()}  # type: ignore[misc]
    if classes is None:
        classes = cards["robust"].get("classes")
    _check_alike(models, cards, classes, everything.shape[1], described.get("data", {}))
    threat = threat_of(None, None, cards["robust"]) if threat is None else checked_threat(threat)
    where = checked_device(device)
    held, labels = everything.to(where), labels.to(where)
    threat.check_reach(held)
    _check_logits(models, held, classes)
    search = _Search(models, held, labels, threat, cost, steps, rounds, seed)
    if run is None:
        return search.mixed(search.choice(None, progress))
    out, settings = Path(run), search.settings()
    key = identity(**settings)
    with claimed(out):
        asked = {**settings, **_names(cards, described), "n": len(held)}
        _, begun = open_run(out, "mix", key, {"asked": asked, **circumstances(where)})
        earlier = finished(out, MixtureRecord) if begun else None
        if earlier is not None:
            _say_finished(out, earlier, progress)
            return search.mixed(_choice(earlier), earlier.finished or "")
        try:
            choice = search.choice(out, progress)
        except InputError:
            withdraw_run(out)
            raise
        mixed = search.mixed(choice)
        save_checkpoint(out, mixed.model, _card(search, choice, cards, classes, described))
        written = finish(out, _record(choice, key), ["model.safetensors", "card.json"])
        _forget_attacks(out)
    return replace(mixed, finished=written.finished or "")


@dataclass(frozen=True, eq=False)
class _Search:
    """All that decides which parameters are chosen. The attributes are `mix`'s arguments."""

    models: dict[str, nn.Module]
    images: ModelImages
    labels: Int64[Tensor, " n"]
    threat: Threat
    cost: float
    steps: int
    rounds: int
    seed: int

    def settings(self) -> dict[str, Any]:
        """The same, as JSON holds it; a run is identified by this."""
        return {
            "weights": {name: weights_digest(model) for name, model in self.models.items()},
            "images": digest(self.images, self.labels),
            "threat": self.threat.describe(),
            "cost": self.cost,
            "steps": self.steps,
            "rounds": self.rounds,
            "seed": self.seed,
            "settings_sha256": {name: settings_digest(m) for name, m in self.models.items()},
            "code": code_version(*CODE),
        }

    def choice(self, run: Path | None, progress: bool) -> Choice:
        """The chosen parameters. An attack that the run folder keeps is not made again."""
        attacks = Stages(run, ProgressLine("", enabled=False), {})
        with ProgressLine(f"mixing, {self.threat}", progress, run=run) as line:

            def report(share: float, word: str) -> None:
                line.update(share, word)
                line.say(word)

            def attack(model: nn.Module) -> ModelImages:
                def work(_: Any) -> tuple[dict[str, Any], dict[str, Any]]:
                    points = quick_attack(
                        model, self.images, self.labels, self.threat, self.steps, self.seed
                    )
                    return {}, {"points": points.to("cpu")}

                done = attacks.do(f"attack-{len(attacks.seconds)}", work)
                points: ModelImages = done.tensors["points"].to(self.images.device)
                return points

            return fit_mixture(
                self.models["robust"],
                self.models["accurate"],
                self.images,
                self.labels,
                attack,
                cost=self.cost,
                rounds=self.rounds,
                report=report,
            )

    def mixed(self, choice: Choice, when: str = "") -> Mixed:
        """The mixture with the chosen parameters."""
        model = Mixture(
            self.models["robust"], self.models["accurate"], **choice.parameters._asdict()
        )
        return Mixed(model, choice, when)


def _names(cards: dict[str, dict[str, Any]], described: dict[str, Any]) -> dict[str, Any]:
    """What the models and the data are called."""
    names = {name: str(described.get(name, card["architecture"])) for name, card in cards.items()}
    return {**names, "data": described.get("data", {}).get("name")}


def _card(
    search: _Search,
    choice: Choice,
    cards: dict[str, dict[str, Any]],
    classes: Sequence[str] | None,
    described: dict[str, Any],
) -> dict[str, Any]:
    """The mixture's card."""
    names = _names(cards, described)
    parts = {
        name: {"architecture": card["architecture"], "arguments": card["arguments"]}
        for name, card in cards.items()
    }
    return {
        "architecture": "mixture",
        "arguments": {**parts, **choice.parameters._asdict()},
        "classes": list(classes or ()),
        "threat": {"norm": search.threat.norm, "eps": search.threat.eps},
        "parts": {
            name: {"name": Path(names[name]).name, "weights_sha256": card.get("weights_sha256")}
            for name, card in cards.items()
        },
        # Of the part that kept back fewest validation images: on these, nothing was trained.
        "trained_on": min(
            (str(card.get("trained_on", "train")) for card in cards.values()),
            key=lambda name: math.inf if (kept := held_back(name)) is None else kept,
        ),
        "data": described.get("data", {}),
        "seed": search.seed,
        "figures": {
            "validation": {
                **_figures(choice.chosen),
                "robust_alone": _figures(choice.robust_alone),
                "accurate_alone": {"standard_accuracy": choice.accurate_alone.standard},
                "n": choice.n,
                "measured": f"first validation images, which chose the parameters; "
                f"attacked by APGD-{search.steps} ({', '.join(LOSSES)}) on {choice.attacks} "
                "models, through each backward pass that they offer",
            }
        },
    }


def _say_finished(out: Path, earlier: MixtureRecord, progress: bool) -> None:
    _forget_attacks(out)  # left by a process that was killed at the very end
    with ProgressLine("mixing", progress) as line:
        date = on_date(earlier.finished or "")
        line.say(f"{out} was finished on {date}: read, not mixed again")


def _forget_attacks(out: Path) -> None:
    Stages(out, ProgressLine("", enabled=False), {}).forget()


def _record(choice: Choice, key: str | None = None, finished: str | None = None) -> MixtureRecord:
    """What is written of a choice."""
    known = {"identity": key, "finished": finished}
    return MixtureRecord(
        **{name: value for name, value in known.items() if value is not None},  # type: ignore[arg-type]
        parameters=choice.parameters._asdict(),
        chosen=MixtureFigures(**choice.chosen._asdict()),
        robust_alone=MixtureFigures(**choice.robust_alone._asdict()),
        accurate_alone=MixtureFigures(**choice.accurate_alone._asdict()),
        n=choice.n,
        attacks=choice.attacks,
    )


def _choice(record: MixtureRecord) -> Choice:
    """The choice that `_record` was made of."""
    return Choice(
        Parameters(**record.parameters),  # type: ignore[arg-type]
        **{name: Figures(**getattr(record, name).to_dict()) for name in FIGURES},
        n=record.n,
        attacks=record.attacks,
    )


def _figures(figures: Figures) -> dict[str, float]:
    """Accuracies, as a card holds them."""
    return {"standard_accuracy": figures.standard, "attacked_accuracy": figures.standing}


def card_of(name: str, model: Model) -> dict[str, Any]:
    """The card of a model that a mixture's folder can hold.

    A card runs no code, so it holds networks of Holdfast's architectures alone, as they are.

    Args:
        name: `robust` or `accurate`, for the error.

    Raises:
        InputError: it is another network, or one with something before or behind it.
    """
    network = unwrapped(model)
    card = getattr(model, "card", None) or getattr(network, "card", None)
    what = f"the {name} model"
    needed = (
        "a mixture's card runs no code, so it holds networks of Holdfast's architectures alone: "
        "give a checkpoint folder, a training run, a name from the zoo, or a file of weights with "
        "--architecture NAME (`hf.mix` without `run` mixes any models, and keeps nothing)"
    )
    if not isinstance(card, dict) or not isinstance(network, nn.Module):
        raise InputError(f"{what} has no card, so a mixture could not be loaded again; {needed}")
    if card.get("defences"):
        raise InputError(
            f"{what} stands behind {', '.join(card['defences'])}, which a mixture's folder cannot "
            "hold: give the model without"
        )
    try:
        with torch.device("meta"):  # shapes without memory
            known = build(card["architecture"], card["arguments"]).state_dict()
    except (InputError, KeyError):
        raise InputError(
            f"{what} is a {type(network).__name__}, which a mixture's folder cannot hold; {needed}"
        ) from None
    own = {key: value.shape for key, value in network.state_dict().items()}
    if own != {key: value.shape for key, value in known.items()}:
        raise InputError(
            f"{what} is a {card['architecture']} with something before or behind it, which a "
            f"mixture's folder cannot hold; {needed}"
        )
    return card


def part_card(name: str, model: Model, source: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """The card of a model that a mixture's folder can hold, or name.

    Args:
        name: `robust` or `accurate`, for the error.
        source: what the model is called and its options, as of `mix`'s `sources`.

    Raises:
        InputError: as `card_of`, without a source; the model stands behind a defence, or no
            gradient leads through it.
    """
    if source is None:
        return card_of(name, model)
    card = dict(getattr(model, "card", {}) or {})
    network = unwrapped(model)
    if steps_of(network) or card.get("defences"):
        raise InputError(
            f"the {name} model stands behind a defence, which a mixture's folder cannot hold: give "
            "the model without"
        )
    if not isinstance(innermost(model), nn.Module):
        raise InputError(
            f"the {name} model, {source['architecture']}, shows answers only, so no mixture of it "
            "can be attacked through its gradients"
        )
    return {**card, **source}


def _check_alike(
    models: dict[str, nn.Module],
    cards: dict[str, dict[str, Any]],
    classes: Sequence[str] | None,
    channels: int,
    data: dict[str, Any],
) -> None:
    """InputError if a model knows other classes than the data, or takes other image channels."""
    of_data = data.get("name", "the data")
    for name, model in models.items():
        known = list(cards[name].get("classes") or classes or ())
        if classes is not None and known != list(classes):
            raise InputError(
                f"the {name} model knows the classes {', '.join(known[:3])}, …; "
                f"{of_data} has {', '.join(classes[:3])}, …"
            )
        # Each model normalises by itself, so only the number of channels must agree.
        means = [b for key, b in model.named_buffers() if key.endswith("normalise.mean")]
        own = means[0].shape[1] if means else channels
        if own != channels:
            raise InputError(
                f"the {name} model takes images of {own} channels; those of {of_data} "
                f"have {channels}"
            )


def _check_logits(
    models: dict[str, nn.Module], images: ModelImages, classes: Sequence[str] | None
) -> None:
    """InputError if a model has another number of logits than there are classes."""
    for name, model in models.items():
        model.to(images.device)
        with torch.no_grad(), evaluating(model):
            logits = wrapped(model)(images[:1])
        if classes is not None:
            check_number_of_logits(
                logits.shape[1], classes, exactly=True, model=f"the {name} model"
            )
