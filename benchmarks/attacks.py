"""Every attack beside the same one of other libraries: `docs/attacks.md` is made from it.

    make benchmarks
    python benchmarks/attacks.py MODEL --data DIR [--limit 256] [--only WORD …] [--effort 0.1]
    python benchmarks/attacks_page.py

One model, the same images in one run. Every attack, ours or another library's (through
`holdfast.attacks.library_attack`), is a suite of its own in the engine: it searches the same fast
copy of the model, its passes are counted at the same place, and a success counts once the original
model misclassifies a point inside ball and box. Budgets are the same wherever a library lets one
choose them. Rows are written as they fall; the same command goes on where it was interrupted.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from defences import opened
from torch import Tensor

import holdfast as hf
from holdfast import data as datasets
from holdfast.attacks import (
    APGD,
    DDN,
    FAB,
    FGSM,
    FMN,
    PGD,
    SPSA,
    CarliniWagner,
    DeepFool,
    HopSkipJump,
    Patch,
    RotationTranslation,
    SigmaZero,
    Square,
    Stage,
    Suite,
    suite_named,
)
from holdfast.errors import HoldfastError
from holdfast.evaluation.cards import threat_of
from holdfast.runs.environment import circumstances, machine
from holdfast.runs.files import make_folder, write_result
from holdfast.runs.identity import digest, weights_digest
from holdfast.runs.progress import clock
from holdfast.threat import USUAL_EPS

RESULTS = Path(__file__).resolve().parent / "results"
OURS = "holdfast"
EPS = {**USUAL_EPS, "l0": 30.0}


@dataclass(frozen=True)
class Comparison:
    """An attack and its counterparts.

    Attributes:
        attack: what the row is called.
        norms: those in which it is run.
        ours: our stage of it.
        theirs: for each norm the names of the counterparts that know it, see `library_attack`.
    """

    attack: str
    norms: tuple[str, ...]
    ours: Callable[[], Stage]
    theirs: dict[str, tuple[str, ...]]

    def suites(self, norm: str) -> Iterator[tuple[str, Callable[[], Suite]]]:
        """Who made it, and the suite of that attack alone."""
        yield OURS, lambda: Suite(self.attack, (self.ours(),))
        for text in self.theirs.get(norm, ()):
            yield text, lambda text=text: suite_named(text)  # type: ignore[misc]


def comparisons(effort: float) -> list[Comparison]:
    """All of them, with `effort` times the usual budgets."""

    def of(budget: int) -> int:
        return max(2, round(effort * budget))

    steps, queries, long = of(100), of(5000), of(1000)
    ta, fb, art = "torchattacks", "foolbox", "art"
    auto = f"{art}:AutoProjectedGradientDescent:max_iter={steps},nb_random_init=1"
    pgd = f"{art}:ProjectedGradientDescent:max_iter={of(50)}"
    square = f"{art}:SquareAttack:max_iter={queries}"
    fmn = {"linf": "LInf", "l2": "L2", "l1": "L1", "l0": "L0"}
    return [
        Comparison(
            "FGSM",
            ("linf",),
            lambda: Stage(FGSM()),
            {"linf": (f"{ta}:FGSM", f"{fb}:FGSM", f"{art}:FastGradientMethod")},
        ),
        Comparison(
            "PGD",
            ("linf", "l2", "l1"),
            lambda: Stage(PGD(steps=of(50))),
            {
                "linf": (f"{ta}:PGD:steps={of(50)}", f"{fb}:LinfPGD:steps={of(50)}", pgd),
                "l2": (f"{ta}:PGDL2:steps={of(50)}", f"{fb}:L2PGD:steps={of(50)}", pgd),
                "l1": (f"{fb}:L1PGD:steps={of(50)}", pgd),
            },
        ),
        Comparison(
            "APGD-CE",
            ("linf", "l2", "l1"),
            lambda: Stage(APGD(steps=steps, loss="ce")),
            {
                "linf": (f"{ta}:APGD:steps={steps}", auto),
                "l2": (f"{ta}:APGD:steps={steps}", auto),
                "l1": (auto,),
            },
        ),
        Comparison(
            "APGD-DLR, targeted",
            ("linf", "l2", "l1"),
            lambda: Stage(APGD(steps=steps, loss="dlr", targeted=True), targets=9),
            dict.fromkeys(("linf", "l2"), (f"{ta}:APGDT:steps={steps}",)),
        ),
        Comparison(
            "FAB, targeted",
            ("linf", "l2", "l1"),
            lambda: Stage(FAB(steps=steps, targeted=True), targets=9),
            dict.fromkeys(("linf", "l2", "l1"), (f"{ta}:FAB:steps={steps},multi_targeted=true",)),
        ),
        Comparison(
            "Square",
            ("linf", "l2", "l1"),
            lambda: Stage(Square(queries=queries)),
            dict.fromkeys(("linf", "l2"), (f"{ta}:Square:n_queries={queries}", square)),
        ),
        Comparison(
            "FMN",
            ("linf", "l2", "l1", "l0"),
            lambda: Stage(FMN(steps=steps)),
            {norm: (f"{fb}:{word}FMNAttack:steps={steps}",) for norm, word in fmn.items()},
        ),
        Comparison(
            "DeepFool",
            ("linf", "l2"),
            lambda: Stage(DeepFool(steps=50)),
            {
                "linf": (f"{fb}:LinfDeepFoolAttack:steps=50",),
                "l2": (
                    f"{ta}:DeepFool:steps=50",
                    f"{fb}:L2DeepFoolAttack:steps=50",
                    f"{art}:DeepFool:max_iter=50",
                ),
            },
        ),
        Comparison(
            "DDN",
            ("l2",),
            lambda: Stage(DDN(steps=steps)),
            {"l2": (f"{fb}:DDNAttack:steps={steps}",)},
        ),
        Comparison(
            "Carlini-Wagner",
            ("l2",),
            lambda: Stage(CarliniWagner(steps=steps, searches=9)),
            {
                "l2": (
                    f"{ta}:CW:steps={steps}",
                    f"{fb}:L2CarliniWagnerAttack:steps={steps},binary_search_steps=9",
                    f"{art}:CarliniL2Method:max_iter={steps},binary_search_steps=9",
                )
            },
        ),
        Comparison("sigma-zero", ("l0",), lambda: Stage(SigmaZero(steps=long)), {}),
        Comparison(
            "HopSkipJump",
            ("linf", "l2"),
            lambda: Stage(HopSkipJump(queries=queries)),
            # 15 rounds of either probe about 4,000 times, besides their bisections.
            dict.fromkeys(
                ("linf", "l2"),
                (f"{fb}:HopSkipJumpAttack:steps={of(15)}", f"{art}:HopSkipJump:max_iter={of(15)}"),
            ),
        ),
        Comparison(
            "SPSA",
            ("linf", "l2"),
            lambda: Stage(SPSA(steps=of(40), samples=128)),
            {"linf": (f"{ta}:SPSA:nb_iter={of(40)},nb_sample=128",)},
        ),
        Comparison("patch", ("l0",), lambda: Stage(Patch(steps=steps)), {}),
        Comparison("rotation-translation", ("spatial",), lambda: Stage(RotationTranslation()), {}),
    ]


def row_of(
    model: Any,
    images: Tensor,
    labels: Tensor,
    threat: hf.Threat,
    made: Callable[[], Suite],
    options: argparse.Namespace,
) -> dict[str, Any]:
    """What one implementation broke, and what it cost; or why it could not."""
    try:
        suite = made().fitting(threat)
        result = hf.evaluate(
            model,
            images,
            labels,
            threat,
            suite,
            batch_size=options.batch_size,
            device=options.device,
            precision="float32",  # other libraries were not made for a coarse fast copy
            seed=options.seed,
            progress=True,
        )
    except HoldfastError as error:
        return {"failed": str(error)}
    (cost,) = result.attacks
    attacked = max(1, round(result.standard_accuracy * result.n))
    return {
        "settings": suite.describe()["stages"][0],
        "standard_accuracy": result.standard_accuracy,
        "robust_accuracy": result.robust_accuracy,
        "robust_accuracy_interval": result.robust_accuracy_interval,
        # Of the images that the attack was run on: clean mistakes are not.
        "forwards_per_image": cost.forwards / attacked,
        "backwards_per_image": cost.backwards / attacked,
        "seconds": cost.seconds,
        "precision": result.precision,
        "batch_size": result.batch_size,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", help="a checkpoint or run folder, or a name from the zoo")
    parser.add_argument("--data", default="datasets")
    parser.add_argument("--limit", type=int, default=256)
    parser.add_argument("--only", nargs="+", help="attacks whose names hold one of these words")
    parser.add_argument("--norms", nargs="+", default=list(EPS), choices=list(EPS))
    parser.add_argument("--effort", type=float, default=1.0, help="share of the usual budgets")
    parser.add_argument("--batch-size", type=int, default=128)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--pixels", help="what the pixels are, in words")
    parser.add_argument("--out", type=Path, default=RESULTS / "attacks.json")
    options = parser.parse_args()

    model = hf.load(options.model)
    card = getattr(model, "card", {})
    test = datasets.load(options.data).test
    images = datasets.to_tensor(test.images[: options.limit])
    labels = torch.from_numpy(test.labels[: options.limit].copy())
    threats = {
        norm: threat_of(norm, eps if norm == "l0" else None, card) for norm, eps in EPS.items()
    }
    asked = {
        "schema": "holdfast/benchmark/1",
        "benchmark": "attacks",
        "model": {"name": Path(options.model).name, "sha256": weights_digest(model)},
        "n": len(images),
        "images": digest(images, labels),
        "pixels": options.pixels or test.pixels,
        "effort": options.effort,
        "seed": options.seed,
    }
    make_folder(options.out.parent)
    rows = opened(options.out, asked)
    there = {(row["attack"], row["norm"], row["implementation"]) for row in rows}
    for comparison in comparisons(options.effort):
        if options.only and not any(w.lower() in comparison.attack.lower() for w in options.only):
            continue
        for norm in comparison.norms:
            if norm not in options.norms:
                continue
            for implementation, made in comparison.suites(norm):
                if (comparison.attack, norm, implementation) in there:
                    continue
                found = row_of(model, images, labels, threats[norm], made, options)
                row = {
                    "attack": comparison.attack,
                    "norm": norm,
                    "threat": threats[norm].describe(),
                    "implementation": implementation,
                    **found,
                    "machine": machine(options.device),
                }
                rows.append(row)
                write_result(options.out, {**asked, "rows": rows, **circumstances(options.device)})
                print(
                    f"{comparison.attack:20} {norm:7} {implementation:44} {told(row)}", flush=True
                )


def told(row: dict[str, Any]) -> str:
    if "failed" in row:
        return f"failed: {row['failed']}"
    return (
        f"robust {row['robust_accuracy']:6.1%}  {row['forwards_per_image']:8.0f} forwards  "
        f"{row['backwards_per_image']:7.0f} backwards an image  {clock(row['seconds'])}"
    )


if __name__ == "__main__":
    main()
