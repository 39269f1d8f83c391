"""Evaluation: from a model and images to an honest verdict."""

from ..runs.records import Curve, CurvePoint, DrawFigure
from .evaluate import evaluate
from .result import AttackCost, Evaluation, Flag, Unaware, Verdict

__all__ = [
    "AttackCost",
    "Curve",
    "CurvePoint",
    "DrawFigure",
    "Evaluation",
    "Flag",
    "Unaware",
    "Verdict",
    "evaluate",
]
