"""What queries bought: how many each verdict took, and the share that stands after so many."""

from __future__ import annotations

from jaxtyping import Int64
from torch import Tensor

from ..intervals import clopper_pearson
from ..models.metered import Account
from ..runs.records import QueryFigures, QueryPoint
from ..search import CLEAN, Ledger

STEPS = (1, 2, 5)  # points of the curve in each power of ten


def queries_until(account: Account, ledger: Ledger) -> Int64[Tensor, " n"]:
    """How many queries each image's verdict took: up to the one that broke it, or all about it
    where it stands; 0 for clean mistakes."""
    counts = account.queries[ledger.index].clone()
    for row in ledger.broken.nonzero().squeeze(1).tolist():
        if int(ledger.stage[row]) == CLEAN:
            counts[row] = 0
            continue
        answer = account.recall(int(ledger.index[row]), ledger.adversarial[row])
        if answer is not None:
            counts[row] = answer.number
    return counts


def query_figures(account: Account, ledger: Ledger, counts: Int64[Tensor, " n"]) -> QueryFigures:
    """The account of a search's queries.

    Args:
        counts: what `queries_until` gives.
    """
    n = len(counts)
    most = int(account.queries.max())
    points = []
    for queries in _places(max(most, 1) if account.budget is None else account.budget):
        standing = int((~ledger.broken | (counts > queries)).sum())
        points.append(
            QueryPoint(
                queries=queries,
                robust_accuracy=standing / n,
                interval=clopper_pearson(standing, n),
            )
        )
    return QueryFigures(
        budget=account.budget,
        asked=int(account.queries.sum()),
        most=most,
        outside=account.outside,
        curve=tuple(points),
    )


def _places(last: int) -> list[int]:
    """0, 1, 2, 5, 10, 20, … up to the last, which is one of them.

    Example:
        >>> _places(30)
        [0, 1, 2, 5, 10, 20, 30]
    """
    places, power = [0], 1
    while power < last:
        places += [step * power for step in STEPS if step * power < last]
        power *= 10
    return [*places, last]
