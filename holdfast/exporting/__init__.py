"""Exports: what a run found, as images, arrays, tables, a model card and an annex."""

from .write import Exported, export

__all__ = ["Exported", "export"]
