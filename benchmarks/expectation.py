"""What an expectation over 20 draws costs, batched, beside one look and 20 looks in turn.

    python benchmarks/expectation.py MODEL [--defence noise] [--device cuda] [--out FILE]

A look is a forward and a backward pass on a batch of 8 images: of the defended model as it is, and
batched also of what a search looks at in its place, the defence before a fast copy of its network.
All take turns, so that a machine whose speed drifts treats them alike; figures are medians over the
rounds. Where a batch of 8 keeps the hardware busy already, as it does a CPU's two cores, batching
itself can gain little.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from pathlib import Path

import torch

import holdfast as hf
from holdfast.attacks import Oracle
from holdfast.defences import chain
from holdfast.draws import fixed_draws
from holdfast.evaluation.inspection import Inspection
from holdfast.evaluation.request import Request
from holdfast.runs.environment import circumstances
from holdfast.runs.files import write_result

BATCH, SAMPLES = 8, 20


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model")
    parser.add_argument("--defence", default="noise")
    parser.add_argument("--shape", type=int, nargs=3, default=(3, 32, 32), metavar=("C", "H", "W"))
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()

    model = chain(hf.load(options.model), [options.defence]).to(options.device)
    generator = torch.Generator().manual_seed(0)
    x = torch.rand(BATCH, *options.shape, generator=generator).to(options.device)
    with torch.no_grad(), fixed_draws(0):
        answers = model(x).argmax(1)
    request = Request.checked(model, x, answers, hf.Threat("linf", 8 / 255), "pgd")
    fast_copy = Inspection(request).views[""][0].fast_copy
    one, many, fast = Oracle(model), Oracle(model, SAMPLES), Oracle(fast_copy.model, SAMPLES)

    def loss(logits: torch.Tensor) -> torch.Tensor:
        return logits.logsumexp(1) - logits[:, 0]

    ways = {
        "one look": lambda: one.gradient(x, loss),
        "in turn": lambda: [one.gradient(x, loss) for _ in range(SAMPLES)],
        "batched": lambda: many.gradient(x, loss),
        "batched, on the fast copy": lambda: fast.gradient(x, loss),
    }
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for round_ in range(options.rounds + 1):
        for name, look in ways.items():
            if options.device != "cpu":
                torch.cuda.synchronize()
            began = time.perf_counter()
            look()
            if options.device != "cpu":
                torch.cuda.synchronize()
            if round_:  # the first round warms up
                seconds[name].append(time.perf_counter() - began)
    medians = {name: statistics.median(values) for name, values in seconds.items()}
    result = {
        "schema": "holdfast/benchmark/1",
        "benchmark": "expectation",
        "model": options.model,
        "defence": options.defence,
        "batch": BATCH,
        "samples": SAMPLES,
        "seconds": medians,
        "times_one_look": medians["batched"] / medians["one look"],
        "sooner_than_in_turn": medians["in turn"] / medians["batched"],
        "fast copy": fast_copy.name,
        "sooner_on_the_twin": medians["in turn"] / medians["batched, on the fast copy"],
        **circumstances(options.device),
    }
    shown = ("seconds", "times_one_look", "sooner_than_in_turn", "sooner_on_the_twin", "machine")
    print(json.dumps({name: result[name] for name in shown}, indent=2))
    if options.out:
        write_result(options.out, result)


if __name__ == "__main__":
    main()
