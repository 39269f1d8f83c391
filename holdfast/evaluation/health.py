"""Health checks: signs that a robust accuracy is not what it looks like.

After Carlini et al., "On evaluating adversarial robustness", 2019, and Pintor et al.,
"Indicators of attack failure", NeurIPS 2022. Each check returns a `Flag` whether it fires or not.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any
from unittest import mock

import torch
from torch import Tensor

from ..attacks import PGD, Items, Oracle, State, run
from ..attacks.losses import margin
from ..defences import declared
from ..draws import fixed_draws, item_seeds
from ..models.wrapper import is_out_of_memory, predicted, spread_of, traits_of
from ..repair import Diagnosis
from ..threat import Threat
from ..types import Model
from .result import AttackCost, Flag

# Checks made before the search which say, where they fire, that its gradients lead astray.
MISLEADING = ("gradients-vanish", "stands-at-huge-eps")
MORE_STANDING = 0.02  # share of the images by which long runs may break fewer than short ones


def outputs_like_probabilities(logits: Tensor, labels_only: bool = False) -> Flag:
    """Rows of non-negative numbers that sum to 1: a softmax inside makes gradients vanish.

    Args:
        labels_only: whether the model returns classes, which stand here as rows with a single 1.
    """
    sums = logits.sum(1)
    if labels_only:
        return Flag(
            name="outputs-look-like-probabilities",
            fired=False,
            detail="The model returns labels only.",
            figures={"least": float(logits.min()), "mean_sum": float(sums.mean())},
        )
    fired = bool((logits >= 0).all()) and bool(((sums - 1).abs() < 1e-3).all())
    return Flag(
        name="outputs-look-like-probabilities",
        fired=fired,
        detail="The model returns probabilities, not logits: losses saturate and attacks grow weak."
        if fired
        else "The model returns logits.",
        figures={"least": float(logits.min()), "mean_sum": float(sums.mean())},
    )


def not_checked(name: str) -> Flag:
    """A check that would have asked a model whose queries are counted out."""
    return Flag(
        name=name,
        fired=False,
        detail="Not checked: with a budget of queries, no check asks the model.",
        figures={"checked": False},
    )


def outputs_change(
    model: Model, images: Tensor, calls: tuple[Tensor, Tensor] | None = None
) -> Flag:
    """Two calls on the same images differ: the model draws random numbers or keeps a state.

    Args:
        calls: logits (N, K) of two calls that were made already, in the order of the images, which
            may have been shown in different ones. Only where they differ is the model asked again.
    """
    if calls is not None:
        told = _changes(model, *calls)
        if not told.fired:
            return told
    with torch.no_grad():
        return _changes(model, model(images).float(), model(images).float())


def _changes(model: Model, first: Tensor, second: Tensor) -> Flag:
    spread = spread_of(model, first)
    largest = _largest_difference(first, second)
    changed = float((predicted(first) != predicted(second)).float().mean())
    fired = largest > 1e-4 * max(spread, 1e-12)
    return Flag(
        name="outputs-change-between-calls",
        fired=fired,
        detail="The same images get different answers: randomness has to be averaged over."
        if fired
        else "The same images get the same answers.",
        figures={
            "largest_difference": largest,
            "spread_of_logits": spread,
            "answers_changed": changed,
        },
    )


def _largest_difference(first: Tensor, second: Tensor) -> float:
    """Of two answers; one that is missing from one of them only differs without bound."""
    if not torch.equal(first.isnan(), second.isnan()):
        return float(torch.finfo(torch.float32).max)
    return float((first - second).nan_to_num(0.0).abs().max())


ALONE = 4  # images that are predicted by themselves


def depends_on_batch(
    model: Model, images: Tensor, random: bool, calls: tuple[Tensor, Tensor] | None = None
) -> Flag:
    """An image's answer depends on the others in its batch, or on its place: batch norm without
    fixed statistics, a model in training mode, images normalised over the batch.

    Each image alone, and all in the reverse order, against all in a batch. Random defences draw
    from each image's own stream, so that only the batch differs.

    Args:
        images: on the model's device.
        random: whether two equal calls differ; then the batch's part cannot be measured.
        calls: what the model answered to all of them, and to all in the reverse order, in the order
            of the images; by default it is asked.
    """
    name = "answers-depend-on-batch"
    defended = declared(model).random
    if random and not defended:
        return Flag(
            name=name,
            fired=False,
            detail="The same images get different answers: the batch's part cannot be told.",
            figures={},
        )
    rows = torch.arange(len(images))

    def ask(chosen: Tensor) -> Tensor:
        with torch.no_grad(), fixed_draws(item_seeds(0, "batch", chosen)):
            return model(images[chosen.to(images.device)]).float()

    if calls is None or defended:
        calls = ask(rows), ask(rows.flip(0)).flip(0)
    together, backwards = calls
    alone = torch.cat([ask(row[None]) for row in rows[:ALONE]])
    differences = {
        "alone": _largest_difference(alone, together[:ALONE]),
        "reversed": _largest_difference(backwards, together),
    }
    spread, largest = spread_of(model, together), max(differences.values())
    fired = largest > _batch_rounding(model, images.device) * max(spread, 1e-12)
    changed = float((predicted(alone) != predicted(together[:ALONE])).float().mean())
    return Flag(
        name=name,
        fired=fired,
        detail="An image's answer depends on the rest of its batch: verdicts change with "
        "batch_size and with the order of the images."
        if fired
        else "Images get the same answers alone, in a batch, and in another order.",
        figures={
            "alone": differences["alone"],
            "reversed": differences["reversed"],
            "spread_of_logits": spread,
            "answers_changed": changed,
        },
    )


def _batch_rounding(model: Model, device: torch.device) -> float:
    """How much rounding may differ between batches, in the logits' standard deviation."""
    if any(traits.half_precision for traits in traits_of(model)):
        return 0.05
    # Accelerators choose their convolutions by the batch, some in TF32.
    return 1e-4 if device.type == "cpu" else 1e-2


def writes_to_its_input(model: Model) -> Flag:
    """The model wrote to the images that it was given, in any call so far."""
    fired = any(traits.writes_to_images for traits in traits_of(model))
    return Flag(
        name="writes-to-its-input",
        fired=fired,
        detail="The model writes to the images that it is given. Here it got copies; elsewhere "
        "it spoils its caller's."
        if fired
        else "The model leaves its images as they are.",
        figures={},
    )


def answers_nothing(count: int, n: int) -> Flag:
    """The model has no finite logits at some points of the ball: a success of the attacker."""
    fired = count > 0
    return Flag(
        name="answers-nothing",
        fired=fired,
        detail=f"On {count} of {n} images an attack found a point at which the model answers "
        "nothing (a logit is NaN or infinite): they count as broken."
        if fired
        else "The model answered something at every point that counts.",
        figures={"images": count, "n": n},
    )


def averaged(changes: Flag, samples: int) -> Flag:
    """The flag of `outputs_change`, with how many draws an iteration of the suite averages over."""
    if not changes.fired or samples == 1:
        return changes
    detail = (
        "The same images get different answers. The suite averages over up to "
        f"{samples} draws an iteration, and fresh draws decide."
    )
    return changes.model_copy(update={"fired": False, "detail": detail})


@contextmanager
def _backward_calls() -> Iterator[list[int]]:
    """Counts backward passes made inside."""
    calls = [0]
    run = torch.autograd.graph._engine_run_backward

    def counting(*arguments: Any, **named: Any) -> object:
        calls[0] += 1
        return run(*arguments, **named)

    with (
        mock.patch("torch.autograd._engine_run_backward", counting),
        mock.patch("torch.autograd.graph._engine_run_backward", counting),
    ):
        yield calls


def forward_computes_gradients(model: Model, images: Tensor) -> Flag:
    """The forward pass itself runs backward passes: it optimises at test time."""
    with _backward_calls() as calls, torch.enable_grad():
        model(images[:2])
    return Flag(
        name="forward-computes-gradients",
        fired=calls[0] > 0,
        detail="The forward pass computes gradients: a defence that optimises at test time needs "
        "an attack made for it."
        if calls[0]
        else "The forward pass computes no gradients.",
        figures={"backward_passes": calls[0]},
    )


def gradients(model: Model, images: Tensor, labels: Tensor) -> Flag:
    """Input gradients of the margin that are zero, absent or not finite."""
    return gradients_vanish(input_gradients(model, images, labels))


def input_gradients(model: Model, images: Tensor, labels: Tensor) -> Tensor | str:
    """∂margin/∂x at the images, (N, C, H, W); in words why there is none, where that is so."""
    try:
        with torch.enable_grad():  # not through an Oracle, which repairs what is looked for here
            x = images.detach().requires_grad_()
            (gradient,) = torch.autograd.grad(margin(model(x).float(), labels).sum(), x)
        return gradient
    except Exception as error:  # of torch, or of a backward pass of the user's own
        if is_out_of_memory(error):
            raise
        return " ".join(str(error).split())[:120]


def gradients_vanish(gradient: Tensor | str) -> Flag:
    """The flag of `gradients`, of what `input_gradients` found."""
    if isinstance(gradient, str):
        return Flag(
            name="gradients-vanish",
            fired=True,
            detail="The model cannot be differentiated: only attacks without gradients can judge "
            "it.",
            figures={"reason": gradient},
        )
    n, flat = len(gradient), gradient.flatten(1)
    zero = float((flat.abs().amax(1) < 1e-12).float().mean())
    infinite = float((~torch.isfinite(flat).all(1)).float().mean())
    fired = zero > 0.05 or infinite > 0
    return Flag(
        name="gradients-vanish",
        fired=fired,
        detail=f"On {zero:.0%} of {n} images the gradient is zero, on {infinite:.0%} not finite: "
        "gradient attacks are blind there."
        if fired
        else "Gradients are finite and not zero.",
        figures={"zero": zero, "not_finite": infinite, "n": n},
    )


def differentiable(found: Flag) -> bool:
    """Whether PyTorch could differentiate what `gradients` looked at."""
    return "reason" not in found.figures


def more_steps(
    search: Model,
    images: Tensor,
    labels: Tensor,
    threat: Threat,
    seed: int,
    right: Tensor | None = None,
) -> Flag:
    """PGD with 4 times the steps breaks fewer images: its loss surface misleads it.

    The long runs begin with what the short ones broke. Where they break that too, they cannot have
    broken fewer in all, whatever they would do with the others.

    Args:
        right: bool (N,), which images are predicted right; by default the model is asked.
    """
    n = len(images)
    if right is None:
        with torch.no_grad():
            right = margin(search(images).float(), labels) > 0
    short, long = (PGD(steps=k, loss="margin", step_size=2.5 / k) for k in (5, 20))
    stands = _stands(short, search, images, labels, threat, seed, right)
    missed = _stands(long, search, images, labels, threat, seed, right & ~stands)
    found, misses = int(stands.sum()) / n, int(missed.sum()) / n
    figures = {"pgd_5": found, "missed": misses, "n": n}
    detail = (
        f"PGD-5 leaves {found:.1%} standing; of the images that it breaks, PGD-20 misses "
        f"{misses:.1%} of all."
    )
    fired = misses > MORE_STANDING
    if fired:
        others = int(_stands(long, search, images, labels, threat, seed, stands).sum())
        figures["pgd_20"] = misses + others / n
        fired = figures["pgd_20"] > found + MORE_STANDING
        detail = f"PGD-20 leaves {figures['pgd_20']:.1%} standing, PGD-5 {found:.1%}."
    return Flag(name="more-steps-do-not-help", fired=fired, detail=detail, figures=figures)


def _stands(
    attack: PGD,
    search: Model,
    images: Tensor,
    labels: Tensor,
    threat: Threat,
    seed: int,
    among: Tensor,
) -> Tensor:
    """Which of some images stand after an attack, bool (N,)."""
    rows = among.nonzero().squeeze(1)
    if not len(rows):
        return among
    score = _attacked(attack, search, images, labels, threat, seed, rows).score
    return torch.zeros_like(among).index_put((rows,), score > 0)


def _attacked(
    attack: PGD,
    search: Model,
    images: Tensor,
    labels: Tensor,
    threat: Threat,
    seed: int,
    rows: Tensor,
) -> State:
    """What an attack found on some images; an image's draws do not depend on which others are
    attacked."""
    items = Items(
        images=images[rows],
        labels=labels[rows],
        targets=torch.full_like(labels[rows], -1),
        eps=threat.radii(images[rows]),
        seeds=item_seeds(seed, rows.cpu(), attack.name, 0, 0).to(images.device),
    )
    return run(attack, Oracle(search), items, threat)


def hidden_gradients(
    diagnosis: Diagnosis,
    model: Model,
    own: Model | None,
    mended: Model,
    images: Tensor,
    labels: Tensor,
    threat: Threat,
    seed: int,
) -> Flag:
    """PGD through the repaired graph breaks more than through the model's own: the model hides its
    gradient, which is no defence.

    Args:
        diagnosis: what had to be repaired.
        model: the original, which decides.
        own: what attacks query with the model's own gradient; None where it has none.
        mended: the same with repaired gradients.
    """
    name, n = "hidden-gradients", len(images)
    if diagnosis.model is None:
        harmless = len(diagnosis.repairs)
        return Flag(
            name=name,
            fired=False,
            detail=f"{diagnosis.remark[0].upper()}{diagnosis.remark[1:]}."
            if diagnosis.remark
            else "Nothing hides the gradient."
            if not harmless
            else "What may hide a gradient leaves this one as it is.",
            figures={"repaired": harmless},
        )
    attack, found = PGD(steps=20, step_size=0.15, loss="margin"), {}
    for which, search in (("own", own), ("repaired", mended)):
        with torch.no_grad():
            points = images if search is None else attack(search, images, labels, threat, seed=seed)
            found[which] = float((predicted(model(points)) == labels).float().mean())
    places = "; ".join(str(repair) for repair in diagnosis.repairs)
    fired = found["own"] - found["repaired"] > max(0.02, 1.5 / n)
    by_own = (
        "The model has no gradient of its own"
        if own is None
        else (f"PGD-20 by the model's own gradient leaves {found['own']:.1%} standing")
    )
    return Flag(
        name=name,
        fired=fired,
        detail=f"{by_own}; by the repaired one PGD-20 leaves {found['repaired']:.1%}"
        + (": the gradient is hidden, which is no defence. " if fired else ". ")
        + f"Repaired: {places}.",
        figures={**found, "n": n},
    )


HUGE = 16.0  # times ε at least


def huge_eps(
    model: Model,
    searches: Sequence[Model],
    images: Tensor,
    labels: Tensor,
    threat: Threat,
    seed: int,
    right: Tensor | None = None,
) -> Flag:
    """Accuracy in a ball that reaches plain grey must be near 0: where it is not, the attack is
    blind. A smaller one would not do: a good model stands at 16 times a small ε.

    Args:
        model: the original, which decides.
        searches: what attacks query, each with another backward pass; one that works is enough.
        right: bool (N,), which images the model predicts right; by default it is asked.
    """
    ball = threat.huge(images, HUGE)
    attack = PGD(steps=20, step_size=0.25, loss="margin")
    n = len(images)
    if right is None:
        with torch.no_grad():
            right = predicted(model(images)) == labels
    stands = right.clone()
    for search in searches:
        rows = stands.nonzero().squeeze(1)
        if not len(rows):
            break
        points = _attacked(attack, search, images, labels, ball, seed, rows).best
        with torch.no_grad():
            stands[rows] = predicted(model(points)) == labels[rows]
    standing = int(stands.sum()) / n
    fired = standing > 0.05
    where = f"ε = {ball.eps:.3g}" if ball.norm == threat.norm else f"L∞ ε = {ball.eps:.3g}"
    return Flag(
        name="stands-at-huge-eps",
        fired=fired,
        detail=f"At {where}, {standing:.1%} still stand: the attack is blind."
        if fired
        else f"Accuracy falls to {standing:.1%} at {where}.",
        figures={"eps": ball.eps, "robust_accuracy": standing, "n": n},
    )


def gradient_free_wins(costs: tuple[AttackCost, ...], gradient_free: set[str], n: int) -> Flag:
    """A gradient-free attack broke images that every gradient attack before it left standing."""
    costs = tuple(cost for cost in costs if cost.ran)
    blind = [cost.name in gradient_free for cost in costs]
    first = blind.index(False) if False in blind else len(costs)  # gradient attack
    tried = any(blind[first:])
    extra = sum(
        cost.broken for cost, free in zip(costs[first:], blind[first:], strict=True) if free
    )
    fired = extra > max(0.005 * n, 1)
    return Flag(
        name="gradient-free-attack-wins",
        fired=fired,
        detail=f"An attack without gradients broke {extra} images that gradient attacks left: "
        "gradients are masked."
        if fired
        else (
            f"Attacks without gradients broke {extra} further images."
            if tried
            else "The suite has no attack without gradients after one with."
        ),
        figures={"broken": extra, "n": n},
    )


def model_changes(before: str | None, after: str | None) -> Flag:
    """Digests of weights and buffers before and after the evaluation differ."""
    fired = before != after
    return Flag(
        name="model-changes-itself",
        fired=fired,
        detail="Weights or buffers changed during the evaluation: verdicts depend on the order."
        if fired
        else "Weights and buffers are as they were.",
        figures={},
    )
