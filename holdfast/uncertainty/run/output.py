"""How an uncertainty run is written down: `result.json`, two CSV files, and the figures."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ...runs.files import csv_text, write_atomically
from ...runs.folder import finish
from ...runs.records import UncertaintyRecord
from ...runs.records.uncertainty import Figure, Separation
from .plots import draw


def write_run(
    folder: Path, result: dict[str, Any], rows: list[dict[str, Any]]
) -> UncertaintyRecord:
    """The files of a finished run; `result.json` last, so that its presence means done.

    Args:
        rows: one an image, for `images.csv`.

    Returns:
        what `result.json` holds.
    """
    write_atomically(folder / "metrics.csv", metrics_csv(result))
    write_atomically(folder / "images.csv", images_csv(rows))
    pictures = {f"{name}.svg": picture for name, picture in draw(result).items()}
    for name, picture in pictures.items():
        write_atomically(folder / name, picture)
    record = UncertaintyRecord.checked(result, str(folder))
    return finish(folder, record, ["metrics.csv", "images.csv", *pictures])


_LEFT_OUT = {"drawings", "histogram", "against_eps", "stages", "attacks", "flags", "settings"}


def figures(value: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[str, dict[str, float]]]:
    """Every number of a result by its dotted name, with its interval where it has one."""
    if isinstance(value, dict):
        if isinstance(value.get("value"), int | float):
            yield ".".join(path), value
        for key, inner in value.items():
            if key not in _LEFT_OUT | {"value", "low", "high"}:
                yield from figures(inner, (*path, str(key)))
    elif isinstance(value, int | float) and not isinstance(value, bool):
        yield ".".join(path), {"value": value}


def metrics_csv(result: dict[str, Any]) -> str:
    """Tidy: a row a figure, with `metric`, `value`, `low` and `high` (empty without interval)."""
    columns = ("value", "low", "high")
    return csv_text(
        ["metric", *columns],
        (
            [name, *(f"{figure[k]:.6g}" if k in figure else "" for k in columns)]
            for name, figure in figures(result)
        ),
    )


def images_csv(rows: list[dict[str, Any]]) -> str:
    """One row an image: answers and confidences under each condition, and every score."""
    names = list(rows[0])
    return csv_text(
        names,
        ([f"{row[k]:.6g}" if isinstance(row[k], float) else row[k] for k in names] for row in rows),
    )


def share(figure: Figure | None) -> str:
    """A figure with its interval, in per cent."""
    if figure is None:
        return "no value"
    if figure.low is None or figure.high is None:
        return f"{figure.value:.1%}"
    return f"{figure.value:.1%} ({figure.low:.1%} to {figure.high:.1%})"


def summary_lines(result: UncertaintyRecord) -> Iterator[str]:
    """What a terminal shows: the few figures that say most."""
    for title, name in (
        ("accuracy", "accuracy"),
        ("confidence", "confidence"),
        ("calibration error", "ece"),
    ):
        clean, suite, moved = (share(getattr(c, name)) for c in result.conditions.values())
        yield f"{title:18} clean {clean}, labels attacked {suite}, confidence attacked {moved}"

    def auroc(separation: Separation | None) -> str:
        found = None if separation is None else separation.auroc
        return "no value" if found is None else f"{found.value:.2f}"

    for name, detector in result.detectors.items():
        if detector.aware is not None:
            unaware, aware = (auroc(d.told) for d in (detector.unaware, detector.aware))
            yield f"{name:18} AUROC {unaware} where it is unknown, {aware} where it is known"
    plain = result.sets.by_score["lac"]
    yield (
        f"{'conformal sets':18} promise {result.sets.promise:.0%}, clean "
        f"{share(plain.clean.coverage)}, attacked {share(plain.attacked.covered.coverage)}"
    )
    robust = result.robust_sets
    if robust.inside is not None:
        yield (
            f"{'robust sets':18} promise {robust.promise:.0%} within L2 {robust.radius:g}, "
            f"attacked there {share(robust.inside.coverage)}, mean size "
            f"{robust.inside.mean_size:.1f} of {len(result.classes)}"
        )
    yield (
        f"n = {result.n}, {result.described_threat}, suite {result.suite}, "
        f"seed {result.seed}, {result.seconds:.0f} s"
    )
