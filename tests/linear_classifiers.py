"""Linear classifiers, on which the distance to the closest adversarial point is known exactly."""

from dataclasses import dataclass

import numpy as np
import torch
from scipy.optimize import linprog, minimize
from torch import Tensor

from holdfast import draws
from holdfast.attacks import Items, Oracle
from holdfast.threat import NORMS


@dataclass
class Linear:
    """Logits W·x + b with images that it classifies as `labels`; a plain callable, not a module."""

    weights: Tensor  # (K, C·H·W)
    bias: Tensor  # (K,)
    images: Tensor
    labels: Tensor

    def __call__(self, x: Tensor) -> Tensor:
        return x.flatten(1) @ self.weights.T + self.bias

    def optimum(self, norm: str) -> np.ndarray:
        """The smallest distance at which each image is misclassified, in float64."""
        return np.array(
            [
                min(
                    self._distance(norm, x, label, other)
                    for other in range(len(self.bias))
                    if other != label
                )
                for x, label in zip(self.images, self.labels.tolist(), strict=True)
            ]
        )

    def targeted_optimum(self, norm: str, targets: Tensor) -> np.ndarray:
        """The smallest distance at which each image is classified as its target, in float64.

        The target must win against every other class at once: a convex program, linear in L∞ and
        L1, solved by SciPy.
        """
        pairs = zip(self.images, targets.tolist(), strict=True)
        return np.array([self._distance_to_class(norm, x, target) for x, target in pairs])

    def _distance_to_class(self, norm: str, image: Tensor, target: int) -> float:
        x, weights = image.flatten().double().numpy(), self.weights.double().numpy()
        others = [j for j in range(len(self.bias)) if j != target]
        rows = weights[others] - weights[target]  # rows · δ ≤ gap: the target wins
        bias = self.bias.double().numpy()
        gap = -(rows @ x + bias[others] - bias[target])
        d, one = len(x), np.ones((len(x), 1))
        bounds = list(zip(-x, 1 - x, strict=True))
        if norm == "l2":
            solved = minimize(
                lambda delta: delta @ delta,
                np.zeros(d),
                jac=lambda delta: 2 * delta,
                bounds=bounds,
                constraints={
                    "type": "ineq",
                    "fun": lambda delta: gap - rows @ delta,
                    "jac": lambda delta: -rows,
                },
                method="SLSQP",
                options={"maxiter": 500, "ftol": 1e-12},
            )
            return float(np.sqrt(solved.fun)) if solved.success else np.inf
        if norm == "linf":  # in (δ, r): least r with |δᵢ| ≤ r
            cost = np.append(np.zeros(d), 1)
            eye = np.eye(d)
            above = [np.hstack([eye, -one]), np.hstack([-eye, -one])]
            rows = np.hstack([rows, np.zeros((len(rows), 1))])
            rows, gap = np.vstack([rows, *above]), np.append(gap, np.zeros(2 * d))
            bounds = [*bounds, (0, 1)]
        else:  # l1, in (δ⁺, δ⁻)
            cost, rows = np.ones(2 * d), np.hstack([rows, -rows])
            bounds = [(0, 1 - v) for v in x] + [(0, v) for v in x]
        solved = linprog(cost, rows, gap, bounds=bounds)
        return float(solved.fun) if solved.success else np.inf

    def _distance(self, norm: str, image: Tensor, label: int, other: int) -> float:
        x, weights = image.flatten().double().numpy(), self.weights.double().numpy()
        slope = weights[other] - weights[label]
        gap = -(slope @ x + float(self.bias[other]) - float(self.bias[label]))
        room = np.where(slope > 0, 1 - x, x)
        slope = np.abs(slope)
        if slope @ room <= gap:
            return np.inf
        if norm == "linf":
            return _root(lambda r: slope @ np.minimum(r, room) - gap, 1.0)
        if norm == "l2":
            top = (room / slope).max()
            level = _root(lambda t: slope @ np.minimum(t * slope, room) - gap, top)
            return float(np.linalg.norm(np.minimum(level * slope, room)))
        if norm == "l1":
            order = np.argsort(-slope)
            before = np.concatenate([[0], np.cumsum((slope * room)[order])])[:-1]
            return float(np.clip((gap - before) / slope[order], 0, room[order]).sum())
        return float(np.searchsorted(np.cumsum(np.sort(slope * room)[::-1]), gap, "right") + 1)


def _root(rising, high: float) -> float:
    low = 0.0
    for _ in range(80):
        middle = (low + high) / 2
        low, high = (middle, high) if rising(middle) < 0 else (low, middle)
    return high


def linear(classes: int, box: str, *, shape=(3, 6, 6), count=6, seed=0) -> Linear:
    """A random linear classifier.

    Args:
        box: `free`: images in [0.4, 0.6], close to the boundary. `edges`: a third of the
            components lie at 0 or 1. `binding`: so they do, and all images are in class 0, far
            from the boundary.
    """
    draw = torch.Generator().manual_seed(seed)
    size = int(np.prod(shape))
    weights = torch.randn(classes, size, generator=draw) / size**0.5
    images = torch.rand(count, *shape, generator=draw)
    images = 0.4 + 0.2 * images if box == "free" else (1.5 * images - 0.25).clamp(0, 1)
    logits = images.flatten(1) @ weights.T
    bias = -logits.mean(0)
    if box == "binding":
        bias[0] += 2 + (logits.mean(0) - logits).abs().max()
    return Linear(weights, bias, images, (logits + bias).argmax(1))


def assert_minimal(model: Linear, norm: str, points: Tensor, slack: float = 0.0) -> None:
    """Points are misclassified, in the box, and within 5 % (+ `slack`) of the smallest distance."""
    assert points.shape == model.images.shape and points.dtype == torch.float32
    assert points.min() >= 0 and points.max() <= 1
    wrong = model(points).argmax(1) != model.labels
    assert wrong.all(), f"still right: {(~wrong).nonzero().squeeze(1).tolist()}"
    distance = NORMS[norm].distance(points - model.images).double().numpy()
    optimum = model.optimum(norm)
    assert (distance >= optimum * (1 - 1e-4)).all(), f"closer than possible: {distance / optimum}"
    assert (distance <= optimum * 1.05 + slack).all(), f"too far: {distance / optimum}"


def assert_items_are_independent(attack, model: Linear, threat, iterations: int = 12) -> None:
    """An item's search is the same alone as beside items of another age; no state is mutated."""
    rows = torch.arange(len(model.images))
    items = Items(
        images=model.images,
        labels=model.labels,
        targets=(model.labels + 1) % len(model.bias) if attack.targeted else 0 * rows - 1,
        eps=threat.radii(model.images) * (1 + rows / 10),
        seeds=draws.item_seeds(0, rows),
    )
    oracle = Oracle(model)

    def stepped(state, count):
        for _ in range(count):
            before = {name: value.clone() for name, value in state.tensors().items()}
            after = attack.step(oracle, state, threat)
            assert type(after) is type(state)
            assert all(len(value) == len(state) for value in after.tensors().values())
            assert all(torch.equal(v, before[name]) for name, v in state.tensors().items())
            state = after
        return state

    old = stepped(attack.start(items.select(rows[:2]), threat), iterations // 2)
    young = attack.start(items.select(rows[2:3]), threat)
    together = stepped(old.join(young), iterations // 2)
    whole = stepped(attack.start(items.select(rows[:3]), threat), iterations // 2)
    old_alone = stepped(whole, iterations // 2).select(rows[:2])
    alone = old_alone.join(whole.select(rows[2:3])).tensors()
    for name, value in together.tensors().items():
        torch.testing.assert_close(value, alone[name], rtol=1e-4, atol=1e-5, msg=f"{name} differs")
