"""The leaderboard and the viewer in a real browser: they work for all, and ask nobody else."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from command_line import small_checkpoint
from run_folders import evaluation_run, training_run
from test_leaderboard import entry
from test_viewer import begun, model

import holdfast as hf
from holdfast.runs.lock import claimed
from holdfast.runs.progress import ProgressLine
from holdfast.viewer.server import Viewer

ROOT = Path(hf.__file__).parents[1]


def some_runs(folder: Path, count: int) -> Path:
    for i in range(count):
        evaluation_run(
            folder / f"run-{i}", n=100, standard=0.9 - i / 100, robust=0.3 + i / 50, seed=i,
            curve=False, model=model(f"model-{i}", f"{i:02d}"), labels=np.arange(100) % 10,
            fired=("gradients-vanish",) if i == 3 else (),
        )  # fmt: skip
    return folder


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = some_runs(tmp_path_factory.mktemp("board") / "runs", 9)
    training_run(folder / "training")
    entry(folder / "model_info" / "cifar10" / "Linf", "Published2024")
    entry(folder / "model_info" / "cifar10" / "L2", "Other2024", eps="0.5", unreliable=True)
    (folder / "damaged").mkdir()
    (folder / "damaged" / "result.json").write_text("{")
    stopped = begun(folder / "stopped", name="stopped-model")
    progress = {"schema": "holdfast/progress/1", "share": 0.4, "word": "30 of 60 stand", "n": 60}
    bounds = {"robust_accuracy_interval": [0.2, 0.6]}
    (stopped / "progress.json").write_text(json.dumps({**progress, **bounds}))
    return folder


@pytest.fixture(scope="module")
def addresses(runs: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    site = hf.write_leaderboard(runs, tmp_path_factory.mktemp("site") / "site")
    with hf.view(runs, port=0) as viewer:
        run = (runs / "run-0", runs / "run-1")
        yield {
            "site": (site / "index.html").as_uri(),
            "a model of the site": next((site / "models").glob("model-2*")).as_uri(),
            "viewer": viewer.address,
            "a run": f"{viewer.address}run?path={run[0]}",
            "a run under way": f"{viewer.address}run?path={runs / 'stopped'}",
            "a comparison": f"{viewer.address}compare?run={run[0]}&run={run[1]}",
            "no page": f"{viewer.address}compare",
        }


PAGES = ("site", "a model of the site", "viewer", "a run", "a run under way", "a comparison",
         "no page")  # fmt: skip


@pytest.fixture
def shown(browser, addresses) -> Iterator[object]:
    """Opens a page; whatever it asks of others, or complains of, is a failure at the end."""
    contexts, faults = [], []

    def open_page(address: str, width: int = 1400, **how: object):
        address = addresses.get(address, address)
        local = address.startswith("file:")
        context = browser.new_context(
            viewport={"width": width, "height": 1000}, offline=local, **how
        )
        contexts.append(context)
        page = context.new_page()
        home = address.rsplit("/", 1)[0] if local else re.match(r"http://[^/]+/", address)[0]

        def asked(request) -> None:
            if not request.url.startswith((home, "data:")):
                faults.append(f"asked for {request.url[:100]}")

        page.on("request", asked)
        page.on("pageerror", lambda error: faults.append(f"error: {error}"))
        page.on("console", lambda said: said.type == "error" and faults.append(said.text))
        page.faults = faults
        page.goto(address)
        return page

    yield open_page
    for context in contexts:
        context.close()
    faults = [fault for fault in faults if "409 (Conflict)" not in fault]  # of "no page"
    assert not faults


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("kind", PAGES)
def test_pages_can_be_read_by_all(shown, kind, scheme) -> None:
    axe = pytest.importorskip("axe_playwright_python.sync_playwright").Axe()
    page = shown(kind, color_scheme=scheme)
    found = axe.run(page).response["violations"]
    serious = {
        fault["id"]: [node["html"][:160] for node in fault["nodes"][:3]]
        for fault in found
        if fault["impact"] in ("serious", "critical")
    }
    assert not serious
    assert page.locator("h1").first.is_visible()


@pytest.mark.parametrize("kind", PAGES)
def test_nothing_is_wider_than_a_phone(shown, kind) -> None:
    page = shown(kind, width=400)
    assert page.evaluate("document.scrollingElement.scrollWidth") <= 400


def names(page) -> list[str]:
    rows = page.locator("table.board").first.locator("tbody tr:visible")
    return [row.evaluate("row => row.cells[0].firstChild.textContent") for row in rows.all()]


@pytest.mark.parametrize("kind", ["site", "viewer"])
def test_tables_sort_and_filter(shown, kind) -> None:
    page = shown(kind)
    best_first = [f"model-{i}" for i in reversed(range(9))]
    assert names(page) == ["Published2024", *best_first]
    page.get_by_role("button", name=re.compile("Standard accuracy")).first.click()
    assert names(page) == ["Published2024", *reversed(best_first)]
    page.get_by_label("Filter").first.fill("robustbench")
    assert names(page) == ["Published2024"]
    assert page.get_by_text("1 of 10 rows").is_visible()
    page.get_by_label("Filter").first.fill("vanish")
    assert names(page) == ["model-3"]


def test_the_picture_shows_the_pareto_front_and_what_was_measured_elsewhere(shown) -> None:
    page = shown("site")
    legend = page.locator(".chart").first.locator(".legend").text_content()
    assert all(
        text in legend for text in ("Pareto front", "published by RobustBench", "measured here")
    )
    canvas = page.locator(".chart .canvas").first
    canvas.focus()
    page.keyboard.press("End")
    assert "Published2024, autoattack" in canvas.locator(".readout").text_content()
    assert page.locator("tr.elsewhere .badge").first.text_content() == "RobustBench"


def test_from_the_site_to_a_model_and_back(shown) -> None:
    page = shown("site")
    page.get_by_role("link", name="model-2", exact=True).click()
    assert page.get_by_role("heading", name="How to make it again").is_visible()
    page.get_by_role("link", name="All models").click()
    assert page.get_by_role("heading", name="Leaderboard").is_visible()


def test_two_runs_are_chosen_and_compared(shown) -> None:
    page = shown("viewer")
    page.get_by_label("Compare model-1").check()
    page.get_by_role("button", name=re.compile("Compare the chosen")).first.click()
    assert page.get_by_text("Choose two runs or more to compare.").is_visible()
    page.get_by_label("Compare model-4").check()
    page.get_by_role("button", name=re.compile("Compare the chosen")).first.click()
    page.get_by_role("heading", name="Image by image").wait_for()
    assert page.locator("h3", has_text="beside").first.is_visible()


def test_without_scripts_all_is_there_and_the_browser_asks_again(shown) -> None:
    page = shown("viewer", java_script_enabled=False)
    assert page.locator("meta[http-equiv=refresh]").count() == 1
    assert page.get_by_text("30 of 60 stand").is_visible()
    assert page.locator("table.board tbody tr").count() == 11
    page.get_by_label("Compare model-1").check()
    page.get_by_label("Compare model-4").check()
    page.get_by_role("button", name=re.compile("Compare the chosen")).first.click()
    assert page.get_by_role("heading", name="Image by image").is_visible()


def test_two_people_see_a_run_grow_and_finish(shown, tmp_path) -> None:
    runs = some_runs(tmp_path / "runs", 2)
    with hf.view(runs, port=0) as viewer:
        first, second = (shown(viewer.address) for _ in range(2))
        folder = begun(runs / "growing", name="growing-model")
        with claimed(folder), ProgressLine("swift", enabled=False, run=folder) as line:
            for share, bounds in ((0.3, (0.1, 0.8)), (0.7, (0.3, 0.6))):
                line.written = -1e9
                line.update(
                    share, f"{share:.0%} of it",
                    lambda b=bounds: {"n": 60, "robust_accuracy_interval": b},
                )  # fmt: skip
                for page in (first, second):
                    page.get_by_text(f"{share:.0%} of it").wait_for(timeout=20_000)
                    low, high = bounds
                    text = page.locator(".closing b").first.text_content()
                    assert text.startswith(f"{100 * low:.1f}") and f"{100 * high:.1f}" in text
        for file in folder.iterdir():
            file.unlink()
        folder.rmdir()
        evaluation_run(folder, n=100, curve=False, model=model("growing-model", "99"))
        for page in (first, second):
            page.locator("table.board").get_by_text("growing-model").wait_for(timeout=20_000)
            assert not page.locator("#under-way").is_visible()
            page.close()


def test_what_the_reader_has_begun_is_not_taken_away(shown, tmp_path) -> None:
    runs = some_runs(tmp_path / "runs", 9)
    with hf.view(runs, port=0) as viewer:
        page = shown(viewer.address)
        page.get_by_label("Filter").first.fill("model-4")
        evaluation_run(runs / "new", n=60, curve=False, model=model("model-new", "98"))
        page.get_by_text("Something has finished since.").wait_for(timeout=20_000)
        assert names(page) == ["model-4"]
        page.get_by_role("link", name="Show it").click()
        page.locator("table.board").get_by_text("model-new").wait_for()
        page.close()


def test_a_viewer_that_went_away_is_said(shown, tmp_path) -> None:
    viewer: Viewer = hf.view(some_runs(tmp_path / "runs", 2), port=0)
    page = shown(viewer.address)
    viewer.close()
    page.get_by_text("The viewer does not answer").wait_for(timeout=20_000)
    page.faults.clear()  # the browser's own word on it


@pytest.mark.slow
def test_a_real_evaluation_is_watched(shown, tmp_path) -> None:
    checkpoint = small_checkpoint(tmp_path / "model")
    runs = tmp_path / "runs"
    runs.mkdir()
    command = [
        sys.executable, "-m", "holdfast", "evaluate", str(checkpoint), "--data", "digits",
        "--suite", "autoattack", "--limit", "150", "--out", str(runs / "digits"), "--quiet",
    ]  # fmt: skip
    with hf.view(runs, port=0) as viewer:
        page = shown(viewer.address)
        assert page.get_by_text("No evaluation below").is_visible()
        environment = {**os.environ, "PYTHONPATH": str(ROOT)}
        evaluating = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL)
        try:
            page.locator(".making progress").wait_for(timeout=240_000)
            widths = []
            while evaluating.poll() is None and page.locator(".making .closing b").count():
                text = page.locator(".making .closing b").first.text_content(timeout=2000)
                low, high = (float(number) for number in re.findall(r"[\d.]+", text))
                widths.append(high - low)
                time.sleep(0.5)
            page.locator("table.board tbody tr").wait_for(timeout=240_000)
            assert widths == sorted(widths, reverse=True)
        finally:
            evaluating.kill()
            evaluating.wait()
        assert page.locator("table.board").get_by_text("autoattack").first.is_visible()
        page.close()


@pytest.mark.slow
def test_500_runs(shown, tmp_path) -> None:
    for i in range(500):
        evaluation_run(
            tmp_path / "runs" / f"run-{i}", n=100, robust=0.2 + i / 2000, seed=i,
            model={**model(f"model-{i}", f"{i:04d}"), "sha256": f"{i:064d}"},
        )  # fmt: skip
    began = time.process_time()
    site = hf.write_leaderboard(tmp_path / "runs", tmp_path / "site")
    assert time.process_time() - began < 30
    assert sum(file.stat().st_size for file in site.rglob("*") if file.is_file()) < 15e6
    page = shown((site / "index.html").as_uri())
    took = page.evaluate("performance.getEntriesByType('navigation')[0].loadEventEnd")
    assert took < 2000 * max(1.0, os.getloadavg()[0] / (os.cpu_count() or 1))
    assert len(names(page)) == 500
    with hf.view(tmp_path / "runs", port=0) as viewer:
        page = shown(viewer.address)
        assert len(names(page)) == 500
        began = time.process_time()
        viewer._server.library.look()
        viewer._server.library._next = 0.0
        viewer._server.library.look()
        assert time.process_time() - began < 1.0
        page.close()
