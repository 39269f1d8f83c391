"""Evaluations on the same images, compared image by image."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path

import numpy as np

from ..errors import InputError
from ..evaluation.paired import paired
from ..evaluation.result import VERDICTS, Evaluation, distinct_names
from ..runs.files import csv_text, json_text
from ..runs.records import (
    Beside,
    ComparedPair,
    ComparedRun,
    ComparisonRecord,
    DataInfo,
    EvaluationRecord,
    ModelInfo,
    threat_in,
)
from ..runs.records.comparison import points
from ..threat import Threat
from .runs import EvaluationRun, Run, read_run
from .tables import latex_table, markdown, markdown_table

PAIRS = ("first", "all")
TARGET = "target"  # the goal of an attacker who wants one class
CORRECTION = "the p-values are corrected for {} pairs by Holm's method"


@dataclass(frozen=True)
class Compared:
    """An evaluation as it is compared.

    Attributes:
        where: how messages call it.
        run: its folder, or empty.
        index, label, right, standing, target: (n,), one an image.
        fingerprint: (n,), of the clean images; None where that is not known of all.
        images: digest of all images and labels together; None where it is not known.
    """

    where: str
    run: str
    record: EvaluationRecord
    index: np.ndarray
    label: np.ndarray
    right: np.ndarray
    standing: np.ndarray
    target: np.ndarray
    fingerprint: np.ndarray | None
    images: str | None

    @property
    def data(self) -> DataInfo:
        return self.record.data or DataInfo()

    @property
    def model(self) -> ModelInfo:
        return self.record.model or ModelInfo()

    @property
    def threat(self) -> Threat:
        return threat_in(self.record.threat)


def compare(runs: Sequence[Path | str | Evaluation], *, pairs: str = "first") -> ComparisonRecord:
    """Compare evaluations on the same images, image by image.

    Images on which two models agree say nothing of their difference: the same images see smaller
    differences than two intervals beside each other.

    Args:
        runs: folders of finished evaluations, or results of `holdfast.evaluate`; two at least.
        pairs: `first` compares each run with the first one, `all` each with every other. The
            p-values of several pairs are corrected by Holm's method ("A simple sequentially
            rejective multiple test procedure", Scand. J. Stat. 1979).

    Returns:
        for each pair and each of standard and robust accuracy: on which images both, one or neither
        is right; McNemar's exact test; the difference with its 95 % interval (Tango 1998). Images
        are told apart by their pixels. Those that not all runs hold are left out, and a note says
        how many.

    Raises:
        InputError: fewer than two runs, or one twice; a run that is missing, unfinished, damaged,
            no evaluation, or holds no verdicts; other threat models, other images.

    Example:
        >>> import torch, holdfast as hf
        >>> images, labels = torch.rand(8, 1, 2, 2), torch.arange(8) % 2
        >>> def judged(seed):
        ...     torch.manual_seed(seed)
        ...     model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(4, 2))
        ...     return hf.evaluate(model, images, labels, ("linf", 0.1), suite="fgsm")
        >>> found = hf.compare([judged(0), judged(1)]).pairs[0].robust
        >>> found.both + found.first + found.second + found.neither
        8
    """
    if pairs not in PAIRS:
        raise InputError(f"pairs must be one of {', '.join(PAIRS)}, not {pairs!r}")
    if isinstance(runs, str | Path | Evaluation):
        raise InputError("compare takes a list of two runs or more")
    asked = list(runs)
    if len(asked) < 2:
        raise InputError(f"a comparison needs two runs at least, not {len(asked)}")
    folders = [Path(run).resolve() for run in asked if isinstance(run, str | Path)]
    for folder, times in Counter(folders).items():
        if times > 1:
            raise InputError(f"run {folder} is given twice: a run does not differ from itself")
    return compare_read(
        [_of_result(run, place) if isinstance(run, Evaluation) else _of_run(read_run(Path(run)))
         for place, run in enumerate(asked, 1)],
        pairs,
    )  # fmt: skip


def compare_runs(runs: Sequence[EvaluationRun], pairs: str = "first") -> ComparisonRecord:
    """As `compare`, of runs that have been read."""
    return compare_read([_of_run(run) for run in runs], pairs)


def compare_read(runs: Sequence[Compared], pairs: str) -> ComparisonRecord:
    """As `compare`, of verdicts that have been read."""
    first = runs[0]
    for run in runs[1:]:
        if run.threat != first.threat:
            raise InputError(
                f"{first.where} is of the threat model {first.threat}, {run.where} of "
                f"{run.threat}: figures of different ones do not compare"
            )
        if run.record.goal != first.record.goal:
            raise InputError(
                f"the attacker's goal is {first.record.goal!r} in {first.where}, and "
                f"{run.record.goal!r} in {run.where}: figures of different ones do not compare"
            )
    rows, notes = _shared(runs)
    n = len(rows[0])
    index, labels = first.index[rows[0]], first.label[rows[0]]
    right = [run.right[own] for run, own in zip(runs, rows, strict=True)]
    standing = [run.standing[own] for run, own in zip(runs, rows, strict=True)]
    chosen = (
        list(combinations(range(len(runs)), 2))
        if pairs == "all"
        else [(0, other) for other in range(1, len(runs))]
    )
    sides = [[_beside(index, held[a], held[b]) for a, b in chosen] for held in (right, standing)]
    standard, robust = (_corrected(found) for found in sides)
    if len(chosen) > 1:
        notes.append(CORRECTION.format(len(chosen)))
    names = _names(runs)
    return ComparisonRecord(
        n=n,
        threat=first.threat.describe(),
        data=first.record.data,
        runs=tuple(
            ComparedRun(
                name=name,
                run=run.run,
                identity=run.record.identity or None,
                sha256=run.model.sha256,
                suite=run.record.suite,
                n=run.record.n,
                standard_accuracy=int(held.sum()) / n,
                robust_accuracy=int(left.sum()) / n,
                wrong=_places(~held),
                broken=_places(~left),
            )
            for name, run, held, left in zip(names, runs, right, standing, strict=True)
        ),
        pairs=tuple(
            ComparedPair(first=a, second=b, standard=s, robust=r)
            for (a, b), s, r in zip(chosen, standard, robust, strict=True)
        ),
        notes=tuple([*notes, *_cautions(runs, names)]),
        images=_whole(index),
        labels=_whole(labels),
    )


# --- what is compared ----------------------------------------------------------------------------


def _of_run(run: Run) -> Compared:
    """A run that was read; InputError where it is no evaluation, or holds no verdicts."""
    if not isinstance(run, EvaluationRun):
        raise InputError(
            f"{run.path} is a run of {run.kind}, no evaluation: give the --out of "
            "`holdfast evaluate`"
        )
    held = run.verdicts
    if held is None:
        raise InputError(
            f"{run.path} holds no {VERDICTS}: which images stand is not known; issue its command "
            "again"
        )
    asked = run.request.asked if run.request else {}
    images = asked.get("images")
    known = len(held.fingerprint) > 0 and bool((held.fingerprint >= 0).all())
    return Compared(
        where=str(run.path),
        run=str(run.path),
        record=run.record,
        index=held.index,
        label=held.label,
        right=held.clean_right,
        standing=~held.broken,
        target=held.target,
        fingerprint=held.fingerprint if known else None,
        images=images if isinstance(images, str) else None,
    )


def _of_result(result: Evaluation, place: int) -> Compared:
    """A result in memory; `place` is its own among those given."""
    held = result.verdicts
    column = {
        name: np.array([getattr(verdict, name) for verdict in held])
        for name in ("index", "label", "clean_prediction", "broken", "target", "fingerprint")
    }
    known = bool((column["fingerprint"] >= 0).all())
    return Compared(
        where=f"result {place}",
        run="",
        record=result,
        index=column["index"],
        label=column["label"],
        right=column["clean_prediction"] == column["label"],
        standing=~column["broken"].astype(bool),
        target=column["target"],
        fingerprint=column["fingerprint"] if known else None,
        images=None,
    )


def _names(runs: Sequence[Compared]) -> list[str]:
    """Names of the models, and what else tells those apart that have one name."""
    plain = [run.model.title if run.model.name else run.where for run in runs]
    names = distinct_names(plain, [run.model.sha256 or "" for run in runs])
    for what in (
        [run.record.suite or "" for run in runs],
        [Path(run.run).resolve().name if run.run else run.where for run in runs],
        [f"run {place}" for place in range(1, len(runs) + 1)],
    ):
        names = [
            f"{name}, {more}" if names.count(name) > 1 and more else name
            for name, more in zip(names, what, strict=True)
        ]
    return names


def _keys(run: Compared, by_pixels: bool) -> list[tuple[int, int]]:
    """What an image is known by: its pixels or its index, and which of several alike it is."""
    source = run.fingerprint if by_pixels and run.fingerprint is not None else run.index
    seen: Counter[int] = Counter()
    keys = []
    for value in source.tolist():
        keys.append((value, seen[value]))
        seen[value] += 1
    return keys


def _shared(runs: Sequence[Compared]) -> tuple[list[np.ndarray], list[str]]:
    """Each run's rows of the images that all of them hold, in the first one's order, and notes.

    Raises:
        InputError: they hold no image in common, or there is no telling, or other labels.
    """
    first, notes = runs[0], []
    by_pixels = all(run.fingerprint is not None for run in runs)
    if not by_pixels:
        for run in runs[1:]:
            _check_alike(first, run)
        if any(run.images is None or run.images != first.images for run in runs):
            notes.append(
                "the images are taken to be the same by the names of their data, their places and "
                "labels: not all runs hold checksums of them"
            )
    keys = [_keys(run, by_pixels) for run in runs]
    common = set(keys[0]).intersection(*map(set, keys[1:]))
    if not common:
        for run, own in zip(runs[1:], keys[1:], strict=True):
            if not set(own) & set(keys[0]):
                raise InputError(
                    f"{first.where} and {run.where} are on other images: {_images(first)}, and "
                    f"{_images(run)}, have none in common"
                )
        raise InputError("no image is in all of these runs")
    wanted = [key for key in keys[0] if key in common]
    rows = []
    for own in keys:
        place = {key: row for row, key in enumerate(own)}
        rows.append(np.array([place[key] for key in wanted], np.int64))
    for run, chosen in zip(runs[1:], rows[1:], strict=True):
        unlike = (run.label[chosen] != first.label[rows[0]]).nonzero()[0]
        if len(unlike):
            at = int(first.index[rows[0][unlike[0]]])
            raise InputError(
                f"{first.where} and {run.where} have other labels on the same images (image {at}, "
                f"and {len(unlike)} in all)"
            )
        if first.record.goal == TARGET and (
            len(unlike := (run.target[chosen] != first.target[rows[0]]).nonzero()[0])
        ):
            raise InputError(
                f"{first.where} and {run.where} aimed at other targets on {len(unlike)} of the "
                "images: their figures do not compare"
            )
    if any(run.record.n != len(common) for run in runs):
        sizes = ", ".join(str(run.record.n) for run in runs)
        notes.append(
            f"the runs hold {sizes} images: compared are the {len(common)} that all of them hold"
        )
    return rows, notes


def _check_alike(first: Compared, run: Compared) -> None:
    """InputError where two runs whose images are not known one by one are on other ones."""
    same_size = first.record.n == run.record.n
    if first.images and run.images and same_size and first.images == run.images:
        return
    told = [(run.data.name, run.data.split, run.data.pixels) for run in (first, run)]
    if (first.images and run.images and same_size) or told[0] != told[1]:
        raise InputError(
            f"{first.where} and {run.where} are on other images: {_images(first)}, and "
            f"{_images(run)}"
        )


def _images(run: Compared) -> str:
    data = run.data
    words = " ".join(word for word in (data.name, data.split) if word)
    pixels = f" ({data.pixels})" if data.pixels else ""
    return f"{run.record.n} of {words or 'unnamed data'}{pixels}"


def attacker(record: EvaluationRecord) -> str:
    """What the attacker could know and ask, in words."""
    knows = {"scores": "sees scores", "labels": "sees labels only"}
    known = knows.get(record.outputs or "", "knows the model")
    if record.given is not None:
        known = "did not search on this model"
    budget = record.queries.budget if record.queries is not None else None
    return known if budget is None else f"{known}, {budget:,} queries an image"


def _cautions(runs: Sequence[Compared], names: Sequence[str]) -> list[str]:
    """What else may make a difference than the model."""
    suites = list(dict.fromkeys(run.record.suite or "?" for run in runs))
    said = []
    if runs[0].record.goal == TARGET:
        said.append("robust accuracy is the share of images on which the target was not reached")
    if len(suites) > 1:
        said.append(
            f"the suites differ ({', '.join(suites)}): a difference in robust accuracy may be the "
            "search's, not the model's"
        )
    attackers = list(dict.fromkeys(attacker(run.record) for run in runs))
    if len(attackers) > 1:
        said.append(
            f"the attackers differ ({'; '.join(attackers)}): who knows less, or may ask less, "
            "leaves more standing"
        )
    for name, run in zip(names, runs, strict=True):
        fired = ", ".join(flag.name for flag in run.record.doubts)
        if fired:
            said.append(f"flags of {name}: {fired}; its figures may be too good")
    return said


# --- how it is compared --------------------------------------------------------------------------


def _beside(index: np.ndarray, first: np.ndarray, second: np.ndarray) -> Beside:
    found = paired(first, second)
    return Beside(
        both=int((first & second).sum()),
        first=found.first_only,
        second=found.second_only,
        neither=int((~first & ~second).sum()),
        only_first=_whole(index[first & ~second]),
        only_second=_whole(index[second & ~first]),
        difference=found.difference,
        interval=found.interval(),
        p_value=min(found.p_value, 1.0),
        p_holm=min(found.p_value, 1.0),
    )


def _corrected(found: Sequence[Beside]) -> list[Beside]:
    """With p-values corrected for their number, by Holm's method."""
    order = sorted(range(len(found)), key=lambda place: found[place].p_value)
    corrected, highest = list(found), 0.0
    for rank, place in enumerate(order):
        highest = max(highest, min(1.0, found[place].p_value * (len(found) - rank)))
        corrected[place] = found[place].model_copy(update={"p_holm": highest})
    return corrected


def _whole(values: np.ndarray) -> tuple[int, ...]:
    return tuple(int(value) for value in values)


def _places(chosen: np.ndarray) -> tuple[int, ...]:
    return _whole(chosen.nonzero()[0])


# --- how it is shown -----------------------------------------------------------------------------

COLUMNS = ("accuracy", "both", "only first", "only second", "neither", "difference (95 %)", "p")
SHOWN = 12  # images named in a line; all of them are in the other formats


def letter(place: int) -> str:
    """How tables call a run by its place: A, B, …, Z, A1, …"""
    return chr(ord("A") + place % 26) + (str(place // 26) if place >= 26 else "")


def measures(pair: ComparedPair) -> tuple[tuple[str, Beside], ...]:
    """Both accuracies of a pair, by name."""
    return ("standard", pair.standard), ("robust", pair.robust)


def rows_of(found: ComparisonRecord) -> list[tuple[str, ...]]:
    """A row for each pair and accuracy, of `COLUMNS`."""
    return [
        (
            f"{name}, {letter(pair.second)} − {letter(pair.first)}",
            *(str(count) for count in (side.both, side.first, side.second, side.neither)),
            in_points(side),
            p_value(side),
        )
        for pair in found.pairs
        for name, side in measures(pair)
    ]


def in_points(side: Beside) -> str:
    """The difference with its interval: `+3.1 points (+0.4 to +5.9)`."""
    low, high = side.interval
    return f"{points(side.difference)} points ({points(low)} to {points(high)})"


def p_value(side: Beside) -> str:
    """As a table has it: `0.031`, or `< 0.0001`."""
    return "< 0.0001" if side.p_holm < 1e-4 else f"{side.p_holm:.2g}"


def runs_of(found: ComparisonRecord) -> list[tuple[str, ...]]:
    """A row for each run: what tables call it, and its figures on the images compared."""
    return [
        (
            letter(place),
            run.name,
            f"{run.standard_accuracy:.1%}",
            f"{run.robust_accuracy:.1%}",
            run.suite or "?",
        )
        for place, run in enumerate(found.runs)
    ]


RUN_COLUMNS = ("run", "model", "standard accuracy", "robust accuracy", "suite")


def title(found: ComparisonRecord) -> str:
    data = found.data or DataInfo()
    words = " ".join(word for word in (data.name, data.split) if word)
    return f"{found.n} images{f' of {words}' if words else ''}, {threat_in(found.threat)}"


def only_lines(found: ComparisonRecord) -> list[str]:
    """Which images only one of two models stands on, or has right: a line each."""
    lines = []
    for pair in found.pairs:
        for name, side in measures(pair):
            verb = "right" if name == "standard" else "standing"
            for place, images in ((pair.first, side.only_first), (pair.second, side.only_second)):
                other = pair.second if place == pair.first else pair.first
                named = ", ".join(map(str, images[:SHOWN])) + (", …" if len(images) > SHOWN else "")
                lines.append(
                    f"{verb} with {letter(place)}, not with {letter(other)}: {named or 'none'}"
                )
    return lines


def as_text(found: ComparisonRecord, kind: str) -> str:
    """A comparison as Markdown, LaTeX, CSV (a row an image) or JSON.

    Args:
        kind: `md`, `tex`, `csv` or `json`.
    """
    if kind == "json":
        return json_text(found.to_dict())
    if kind == "csv":
        return _csv(found)
    if kind == "tex":
        lead = "% Needs \\usepackage{booktabs}.\n"
        return (
            lead
            + latex_table(RUN_COLUMNS, runs_of(found), title(found))
            + "\n"
            + latex_table(COLUMNS, rows_of(found), METHODS)
        )
    notes = "".join(f"- {markdown(note)}\n" for note in (METHODS, *found.notes))
    return "\n".join(
        [
            f"{markdown(title(found))}\n",
            markdown_table(RUN_COLUMNS, runs_of(found)),
            markdown_table(COLUMNS, rows_of(found)),
            notes,
        ]
    )


METHODS = "95 % intervals by Tango's score method, p by McNemar's exact test"


def _csv(found: ComparisonRecord) -> str:
    """A row an image; `right` and `standing` of each run are 0 or 1."""
    columns = [
        f"{letter(place)} {what}"
        for place in range(len(found.runs))
        for what in ("right", "standing")
    ]
    wrong, broken = [set(r.wrong) for r in found.runs], [set(r.broken) for r in found.runs]
    return csv_text(
        ["image", "label", *columns],
        (
            [
                image,
                label,
                *(
                    int(row not in held)
                    for sides in zip(wrong, broken, strict=True)
                    for held in sides
                ),
            ]
            for row, (image, label) in enumerate(zip(found.images, found.labels, strict=True))
        ),
    )
