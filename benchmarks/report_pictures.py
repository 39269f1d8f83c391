"""Pictures of reports for the documentation, from committed results and a small run on the digits.

    make browser
    python benchmarks/report_pictures.py

Writes docs/figures/report-KIND.png: the first screen of each kind of page, the images of a run, and
an evaluation as a phone shows it.
"""

from __future__ import annotations

import io
import shutil
import tempfile
from pathlib import Path

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


def pages(folder: Path) -> dict[str, Path]:
    """A page of every kind."""
    uncertain = folder / "uncertainty"
    uncertain.mkdir()
    shutil.copy(RESULTS / "uncertainty-cifar10-standard-cpu.json", uncertain / "result.json")
    runs = {
        "evaluation": [digits(folder / "digits")],
        "comparison": sorted(RESULTS.glob("cifar10-*-swift")),
        "certification": [RESULTS / "certificates-gaussian"],
        "uncertainty": [uncertain],
        "training": [RESULTS / "cifar10-linf-w40-swift" / "training"],
    }
    return {kind: write_report(of, folder / f"{kind}.html") for kind, of in runs.items()}


def keep(kind: str, shown: Page | Locator) -> None:
    picture = Image.open(io.BytesIO(shown.screenshot())).convert("RGB")
    few = picture.quantize(COLOURS, dither=Image.Dither.NONE)
    few.save(PICTURES / f"report-{kind}.png", optimize=True)


def main() -> None:
    own = next((path for name in BROWSERS if (path := shutil.which(name))), None)
    with tempfile.TemporaryDirectory() as folder, sync_playwright() as playwright:
        made = pages(Path(folder))
        browser = playwright.chromium.launch(executable_path=own, args=["--no-sandbox"])
        wide = browser.new_page(viewport={"width": 1200, "height": 860})
        for kind, page in made.items():
            wide.goto(page.as_uri())
            keep(kind, wide)
        wide.goto(made["evaluation"].as_uri())
        gallery = wide.locator("section[data-gallery]")
        gallery.scroll_into_view_if_needed()
        gallery.locator(".tile").nth(3).click()
        wide.wait_for_timeout(500)
        keep("images", gallery)
        narrow = browser.new_page(viewport={"width": 400, "height": 860}, color_scheme="dark")
        narrow.goto(made["evaluation"].as_uri())
        keep("phone", narrow)
        browser.close()


if __name__ == "__main__":
    main()
