"""Evaluation: from a model and images to an honest verdict."""

from .evaluate import evaluate
from .intervals import interval
from .result import AttackCost, Curve, CurvePoint, Evaluation, Flag, Verdict

__all__ = [
    "AttackCost",
    "Curve",
    "CurvePoint",
    "Evaluation",
    "Flag",
    "Verdict",
    "evaluate",
    "interval",
]
