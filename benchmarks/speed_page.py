"""Write the tables of docs/speed.md from benchmarks/results/training_profile*.json,
command_costs*.json, large_images*.json, many_images*.json and scaling*.json.

    python benchmarks/speed_page.py [--check]

With --check nothing is written, and the exit status is 1 where page and results disagree.
"""

from __future__ import annotations

import argparse
import sys
from typing import Any

from published import ROOT, pasted
from published import results as results_of
from table import fill

COSTS = {
    "whole": "cpu_seconds",
    "attacks": "attacks_cpu_seconds",
    "besides": "besides_cpu_seconds",
}
PAGE = ROOT / "docs" / "speed.md"


def tables(results: list[dict[str, Any]]) -> list[str]:
    """A section a machine and network."""
    lines = []
    for result in results:
        lines += [*section(result), ""]
    return lines or [
        "Not measured yet: `python benchmarks/training_profile.py --data datasets "
        "--out benchmarks/results/training_profile-NAME.json`."
    ]


def section(result: dict[str, Any]) -> list[str]:
    model = ", ".join(f"{key} {value}" for key, value in result["model"].items())
    lines = [
        f"### {model}",
        "",
        f"{result['machine']}; batches of {result['batch_size']}, {result['precision']}, "
        f"{result['optimiser']}. Large bfloat16 matrices multiply at "
        f"{result['matmul_tflops']:.2f} TFLOP/s here.",
        "",
        "| step | images/s | ms | TFLOP/s | of the matrix rate |",
        "| --- | --- | --- | --- | --- |",
    ]
    for step in result["steps"]:
        lines.append(
            f"| {step['objective']} | {step['images_per_second']:.0f} | {step['step_ms']:.0f} "
            f"| {step['tflops']:.2f} | {step['share_of_matmul_rate']:.0%} |"
        )
    for title, key in (("phase", "phases_ms"), ("kind of work", "kinds_ms")):
        names = sorted(
            {name for step in result["steps"] for name in step[key]},
            key=lambda name: -result["steps"][0][key].get(name, 0.0),
        )
        objectives = " | ".join(f"{step['objective']}, ms" for step in result["steps"])
        lines += ["", f"| {title} | {objectives} |", "| --- " * (1 + len(result["steps"])) + "|"]
        for name in names:
            cells = " | ".join(f"{step[key].get(name, 0.0):.1f}" for step in result["steps"])
            lines.append(f"| {name} | {cells} |")
    return [*lines, "", f"Made by {pasted(result['command'])}."]


def commands(results: list[dict[str, Any]]) -> list[str]:
    """What whole commands cost before and after, in pairs."""
    if not results:
        return []
    lines = ["", "### Small evaluations", ""]
    for result in results:
        before, after = (result["revisions"][side][:10] for side in ("before", "after"))
        lines += [
            f"{result['machine']}, one core; processor seconds, commit {before} beside {after}, "
            "the same images in pairs of runs (mean of the pairs, and the ratio of each). Besides "
            "the attacks come inspection, health checks, fast copies, batch size and, where asked "
            "for, the security curve.",
            "",
            "| command | pairs | | before, s | after, s | after / before |",
            "| --- | --- | --- | --- | --- | --- |",
        ]
        for case in result["cases"]:
            title, count = case["title"], str(len(case["pairs"]))
            for what, key in COSTS.items():
                if key not in case["pairs"][0]["before"]:
                    continue
                sides = {s: [p[s][key] for p in case["pairs"]] for s in ("before", "after")}
                mean = {side: sum(values) / len(values) for side, values in sides.items()}
                ratios = [
                    f"{a / b:.2f}" for b, a in zip(sides["before"], sides["after"], strict=True)
                ]
                lines.append(
                    f"| {title} | {count} | {what} | {mean['before']:.1f} | {mean['after']:.1f} "
                    f"| {', '.join(ratios)} |"
                )
                title = count = ""
        lines += [*reached(result["cases"]), "", f"Made by {pasted(result['command'])}.", ""]
    return lines


def reached(cases: list[dict[str, Any]]) -> list[str]:
    """What the runs came to: images that stand, and what attacks on uncertainty reached."""
    pairs = [pair for case in cases for pair in case["pairs"]]
    lines = []
    verdicts = [tuple(p[s]["standing"] for s in p) for p in pairs if "standing" in p["before"]]
    if verdicts and all(before == after for before, after in verdicts):
        lines += ["", "The same images stand in number, before and after."]
    elif verdicts:
        lines += ["", f"Images that stand, before and after: {verdicts}."]
    for pair in pairs:
        if "attacked" in pair["before"]:
            sides = [pair[side]["attacked"] for side in ("before", "after")]
            lines += ["", "| what attacks reach | before | after |", "| --- | --- | --- |"]
            lines += [
                f"| {name} | {sides[0][name]:.3f} | {sides[1][name]:.3f} |" for name in sides[0]
            ]
    return lines


SIDES = {
    "before": "before, all in memory as float32",
    "decoded": "now, decoded when they are asked for",
    "in memory": "now, handed over in memory as float32",
}


def large_images(results: list[dict[str, Any]]) -> list[str]:
    """Many large images, in memory and not."""
    lines = []
    for result in results:
        size = " × ".join(map(str, result["image_shape"][1:]))
        before, after = (result["revisions"][side][:10] for side in ("before", "decoded"))
        lines += [
            "",
            "### Many large images",
            "",
            f"{result['n']} JPEG files of {size} (textures made for the purpose) through "
            f"`{result['suite']}` at L∞ {result['eps']}, on a convolutional network of 16, 32 and "
            f"64 channels with random weights; {result['machine']}, commit {before} beside "
            f"{after}, all three at the same time.",
            "",
            "| the images are | resident at most, GiB | processor, s | of the clock, s | robust |",
            "| --- | --- | --- | --- | --- |",
        ]
        lines += [
            f"| {SIDES[side['side']]} | {side['peak_resident_gib']:.2f} "
            f"| {side['cpu_seconds']:.0f} | {side['seconds']:.0f} | {side['robust_accuracy']:.2%} |"
            for side in result["sides"]
        ]
        lines += [
            "",
            "The same images stand in all three."
            if result["same_images_stand"]
            else "Not the same images stand in all three.",
            "",
            f"Made by {pasted(result['command'])}.",
            "",
        ]
    return lines


def many_images(results: list[dict[str, Any]]) -> list[str]:
    """What so many of them would need, by what each costs."""
    lines = []
    for result in results:
        few, many = result["runs"]
        large, claimed = result["large"], result["claimed"]
        size = " × ".join(map(str, large["shape"][1:]))
        small = " × ".join(map(str, result["image_shape"][1:]))
        lines += [
            f"Besides pixels, an image costs {result['kib_per_image']:.1f} KiB: {few['n']:,} of "
            f"{small}, read as large ones are, {few['peak_resident_gib']:.2f} GiB resident at "
            f"most through `{result['suite']}`, {many['n']:,} of them "
            f"{many['peak_resident_gib']:.2f} GiB ({result['machine']}). With the "
            f"{large['peak_gib']:.2f} GiB of {large['n']:,} images of {size} above, "
            f"{claimed['n']:,} of them need {claimed['peak_gib']:.2f} GiB. That is a model; nobody "
            "evaluated so many here.",
            "",
            f"Made by {pasted(result['command'])}.",
            "",
        ]
    return lines


def scaling(results: list[dict[str, Any]]) -> list[str]:
    """One and two processes, and a model of more."""
    lines = []
    for result in results:
        model, runs = result["model"], result["runs"]
        verdicts = "the same verdicts" if result["same_verdicts"] else "other verdicts"
        lines += [
            "",
            "### Several processes",
            "",
            f"{result['model_name']}, `{result['suite']}`, {result['limit']} images "
            f"({result['pixels']}), one thread a process; {runs[0]['machine']}; {verdicts}.",
            "",
            "| processes | of the clock, s | attacks, s | processors, s |",
            "| --- | --- | --- | --- |",
            *(
                f"| {run['processes']} | {run['seconds']:.1f} | {run['attack_seconds']:.1f} "
                f"| {run['cpu_seconds']:.1f} |"
                for run in runs
            ),
            "",
            f"More processes were not measured. By a model of these parts ({model['what']}), "
            f"{model['images']:,} images would take "
            + ", ".join(
                f"{figures['seconds']:,.0f} s on {count} ({figures['speed_up']:.1f} times as fast)"
                for count, figures in model["not_measured"].items()
            )
            + ".",
            "",
            f"Made by {pasted(result['command'])}.",
            "",
        ]
    return lines


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--check", action="store_true")
    body = tables(results_of("training_profile*.json"))
    body += commands(results_of("command_costs*.json"))
    body += large_images(results_of("large_images*.json"))
    body += many_images(results_of("many_images*.json"))
    body += scaling(results_of("scaling*.json"))
    return fill(PAGE, body, "benchmarks/speed_page.py", parser.parse_args().check)


if __name__ == "__main__":
    sys.exit(main())
