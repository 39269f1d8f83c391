"""Search: many images in full batches, verified on the original model, kept in a journal."""

from .batch_size import measure_batch_size, seconds_per_image
from .fast_copies import FastCopy, Level, compiled, fast_copy_of
from .journal import ASIDE, Block, Journal, stored_points
from .ledger import CLEAN, STANDING, Ledger
from .points import AdversarialImages, StoredPoints
from .search import Search, SearchReport, StageCost
from .shards import Shard
from .verifier import MAJORITY_OF, Predictions, Verifier, succeeded

__all__ = [
    "ASIDE",
    "CLEAN",
    "MAJORITY_OF",
    "STANDING",
    "AdversarialImages",
    "Block",
    "FastCopy",
    "Journal",
    "Ledger",
    "Level",
    "Predictions",
    "Search",
    "SearchReport",
    "Shard",
    "StageCost",
    "StoredPoints",
    "Verifier",
    "compiled",
    "fast_copy_of",
    "measure_batch_size",
    "seconds_per_image",
    "stored_points",
    "succeeded",
]
