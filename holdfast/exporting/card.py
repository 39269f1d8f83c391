"""A model card for Hugging Face: `README.md` with `model-index` metadata, from runs and checkpoint.

https://huggingface.co/docs/hub/model-cards describes the metadata.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Sequence
from typing import Any

import yaml

from ..defences import undefended
from ..errors import InputError
from ..report.runs import (
    CertificationRun,
    EvaluationRun,
    Run,
    TrainingRun,
    UncertaintyRun,
)
from ..report.tables import markdown
from ..runs.records import Card, threat_in
from ..terminal import printable
from .found import model_of
from .tables import Measured, check_one_model, table_of


def card_of(runs: Sequence[Run], model: Any = None) -> str:
    """The card of the model that runs judged.

    Args:
        runs: of one model: an evaluation at least.
        model: its name, where the runs do not say it rightly.

    Raises:
        InputError: no evaluation; runs of different models; a model that is asked for and is not
            there.
    """
    measured = [run for run in runs if isinstance(run, Measured)]
    first = next((run for run in measured if isinstance(run, EvaluationRun)), None)
    if first is None:
        raise InputError("a model card needs an evaluation: name the run folder of one")
    check_one_model(measured, "a card")
    name = first.model.name or first.path.resolve().name
    checkpoint = _checkpoint(first, model)
    return f"---\n{_metadata(name, measured)}---\n\n" + "\n".join(
        [
            f"# {markdown(name)}\n",
            *_description(first, checkpoint),
            *_figures(measured),
            *_usage(first, checkpoint),
            *_training(checkpoint, [run for run in runs if isinstance(run, TrainingRun)]),
            *_measured(measured),
            *_limits(measured),
        ]
    )


def _checkpoint(run: EvaluationRun, model: Any) -> Card | None:
    """The card of the checkpoint; None where it is not at hand."""
    try:
        held = getattr(undefended(model_of(run, model)), "inner", None)
    except InputError:
        if model is not None:
            raise
        return None
    card = getattr(held, "card", None)
    whole = isinstance(card, dict) and card.keys() >= {"architecture", "arguments"}
    return Card.checked(card, "the checkpoint's card") if whole else None


# --- metadata ------------------------------------------------------------------------------------


def _metadata(name: str, runs: Sequence[Measured]) -> str:
    data = list(dict.fromkeys(run.data.name for run in runs if run.data.name))
    held = {
        "library_name": "holdfast",
        "pipeline_tag": "image-classification",
        "tags": ["image-classification", "adversarial-robustness", "pytorch", "holdfast"],
        "datasets": [_slug(each) for each in data],
        "metrics": ["accuracy"],
        "model-index": [
            {"name": _plain(name), "results": [r for run in runs for r in _result(run)]}
        ],
    }
    return yaml.safe_dump(
        {key: value for key, value in held.items() if value},
        sort_keys=False,
        allow_unicode=True,
        width=1000,
    )


def _result(run: Measured) -> list[dict[str, Any]]:
    """A run as an entry of `model-index`; nothing where it holds no figure."""
    metrics = [
        {"type": kind, "name": _plain(f"{name}, n = {run.n}"), "value": round(value, 6)}
        for kind, name, value in _values(run)
        if value is not None
    ]
    if not metrics:
        return []
    dataset: dict[str, Any] = {
        "type": _slug(run.data.name or "images"),
        "name": _plain(run.data.name or "images"),
    }
    if run.data.split:
        dataset["split"] = _plain(run.data.split)
    task = {"type": "image-classification", "name": "Image classification"}
    return [{"task": task, "dataset": dataset, "metrics": metrics}]


def _values(run: Measured) -> list[tuple[str, str, float | None]]:
    """The figures of a run: metric, name and value."""
    if isinstance(run, EvaluationRun):
        name = "target not reached" if run.aimed else "robust accuracy"
        robust = f"{name} ({run.threat}, {run.record.suite or '?'})"
        return [
            ("accuracy", "standard accuracy", run.record.standard_accuracy),
            ("accuracy", robust, run.record.robust_accuracy),
        ]
    if isinstance(run, CertificationRun):
        return [
            ("accuracy", f"certified accuracy (radius {at.radius:.4g})", at.certified_accuracy)
            for at in run.record.certified
        ]
    assert isinstance(run, UncertaintyRun)
    return [
        ("expected_calibration_error", f"calibration error ({condition})", answers.ece.value)
        for condition, answers in run.record.conditions.items()
        if answers.ece is not None
    ]


def _slug(text: str) -> str:
    return re.sub(r"[^a-z0-9._-]+", "-", text.lower()).strip("-.") or "images"


def _plain(text: str) -> str:
    """Text without what no YAML file may hold."""
    return printable(text.encode("utf-8", "replace").decode())


# --- text ----------------------------------------------------------------------------------------


def _description(run: EvaluationRun, checkpoint: Card | None) -> list[str]:
    told = run.model
    lines = [f"An image classifier of the architecture {markdown(told.architecture or 'unknown')}."]
    if run.record.classes:
        shown = ", ".join(markdown(name) for name in run.record.classes[:20])
        more = ", …" if len(run.record.classes) > 20 else ""
        lines.append(f"It tells {len(run.record.classes)} classes apart: {shown}{more}.")
    if checkpoint is not None:
        trained = "no threat model" if checkpoint.threat is None else threat_in(checkpoint.threat)
        lines.append(f"It was trained for {markdown(str(trained))}.")
    if told.defences:
        lines.append(
            f"It stands behind {', then '.join(f'`{_code(spec)}`' for spec in told.defences)}."
        )
    return [" ".join(lines) + "\n"]


def _figures(runs: Sequence[Measured]) -> list[str]:
    lines = ["## Figures\n", table_of(runs, ".md")]
    fired = [(run, flag) for run in runs for flag in run.doubts]
    if fired:
        lines.append("Health checks fired, so the figures above may be too good:\n")
        lines += [f"- {markdown(flag.name)}: {markdown(flag.detail)}" for _, flag in fired]
        lines.append("")
    for run in runs:
        if repairs := getattr(run.record, "repairs", ()):
            places = "; ".join(str(repair) for repair in repairs)
            lines.append(
                f"Gradients are hidden, which is no defence: repaired ones were used ({places}).\n"
            )
    lines.append(
        "A robust accuracy is what the attacks named left standing: a stronger attack could only "
        "lower it.\n"
    )
    return lines


def _usage(run: EvaluationRun, checkpoint: Card | None) -> list[str]:
    # `hf.load` brings the defences of the checkpoint's card.
    own = len(checkpoint.defences) if checkpoint is not None else 0
    more = run.model.defences[: len(run.model.defences) - own]
    wrap = "".join(f"model = hf.defences.parse({spec!r})(model)\n" for spec in reversed(more))
    return [
        "## Use\n",
        "```python",
        "import holdfast as hf\n",
        'model = hf.load("FOLDER")  # that holds model.safetensors and card.json'
        if checkpoint is not None
        else f"model = hf.load({_code(run.model.source or 'MODEL')!r})",
        *([_code(wrap.rstrip(), "\n")] if wrap else []),
        "logits = model(images)  # float32 (N, C, H, W) in [0, 1]; normalisation lies inside",
        "```\n",
    ]


def _training(checkpoint: Card | None, trainings: Sequence[TrainingRun]) -> list[str]:
    lines = ["## Training\n"]
    if checkpoint is None and not trainings:
        return [*lines, "The checkpoint's card was not at hand: how it was trained is not said.\n"]
    if checkpoint is not None:
        facts = {
            "trained on": checkpoint.trained_on,
            "seed": None if checkpoint.seed is None else str(checkpoint.seed),
            "SHA-256 of the weights": checkpoint.weights_sha256,
        }
        lines += [f"- {name}: {markdown(value)}" for name, value in facts.items() if value]
        if checkpoint.recipe:
            recipe = yaml.safe_dump(checkpoint.recipe, sort_keys=False, allow_unicode=True)
            lines += ["- recipe:\n", "```yaml", _code(recipe.rstrip(), "\n"), "```"]
        lines.append("")
    for run in trainings:
        lines.append(f"- {markdown(run.record.headline())}")
        if run.request and run.request.command:
            lines.append(f"  by `{_code(shlex.join(run.request.command))}`")
        lines.append("")
    return lines


def _measured(runs: Sequence[Measured]) -> list[str]:
    lines = ["## How it was measured\n"]
    for run in runs:
        record, request = run.record, run.request
        lines.append(f"- {markdown(record.headline())}, seed {record.seed}")
        if run.data.pixels:
            lines.append(f"  - pixels: {markdown(run.data.pixels)}")
        if request and request.command:
            lines.append(f"  - `{_code(shlex.join(request.command))}`")
        if request and request.versions:
            versions = ", ".join(f"{name} {value}" for name, value in request.versions.items())
            lines.append(f"  - {markdown(versions)}")
        if request and request.machine:
            lines.append(f"  - {markdown(request.machine)}")
    return [*lines, ""]


def _limits(runs: Sequence[Measured]) -> list[str]:
    threats = ", ".join(dict.fromkeys(str(run.threat) for run in runs))
    lines = [
        "## Limits\n",
        "- Figures hold for the images named, and others like them; on other images they are not "
        "known.",
        f"- The attacker may do what {markdown(threats)} allows. Other changes were not tried.",
    ]
    if not any(isinstance(run, UncertaintyRun) for run in runs):
        lines.append("- How sure the model is, and whether that can be believed, was not measured.")
    if not any(isinstance(run, CertificationRun) for run in runs):
        lines.append("- Nothing is certified: robust accuracy is an upper bound.")
    seen = [run for run in runs if run.data.seen_in_training]
    if seen:
        lines.append("- Some of the images were seen in training: the figures on them flatter it.")
    return [*lines, ""]


def _code(text: str, keep: str = "") -> str:
    """Text inside a code span or block, which it cannot end."""
    return printable(text, keep).replace("`", "'")
