"""Holdfast: image classifiers that stay right under attack, and honest figures about them.

import holdfast as hf

threat = hf.Threat("linf", 8 / 255)
result = hf.evaluate(model, images, labels, threat, suite="apgd")
result.robust_accuracy

Everything here is imported when it is first used.
"""

from typing import TYPE_CHECKING

from .lazy import lazily

if TYPE_CHECKING:
    from . import attacks, data, defences, figures, uncertainty
    from .certification.certify import certify
    from .errors import HoldfastError, InputError
    from .evaluation.evaluate import evaluate
    from .evaluation.given import judge
    from .evaluation.result import Evaluation
    from .exporting import export
    from .leaderboard import write_leaderboard
    from .loading import load
    from .mixing.run import mix
    from .models.http import HttpModel
    from .one_image import try_image
    from .report import compare, require, write_report
    from .runs.records.reading import read
    from .threat import Threat
    from .training import train
    from .uncertainty.measure_uncertainty import measure_uncertainty
    from .version import VERSION as __version__
    from .viewer import view

__all__ = [
    "Evaluation",
    "HoldfastError",
    "HttpModel",
    "InputError",
    "Threat",
    "__version__",
    "attacks",
    "certify",
    "compare",
    "data",
    "defences",
    "evaluate",
    "export",
    "figures",
    "judge",
    "load",
    "measure_uncertainty",
    "mix",
    "read",
    "require",
    "train",
    "try_image",
    "uncertainty",
    "view",
    "write_leaderboard",
    "write_report",
]

__getattr__, __dir__ = lazily(
    __name__,
    {
        "Evaluation": "evaluation:Evaluation",
        "HoldfastError": "errors:HoldfastError",
        "HttpModel": "models.http:HttpModel",
        "InputError": "errors:InputError",
        "Threat": "threat:Threat",
        "__version__": "version:VERSION",
        "attacks": "attacks",
        "certify": "certification.certify:certify",
        "compare": "report:compare",
        "data": "data",
        "defences": "defences",
        "evaluate": "evaluation:evaluate",
        "export": "exporting:export",
        "figures": "figures",
        "judge": "evaluation.given:judge",
        "load": "loading:load",
        "measure_uncertainty": "uncertainty.measure_uncertainty:measure_uncertainty",
        "mix": "mixing.run:mix",
        "read": "runs.records.reading:read",
        "require": "report:require",
        "train": "training:train",
        "try_image": "one_image:try_image",
        "uncertainty": "uncertainty",
        "view": "viewer:view",
        "write_leaderboard": "leaderboard:write_leaderboard",
        "write_report": "report:write_report",
    },
)
