"""What a run folder holds, read into plain records. Nothing here draws.

`result.json` is required. The other files of a run (`request.json`, `verdicts.csv`,
`examples.safetensors`, `metrics.csv`) may be absent, for results are published without them; one
that is there must be whole, and must say the same as `result.json`.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import TypeAlias

from ..errors import InputError
from ..runs.files import read_json
from ..runs.folder import REQUEST, RESULT, check_files, worker_on
from . import certification, evaluation_run, training_run, uncertainty_run
from .certification import Certification
from .evaluation_run import Evaluation
from .fields import Fields, shown
from .training_run import Training
from .uncertainty_run import Uncertainty

Run: TypeAlias = Evaluation | Training | Uncertainty | Certification


# What a page can show. A new kind of run is one reader here and one template named after its kind.
READERS: dict[str, Callable[[Path, Fields], Run]] = {
    evaluation_run.SCHEMA: evaluation_run.read_evaluation,
    training_run.SCHEMA: training_run.read_training,
    certification.SCHEMA: certification.read_certification,
    uncertainty_run.SCHEMA: uncertainty_run.read_uncertainty,
}


def _why_none(run: Path) -> str:
    """Why a folder holds no result, and what to do."""
    worker = worker_on(run)
    if worker is not None:
        return f"run {run} is under way, in process {worker}: report on it when it has finished"
    if (run / REQUEST).exists():
        return (
            f"{run / RESULT} does not exist: the run is not finished; issue its command again to "
            "finish it"
        )
    below = sorted(path.parent.name for path in run.glob(f"*/{RESULT}"))
    if below:
        return (
            f"{run} is no run but a folder of {len(below)} ({', '.join(below[:3])}"
            f"{', …' if below[3:] else ''}): name those to report on, or use "
            "`holdfast leaderboard` on it"
        )
    empty = "is empty" if not any(run.iterdir()) else "holds neither a result nor a request"
    return f"{run} is no run folder: it {empty}; give the --out of a finished command"


def read_run(run: Path) -> Run:
    """Read a finished run folder.

    Raises:
        InputError: there is no such folder; the run is not finished; a file in it is damaged, is
            of a schema this version does not know, or contradicts another. One line naming the
            file.
    """
    run = Path(run)
    if os.path.isfile(run):  # no error, whatever the name is
        raise InputError(f"{run} is a file; give the run's folder, such as {run.parent}")
    if not os.path.isdir(run):
        raise InputError(f"run folder {run} does not exist")
    path = run / RESULT
    if not os.path.lexists(path):
        raise InputError(_why_none(run))
    held = read_json(path)
    check_files(run, held)
    result = Fields(held, str(path))
    schema = result.text("schema")
    if schema not in READERS:
        raise InputError(
            f"{path} has schema {shown(schema)}; this version of Holdfast reads "
            f"{' and '.join(READERS)}"
        )
    status = result.text("status")
    if status != "complete":
        raise InputError(
            f"{path} has status {shown(status)}, not 'complete': issue the run's command again "
            f"to finish it"
        )
    return READERS[schema](run, result)
