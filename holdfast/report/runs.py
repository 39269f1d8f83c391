"""What a run folder holds, read into plain records. Nothing here draws.

`result.json` is required. The other files of a run (`request.json`, `verdicts.csv`,
`examples.safetensors`, `metrics.csv`) may be absent, for results are published without them; one
that is there must be whole, and must say the same as `result.json`.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TypeAlias

from ..errors import InputError
from ..files import read_json
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


def read_run(run: Path) -> Run:
    """Read a finished run folder.

    Raises:
        InputError: there is no such folder; the run is not finished; a file in it is damaged, is
            of a schema this version does not know, or contradicts another. One line naming the
            file.
    """
    run = Path(run)
    if not run.is_dir():
        raise InputError(f"run folder {run} does not exist")
    path = run / "result.json"
    if not path.exists():
        raise InputError(
            f"{path} does not exist: the run is not finished; issue its command again to finish it"
        )
    result = Fields(read_json(path), str(path))
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
