"""The engine: searches for many images at once, verifies, and remembers."""

from .batching import measure_batch_size
from .journal import Journal
from .ledger import CLEAN, STANDING, Ledger
from .search import Lane, Search, StageCost
from .twin import Twin, fast_twin

__all__ = [
    "CLEAN",
    "STANDING",
    "Journal",
    "Lane",
    "Ledger",
    "Search",
    "StageCost",
    "Twin",
    "fast_twin",
    "measure_batch_size",
]
