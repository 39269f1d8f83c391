"""How sure models are, clean and under attack: `holdfast uncertainty` on several, kept as results.

    python benchmarks/uncertainty.py UNDEFENDED DEFENDED --data datasets [--human FILE] [--limit N]

Each run goes to `--runs`/NAME, where an interrupted one goes on; what stays is
`benchmarks/results/uncertainty-NAME.json`, without what only drawings need. Write the page with
`python benchmarks/uncertainty_page.py`.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from published import RESULTS

from holdfast.cli import uncertainty
from holdfast.runs.files import read_json, write_json
from holdfast.threat import Threat

DRAWN = ("drawings", "histogram", "by_type", "against_eps")


def kept(value: Any) -> Any:
    """A result without what is only drawn."""
    if isinstance(value, dict):
        return {key: kept(inner) for key, inner in value.items() if key not in DRAWN}
    return value


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("models", nargs="+")
    parser.add_argument("--data", default="datasets")
    parser.add_argument("--runs", type=Path, default=Path("runs/uncertainty"))
    parser.add_argument("--attack")
    parser.add_argument("--norm", default="linf", help="the same for all models")
    parser.add_argument("--eps", default="8/255", help="the same for all models")
    parser.add_argument("--limit", type=int, default=1000)
    parser.add_argument("--human")
    parser.add_argument("--ood", action="append", default=[])
    parser.add_argument("--pixels")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    for model in options.models:
        name = Path(model).name
        run = options.runs / name
        result = uncertainty.run(
            uncertainty.Options(
                model,
                run,
                options.data,
                attack=options.attack,
                norm=options.norm,
                eps=options.eps,
                limit=options.limit,
                ood=options.ood,
                human=options.human,
                pixels=options.pixels,
                seed=options.seed,
            )
        ).to_dict()
        request = read_json(run / "request.json")
        made = {"machine": request["machine"], "command": request["command"]}
        write_json(RESULTS / f"uncertainty-{name}.json", {**kept(result), **made})
        print(f"{name}: {Threat(**result['threat'])}, n = {result['n']}, {result['seconds']:.0f} s")


if __name__ == "__main__":
    main()
