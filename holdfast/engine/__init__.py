"""The engine: searches for many images at once, verifies, and remembers."""

from .batching import measure_batch_size, seconds_per_image
from .journal import Journal
from .judge import MAJORITY_OF, Answers, Judge
from .lane import Lane
from .ledger import CLEAN, STANDING, Ledger
from .search import Search, StageCost
from .sharding import Shard
from .twin import Twin, compiled, fast_twin

__all__ = [
    "CLEAN",
    "MAJORITY_OF",
    "STANDING",
    "Answers",
    "Journal",
    "Judge",
    "Lane",
    "Ledger",
    "Search",
    "Shard",
    "StageCost",
    "Twin",
    "compiled",
    "fast_twin",
    "measure_batch_size",
    "seconds_per_image",
]
