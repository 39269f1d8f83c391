"""Evaluation: from a model and images to an honest verdict."""

from .evaluate import evaluate
from .result import AttackCost, Curve, CurvePoint, DrawFigure, Evaluation, Flag, Unaware, Verdict

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
