"""Write the table of docs/measured.md from the result files in benchmarks/results/.

    python benchmarks/table.py [--check]

With --check nothing is written, and the exit status is 1 where page and results disagree.
"""

from __future__ import annotations

import argparse
import json
import shlex
import sys
from collections.abc import Iterator, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

from published import ROOT, is_shipped, pasted, verdicts
from published import results as results_of

from holdfast.cli.tables import model_name, percent
from holdfast.runs.files import write_atomically
from holdfast.threat import Threat
from holdfast.training import load_recipe


def evaluation_rows(results: list[dict[str, Any]]) -> list[str]:
    """A Markdown table: a row an evaluation, with all that a figure needs to be believed."""
    rows = [
        "| model | standard accuracy | robust accuracy | threat, suite | n | pixels | machine |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    for result in sorted(results, key=lambda r: (r["suite"], -r["robust_accuracy"])):
        data = result["data"]
        rows.append(
            f"| {model_name(result)} | {percent(result, 'standard_accuracy')} "
            f"| {percent(result, 'robust_accuracy')} "
            f"| {Threat(**result['threat'])}, `{result['suite']}` | {result['n']} "
            f"| {data['pixels']} ({data['split']}) | {result['request']['machine']} |"
        )
    return rows


def command_rows(results: list[dict[str, Any]]) -> list[str]:
    """The commands behind the table: how each model was trained and evaluated."""
    lines = []
    for result in results:
        lines.append(f"- {model_name(result)}: {pasted(result['request']['command'])}")
        training = result["training"]
        if training is not None:
            told = training["result"]
            lines.append(
                f"  Trained by {training_command(training['request'])}: "
                f"{told['epochs']:.1f} epochs in {told['seconds'] / 60:.0f} minutes, "
                f"seed {told['seed']}, {told['images_per_second']:.0f} images per second "
                f"({training['request']['machine']})."
            )
    return lines


def training_command(request: dict[str, Any]) -> str:
    """The command of a training run, and what it takes to mean the same by today's recipe."""
    command = request["command"]
    file = next(word for word in command if word.endswith(".yaml"))
    changes = changes_in(command)
    if "--budget" in command:
        changes.append(f"budget={command[command.index('--budget') + 1]}")
    return f"{pasted(command)}{since_then(file, changes, request['asked']['recipe'])}"


def changes_in(command: Sequence[str]) -> list[str]:
    """What follows each `--set`."""
    return [value for word, value in pairwise(command) if word == "--set"]


def since_then(file: str, changes: Sequence[str], asked: dict[str, Any]) -> str:
    """In words, by which entries a recipe was another when it was followed; empty if by none.

    Args:
        file: the recipe, relative to the repository.
        changes: `KEY=VALUE` by which the command changed it.
        asked: all entries as they were followed.
    """
    today = dict(_entries(load_recipe(ROOT / file, changes).to_dict()))
    # Entries that were not there yet were at their defaults.
    other = [f"{k}={json.dumps(v)}" for k, v in _entries(asked) if k not in today or today[k] != v]
    if not other:
        return ""
    sets = shlex.join(word for entry in other for word in ("--set", entry.replace('"', "")))
    return f" (the recipe has changed since: with `{sets}` it is what it was)"


def _entries(values: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in values.items():
        if isinstance(value, dict):
            yield from _entries(value, f"{prefix}{key}.")
        else:
            yield prefix + key, value


BENCHMARKS = ("train_throughput", "expectation", "memory", "agreement")


def benchmark_rows() -> list[str]:
    """A line for each result file of these benchmarks."""
    lines = []
    for result in (result for name in BENCHMARKS for result in results_of(f"{name}*.json")):
        if result.get("benchmark") == "train_throughput":
            ours, plain = (
                result["images_per_second"][name] for name in ("holdfast", "plain float32")
            )
            lines.append(
                f"- Training, {result['model']}, {result['objective']}: "
                f"{result['ratio']:.2f} × the plain float32 loop's images per second "
                f"({ours:.0f} beside {plain:.0f}; "
                f"{result['machine']}; {pasted(result['command'])})."
            )
        if result.get("benchmark") == "expectation":
            lines.append(
                f"- An expectation over {result['samples']} draws of `{result['defence']}` before "
                f"{Path(result['model']).name}, batch {result['batch']}: "
                f"{result['times_one_look']:.1f} × the time of one look, "
                f"{result['sooner_than_in_turn']:.1f} × sooner than {result['samples']} looks in "
                f"turn, {result['sooner_on_the_twin']:.1f} × where the search looks at its "
                f"{result['twin']} fast copy ({result['machine']}; {pasted(result['command'])})."
            )
        if result.get("benchmark") == "memory":
            lines.append(
                f"- Memory: {result['n']:,} images ({result['pixels']}) through "
                f"`{result['suite']}`, {result['model']['network']}: "
                f"{result['peak_resident_gib']:.2f} GiB resident at most, "
                f"{result['peak_resident_gib_before']:.2f} before it began; the images themselves "
                f"are {result['images_gib']:.2f} "
                f"({result['machine']}; {pasted(result['command'])})."
            )
        if result.get("benchmark") == "agreement":
            theirs = result["torchattacks"]
            lines.append(
                f"- Suite `apgd` beside torchattacks' APGD and APGDT, {result['n']} images "
                f"({result['pixels']}): {result['holdfast']['robust_accuracy']:.1%} beside "
                f"{theirs['robust_accuracy']:.1%} standing, "
                f"{theirs['seconds'] / result['holdfast']['seconds']:.1f} × sooner "
                f"({result['machine']}; {pasted(result['command'])})."
            )
    return lines


def fill(document: Path, body: list[str], maker: str, check: bool, mark: str = "table") -> int:
    """Put lines between a document's marks, `<!-- MARK: begin -->` and `<!-- MARK: end -->`; with
    `check`, only say whether they stand there.

    Returns:
        the exit status: 1 where a check finds that they do not.
    """
    begin, end = f"<!-- {mark}: begin -->", f"<!-- {mark}: end -->"
    text = document.read_text()
    head, _, rest = text.partition(begin)
    _, _, tail = rest.partition(end)
    made = f"{head}{begin}\n\n" + "\n".join(body).strip() + f"\n\n{end}{tail}"
    if not check:
        write_atomically(document, made)
        return 0
    if made != text:
        print(f"{document.name} and benchmarks/results/ disagree: run python {maker}")
    return int(made != text)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--check", action="store_true")
    options = parser.parse_args()
    # The others serve docs/training.md, where recipes are argued about.
    shipped = [result for result in verdicts() if is_shipped(result["model"]["name"])]
    body = [*evaluation_rows(shipped), "", *command_rows(shipped), *benchmark_rows()]
    return fill(ROOT / "docs" / "measured.md", body, "benchmarks/table.py", options.check)


if __name__ == "__main__":
    sys.exit(main())
