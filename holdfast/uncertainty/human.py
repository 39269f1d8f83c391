"""A model's uncertainty compared with people's: is it unsure where people disagree?

Human label distributions, such as CIFAR-10H (Peterson, Battleday, Griffiths & Russakovsky, "Human
uncertainty makes classification more robust", ICCV 2019), are of test images. They are compared
with, and nothing is ever trained, fitted or chosen on them.
"""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Float64, Int64
from scipy.stats import spearmanr

from ..data.arrays import Header, Wrong, read_array
from ..errors import InputError
from .inputs import Array, checked_labels, checked_probabilities, checked_scores, checked_share
from .metrics import auroc

Distributions = Float64[np.ndarray, "n k"]


def read_human(path: str | Path, labels: Int64[Array, " n"], *, classes: int = 10) -> Distributions:
    """Human label distributions from an `.npy` file, or an `.npz` file with `probs`.

    Args:
        path: a file of an array (N, K): one row an image in the order of `labels`, one column a
            class, the share of people who chose it.
        labels: (N,) of the same data set, by which the order of rows and columns is checked.
        classes: K.

    Returns:
        (N, K) in float64, rows summing to 1.

    Raises:
        InputError: a file that is missing, damaged or pickled; another shape; rows that are no
            distribution; rows or columns in another order than the labels.

    Example:
        >>> np.save("human.npy", [[0.9, 0.1], [0.2, 0.8]])
        >>> read_human("human.npy", np.array([0, 1]), classes=2)
        array([[0.9, 0.1],
               [0.2, 0.8]])
    """
    file = Path(path)
    y = checked_labels(labels, len(labels), classes)

    def check(header: Header) -> None:
        if header.shape != (len(y), classes):
            raise Wrong(
                f"holds an array of shape {header.shape}, not ({len(y)}, {classes}): "
                "one row an image of the data set, one column a class"
            )
        if header.dtype.kind not in "fiu":
            raise Wrong(f"holds {header.dtype}, not numbers")

    human = checked_probabilities(read_array(file, "probs", check), f"the rows of {file}")
    _check_order(human, y, file)
    return human


def _check_order(human: Distributions, labels: Int64[np.ndarray, " n"], file: Path) -> None:
    """InputError where people's choices do not agree with the labels.

    If rows are in another order, people's first choice is the label no more often than by chance.
    If columns are in another order, people mostly choose another class for the images of a class.
    """
    classes = human.shape[1]
    choice = human.argmax(1)
    agreement = (choice == labels).mean()
    of_choice, of_labels = (np.bincount(v, minlength=classes) for v in (choice, labels))
    chance = (of_choice * of_labels).sum() / len(labels) ** 2
    if agreement < chance + 0.25 * (1 - chance):
        raise InputError(
            f"{file} is not in the order of the labels: people's first choice is the label for "
            f"{agreement:.1%} of the images, and {chance:.1%} would be chance"
        )
    for k in np.unique(labels):
        chosen = int(human[labels == k].mean(0).argmax())
        if chosen != k:
            raise InputError(
                f"{file} has its columns in another order than the classes: people mostly call "
                f"images of class {k} class {chosen}"
            )


class HumanComparison(NamedTuple):
    """A model's probabilities p and people's choices h, compared on N images.

    Attributes:
        n: number of images.
        cross_entropy: −(1/N) Σ_n Σ_k h_k log p_k in nats, 0..∞, lower is better.
        human_entropy: −(1/N) Σ_n Σ_k h_k log h_k in nats, the lowest cross-entropy of any model.
        entropy_correlation: Spearman's rank correlation of the entropies of p and h, −1..1.
        disagreement_auroc: how well the model's score finds the images on which people disagree,
            0..1; 0.5 is guessing.
        disagreed: number of images on which people disagree.
    """

    n: int
    cross_entropy: float
    human_entropy: float
    entropy_correlation: float
    disagreement_auroc: float
    disagreed: int


def disagreed(human: Float[Array, "n k"], majority: float = 0.8) -> Bool[np.ndarray, " n"]:
    """Whether people disagree on each image: fewer than `majority` of them made the same choice.

    Args:
        human: (N, K), the share of people who chose each class.
        majority: in (0, 1).

    Returns:
        bool (N,).

    Example:
        >>> disagreed([[0.9, 0.1], [0.5, 0.5]])
        array([False,  True])
    """
    checked_share("majority", majority)
    # 40 of 50 is 0.8, whatever a file in float32 makes of it.
    return checked_probabilities(human, "human distributions").max(1) < majority - 1e-6


def compare(
    probs: Float[Array, "n k"],
    human: Float[Array, "n k"],
    scores: Float[Array, " n"] | None = None,
    *,
    majority: float = 0.8,
) -> HumanComparison:
    """Compare a model's uncertainty with people's.

    Args:
        probs: (N, K) of the model, rows summing to 1.
        human: (N, K), the share of people who chose each class, in the same order.
        scores: (N,), higher = less sure, which should find the images on which people disagree;
            None: the entropy of `probs`.
        majority: as in `disagreed`.

    Raises:
        InputError: arrays of different shape; entropies that are all equal; people who disagree
            on all images, or on none.

    Example:
        >>> probabilities = [[0.8, 0.2], [0.5, 0.5], [0.9, 0.1]]
        >>> people = [[0.9, 0.1], [0.6, 0.4], [1.0, 0.0]]
        >>> compared = compare(probabilities, people)
        >>> compared.disagreed, compared.disagreement_auroc, round(compared.entropy_correlation, 3)
        (1, 1.0, 1.0)
    """
    p = checked_probabilities(probs)
    h = checked_probabilities(human, "human distributions")
    if p.shape != h.shape:
        raise InputError(f"probabilities {p.shape} and human distributions {h.shape} must agree")
    model_entropy = checked_scores(_cross_entropies(p, p), "entropies of the model")
    human_entropy = checked_scores(_cross_entropies(h, h), "entropies of people")
    contested = disagreed(h, majority)
    return HumanComparison(
        len(p),
        float(_cross_entropies(h, p).mean()),
        float(human_entropy.mean()),
        # Two images on which 49 of 50 people agree tie, whatever the classes: undo rounding errors.
        float(spearmanr(model_entropy.round(6), human_entropy.round(6)).statistic),
        auroc(model_entropy if scores is None else scores, contested),
        int(contested.sum()),
    )


def _cross_entropies(h: Distributions, p: Distributions) -> Float64[np.ndarray, " n"]:
    """−Σ_k h_k log p_k, where 0 · log 0 = 0."""
    with np.errstate(divide="ignore"):
        log_p = np.log(p)
    return -np.multiply(h, log_p, where=h > 0, out=np.zeros_like(h)).sum(1)
