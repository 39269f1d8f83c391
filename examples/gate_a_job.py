"""Stop a job of continuous integration where a model is not robust enough.

    python examples/gate_a_job.py MODEL --require "robust>=40%" --require "flags<=0"

The lower end of the 95 % interval decides. The exit status is 0 where all is met, and 3 where not;
`robustness.xml` tells the server, as JUnit.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import torch

import holdfast as hf
from holdfast.report.requirements import junit


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model")
    parser.add_argument("--data", default="digits")
    parser.add_argument("--eps", type=float, default=0.2)
    parser.add_argument("--limit", type=int, default=300)
    parser.add_argument("--require", action="append", default=[])
    parser.add_argument("--out", type=Path, default=Path("runs/gate"))
    options = parser.parse_args()
    test = hf.data.load(options.data).test.first(options.limit)
    hf.evaluate(
        hf.load(options.model),
        hf.data.to_tensor(test.images),
        torch.from_numpy(test.labels),
        hf.Threat("linf", options.eps),
        suite="swift",
        run=options.out,
    )
    required = hf.require(options.out, options.require or ["robust>=40%"])
    (options.out / "robustness.xml").write_text(junit(required, str(options.out)))
    print(required)
    return 0 if required.met else 3


if __name__ == "__main__":
    sys.exit(main())
