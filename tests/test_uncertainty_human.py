"""People as the yardstick: reading their file, and comparing a model with them."""

import os

import numpy as np
import pytest
from scipy.stats import spearmanr

from holdfast.errors import InputError
from holdfast.uncertainty.human import compare, disagreed, read_human


def people(n=400, seed=0, classes=10):
    """What 50 people say, who are mostly right, and the labels."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(classes, size=n)
    ease = rng.beta(6, 1, size=n)[:, None]
    p = ease * np.eye(classes)[labels] + (1 - ease) * rng.dirichlet(np.full(classes, 0.3), size=n)
    return np.stack([rng.multinomial(50, row / row.sum()) for row in p]) / 50, labels


@pytest.mark.parametrize("kind", ["npy", "npz"])
def test_reads_what_was_written(tmp_path, kind):
    human, labels = people()
    file = tmp_path / f"human.{kind}"
    if kind == "npy":
        np.save(file, human.astype(np.float32))
    else:
        np.savez(file, probs=human.astype(np.float32), more=labels)
    found = read_human(file, labels)
    assert found.dtype == np.float64
    assert found == pytest.approx(human, abs=1e-6)
    assert found.sum(1) == pytest.approx(np.ones(len(human)), abs=1e-12)


def test_compare_by_hand():
    human = np.array([[1.0, 0.0], [0.5, 0.5], [0.75, 0.25]])
    probs = np.array([[0.9, 0.1], [0.6, 0.4], [0.8, 0.2]])
    found = compare(probs, human)
    terms = [np.log(0.9), 0.5 * np.log(0.24), 0.75 * np.log(0.8) + 0.25 * np.log(0.2)]
    assert found.n == 3
    assert found.cross_entropy == pytest.approx(-np.mean(terms))
    own = [0, np.log(2), -(0.75 * np.log(0.75) + 0.25 * np.log(0.25))]
    assert found.human_entropy == pytest.approx(np.mean(own))
    assert found.entropy_correlation == pytest.approx(1)
    assert found.disagreement_auroc == 1
    assert found.disagreed == 2
    assert disagreed(human, 0.6).tolist() == [False, True, False]


def test_people_themselves_are_the_best_model():
    human, _ = people()
    smoothed = (human + 1e-4) / (human + 1e-4).sum(1, keepdims=True)
    itself = compare(smoothed, human)
    assert itself.cross_entropy == pytest.approx(itself.human_entropy, abs=5e-3)
    assert itself.entropy_correlation > 0.99
    flat = 0.5 * human + 0.05
    assert compare(flat, human).cross_entropy > itself.cross_entropy + 0.1
    rng = np.random.default_rng(1)
    shuffled = compare(smoothed[rng.permutation(len(human))], human)
    assert abs(shuffled.entropy_correlation) < 0.2
    assert abs(shuffled.disagreement_auroc - 0.5) < 0.15


def test_wrong_polarity_finds_the_images_people_agree_on():
    human, _ = people()
    scores = 1 - human.max(1) + 0.01 * np.random.default_rng(2).random(len(human))
    assert compare(human, human, scores).disagreement_auroc > 0.95
    assert compare(human, human, -scores).disagreement_auroc < 0.05


def test_ties_in_the_rank_correlation():
    """The same disagreement about other classes is the same disagreement, in every last bit."""
    rng = np.random.default_rng(3)
    kind = np.arange(300) % 3
    rows = np.array([[0.98, 0.01, 0.01, 0], [0.7, 0.2, 0.06, 0.04], [0.4, 0.3, 0.2, 0.1]])[kind]
    human = rng.permuted(rows, axis=1).astype(np.float32)
    probs = rng.dirichlet(np.ones(4), size=300)
    entropies = -(probs * np.log(probs)).sum(1)
    expected = spearmanr(entropies, kind).statistic
    assert compare(probs, human).entropy_correlation == pytest.approx(expected, abs=1e-9)


def swap_columns(human, labels):
    return human[:, [0, 1, 2, 5, 4, 3, 6, 7, 8, 9]]  # two classes only: 80 % still agree


@pytest.mark.parametrize(
    ("spoil", "says"),
    [
        (lambda h, y: np.roll(h, 1, axis=0), "not in the order of the labels"),
        (lambda h, y: np.roll(h, 1, axis=1), "not in the order of the labels"),
        (swap_columns, "columns in another order"),
        (lambda h, y: h * 50, "sums to 50, not 1"),
        (lambda h, y: np.where(np.arange(400)[:, None] == 7, 0.2, h), "row 7"),
        (lambda h, y: h - 0.1, "no distribution"),
        (lambda h, y: h * np.nan, "NaN"),
        (lambda h, y: h[1:], "shape (399, 10), not (400, 10)"),
        (lambda h, y: h[:, :9], "shape (400, 9)"),
        (lambda h, y: h.astype(str), "not numbers"),
        (lambda h, y: h.astype(object), "pickled objects"),
    ],
)
def test_a_wrong_file_is_one_line(tmp_path, spoil, says):
    human, labels = people()
    file = tmp_path / "human.npy"
    np.save(file, spoil(human, labels), allow_pickle=True)
    with pytest.raises(InputError) as error:
        read_human(file, labels)
    assert says in str(error.value)
    assert "human.npy" in str(error.value)
    assert "\n" not in str(error.value)


def test_files_that_are_none(tmp_path):
    _, labels = people()
    (tmp_path / "torn.npz").write_bytes(b"PK\x03\x04 torn")
    (tmp_path / "text.npy").write_text("0.5 0.5\n")
    np.savez(tmp_path / "named.npz", human=np.zeros(3))
    for name, says in [
        ("torn.npz", "no readable"),
        ("text.npy", "no readable"),
        ("named.npz", "lacks the array 'probs' (it holds human)"),
        ("missing.npy", "no such file"),
    ]:
        with pytest.raises(InputError) as error:
            read_human(tmp_path / name, labels)
        assert says in str(error.value)
        assert "\n" not in str(error.value)


def test_comparisons_without_a_value():
    human, _ = people()
    with pytest.raises(InputError, match="entropies of people"):
        compare(human, np.eye(10)[human.argmax(1)])
    with pytest.raises(InputError, match="must agree"):
        compare(human[1:], human)
    with pytest.raises(InputError, match="majority"):
        compare(human, human, majority=1)


@pytest.mark.skipif("HOLDFAST_HUMAN" not in os.environ, reason="HOLDFAST_HUMAN names no file")
def test_cifar10h():
    """CIFAR-10H itself; its own first choice stands in for the labels, of which it gets 99 %."""
    file = os.environ["HOLDFAST_HUMAN"]
    raw = np.load(file)
    raw = raw if isinstance(raw, np.ndarray) else raw["probs"]
    labels = raw.argmax(1).astype(np.int64)
    human = read_human(file, labels)
    assert human.shape == (10_000, 10)
    assert disagreed(human).sum() == 603
    with pytest.raises(InputError, match="not in the order"):
        read_human(file, np.roll(labels, 1))
