"""What training minimises: each objective is a small class over the shared loop.

An objective is given the model in training mode, a batch, and the threat model, and returns the
loss with the logits it is about. Inner attacks are those of `holdfast.attacks`, stepped a fixed
number of times.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Mapping
from typing import Any

from ...errors import InputError
from ...parsing import nearest
from .augmented import DAJAT
from .base import Batch, Loss, Objective, perturb
from .consistent import LIET
from .cross_entropy import NFGSM, PGDTraining, Standard
from .denoising import Denoising, Diffusion
from .guided import GAT, NuAT
from .helper import HAT
from .interval import IntervalBounds
from .mart import MART
from .smoothing import Gaussian, SmoothAdv
from .trades import IKL, TRADES
from .weight_perturbation import AWP

__all__ = ["AWP", "OBJECTIVES", "Batch", "Loss", "Objective", "objective_named", "perturb"]

OBJECTIVES: dict[str, Callable[..., Objective]] = {
    "standard": Standard,
    "n-fgsm": NFGSM,
    "pgd": PGDTraining,
    "trades": TRADES,
    "mart": MART,
    "gat": GAT,
    "nuat": NuAT,
    "liet": LIET,
    "hat": HAT,
    "ikl": IKL,
    "dajat": DAJAT,
    "gaussian": Gaussian,
    "smoothadv": SmoothAdv,
    "interval": IntervalBounds,
    "denoising": Denoising,
    "diffusion": Diffusion,
}


def objective_named(
    name: str, arguments: Mapping[str, Any], awp: float = 0.0, awp_warmup: float = 0.05
) -> Objective:
    """An objective by its recipe name; with `awp` above 0, under adversarial weight perturbation.

    Raises:
        InputError: an unknown name or argument (with the nearest known one), or a bad value.
    """
    if name not in OBJECTIVES:
        raise InputError(f"objective {name!r} is unknown{nearest(name, OBJECTIVES)}")
    known = inspect.signature(OBJECTIVES[name]).parameters
    for key, value in arguments.items():
        if key not in known:
            raise InputError(f"objective {name!r} has no argument {key!r}{nearest(key, known)}")
        if known[key].annotation in (str, "str"):
            if not isinstance(value, str):
                raise InputError(f"objective {name!r}: {key} must be text, not {value!r}")
            continue
        whole = isinstance(known[key].default, int)
        if isinstance(value, bool) or not isinstance(value, int if whole else int | float):
            kind = "a whole number" if whole else "a number"
            raise InputError(f"objective {name!r}: {key} must be {kind}, not {value!r}")
        least = 1 if whole else 0
        if not least <= value < math.inf:
            raise InputError(f"objective {name!r}: {key} must be at least {least}, not {value!r}")
        if key == "label_smoothing" and value >= 1:
            raise InputError(f"objective {name!r}: {key} must be below 1, not {value!r}")
    for key, parameter in known.items():
        if parameter.default is inspect.Parameter.empty and key not in arguments:
            raise InputError(f"objective {name!r} needs the argument {key!r}")
    objective = OBJECTIVES[name](**arguments)
    if awp and not objective.only_answers:
        raise InputError(f"objective {name!r} cannot be combined with objective.awp")
    return AWP(objective, awp, awp_warmup) if awp else objective
