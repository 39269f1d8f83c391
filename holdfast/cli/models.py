"""`holdfast models`: the zoo."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Annotated, Any

import typer

from ..errors import InputError
from ..terminal import tell, tell_table
from .options import JsonOption
from .tables import evaluations, percent


@dataclass(frozen=True)
class Options:
    """List the models of the zoo with their figures, and fetch some of them.

    A model's name is a MODEL for every other verb.
    """

    fetch: Annotated[
        list[str] | None,
        typer.Option("--fetch", help="Bring this model onto this machine. May be repeated."),
    ] = None
    as_json: JsonOption = False


def run(options: Options) -> list[dict[str, Any]]:
    """Fetch what is to be fetched; then what is known of every model.

    A model whose card is damaged is one line on standard error; the others are listed.

    Returns:
        for each model `name`, `architecture`, `threat` (None: not trained for any), `folder`
        (None: to be fetched), `size` in bytes, `results` and `certificates`.

    Raises:
        InputError: the zoo has no model of a name.
        HoldfastError: a model cannot be fetched.
    """
    from ..models.checkpoint import WEIGHTS, read_card
    from ..models.zoo import fetch, zoo_index, zoo_models

    for name in options.fetch or ():
        fetch(name)
    here, published = zoo_models(), zoo_index()
    found = []
    for name in sorted({*here, *published}):
        folder, known = here.get(name), published.get(name)
        results, certificates = [], []
        if folder is None:
            assert known is not None
            card: dict[str, Any] = {"architecture": known.architecture, "threat": known.threat}
            size, results, certificates = known.size, known.results, known.certificates
        else:
            try:
                card = read_card(folder, classifier=False).to_dict()
            except InputError as error:
                tell(f"left out: {error}", error=True)
                continue
            size = sum(file.stat().st_size for file in folder.iterdir() if file.is_file())
            results = evaluations(folder)
            if known and card.get("weights_sha256") == known.files[WEIGHTS]:
                results += known.results
                certificates = known.certificates
        found.append(
            {
                "name": name,
                "architecture": card["architecture"],
                "threat": card.get("threat"),
                "folder": None if folder is None else str(folder),
                "size": size,
                "results": results,
                "certificates": certificates,
            }
        )
    return found


def show(models: list[dict[str, Any]], options: Options) -> None:
    """Print a line for each model, and below it one for each suite, whose figures never mix."""
    from ..runs.records import threat_in

    if options.as_json:
        print(json.dumps(models, indent=2))
        return
    rows: list[tuple[str, ...] | str] = []
    for model in models:
        threat = threat_in(model["threat"]) if model["threat"] else "no threat model"
        where = "" if model["folder"] else f"; {model['size'] / 1e6:.1f} MB, to be fetched"
        rows.append(f"{model['name']}: {model['architecture']}, {threat}{where}")
        rows += [
            (
                _suite(result, model["threat"]),
                percent(result, "standard_accuracy"),
                percent(result, "robust_accuracy"),
                str(result["n"]),
            )
            for result in model["results"]
        ]
        rows += [_certified(found) for found in model["certificates"]]
    tell_table("zoo", ("model, suites", "standard accuracy", "robust accuracy", "n"), rows)
    if any(model["folder"] is None for model in models):
        tell("`holdfast models --fetch NAME` fetches a model; HOLDFAST_ZOO names a folder of them.")


def _certified(found: dict[str, Any]) -> tuple[str, ...]:
    """The row of a certification: at the largest radius that it reports."""
    from ..runs.records import threat_in

    farthest = found["certified"][-1]
    robust = {
        "robust_accuracy": farthest["certified_accuracy"],
        "robust_accuracy_interval": farthest["interval"],
    }
    threat = threat_in({"norm": found["threat"]["norm"], "eps": farthest["radius"]})
    return (
        f"    certified, {threat}",
        percent(found, "standard_accuracy"),
        percent(robust, "robust_accuracy"),
        str(found["n"]),
    )


def _suite(result: dict[str, Any], trained_for: dict[str, Any] | None) -> str:
    """What a model was judged by; the threat model only if it is another than the model's."""
    from ..runs.records import threat_in

    threat = threat_in(result["threat"])
    same = trained_for is not None and threat_in(trained_for) == threat
    return f"    {result['suite']}" if same else f"    {result['suite']}, {threat}"
