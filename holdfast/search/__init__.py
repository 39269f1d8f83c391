"""The engine: searches for many images at once, verifies, and remembers."""

from .batch_size import measure_batch_size, seconds_per_image
from .fast_copies import Lane, Twin, compiled, fast_twin
from .journal import Journal
from .scheduler import Search, StageCost
from .shards import Shard
from .state import CLEAN, STANDING, Ledger
from .verifier import MAJORITY_OF, Answers, Judge

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
