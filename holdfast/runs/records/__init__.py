"""Records: every kind of file that a run or a model keeps, described once.

Each is a pydantic model with a version (`SCHEMA`): the class that writes a file reads it. `read`
opens any of them.
"""

from .base import Part, Record
from .card import Card
from .certification import CertificationRecord, CertifiedAt
from .comparison import Beside, ComparedPair, ComparedRun, ComparisonRecord
from .evaluation import (
    Curve,
    CurvePoint,
    DrawFigure,
    EvaluationRecord,
    GivenInfo,
    QueryFigures,
    QueryPoint,
    Repair,
    TransferInfo,
    Unaware,
)
from .leaderboard import HERE, LeaderboardRecord, LeaderboardRow
from .measured import (
    NOT_NEEDED,
    RAN,
    AttackCost,
    DataInfo,
    Flag,
    Measurement,
    ModelInfo,
    OtherCost,
    threat_in,
)
from .mixture import MixtureFigures, MixtureRecord
from .progress import ProgressRecord
from .reading import (
    CARD,
    RECORDS,
    REQUEST,
    RESULT,
    check_files,
    json_schemas,
    read,
    read_file,
    read_result,
    record_in,
)
from .request import RequestRecord
from .training import TrainingEvent, TrainingRecord, Validation
from .uncertainty import UncertaintyRecord

__all__ = [
    "CARD",
    "HERE",
    "NOT_NEEDED",
    "RAN",
    "RECORDS",
    "REQUEST",
    "RESULT",
    "AttackCost",
    "Beside",
    "Card",
    "CertificationRecord",
    "CertifiedAt",
    "ComparedPair",
    "ComparedRun",
    "ComparisonRecord",
    "Curve",
    "CurvePoint",
    "DataInfo",
    "DrawFigure",
    "EvaluationRecord",
    "Flag",
    "GivenInfo",
    "LeaderboardRecord",
    "LeaderboardRow",
    "Measurement",
    "MixtureFigures",
    "MixtureRecord",
    "ModelInfo",
    "OtherCost",
    "Part",
    "ProgressRecord",
    "QueryFigures",
    "QueryPoint",
    "Record",
    "Repair",
    "RequestRecord",
    "TrainingEvent",
    "TrainingRecord",
    "TransferInfo",
    "Unaware",
    "UncertaintyRecord",
    "Validation",
    "check_files",
    "json_schemas",
    "read",
    "read_file",
    "read_result",
    "record_in",
    "threat_in",
]
