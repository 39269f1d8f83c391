"""A finished run that goes on: found, said in its request, its result taken back."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from ..errors import InputError
from ..parsing import parse_seconds
from ..runs.files import write_json
from ..runs.folder import finished
from ..runs.identity import identity
from ..runs.records import REQUEST, RESULT, RequestRecord, TrainingRecord, read_file

LINEAGE = "lengthened"  # key of `asked`: the lengths and steps at which the run was finished before


def lengthened(run: Path, request: dict[str, Any]) -> str:
    """The identity of the run that is asked for, where a folder may hold a shorter one.

    A run that was lengthened is another than one of that length from its beginning, and its
    identity says so: `asked` then holds where it was finished before.

    Args:
        run: the run folder, which may be empty, or hold anything.
        request: of the run that is asked for; its `asked` gets the lineage.

    Raises:
        InputError: the folder holds the same run, but longer; or one that is not finished; or one
            whose checkpoint is gone.
    """
    # As JSON holds it, to be compared with what JSON held.
    asked = request["asked"] = json.loads(json.dumps(request["asked"]))
    held = _held(run)
    if held is None:
        return identity(**asked)
    before = {key: value for key, value in held.asked.items() if key != LINEAGE}
    lineage = list(held.asked.get(LINEAGE, []))
    if before == asked:
        if lineage:
            asked[LINEAGE] = lineage
        key = identity(**asked)
        _take_back(run, key)
        return key
    lengths = _lengths(before, asked)
    if lengths is None:
        return identity(**asked)
    old, new = lengths
    _check_longer(run, held, old, new)
    result = finished(run, TrainingRecord)
    if result is None:
        raise InputError(
            f"{run} holds another run ({_words(old)}, not {_words(new)}), which is not finished: "
            f"finish it as it was begun, with {_option(old)}, then lengthen it"
        )
    if not (run / "checkpoints" / "latest.safetensors").is_file():
        raise InputError(
            f"{run} cannot be lengthened: its last checkpoint, checkpoints/latest.safetensors, is "
            "gone; choose another --out"
        )
    asked[LINEAGE] = [*lineage, {**old, "steps": result.steps}]
    key = identity(**asked)
    told = {**request, "kind": "train", "identity": key}
    record = RequestRecord.checked(told, str(run / REQUEST))
    # From here on the same command goes on, whenever it is killed.
    write_json(run / REQUEST, record.to_dict(), sealed=True)
    _take_back(run, key)
    return key


def _held(run: Path) -> RequestRecord | None:
    """The request of a training in a folder; None where there is none, or nobody can read it."""
    if not (run / REQUEST).is_file():
        return None
    try:
        held = read_file(run / REQUEST)
    except InputError:  # whoever opens the run says what is wrong
        return None
    return held if isinstance(held, RequestRecord) and held.kind == "train" else None


def _lengths(before: dict[str, Any], asked: dict[str, Any]) -> tuple[dict[str, Any], ...] | None:
    """How long the run was and is to be, where that is all in which two requests differ."""
    kinds = []
    for request in (before, asked):
        recipe = request.get("recipe")
        if not isinstance(recipe, dict):
            return None
        name = "epochs" if recipe.get("budget") is None else "budget"
        rest = {key: value for key, value in recipe.items() if key != name}
        kinds.append((name, recipe.get(name), {**request, "recipe": rest}))
    (old_name, old, old_rest), (new_name, new, new_rest) = kinds
    if old_name != new_name or old_rest != new_rest:
        return None
    return {old_name: old}, {new_name: new}


def _check_longer(run: Path, held: RequestRecord, old: dict[str, Any], new: dict[str, Any]) -> None:
    if _amount(new) > _amount(old):
        return
    raise InputError(
        f"{run} holds another run ({_words(old)}, not {_words(new)}): a run can be lengthened, not "
        f"shortened; say {_option(old)} or more, or choose another --out"
    )


def _amount(length: dict[str, Any]) -> float:
    budget = length.get("budget")
    return float(length["epochs"]) if budget is None else parse_seconds(budget)


def in_epochs(number: float) -> str:
    """A length as a reader writes it.

    Example:
        >>> in_epochs(1), in_epochs(2.5)
        ('1 epoch', '2.5 epochs')
    """
    return f"{number:.4g} epoch{'s' * (number != 1)}"


def _words(length: dict[str, Any]) -> str:
    return in_epochs(length["epochs"]) if "epochs" in length else f"{length['budget']}"


def _option(length: dict[str, Any]) -> str:
    if "epochs" in length:
        return f"--set epochs={length['epochs']:g}"
    return f"--budget {length['budget']}"


def _take_back(run: Path, key: str) -> None:
    """Remove the result of the shorter run: what it says of the files beside it will not hold."""
    path = run / RESULT
    if not path.is_file():
        return
    try:
        result = read_file(path)
    except InputError:  # whoever reads the result says what is wrong
        return
    if isinstance(result, TrainingRecord) and result.identity not in (None, key):
        path.unlink()
