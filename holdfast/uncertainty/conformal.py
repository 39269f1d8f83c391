"""Conformal sets: answers that hold the right class with a promised probability.

**Plain** (`SplitConformal`): if calibration and test images are exchangeable, the set of a test
image holds its label with probability at least 1 − α, over the draw of both. Under attack this is
lost.

**Robust** (`RobustConformal`): the same promise kept for every attack within an L2 radius, by
looking at each image once through Gaussian noise.

Not promised by either: coverage for one given image, or (unless class-conditional) one class.
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
from .batches import in_batches
from .inputs import (
    Array,
    as_array,
    ceil_share,
    check_calibration_split,
    check_items,
    check_labels,
    check_probabilities,
    check_share,
)

Items = Int64[Tensor, " n"]

# --- how badly a class fits an image: (probabilities (N, K), uniform draws (N,)) to (N, K) -------


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

    The penalty is fixed beforehand for ten or so classes; tuned on the calibration images, it
    would cost the guarantee.
    """
    rank = np.argsort(np.argsort(-p, axis=1, kind="stable"), axis=1) + 1
    return _aps(p, u) + penalty * np.maximum(0, rank - free)


Misfit = Callable[
    [Float64[np.ndarray, "n k"], Float64[np.ndarray, " n"]], Float64[np.ndarray, "n k"]
]
MISFITS: dict[str, Misfit] = {"lac": _lac, "aps": _aps, "raps": _raps}


def _misfit(
    probs: Array, score: str, seed: int, split: str, items: Items | None
) -> Float64[np.ndarray, "n k"]:
    p = check_probabilities(probs)
    seeds = draws.item_seeds(seed, "conformal", split, check_items(items, len(p)))
    return MISFITS[score](p, draws.uniform(seeds, 0).double().numpy())


# --- plain sets ---------------------------------------------------------------------------------


@dataclass(frozen=True)
class SplitConformal:
    """Split-conformal sets (Vovk, Gammerman & Shafer 2005; Papadopoulos et al. 2002).

    The set of an image holds every class whose nonconformity score is at most the
    ⌈(n+1)(1−α)⌉-th smallest of the n calibration images' own. For exchangeable images,
    P(label in set) ≥ 1 − α. With `class_conditional`, thresholds are a class's own (Vovk 2012),
    and the promise holds within each class. Sets may be empty, or hold all classes.

    Attributes:
        alpha: share of sets that may miss, in (0, 1).
        score: `lac` (smallest sets), `aps` or `raps` (sets that adapt to the image).
        thresholds: (K,), the largest nonconformity score let in, class by class.
        n: number of calibration images; with `class_conditional`, of the rarest class.
        seed: of the draws of `aps` and `raps`.
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
        """Thresholds from calibration images that the model was neither trained nor tuned on.

        Args:
            probs: (N, K), rows summing to 1.
            labels: (N,).
            alpha: in (0, 1), read as the decimal it is written as.
            items: the number of each image in the calibration split, to which its draw belongs;
                None: 0 … N−1.

        Raises:
            InputError: α outside (0, 1); fewer images (of a class) than 1/α; an empty class;
                unknown score; probabilities or labels that are none.
        """
        share = check_share("alpha", alpha)
        if score not in MISFITS:
            raise InputError(f"conformal score {score!r} is unknown; it is {', '.join(MISFITS)}")
        nonconformity = _misfit(probs, score, seed, "calibration", items)
        n, classes = nonconformity.shape
        y = check_labels(labels, n, classes)
        check_calibration_split(y, classes)
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
        """Which classes are in each image's set.

        Args:
            probs: (N, K) of test images.
            items: the number of each image in the test split; None: 0 … N−1.
        """
        nonconformity = _misfit(probs, self.score, self.seed, "test", items)
        if nonconformity.shape[1] != len(self.thresholds):
            raise InputError(
                f"probabilities of {nonconformity.shape[1]} classes, but the sets were calibrated "
                f"for {len(self.thresholds)}"
            )
        return nonconformity <= self.thresholds


# --- robust sets --------------------------------------------------------------------------------


def robust_alpha(alpha: float, radius: float, sigma: float) -> float:
    """α′ = 1 − Φ(Φ⁻¹(1 − α) + radius/σ): what to calibrate at, so that α holds under attack."""
    check_share("alpha", alpha)
    if not radius >= 0:
        raise InputError(f"the L2 radius must be 0 or more, not {radius}")
    if not (sigma > 0 and math.isfinite(sigma)):
        raise InputError(f"sigma of the smoothing noise must be above 0, not {sigma}")
    return float(norm.sf(norm.isf(alpha) + radius / sigma))


@dataclass(frozen=True)
class RobustConformal:
    """Conformal sets that keep their promise under any attack within an L2 radius.

    Zargarbashi, Akhondzadeh & Bojchevski, "One sample is enough to make conformal prediction
    robust", NeurIPS 2025. Every image, calibration and test, is seen once, through noise σZ,
    Z ~ N(0, I), and the sets are split-conformal at the stricter α′ of `robust_alpha`.

    **What holds.** Let (X, Y) be exchangeable with the clean calibration images, and X̃ any image
    with ‖X̃ − X‖₂ ≤ radius, chosen knowing the model, the calibration images, the thresholds and
    Y: everything but the draw of Z. Then P(Y ∈ C(X̃ + σZ)) ≥ 1 − α, over the calibration images,
    (X, Y) and all noise. With `class_conditional`, this holds within each class.

    **Why.** With β(x) the probability over Z that the set of x + σZ holds Y, the Neyman–Pearson
    lemma gives β(X̃) ≥ c(β(X)) with c(β) = Φ(Φ⁻¹(β) − radius/σ) (Cohen, Rosenfeld & Kolter, ICML
    2019). c rises and is convex, so E c(β) ≥ c(E β) ≥ c(1 − α′) = 1 − α by Jensen's inequality.
    The draw is a part of the method, and not an estimate of anything: there is no Monte-Carlo
    error to account for, and n is any number that α′ allows.

    **What does not hold.** Nothing beyond the radius. For L∞ ≤ ε nothing unless ε·√(C·H·W) ≤
    radius; L1 ≤ radius is inside. Nothing against who knows the seed or may query until a draw
    suits them; coverage on them must be measured, and called empirical. The noise is that of
    `holdfast.draws`: float32, and cut off beyond 5.4 standard deviations.

    Attributes:
        model: images to logits; best trained with this noise.
        radius: L2, image units.
        sigma: standard deviation of the noise, image units.
        alpha: share of sets that may miss under attack, in (0, 1).
        plain: the split-conformal sets at α′ on noisy images.
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
        images: Float[Tensor, "n c h w"] | UInt8[Tensor, "n c h w"],
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
        """Calibrate on clean images; arguments and errors as for `SplitConformal.fit`.

        Raises:
            InputError: besides, a negative radius, a σ not above 0, or fewer calibration images
                than 1/α′.
        """
        stricter = robust_alpha(alpha, radius, sigma)
        probs = _noisy_probabilities(model, images, sigma, seed, "calibration", items, batch_size)
        y = check_labels(labels, len(probs), probs.shape[1])
        check_calibration_split(y, probs.shape[1])
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
        images: Float[Tensor, "n c h w"] | UInt8[Tensor, "n c h w"],
        items: Items | None = None,
        *,
        batch_size: int = 256,
    ) -> Bool[np.ndarray, "n k"]:
        """Which classes are in each image's set, from one noisy look at it.

        Args:
            images: clean or attacked, in [0, 1].
            items: the number of each image in the test split, to which its noise belongs;
                None: 0 … N−1.
        """
        probs = _noisy_probabilities(
            self.model, images, self.sigma, self.plain.seed, "test", items, batch_size
        )
        return self.plain.sets(probs, items)


class Noisy(nn.Module):
    """A model seen through Gaussian noise, as an attacker on robust sets looks at it.

    The noise comes from each image's seed (`holdfast.draws.fixed_draws`), never from the draws
    that decide the sets: those the attacker does not know.
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
    images: Tensor,
    sigma: float,
    seed: int,
    split: str,
    items: Items | None,
    batch_size: int,
) -> Float64[Tensor, "n k"]:
    seeds = draws.item_seeds(seed, "robust-conformal", split, check_items(items, len(images)))
    model = wrapped(model)

    def look(x: Tensor, seeds: Tensor) -> Tensor:
        noise = draws.normal(seeds.to(x.device), 0, x.shape[1:])
        return model(x + sigma * noise).double().softmax(1).cpu()

    with evaluating(model):
        return in_batches(look, images, seeds, batch_size=batch_size)


# --- what became of the promise -----------------------------------------------------------------


class OfSize(NamedTuple):
    """The sets of one size: how many there are, and the share that holds the label."""

    sets: int
    coverage: float


class SetReport(NamedTuple):
    """Coverage and sizes of N sets over K classes.

    Attributes:
        n: number of sets.
        coverage: share of sets that hold the label, 0..1.
        mean_size: mean number of classes in a set, 0..K.
        by_size: size-stratified coverage: for every size that occurs.
        empty: share of sets without a class, 0..1.
        trivial: share of sets with all K classes, which hold the label and say nothing, 0..1.
    """

    n: int
    coverage: float
    mean_size: float
    by_size: dict[int, OfSize]
    empty: float
    trivial: float


def report_sets(sets: Bool[Array, "n k"], labels: Int64[Array, " n"]) -> SetReport:
    """What sets are worth; size-stratified after Angelopoulos et al. 2021."""
    s = as_array(sets)
    if s.ndim != 2 or s.dtype != np.bool_ or len(s) == 0:
        raise InputError(f"sets must be booleans (N, K) with N ≥ 1, not {s.dtype} {s.shape}")
    y = check_labels(labels, *s.shape)
    held, sizes = s[np.arange(len(y)), y], s.sum(1)
    by_size = {
        int(size): OfSize(int((sizes == size).sum()), float(held[sizes == size].mean()))
        for size in np.unique(sizes)
    }
    return SetReport(
        len(s),
        float(held.mean()),
        float(sizes.mean()),
        by_size,
        float((sizes == 0).mean()),
        float((sizes == s.shape[1]).mean()),
    )


def coverage_interval(
    alpha: float, calibration: int, test: int, level: float = 0.95
) -> tuple[float, float]:
    """Where the coverage of a right method lies on `test` images, calibrated on `calibration`.

    With misfits that do not tie, the number of sets that hold the label is beta-binomial with
    parameters k = ⌈(n+1)(1−α)⌉ and n + 1 − k (Vovk 2012): the calibration is drawn too, so this
    is wider than the binomial interval. For class-conditional sets it holds class by class.

    Returns:
        the central interval of probability ≥ `level`, as coverages 0..1.
    """
    check_share("level", level)
    k = ceil_share(1 - check_share("alpha", alpha), calibration + 1)
    if k > calibration or test < 1:
        raise InputError(
            f"{calibration} calibration and {test} test images are too few for alpha = {alpha}"
        )
    low, high = betabinom(test, k, calibration + 1 - k).interval(level)
    return float(low / test), float(high / test)
