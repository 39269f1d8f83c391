"""`holdfast demo`: the whole way on the embedded digits, in minutes."""

from __future__ import annotations

import time
from pathlib import Path

from .. import data as datasets
from ..report import write_report
from ..terminal import tell, tell_table
from ..threat import Threat
from ..training import train
from ..training.recipe import recipe_from
from .evaluate import evaluate_command
from .tables import percent

THREAT = Threat("linf", 0.2)
RECIPES = {
    "undefended": {
        "objective": {"name": "standard"},
        "validation": {"steps": 5, "images": 300},
        "epochs": 15,
    },
    "defended": {
        "objective": {"name": "pgd", "arguments": {"steps": 5, "step_size": 0.4}},
        "validation": {"steps": 5, "images": 300},
        "epochs": 40,
    },
}
SHARED = {
    "model": {"architecture": "small-cnn", "arguments": {"width": 16}},
    "threat": {"norm": THREAT.norm, "eps": str(THREAT.eps)},
    "augment": {"crop_padding": 1, "flip": "none"},
    "optimiser": {"learning_rate": 0.1},
    "batch_size": 64,
    "averaging": 0.98,
    "precision": "float32",
}


def run_demo(out: Path, *, seed: int = 0, progress: bool = True) -> Path:
    """Train an undefended and a defended model, attack both, print a table, write the page.

    Args:
        out: run folders and `report.html`; an interrupted demo goes on.

    Returns:
        the page.
    """
    began = time.monotonic()
    digits = datasets.load("digits")
    runs, rows = [], []
    for name, recipe in RECIPES.items():
        training = out / name
        train(recipe_from({**SHARED, **recipe}), digits, training, seed=seed, progress=progress)
        verdict = out / f"{name}-verdict"
        result = evaluate_command(
            str(training),
            "digits",
            verdict,
            suite="apgd",
            norm=THREAT.norm,
            eps=str(THREAT.eps),
            limit=None,
            split="test",
            pixels=None,
            curve=True,
            batch_size=None,
            precision="auto",
            size=None,
            seed=seed,
            device=None,
            progress=progress,
        )
        runs += [verdict, training]
        summary = result.summary()
        rows.append(
            (
                name,
                percent(summary, "standard_accuracy"),
                percent(summary, "robust_accuracy"),
                str(result.n),
            )
        )
    page = write_report(runs, out / "report.html")
    columns = ("model", "standard accuracy", "robust accuracy", "n")
    tell_table(f"digits, {THREAT}, suite apgd", columns, rows)
    tell(f"report: {page}  ({time.monotonic() - began:.0f} s)")
    return page
