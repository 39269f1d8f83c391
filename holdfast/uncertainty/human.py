"""People as the yardstick: what a model is unsure of, against what people disagree on.

Human label distributions, such as CIFAR-10H (Peterson, Battleday, Griffiths & Russakovsky, "Human
uncertainty makes classification more robust", ICCV 2019), are about test images. They are
measured against, and nothing is ever trained, tuned or chosen on them.
"""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Float64, Int64
from scipy.stats import spearmanr

from ..data.arrays import Header, Wrong, read_array
from ..errors import InputError
from .inputs import Array, check_labels, check_probabilities, check_scores, check_share
from .metrics import auroc

Distributions = Float64[np.ndarray, "n k"]


def read_human(path: str | Path, labels: Int64[Array, " n"], *, classes: int = 10) -> Distributions:
    """Human label distributions from an `.npy` file, or an `.npz` file with `probs`.

    Args:
        path: the file; (N, K), one row an image in the order of `labels`.
        labels: (N,) of the data set it is about, by which its order is checked.
        classes: K.

    Returns:
        (N, K) in float64, rows summing to 1.

    Raises:
        InputError: a file that is missing, damaged or pickled; another shape; rows that are no
            distribution; rows or columns in another order than the labels.
    """
    file = Path(path)
    y = check_labels(labels, len(labels), classes)

    def check(header: Header) -> None:
        if header.shape != (len(y), classes):
            raise Wrong(
                f"holds an array of shape {header.shape}, not ({len(y)}, {classes}): "
                "one row an image of the data set, one column a class"
            )
        if header.dtype.kind not in "fiu":
            raise Wrong(f"holds {header.dtype}, not numbers")

    human = check_probabilities(read_array(file, "probs", check), f"the rows of {file}")
    _check_order(human, y, file)
    return human


def _check_order(human: Distributions, labels: Int64[np.ndarray, " n"], file: Path) -> None:
    """People mostly agree with the labels, image by image and class by class.

    Rows in another order agree as often as chance; columns in another order show as a class whose
    images people, on average, call something else.
    """
    classes = human.shape[1]
    said = human.argmax(1)
    agreement = (said == labels).mean()
    share_said, share_labels = (np.bincount(v, minlength=classes) for v in (said, labels))
    chance = (share_said * share_labels).sum() / len(labels) ** 2
    if agreement < chance + 0.25 * (1 - chance):
        raise InputError(
            f"{file} is not in the order of the labels: people's first choice is the label for "
            f"{agreement:.1%} of the images, and {chance:.1%} would be chance"
        )
    for k in np.unique(labels):
        called = int(human[labels == k].mean(0).argmax())
        if called != k:
            raise InputError(
                f"{file} has its columns in another order than the classes: people mostly call "
                f"images of class {k} class {called}"
            )


class HumanComparison(NamedTuple):
    """A model beside people, on N images.

    Attributes:
        n: number of images.
        cross_entropy: −(1/N) Σ_n Σ_k h_k log p_k in nats, 0..∞, lower is better; the people's own
            entropy is the least that any model can reach.
        human_entropy: that least, in nats.
        entropy_correlation: Spearman's rank correlation of model and human entropies, −1..1.
        disagreement_auroc: how well the model's score finds the images on which people disagree,
            0..1; 0.5 is guessing.
        disagreed: number of those images.
    """

    n: int
    cross_entropy: float
    human_entropy: float
    entropy_correlation: float
    disagreement_auroc: float
    disagreed: int


def disagreed(human: Float[Array, "n k"], majority: float = 0.8) -> Bool[np.ndarray, " n"]:
    """Images whose most frequent answer came from less than this share of the people."""
    check_share("majority", majority)
    # 40 of 50 is 0.8, whatever a file in float32 makes of it.
    return check_probabilities(human, "human distributions").max(1) < majority - 1e-6


def compare(
    probs: Float[Array, "n k"],
    human: Float[Array, "n k"],
    scores: Float[Array, " n"] | None = None,
    *,
    majority: float = 0.8,
) -> HumanComparison:
    """Model against human uncertainty.

    Args:
        probs: (N, K) of the model.
        human: (N, K), in the same order (`read_human` checks it).
        scores: (N,), higher = less sure, for the detection of disagreement; None: the entropy of
            `probs`.
        majority: people disagree where their most frequent answer has a smaller share.

    Raises:
        InputError: arrays of different shape; entropies that are constant; people who always
            or never disagree.
    """
    p = check_probabilities(probs)
    h = check_probabilities(human, "human distributions")
    if p.shape != h.shape:
        raise InputError(f"probabilities {p.shape} and human distributions {h.shape} must agree")
    model_entropy = check_scores(_cross_entropies(p, p), "entropies of the model")
    human_entropy = check_scores(_cross_entropies(h, h), "entropies of people")
    contested = disagreed(h, majority)
    return HumanComparison(
        len(p),
        float(_cross_entropies(h, p).mean()),
        float(human_entropy.mean()),
        # Where 49 of 50 agree, it is a tie whatever the classes: rounding must not untie it.
        float(spearmanr(model_entropy.round(6), human_entropy.round(6)).statistic),
        auroc(model_entropy if scores is None else scores, contested),
        int(contested.sum()),
    )


def _cross_entropies(h: Distributions, p: Distributions) -> Float64[np.ndarray, " n"]:
    """−Σ_k h_k log p_k, where 0 · log 0 = 0."""
    with np.errstate(divide="ignore"):
        log_p = np.log(p)
    return -np.multiply(h, log_p, where=h > 0, out=np.zeros_like(h)).sum(1)
