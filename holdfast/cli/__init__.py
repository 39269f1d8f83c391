"""The command line: one file a verb."""

from .app import app, main

__all__ = ["app", "main"]
