"""The command line: one file a verb, each with its `Options`, one call (`run`), and what is
printed (`show`).

Modules of verbs import nothing heavy before `run`: help answers at once.
"""

from .program import app, main

__all__ = ["app", "main"]
