"""Pictures of pages for the documentation, from committed results and a small run on the digits.

    make browser
    python benchmarks/report_pictures.py [KIND …]

Writes docs/figures/report-KIND.png: the first screen of each kind of page, the images of a run, and
an evaluation as a phone shows it. `report-first-screen.png` is README's: the page of the committed
run benchmarks/results/cifar10-linf-2h-swift, in the light; `report-first-screen-dark.png` in the
dark. `leaderboard.png`, `view.png` and `view-phone.png` are of the committed results, beside
RobustBench's entries in `elsewhere.json`; the unfinished runs on the latter two are examples.
`playground.png` is of `holdfast play`. After a change of the pages, run this again; with KINDs,
only their pictures are made.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import torch
from elsewhere import COPIED
from PIL import Image
from playwright.sync_api import Locator, Page, sync_playwright

import holdfast as hf
from holdfast.data import load
from holdfast.report import write_report
from holdfast.runs.files import read_json
from holdfast.runs.lock import claimed
from holdfast.runs.records import ProgressRecord, RequestRecord

ROOT = Path(__file__).resolve().parents[1]
RESULTS, PICTURES = ROOT / "benchmarks" / "results", ROOT / "docs" / "figures"
COLOURS = 256  # of a PNG: a third of the bytes, and nobody sees it
THREAT = hf.Threat("linf", 8 / 255)
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
BOARDS = ("leaderboard", "view", "view-phone")
PLAY = "playground"
KINDS = (*RUNS, "first-screen-dark", "images", "phone", *BOARDS, PLAY)


def published(folder: Path) -> None:
    """The entries of `elsewhere.json` in files, as RobustBench publishes them."""
    (folder / "Linf").mkdir(parents=True)
    for entry in read_json(COPIED)["entries"]:
        (folder / "Linf" / f"{entry.pop('id')}.json").write_text(json.dumps(entry))


def unfinished(folder: Path, name: str, started: datetime, **progress: Any) -> Path:
    """A run that is being made, as its folder says."""
    folder.mkdir()
    asked = {"model": {"name": name}, "suite": "autoattack", "threat": THREAT.describe()}
    command = ("holdfast", "evaluate", name, "--data", "datasets", "--out", f"runs/{folder.name}")
    when = started.isoformat(timespec="seconds")
    RequestRecord(kind="evaluate", asked=asked, command=command, started=when).save(folder)
    now = datetime.now(UTC).isoformat(timespec="seconds")
    ProgressRecord(title="autoattack", updated=now, n=1000, **progress).save(folder)
    return folder


def boards(folder: Path, asked: set[str], opened: Callable[..., Page]) -> None:
    """Pictures of the leaderboard and of the viewer."""
    runs = folder / "runs"
    for run in sorted(RESULTS.glob("cifar10-*")):
        shutil.copytree(run, runs / run.name)
    published(folder / "published")
    if "leaderboard" in asked:
        site = hf.write_leaderboard(runs, folder / "site", robustbench=folder / "published")
        keep("leaderboard", opened((site / "index.html").resolve(), 1400, 1400))
    if not asked & {"view", "view-phone"}:
        return
    began = datetime.now(UTC)
    share, word = 0.41, "apgd-dlr-targeted: 472 of 1000 stand"
    bounds = (0.212, 0.503)
    going = unfinished(
        runs / "w40-autoattack", "cifar10-linf-w40", began - timedelta(minutes=12), share=share,
        word=word, robust_accuracy_interval=bounds,
    )  # fmt: skip
    unfinished(
        runs / "slim-autoattack", "cifar10-linf-slim", began - timedelta(hours=3), share=0.07,
        word="apgd-ce: 561 of 1000 stand", robust_accuracy_interval=(0.0, 0.592),
    )  # fmt: skip
    with claimed(going), hf.view(runs, port=0, robustbench=folder / "published") as viewer:
        for kind, width, how in (("view", 1400, {}), ("view-phone", 400, {"color_scheme": "dark"})):
            if kind in asked:
                page = opened(viewer.address, width, 1000, **how)
                page.wait_for_timeout(3000)
                keep(kind, page)


def playground(opened: Callable[..., Page]) -> None:
    """The playground with its last example, a photograph: images of CIFAR-10 are not ours."""
    command = [sys.executable, "-m", "holdfast", "play", "--port", "0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        said = re.search(r"playground: (\S+)", process.stdout.readline())
        assert said is not None
        page = opened(said[1], 1400, 1108)
        page.wait_for_selector("text=smallest", timeout=120_000)
        page.wait_for_timeout(6000)
        page.get_by_role("button", name="Attack, and").click()
        page.wait_for_timeout(15_000)
        keep(PLAY, page)
        process.kill()


def keep(kind: str, shown: Page | Locator) -> None:
    name = kind if kind in (*BOARDS, PLAY) else f"report-{kind}"
    picture = Image.open(io.BytesIO(shown.screenshot())).convert("RGB")
    few = picture.quantize(COLOURS, dither=Image.Dither.NONE)
    few.save(PICTURES / f"{name}.png", optimize=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("kinds", nargs="*", metavar="KIND", help=f"of {', '.join(KINDS)}")
    asked = set(parser.parse_args().kinds) or set(KINDS)
    if asked - set(KINDS):
        parser.error(f"there is no {min(asked - set(KINDS))!r}; there are {', '.join(KINDS)}")
    own = next((path for name in BROWSERS if (path := shutil.which(name))), None)
    with tempfile.TemporaryDirectory() as folder, sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=own, args=["--no-sandbox"])
        made: dict[str, Path] = {}

        def at(address: Path | str, width: int, height: int, **how: Any) -> Page:
            page = browser.new_page(viewport={"width": width, "height": height}, **how)
            page.goto(address.as_uri() if isinstance(address, Path) else address)
            return page

        def opened(kind: str, width: int = 1200, **how: Any) -> Page:
            if kind not in made:
                runs = RUNS[kind](Path(folder))
                made[kind] = write_report(runs, Path(folder) / f"{kind}.html")
            return at(made[kind], width, 860, **how)

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
        if asked & set(BOARDS):
            with contextlib.chdir(folder):  # so that no path of this machine is in a picture
                boards(Path(), asked, at)
        if PLAY in asked:
            playground(at)
        browser.close()


if __name__ == "__main__":
    main()
