"""Write the tables of docs/swift.md from results: autoattack_speed, short_verdict, swift_choices,
swift_l1.

    python benchmarks/swift_page.py [--check]

With --check nothing is written, and the exit status is 1 where page and results disagree.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

from published import ROOT, pasted
from published import results as results_of
from table import fill

from holdfast.intervals import clopper_pearson
from holdfast.threat import Threat

PAGE = ROOT / "docs" / "swift.md"


def table(results: list[dict[str, Any]]) -> list[str]:
    """A row a model and contender; what stands, and what it took."""
    if not results:
        return ["No results yet: `python benchmarks/autoattack_speed.py --model MODEL`."]
    lines = [
        "| model | n | threat | contender | standing | passes an image | seconds "
        "| processor seconds | sooner | less processor time |",
        "| --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for result in results:
        model = named(result)
        for name, said in result["contenders"].items():
            low, high = clopper_pearson(round(said["robust_accuracy"] * result["n"]), result["n"])
            passes = sum(a.get("forwards", 0) + a.get("backwards", 0) for a in said["attacks"])
            each = f"{passes / result['n']:,.0f}" if passes else "—"
            sooner, less = (
                f"{said[ratio]:.1f} ×" if ratio in said else "—"
                for ratio in ("times_sooner", "times_less_cpu")
            )
            busy = f"{said['cpu_seconds']:,.0f}" if "cpu_seconds" in said else "—"
            lines.append(
                f"| {model} | {result['n']} | {Threat(**result['threat'])} | {name} "
                f"| {said['robust_accuracy']:.1%} ({low:.1%} to {high:.1%}) "
                f"| {each} | {said['seconds']:,.0f} | {busy} | {sooner} | {less} |"
            )
    lines.append("")
    for result in results:
        speeds = result.get("images_per_second", {})
        gains = [
            f"{speeds[name][kind] / speeds['as it is'][kind]:.1f} × the {kind}"
            for name in speeds
            if name != "as it is"
            for kind in ("forwards", "gradients")
        ]
        fast_copy = f", where the fast copy makes {' and '.join(gains)} a second" if gains else ""
        lines.append(
            f"- {named(result)}: {result['pixels']}, seed "
            f"{result['seed']}; {result['machine']}{fast_copy}"
            + f": {pasted(whole(result['command']))}"
        )
    return lines


def beside(results: list[dict[str, Any]]) -> list[str]:
    """`swift` beside `autoattack` on the same images, a row a model and norm."""
    if not results:
        return []
    lines = [
        "### The short verdict beside the long one",
        "",
        "| model | n | threat | `swift` | `autoattack` | standing after `swift` alone "
        "| after `autoattack` alone | processor seconds |",
        "| --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    apart, images = 0, 0
    for result in results:
        n = result["n"]
        for row in result["rows"]:
            swift, long = (set(row[suite]["standing"]) for suite in ("swift", "autoattack"))
            alone = [f"{len(one - other)}" for one, other in ((swift, long), (long, swift))]
            took = " / ".join(
                f"{row[suite]['processor_seconds']:,.0f}" for suite in ("swift", "autoattack")
            )
            lines.append(
                f"| {named(result)} | {n} | {Threat(row['norm'], row['eps'])} "
                f"| {len(swift) / n:.1%} | {len(long) / n:.1%} | {alone[0]} | {alone[1]} | {took} |"
            )
            apart, images = apart + len(swift - long), images + n
    low, high = clopper_pearson(apart, images)
    lines += [
        "",
        f"Of {images:,} images in all, {apart} stand after `swift` and fall to `autoattack`: "
        f"{apart / images:.2%} ({low:.2%} to {high:.2%}).",
        "",
        *(
            f"- {named(result)}: first {result['n']}, {result['pixels']}, seed {result['seed']}; "
            f"{result['machine']}: {pasted(result['command'])}"
            for result in results
        ),
        "",
    ]
    return lines


def named(result: dict[str, Any]) -> str:
    """The model, what masks its gradients, and the seed unless it is the usual one."""
    mask = result["model"].get("mask")
    source = Path(result["model"]["source"])
    own = source.parent.name if source.name == "model" else source.name  # a training run's folder
    seed = f", seed {result['seed']}" if result["seed"] else ""
    return own + (f", {mask}" if mask else "") + seed


def whole(command: list[str]) -> list[str]:
    """The command for all contenders, where the last one was for some of them alone."""
    if "--only" not in command:
        return command
    place = command.index("--only")
    return command[:place] + command[place + 2 :]


def choices(results: list[dict[str, Any]]) -> list[str]:
    """What the choices stand on, a table a model."""
    lines = []
    for result in results:
        broken = result["broken_within"]
        counts = list(next(iter(broken.values())))
        lines += [
            f"### {result['model']['name']}: what a run breaks within its first iterations",
            "",
            "| run of APGD | " + " | ".join(f"{n} iterations" for n in counts) + " |",
            "| --- |" + " --- |" * len(counts),
            *(
                f"| {name} | " + " | ".join(str(within[n]) for n in counts) + " |"
                for name, within in broken.items()
            ),
            "",
            f"- {result['falls']} of {result['right']} images that the model gets right fall to "
            f"anything: {result['falls_to_whole_runs']} to these runs together, "
            f"{result['falls_to_four_looks']} within four iterations of one of them, "
            f"{result['falls_to_the_longest_alone']} only to 100 steps of targeted APGD-DLR on all "
            f"classes, which the {result['near']} that came near were given.",
            f"- Of the first margin, three iterations of the first two runs left "
            f"{_numbers(result['late_shares'])} of images that fell later, and of those that stand "
            + ", ".join(
                f"{value:.2f} ({float(q):.0%} of them less)"
                for q, value in result["standing_share_quantiles"].items()
            )
            + ".",
            f"- First {result['n']} validation images, {result['pixels']}, "
            f"{Threat(**result['threat'])}, seed {result['seed']}; {result['machine']}: "
            f"{pasted(result['command'])}",
            "",
        ]
    return lines


def choices_in_l1(results: list[dict[str, Any]]) -> list[str]:
    """What the settings in L1 stand on, a table a model and ε."""
    lines = []
    for result in results:
        runs = result["runs"]
        lengths = list(next(iter(runs.values())))
        together = result["broken_together"]
        lines += [
            f"### {result['model']['name']}, {Threat(**result['threat'])}: what runs break, by "
            "their length",
            "",
            "| run of APGD | " + " | ".join(f"{n} moves" for n in lengths) + " |",
            "| --- |" + " --- |" * len(lengths),
            *(
                f"| {name} | " + " | ".join(str(found[n]["broken"]) for n in lengths) + " |"
                for name, found in runs.items()
            ),
            *(
                f"| together, {name} | " + " | ".join(str(found[n]) for n in lengths) + " |"
                for name, found in together.items()
            ),
            "",
            f"- {result['falls']} of {result['right']} images that the model gets right fall to "
            f"anything. Of the clean margin, runs of {lengths[1]} moves left "
            f"{_numbers(result['late_shares'])} of images that only runs of another length broke.",
            f"- First {result['n']} validation images, {result['pixels']}, seed {result['seed']}; "
            f"{result['machine']}: {pasted(result['command'])}",
            "",
        ]
    return lines


def _numbers(values: list[float]) -> str:
    return ", ".join(f"{value:.2f}" for value in values) or "nothing"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--check", action="store_true")
    speeds, short, chosen, in_l1 = (
        results_of(f"{kind}-*.json")
        for kind in ("autoattack_speed", "short_verdict", "swift_choices", "swift_l1")
    )
    body = [*table(speeds), "", *beside(short), *choices(chosen), *choices_in_l1(in_l1)]
    return fill(PAGE, body, "benchmarks/swift_page.py", parser.parse_args().check)


if __name__ == "__main__":
    sys.exit(main())
