"""Steps that no mode of torch sees, as in compiled code and in `vmap`, but whose nodes lie in
autograd's graph: the gradient goes straight through them, too."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from torch import Tensor

# Names of the nodes of functions that are steps, by what they belong to.
STEPS = {
    f"{name}Backward{number}": name.lower()
    for name in ("Round", "Floor", "Ceil", "Trunc", "Sign", "Sgn")
    for number in range(2)
}


def steps_in(result: Tensor) -> Iterator[tuple[Any, str]]:
    """The nodes of steps behind a result, each with the name of its function."""
    seen, waiting = set(), [result.grad_fn]
    while waiting:
        node = waiting.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        name = STEPS.get(node.name())
        if name is not None:
            yield node, name
        waiting += [each for each, _ in node.next_functions]


def go_straight_through(node: Any) -> None:
    """Let a node hand on the gradients that it gets."""

    def handed_on(inner: Any, outer: Any) -> Any:
        same = inner[0] is None or outer[0] is None or inner[0].shape == outer[0].shape
        return (outer[0], *inner[1:]) if same else None

    node.register_hook(handed_on)
