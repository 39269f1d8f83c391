"""Pictures of reports for the documentation, from committed results and a small run on the digits.

    make browser
    python benchmarks/report_pictures.py [KIND …]

Writes docs/figures/report-KIND.png: the first screen of each kind of page, the images of a run, and
an evaluation as a phone shows it. `report-first-screen.png` is README's: the page of the committed
run benchmarks/results/cifar10-linf-2h-swift, in the light; `report-first-screen-dark.png` in the
dark. After a change of the report, run this again; with KINDs, only their pictures are made.
"""

from __future__ import annotations

import io
import shutil
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from playwright.sync_api import Locator, Page, sync_playwright

import holdfast as hf
from holdfast.data import load
from holdfast.report import write_report

ROOT = Path(__file__).resolve().parents[1]
RESULTS, PICTURES = ROOT / "benchmarks" / "results", ROOT / "docs" / "figures"
COLOURS = 256  # of a PNG: a third of the bytes, and nobody sees it
BROWSERS = ("chromium", "chromium-browser", "google-chrome")


class SmallNetwork(torch.nn.Sequential):
    """Named for the page's heading."""


def digits(folder: Path) -> Path:
    """The run of an evaluation: a small network, trained for a moment, on the digits."""
    torch.manual_seed(0)
    data = load("digits")
    images = torch.from_numpy(data.train.images).float() / 255
    labels = torch.from_numpy(data.train.labels)
    model = SmallNetwork(
        torch.nn.Flatten(), torch.nn.Linear(64, 64), torch.nn.ReLU(), torch.nn.Linear(64, 10)
    )
    optimiser = torch.optim.Adam(model.parameters(), 3e-3)
    for _ in range(40):
        for rows in torch.randperm(len(images)).split(128):
            loss = torch.nn.functional.cross_entropy(model(images[rows]), labels[rows])
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
    images = torch.from_numpy(data.test.images).float() / 255
    labels = torch.from_numpy(data.test.labels)
    hf.evaluate(model.eval(), images, labels, ("linf", 0.1), suite="apgd", run=folder)
    return folder


def comparison_of_models(folder: Path) -> list[Path]:
    return sorted(RESULTS.glob("cifar10-*-swift"))


def uncertain(folder: Path) -> list[Path]:
    run = folder / "uncertainty"
    run.mkdir()
    shutil.copy(RESULTS / "uncertainty-cifar10-standard-cpu.json", run / "result.json")
    return [run]


RUNS: dict[str, Callable[[Path], list[Path]]] = {  # of each kind of page
    "first-screen": lambda _: [RESULTS / "cifar10-linf-2h-swift"],
    "evaluation": lambda folder: [digits(folder / "digits")],
    "comparison": comparison_of_models,
    "certification": lambda _: [RESULTS / "certificates-gaussian"],
    "uncertainty": uncertain,
    "training": lambda _: [RESULTS / "cifar10-linf-w40-swift" / "training"],
}
KINDS = (*RUNS, "first-screen-dark", "images", "phone")


def keep(kind: str, shown: Page | Locator) -> None:
    picture = Image.open(io.BytesIO(shown.screenshot())).convert("RGB")
    few = picture.quantize(COLOURS, dither=Image.Dither.NONE)
    few.save(PICTURES / f"report-{kind}.png", optimize=True)


def main(asked: set[str]) -> None:
    own = next((path for name in BROWSERS if (path := shutil.which(name))), None)
    with tempfile.TemporaryDirectory() as folder, sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=own, args=["--no-sandbox"])
        made: dict[str, Path] = {}

        def opened(kind: str, width: int = 1200, **how: Any) -> Page:
            if kind not in made:
                runs = RUNS[kind](Path(folder))
                made[kind] = write_report(runs, Path(folder) / f"{kind}.html")
            page = browser.new_page(viewport={"width": width, "height": 860}, **how)
            page.goto(made[kind].as_uri())
            return page

        for kind in RUNS.keys() & asked:
            keep(kind, opened(kind))
        if "first-screen-dark" in asked:
            keep("first-screen-dark", opened("first-screen", color_scheme="dark"))
        if "images" in asked:
            page = opened("evaluation")
            gallery = page.locator("section[data-gallery]")
            gallery.scroll_into_view_if_needed()
            gallery.locator(".tile").nth(3).click()
            page.wait_for_timeout(500)
            keep("images", gallery)
        if "phone" in asked:
            keep("phone", opened("evaluation", 400, color_scheme="dark"))
        browser.close()


if __name__ == "__main__":
    wanted = set(sys.argv[1:]) or set(KINDS)
    if wanted - set(KINDS):
        sys.exit(f"there is no {min(wanted - set(KINDS))!r}; there are {', '.join(KINDS)}")
    main(wanted)
