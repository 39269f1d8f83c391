"""Where a run's figures go while it runs: `metrics.csv` always, trackers where they are asked for.

Trackers are Lightning's loggers, the same that Fabric users have; they are off by default and see
what metrics.csv sees. They decide nothing: a run is the same with and without.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from ..errors import InputError
from ..parsing import nearest
from ..runs.files import csv_text, write_atomically


def _tensorboard(run: Path) -> Any:
    from lightning_fabric.loggers import TensorBoardLogger

    return TensorBoardLogger(run, name="tensorboard", version="")


def _mlflow(run: Path) -> Any:
    from pytorch_lightning.loggers import MLFlowLogger

    # Where the environment says, else beside the run.
    place = os.environ.get("MLFLOW_TRACKING_URI") or (run / "mlflow").absolute().as_uri()
    return MLFlowLogger("holdfast", run_name=run.name, tracking_uri=place)


# name → (the modules that it needs, what makes one for a run folder)
TRACKERS: dict[str, tuple[tuple[str, ...], Callable[[Path], Any]]] = {
    "tensorboard": (("tensorboard",), _tensorboard),
    "mlflow": (("mlflow", "pytorch_lightning"), _mlflow),
}


def check_trackers(names: Sequence[str]) -> None:
    """InputError for a tracker that is unknown, or whose package is not installed."""
    for name in names:
        if name not in TRACKERS:
            raise InputError(f"--log {name!r} is unknown{nearest(name, TRACKERS)}")
        packages = [m.replace("_", "-") for m in TRACKERS[name][0] if find_spec(m) is None]
        if packages:
            raise InputError(f"--log {name} needs a package: pip install {' '.join(packages)}")


class Tracking:
    """Writes rows of figures.

    Args:
        run: the run folder.
        trackers: names from `TRACKERS`; each is opened with the first row.
        settings: the recipe, for the trackers.
    """

    def __init__(self, run: Path, trackers: Sequence[str] = (), settings: Any = None):
        self.run, self.names, self.settings = run, trackers, settings
        self.open: list[Any] | None = None

    def log(self, rows: Sequence[dict[str, Any]]) -> None:
        """metrics.csv with all rows, and the last one to each tracker."""
        names = list(rows[0])
        table = csv_text(names, ([row.get(name) for name in names] for row in rows))
        write_atomically(self.run / "metrics.csv", table)
        if self.open is None:
            self.open = [TRACKERS[name][1](self.run) for name in self.names]
            for tracker in self.open:
                tracker.log_hyperparams(self.settings)
        for tracker in self.open:
            found = {key: value for key, value in rows[-1].items() if value is not None}
            tracker.log_metrics(found, step=rows[-1]["step"])
            tracker.save()

    def close(self) -> None:
        """Tell the trackers that the run is over."""
        for tracker in self.open or ():
            tracker.finalize("success")
