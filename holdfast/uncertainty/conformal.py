"""Conformal sets: sets of classes that hold the true class with a promised probability.

**Plain** sets (`SplitConformal`): if calibration and test images are exchangeable, the set of a
test image holds its label with probability at least 1 − α, over the draw of both. Attacked images
are not exchangeable with clean ones: under attack, the promise is lost.

**Robust** sets (`RobustConformal`) keep the promise under every attack within an L2 radius. The
model sees each image once, with Gaussian noise added.

Neither kind promises coverage for one given image, nor for one class unless it is
class-conditional.

Example:
    >>> rng = np.random.default_rng(0)
    >>> labels = rng.integers(0, 3, 200)
    >>> probabilities = 0.7 * np.eye(3)[labels] + 0.3 * rng.dirichlet([1, 1, 1], 200)
    >>> conformal = SplitConformal.fit(probabilities[:100], labels[:100], alpha=0.1)
    >>> report = report_sets(conformal.sets(probabilities[100:]), labels[100:])
    >>> report.coverage >= 0.85, report.n
    (True, 100)
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple, Self

import numpy as np
from jaxtyping import Bool, Float, Float64, Int64, UInt8
from scipy.stats import betabinom, norm
from torch import Tensor, nn

from .. import draws
from ..errors import InputError
from ..models.modes import evaluating
from ..models.wrapper import wrapped
from ..types import Stored
from .batches import in_batches
from .inputs import (
    Array,
    as_array,
    ceil_share,
    check_every_class,
    checked_items,
    checked_labels,
    checked_probabilities,
    checked_share,
)

Items = Int64[Tensor, " n"]

# --- nonconformity scores: probabilities (N, K) and uniform draws (N,) to scores (N, K) ----------


def _lac(p: Float64[np.ndarray, "n k"], u: Float64[np.ndarray, " n"]) -> Float64[np.ndarray, "n k"]:
    """1 − p_k (Sadinle, Lei & Wasserman, "Least ambiguous set-valued classifiers", JASA 2019)."""
    return 1 - p


def _aps(p: Float64[np.ndarray, "n k"], u: Float64[np.ndarray, " n"]) -> Float64[np.ndarray, "n k"]:
    """Probability of all likelier classes + u · p_k (Romano, Sesia & Candès, NeurIPS 2020)."""
    order = np.argsort(-p, axis=1, kind="stable")
    sorted_p = np.take_along_axis(p, order, 1)
    scores = np.empty_like(p)
    np.put_along_axis(scores, order, sorted_p.cumsum(1) - (1 - u[:, None]) * sorted_p, 1)
    return scores


def _raps(
    p: Float64[np.ndarray, "n k"],
    u: Float64[np.ndarray, " n"],
    penalty: float = 0.1,
    free: int = 2,
) -> Float64[np.ndarray, "n k"]:
    """APS + penalty · (rank − free)₊, which keeps sets small (Angelopoulos et al., ICLR 2021).

    The penalty is fixed beforehand, for about ten classes. Chosen on the calibration images, it
    would cost the guarantee.
    """
    rank = np.argsort(np.argsort(-p, axis=1, kind="stable"), axis=1) + 1
    return _aps(p, u) + penalty * np.maximum(0, rank - free)


NonconformityScore = Callable[
    [Float64[np.ndarray, "n k"], Float64[np.ndarray, " n"]], Float64[np.ndarray, "n k"]
]
# How badly each class fits the model's probabilities: higher = worse.
NONCONFORMITY_SCORES: dict[str, NonconformityScore] = {"lac": _lac, "aps": _aps, "raps": _raps}


def _nonconformity(
    probs: Array, score: str, seed: int, split: str, items: Items | None
) -> Float64[np.ndarray, "n k"]:
    p = checked_probabilities(probs)
    seeds = draws.item_seeds(seed, "conformal", split, checked_items(items, len(p)))
    return NONCONFORMITY_SCORES[score](p, draws.uniform(seeds, 0).double().numpy())


# --- plain sets ---------------------------------------------------------------------------------


@dataclass(frozen=True)
class SplitConformal:
    """Split-conformal sets (Vovk, Gammerman & Shafer 2005; Papadopoulos et al. 2002).

    Each of the n calibration images has a nonconformity score of its true class. The
    ⌈(n+1)(1−α)⌉-th smallest of these is the threshold: the set of a new image holds every class
    with a nonconformity score of at most this. For exchangeable images, P(label in set) ≥ 1 − α.
    With `class_conditional`, each class has a threshold of its own (Vovk, "Conditional validity of
    inductive conformal predictors", 2012), and the promise holds within each class. Sets may be
    empty, or hold all classes.

    Attributes:
        alpha: share of sets that may miss the true class, in (0, 1).
        score: `lac` (smallest sets), `aps` or `raps` (sets that adapt to the image).
        thresholds: (K,), the largest nonconformity score in a set, class by class.
        n: number of calibration images; with `class_conditional`, of the rarest class.
        seed: of the random draws of `aps` and `raps`.

    Example:
        >>> probabilities = np.array([[0.9, 0.1], [0.8, 0.2], [0.3, 0.7], [0.4, 0.6]])
        >>> labels = np.array([0, 0, 1, 1])
        >>> conformal = SplitConformal.fit(probabilities, labels, alpha=0.25, score="lac")
        >>> conformal.sets(np.array([[0.95, 0.05], [0.55, 0.45]]))
        array([[ True, False],
               [False, False]])
    """

    alpha: float
    score: str
    thresholds: Float64[np.ndarray, " k"]
    n: int
    seed: int

    @classmethod
    def fit(
        cls,
        probs: Float[Array, "n k"],
        labels: Int64[Array, " n"],
        alpha: float,
        *,
        score: str = "aps",
        class_conditional: bool = False,
        seed: int = 0,
        items: Items | None = None,
    ) -> Self:
        """Fit thresholds on calibration images, on which nothing else was fitted.

        Args:
            probs: (N, K), rows summing to 1.
            labels: (N,) in 0 … K−1.
            alpha: in (0, 1), taken as the decimal that was written.
            score: a key of `NONCONFORMITY_SCORES`.
            class_conditional: whether each class has a threshold of its own.
            seed: of the random draws of `aps` and `raps`.
            items: (N,), the number of each image in the calibration split, to which its draw
                belongs; None: 0 … N−1.

        Raises:
            InputError: α outside (0, 1); fewer images (of a class) than 1/α; a class without
                images; an unknown score; bad probabilities or labels.
        """
        share = checked_share("alpha", alpha)
        if score not in NONCONFORMITY_SCORES:
            known = ", ".join(NONCONFORMITY_SCORES)
            raise InputError(f"conformal score {score!r} is unknown; it is {known}")
        nonconformity = _nonconformity(probs, score, seed, "calibration", items)
        n, classes = nonconformity.shape
        y = checked_labels(labels, n, classes)
        check_every_class(y, classes)
        own = nonconformity[np.arange(n), y]
        groups = [own[y == k] for k in range(classes)] if class_conditional else [own]
        for k, group in enumerate(groups):
            if len(group) < 1 / share:
                of_class = f" of class {k}" if class_conditional else ""
                raise InputError(
                    f"{len(group)} calibration images{of_class} are too few for alpha = {alpha}: "
                    f"give at least {math.ceil(1 / share)}"
                )
        # n + 1 − ⌊(n+1)α⌋ = ⌈(n+1)(1−α)⌉, at most n because n ≥ 1/α.
        quantiles = [np.sort(group)[ceil_share(1 - share, len(group) + 1) - 1] for group in groups]
        thresholds = np.broadcast_to(np.array(quantiles), classes).copy()
        return cls(alpha, score, thresholds, min(map(len, groups)), seed)

    def sets(
        self, probs: Float[Array, "n k"], items: Items | None = None
    ) -> Bool[np.ndarray, "n k"]:
        """Which classes are in each image's set, bool (N, K).

        Args:
            probs: (N, K) of test images.
            items: (N,), the number of each image in the test split; None: 0 … N−1.
        """
        nonconformity = _nonconformity(probs, self.score, self.seed, "test", items)
        if nonconformity.shape[1] != len(self.thresholds):
            raise InputError(
                f"probabilities of {nonconformity.shape[1]} classes, but the sets were calibrated "
                f"for {len(self.thresholds)}"
            )
        return nonconformity <= self.thresholds


# --- robust sets --------------------------------------------------------------------------------


def robust_alpha(alpha: float, radius: float, sigma: float) -> float:
    """The α′ at which to calibrate so that α holds under attack: 1 − Φ(Φ⁻¹(1 − α) + radius/σ).

    Args:
        alpha: in (0, 1).
        radius: L2, in image units, 0 or more.
        sigma: standard deviation of the noise in image units, above 0.

    Raises:
        InputError: an argument out of its range.

    Example:
        >>> round(robust_alpha(0.1, radius=0.125, sigma=0.25), 4)
        0.0374
    """
    checked_share("alpha", alpha)
    if not radius >= 0:
        raise InputError(f"the L2 radius must be 0 or more, not {radius}")
    if not (sigma > 0 and math.isfinite(sigma)):
        raise InputError(f"sigma of the smoothing noise must be above 0, not {sigma}")
    return float(norm.sf(norm.isf(alpha) + radius / sigma))


@dataclass(frozen=True)
class RobustConformal:
    """Conformal sets that keep their promise under any attack within an L2 radius.

    Zargarbashi, Akhondzadeh & Bojchevski, "One sample is enough to make conformal prediction
    robust", NeurIPS 2025. To every image, calibration and test, noise σZ with Z ~ N(0, I) is added
    once, and the sets are split-conformal at the stricter α′ of `robust_alpha`.

    **What holds.** Let (X, Y) be exchangeable with the clean calibration images. Let X̃ be any image
    with ‖X̃ − X‖₂ ≤ radius, chosen by someone who knows the model, the calibration images, the
    thresholds and Y: everything but the draw of Z. Then P(Y ∈ C(X̃ + σZ)) ≥ 1 − α, over the
    calibration images, (X, Y) and all noise. With `class_conditional`, this holds within each
    class.

    **Why.** With β(x) the probability over Z that the set of x + σZ holds Y, the Neyman–Pearson
    lemma gives β(X̃) ≥ c(β(X)) with c(β) = Φ(Φ⁻¹(β) − radius/σ) (Cohen, Rosenfeld & Kolter, ICML
    2019). c rises and is convex, so E c(β) ≥ c(E β) ≥ c(1 − α′) = 1 − α by Jensen's inequality.
    The draw is a part of the method and estimates nothing, so there is no Monte-Carlo error, and
    any number of calibration images that α′ allows suffices.

    **What does not hold.** Nothing is promised beyond the radius. An L1 ball of the same radius is
    inside; an L∞ ball of radius ε is inside only if ε·√(C·H·W) ≤ radius. Nothing is promised
    against an attacker who knows the seed, or who may query until a draw suits them. Coverage there
    can be measured, and is then empirical. The noise is that of `holdfast.draws`: float32, and no
    value is farther than 5.4 standard deviations from 0.

    Attributes:
        model: images to logits; best trained with this noise.
        radius: L2, in image units.
        sigma: standard deviation of the noise in image units.
        alpha: share of sets that may miss the true class under attack, in (0, 1).
        plain: the split-conformal sets at α′ on noisy images.

    Example:
        >>> import torch
        >>> model = nn.Sequential(nn.Flatten(), nn.Linear(4, 2))
        >>> images, labels = torch.rand(100, 1, 2, 2), torch.arange(100) % 2
        >>> robust = RobustConformal.fit(model, images, labels, 0.1, radius=0.05, sigma=0.25)
        >>> robust.sets(images[:3]).shape
        (3, 2)
    """

    model: Callable[[Tensor], Tensor]
    radius: float
    sigma: float
    alpha: float
    plain: SplitConformal

    @classmethod
    def fit(
        cls,
        model: Callable[[Tensor], Tensor],
        images: Float[Tensor, "n c h w"] | UInt8[Tensor, "n c h w"] | Stored,
        labels: Int64[Tensor, " n"],
        alpha: float,
        *,
        radius: float,
        sigma: float,
        score: str = "aps",
        class_conditional: bool = False,
        seed: int = 0,
        items: Items | None = None,
        batch_size: int = 256,
    ) -> Self:
        """Calibrate on clean images.

        Args:
            model: images to logits.
            images: (N, C, H, W) of the calibration split, floats in [0, 1] or uint8.
            labels: (N,) in 0 … K−1.
            alpha, score, class_conditional, seed, items: as for `SplitConformal.fit`.
            radius: L2, in image units, 0 or more.
            sigma: standard deviation of the noise in image units, above 0.
            batch_size: images in a pass.

        Raises:
            InputError: as `SplitConformal.fit`; a negative radius; a σ not above 0; fewer
                calibration images than 1/α′.
        """
        stricter = robust_alpha(alpha, radius, sigma)
        probs = _noisy_probabilities(model, images, sigma, seed, "calibration", items, batch_size)
        y = checked_labels(labels, len(probs), probs.shape[1])
        check_every_class(y, probs.shape[1])
        fewest = np.bincount(y).min() if class_conditional else len(y)
        if stricter * fewest < 1:
            needed = f"at least {math.ceil(1 / stricter):,}" if stricter > 1e-9 else "far more"
            raise InputError(
                f"radius {radius} at sigma {sigma} and alpha {alpha} needs {needed} calibration "
                f"images{' a class' if class_conditional else ''}, not {fewest}: lower the radius"
            )
        plain = SplitConformal.fit(
            probs,
            y,
            stricter,
            score=score,
            class_conditional=class_conditional,
            seed=seed,
            items=items,
        )
        return cls(model, radius, sigma, alpha, plain)

    def sets(
        self,
        images: Float[Tensor, "n c h w"] | UInt8[Tensor, "n c h w"] | Stored,
        items: Items | None = None,
        *,
        batch_size: int = 256,
    ) -> Bool[np.ndarray, "n k"]:
        """Which classes are in each image's set, bool (N, K), from one noisy copy of it.

        Args:
            images: clean or attacked, in [0, 1].
            items: (N,), the number of each image in the test split, to which its noise belongs;
                None: 0 … N−1.
            batch_size: images in a pass.
        """
        probs = _noisy_probabilities(
            self.model, images, self.sigma, self.plain.seed, "test", items, batch_size
        )
        return self.plain.sets(probs, items)


class NoisyModel(nn.Module):
    """A model that adds Gaussian noise to its images: what an attacker on robust sets attacks.

    The noise comes from each image's seed (`holdfast.draws.fixed_draws`). It is never the noise
    that decides a set, which the attacker does not know.

    Args:
        model: images to logits.
        sigma: standard deviation of the noise in image units.

    Example:
        >>> import torch
        >>> model = nn.Sequential(nn.Flatten(), nn.Linear(4, 2))
        >>> NoisyModel(model, 0.25)(torch.rand(3, 1, 2, 2)).shape
        torch.Size([3, 2])
    """

    def __init__(self, model: Callable[[Tensor], Tensor], sigma: float) -> None:
        super().__init__()
        self.model, self.sigma = wrapped(model), sigma

    def forward(self, images: Float[Tensor, "n c h w"]) -> Float[Tensor, "n k"]:
        seeds = draws.item_seeds(0, "noisy", draws.image_seeds(len(images)))
        noise = draws.normal(seeds.to(images.device), 0, images.shape[1:])
        return self.model(images + self.sigma * noise)


def _noisy_probabilities(
    model: Callable[[Tensor], Tensor],
    images: Tensor | Stored,
    sigma: float,
    seed: int,
    split: str,
    items: Items | None,
    batch_size: int,
) -> Float64[Tensor, "n k"]:
    seeds = draws.item_seeds(seed, "robust-conformal", split, checked_items(items, len(images)))
    model = wrapped(model)

    def probabilities(x: Tensor, seeds: Tensor) -> Tensor:
        noise = draws.normal(seeds.to(x.device), 0, x.shape[1:])
        return model(x + sigma * noise).double().softmax(1).cpu()

    with evaluating(model):
        return in_batches(probabilities, images, seeds, batch_size=batch_size)


# --- measured coverage and size -----------------------------------------------------------------


class SetsOfSize(NamedTuple):
    """The sets of one size: how many there are, and the share that holds the label, 0..1."""

    sets: int
    coverage: float


class SetReport(NamedTuple):
    """Coverage and sizes of N sets over K classes.

    Attributes:
        n: number of sets.
        coverage: share of sets that hold the label, 0..1.
        mean_size: mean number of classes in a set, 0..K.
        by_size: number and coverage of the sets of each size that occurs (size-stratified
            coverage).
        empty: share of sets without a class, 0..1.
        trivial: share of sets with all K classes, which say nothing about the image, 0..1.
    """

    n: int
    coverage: float
    mean_size: float
    by_size: dict[int, SetsOfSize]
    empty: float
    trivial: float


def report_sets(sets: Bool[Array, "n k"], labels: Int64[Array, " n"]) -> SetReport:
    """Coverage and sizes of sets; size-stratified after Angelopoulos et al., ICLR 2021.

    Args:
        sets: bool (N, K), which classes are in each image's set.
        labels: (N,) in 0 … K−1.

    Raises:
        InputError: sets or labels of another shape or type.

    Example:
        >>> sets = np.array([[True, False], [True, True], [False, True]])
        >>> report = report_sets(sets, np.array([0, 1, 0]))
        >>> round(report.coverage, 3), round(report.mean_size, 3), report.by_size[1]
        (0.667, 1.333, SetsOfSize(sets=2, coverage=0.5))
    """
    s = as_array(sets)
    if s.ndim != 2 or s.dtype != np.bool_ or len(s) == 0:
        raise InputError(f"sets must be booleans (N, K) with N ≥ 1, not {s.dtype} {s.shape}")
    y = checked_labels(labels, *s.shape)
    covered, sizes = s[np.arange(len(y)), y], s.sum(1)
    by_size = {
        int(size): SetsOfSize(int((sizes == size).sum()), float(covered[sizes == size].mean()))
        for size in np.unique(sizes)
    }
    return SetReport(
        len(s),
        float(covered.mean()),
        float(sizes.mean()),
        by_size,
        float((sizes == 0).mean()),
        float((sizes == s.shape[1]).mean()),
    )


def coverage_interval(
    alpha: float, calibration: int, test: int, level: float = 0.95
) -> tuple[float, float]:
    """Where the measured coverage of a correct method lies, with probability of at least `level`.

    Where nonconformity scores do not tie, the number of sets that hold the label is beta-binomial
    with parameters k = ⌈(n+1)(1−α)⌉ and n + 1 − k (Vovk 2012). The calibration images are random
    too, so this interval is wider than the binomial one. For class-conditional sets it holds class
    by class.

    Args:
        alpha: in (0, 1).
        calibration, test: numbers of images.
        level: probability of the interval, in (0, 1).

    Returns:
        its two ends, as coverages 0..1.

    Raises:
        InputError: too few images for α; an argument out of its range.

    Example:
        >>> coverage_interval(0.1, calibration=1000, test=1000)
        (0.873, 0.925)
    """
    checked_share("level", level)
    k = ceil_share(1 - checked_share("alpha", alpha), calibration + 1)
    if k > calibration or test < 1:
        raise InputError(
            f"{calibration} calibration and {test} test images are too few for alpha = {alpha}"
        )
    low, high = betabinom(test, k, calibration + 1 - k).interval(level)
    return float(low / test), float(high / test)
