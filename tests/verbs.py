"""Verbs of the command line, called as it calls them, without progress."""

from __future__ import annotations

from pathlib import Path
from types import ModuleType
from typing import Any

from holdfast.certification.run import Certification
from holdfast.cli import certify, evaluate, leaderboard, mix, models, uncertainty
from holdfast.evaluation import Evaluation
from holdfast.mixing.parameters import Choice
from holdfast.runs.records import UncertaintyRecord


def evaluate_command(model: str, data: Any, out: Path, **options: Any) -> Evaluation:
    return evaluate.run(evaluate.Options(model, out, data, quiet=True, **options))


def uncertainty_command(model: str, data: Any, out: Path, **options: Any) -> UncertaintyRecord:
    return uncertainty.run(uncertainty.Options(model, out, data, quiet=True, **options))


def certify_command(model: str, data: Any, out: Path, **options: Any) -> Certification:
    return certify.run(certify.Options(model, out, data, quiet=True, **options))


def mix_command(
    robust: str, accurate: str, data: Any, out: Path, **options: Any
) -> tuple[Path, Choice]:
    asked = mix.Options(robust, accurate, out, data, quiet=True, **options)
    return out, mix.run(asked).choice


def print_leaderboard(folder: Path) -> None:
    _printed(leaderboard, leaderboard.Options(folder))


def print_zoo() -> None:
    _printed(models, models.Options())


def _printed(verb: ModuleType, options: Any) -> None:
    verb.show(verb.run(options), options)
