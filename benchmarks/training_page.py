"""Write the tables of docs/training.md from the training runs, the choices of a recipe's entries,
the collapse benchmark, the bound on mixtures, the estimate for a GPU and the models that are not
shipped in benchmarks/results/.

    python benchmarks/training_page.py [--check]

With --check nothing is written, and the exit status is 1 where page and results disagree.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

import numpy as np
from published import ROOT, is_shipped, pasted, verdicts
from published import results as results_of
from table import changes_in, command_rows, evaluation_rows, fill, since_then

from holdfast.evaluation.paired import Paired, paired
from holdfast.intervals import clopper_pearson

PAGE = ROOT / "docs" / "training.md"
SUPERSCRIPTS = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")
RECIPE = "recipes/cifar10-cpu.yaml"  # that the benchmarks of short runs follow


def setting(recipe: dict[str, Any]) -> str:
    """Network and augmentation of a run, in words."""
    told = {"Network": recipe["model"]["arguments"], "augmentation": recipe["augment"]}
    return "; ".join(
        f"{part}: {', '.join(f'{key} {value}' for key, value in entries.items())}"
        for part, entries in told.items()
    )


def choices(results: list[dict[str, Any]]) -> list[str]:
    """A row for each variation of a recipe, all of them trained for as long."""
    lines = ["### What an entry of the recipe is worth", ""] if results else []
    for result in results:
        rows = result["rows"]
        in_pairs = all("right" in row for row in rows) and len({r["tried"] for r in rows}) > 1
        more = ("PGD-10 beside the first",) if in_pairs else ()
        header = ("entry", "seed", "epochs", "standard", "PGD-10", *more)
        lines += [f"| {' | '.join(header)} |", f"| {' | '.join('---' for _ in header)} |"]
        for row in rows:
            figures = []
            for name in ("standard_accuracy", "pgd_accuracy"):
                low, high = clopper_pearson(round(row[name] * result["n"]), result["n"])
                figures.append(f"{row[name]:.1%} ({low:.1%} to {high:.1%})")
            if in_pairs:
                figures.append(_beside(row, rows, result["n"]))
            lines.append(
                f"| `{row['tried']}` | {row['seed']} | {row['epochs']:.1f} "
                f"| {' | '.join(figures)} |"
            )
        if in_pairs:
            lines += _over_seeds(rows, result["n"])
        lines += [
            "",
            f"- {setting(result['recipe'])}, where an entry does not say otherwise; "
            f"{_length(result)} a run{_few(result)}. First {result['n']} validation images "
            f"({result['pixels']}), the same for all; trained on "
            f"{' and '.join(sorted({row['machine'] for row in rows}))}: "
            f"{pasted(result['command'])}{_since(result)}",
            "",
        ]
    return lines


def _right(row: dict[str, Any], n: int) -> np.ndarray:
    bits = np.frombuffer(bytes.fromhex(row["right"]["pgd"]), np.uint8)
    return np.unpackbits(bits, count=n).astype(bool)


def _compared(row: dict[str, Any], rows: list[dict[str, Any]], n: int) -> Paired | None:
    """With the first variation's run of the same seed; None for that itself."""
    first = next((r for r in rows if r["seed"] == row["seed"]), row)
    return None if first is row else paired(_right(first, n), _right(row, n))


def _in_words(found: Paired) -> str:
    low, high = (100 * end for end in found.interval())
    return f"{100 * found.difference:+.1f} points ({low:+.1f} to {high:+.1f})"


def _beside(row: dict[str, Any], rows: list[dict[str, Any]], n: int) -> str:
    found = _compared(row, rows, n)
    return "" if found is None else _in_words(found)


def _over_seeds(rows: list[dict[str, Any]], n: int) -> list[str]:
    """For variations of several seeds, one line each: all seeds' images together."""
    lines = []
    for tried in dict.fromkeys(row["tried"] for row in rows):
        pairs = [_compared(row, rows, n) for row in rows if row["tried"] == tried]
        known = [pair for pair in pairs if pair is not None]
        if len(known) > 1:
            together = sum(known[1:], known[0])
            lines.append(
                f"- `{tried}` beside the first, {len(known)} seeds together: "
                f"{_in_words(together)}, McNemar's exact test: p = {together.p_value:.2g}"
            )
    return ["", *lines] if lines else []


def _length(result: dict[str, Any]) -> str:
    """How long each run was, in words."""
    return f"{result['epochs']:g} epochs" if "epochs" in result else f"budget {result['budget']}"


def _few(result: dict[str, Any]) -> str:
    """On how few images the runs were trained, in words; nothing where it was on all."""
    if "train_images" not in result:
        return ""
    return f", on the first {result['train_images']:,} training images alone"


def _since(result: dict[str, Any]) -> str:
    """By which entries the recipe has changed since a benchmark followed it, in words."""
    return since_then(RECIPE, changes_in(result["command"]), result["recipe"])


def collapses(results: list[dict[str, Any]]) -> list[str]:
    """A row for each run: where it ended beside its best weights."""
    lines = []
    for result in results:
        lines += [
            "### Does a run keep what it reached?",
            "",
            "| ε | seed | epochs | best weights: standard, PGD-50 | last weights | PGD-50 lost "
            "| rescues |",
            "| --- | --- | --- | --- | --- | --- | --- |",
        ]
        for row in result["rows"]:
            best, last = (
                f"{row[end]['standard_accuracy']:.1%}, {row[end]['pgd50_accuracy']:.1%}"
                for end in ("best", "last")
            )
            lines.append(
                f"| {row['eps']} | {row['seed']} | {row['epochs']:.1f} "
                f"| {best} (epoch {row['best_epoch']:.1f}) | {last} "
                f"| {100 * row['fall']:.1f} points | {len(row['events'])} |"
            )
        lines += [
            "",
            f"- {setting(result['recipe'])}; budget "
            f"{result['budget']} a run. {result['attack']}; first {result['n']} validation images "
            f"({result['pixels']}); trained on "
            f"{' and '.join(sorted({row['machine'] for row in result['rows']}))}: "
            f"{pasted(result['command'])}{_since(result)}",
            "",
        ]
    return lines


def power_of_ten(value: float | None) -> str:
    """Such as 1.8 · 10¹⁵; None is beyond any bound."""
    if value is None:
        return "no bound"
    digits, _, power = f"{value:.1e}".partition("e")
    return f"{digits} · 10{str(int(power)).translate(SUPERSCRIPTS)}"


def gpu_estimates(results: list[dict[str, Any]]) -> list[str]:
    """What a goal would take on a GPU, and the runs that say so."""
    lines = []
    for result in results:
        shares = list(result["estimates"][0]["seconds"])
        lines += [
            "### What one GPU would need: an estimate",
            "",
            f"| robust accuracy | operations (95 %) | at {' | at '.join(shares)} of the rate |",
            f"| --- | --- |{' --- |' * len(shares)}",
        ]
        for goal in result["estimates"]:
            seconds = " | ".join(f"{goal['seconds'][share]:.0f} s" for share in shares)
            low, high = map(power_of_ten, goal["interval"])
            operations = f"{power_of_ten(goal['operations'])} ({low} to {high})"
            lines.append(f"| {goal['robust_accuracy']:.2%} | {operations} | {seconds} |")
        lines += [
            "",
            "| run behind it | width | steps | operations | standard "
            f"| robust, `{result['suite']}` | n |",
            "| --- | --- | --- | --- | --- | --- | --- |",
        ]
        for run in result["runs"]:
            lines.append(
                f"| {told_shipped(run['run'])} | {run['width']} | {run['steps']} "
                f"| {power_of_ten(run['operations'])} | {run['standard_accuracy']:.1%} "
                f"| {run['robust_accuracy']:.1%} | {run['n']} |"
            )
        lines += [
            "",
            f"- Not measured on a GPU. A straight line through {len(result['runs'])} runs on a "
            f"CPU, {result['points_per_doubling']:.1f} points of robust accuracy "
            f"({' to '.join(f'{end:.1f}' for end in result['points_per_doubling_interval'])}) for "
            f"each doubling of the operations, is carried on to the goal: the further, the less it "
            f"can be trusted. The intervals (95 %) are from drawing the test images again; runs of "
            f"other seeds would differ more. The rate is {result['published_tflops']:.0f} TFLOP/s "
            f"({result['gpu']}); which share of it such small networks reach is not known. "
            f"{result['runs'][0]['pixels']}: {pasted(result['command'])}",
            "",
        ]
    return lines


def told_shipped(name: str) -> str:
    """A model's name, and that nobody can load it where the zoo does not hold it."""
    return name if is_shipped(name) else f"{name} (not shipped)"


def other_runs(verdicts: list[dict[str, Any]]) -> list[str]:
    """Evaluations of models that the zoo does not hold, which only say what a recipe comes to."""
    own = [result for result in verdicts if not is_shipped(result["model"]["name"])]
    if not own:
        return []
    return [
        "### Runs that are not shipped",
        "",
        "The zoo does not hold these models: their figures say what a recipe comes to.",
        "",
        *evaluation_rows(own),
        "",
        *command_rows(own),
        "",
    ]


def mixture_bounds(results: list[dict[str, Any]]) -> list[str]:
    """The most that a mixture of each robust model could gain, by how its sureness is told."""
    lines = []
    for result in results:
        lines += [
            "### What could a mixture gain?",
            "",
            f"| robust model: standard, attacked | sure by its | accurate model "
            f"| gained for {100 * result['allowed']:.1f} points lost | lost for "
            f"{100 * result['wanted']:.0f} points gained |",
            "| --- | --- | --- | --- | --- |",
        ]
        for row in result["rows"]:
            alone = f"{row['standard_accuracy']:.1%}, {row['attacked_accuracy']:.1%}"
            for gate in row["gates"]:
                cost = "none gains as much"
                if gate["cost"] is not None:
                    cost = f"at least {100 * gate['cost']:.1f} points"
                robust, accurate = (Path(name).name for name in (row["robust"], gate["accurate"]))
                lines.append(
                    f"| {robust}: {alone} | {gate['score']} | {accurate} "
                    f"| at most {100 * gate['gain']:.1f} points | {cost} |"
                )
        lines += [
            "",
            f"- The best threshold of all, of a mixture that answers as its accurate model where "
            f"the robust one is less sure; for sharpened logits (MixedNUTS), the best setting of "
            f"all that `holdfast mix` searches. Upper bounds for these, as "
            f"{result['attack']} does not find all that is lost, if the accurate model can be "
            f"misled wherever that helps. First {result['n']} validation "
            f"images ({result['pixels']}): "
            f"{pasted(result['command'])}",
            "",
        ]
    return lines


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--check", action="store_true")

    def of(name: str) -> list[dict[str, Any]]:
        return results_of(f"{name}*.json")

    return fill(
        PAGE,
        [
            *collapses(of("collapse")),
            *choices(of("recipe_choices")),
            *mixture_bounds(of("mixture_bound")),
            *gpu_estimates(of("gpu_estimate")),
            *other_runs(verdicts()),
        ],
        "benchmarks/training_page.py",
        parser.parse_args().check,
    )


if __name__ == "__main__":
    sys.exit(main())
