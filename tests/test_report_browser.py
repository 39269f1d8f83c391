"""Pages in a real browser, from a file and with the network off: they open, they work, by mouse, by
keyboard and for screen readers, in light and dark, wide and narrow."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from run_folders import colour_images, evaluation_run, training_run, uncertainty_run

from holdfast.evaluation.pictures import write_pictures
from holdfast.report import write_report

RESULTS = Path(__file__).parents[1] / "benchmarks" / "results"
EPS = 8 / 255


def pictured(folder: Path, **changes: object) -> Path:
    run = evaluation_run(folder, n=100, **changes)
    images = 0.2 + 0.6 * torch.from_numpy(colour_images(100))
    sign = torch.randn(images.shape, generator=torch.Generator().manual_seed(0)).sign()
    write_pictures(run, images, images + EPS * sign, torch.arange(100))
    return run


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A page of every kind."""
    at = tmp_path_factory.mktemp("pages")
    unaware = {"n": 100, "robust_accuracy": 0.7, "robust_accuracy_interval": [0.6, 0.79]}
    model = {"name": "m", "sha256": "ab" * 32, "defences": ["jpeg:quality=75"]}
    several = [
        evaluation_run(at / f"run-{i}", name=f"model-{i}", robust=0.3 + 0.02 * i, seed=i,
                       suite="autoattack" if i == 8 else "apgd")
        for i in range(9)
    ]  # fmt: skip
    runs = {
        "evaluation": [pictured(at / "evaluation")],
        "doubtful": [evaluation_run(at / "doubtful", fired=("gradients-vanish",))],
        "comparison": several,
        "defences": [
            pictured(at / "defended", unaware={**unaware, "attack": "apgd"}, model=model),
            evaluation_run(at / "bare", n=100, name="bare"),
        ],
        "certification": [RESULTS / "certificates-gaussian"],
        "uncertainty": [uncertainty_run(at / "uncertainty", bins=True)],
        "side by side": [uncertainty_run(at / "one"), uncertainty_run(at / "two", moved=0.1)],
        "training": [training_run(at / "training")],
        "many": [evaluation_run(at / f"many-{i}", name=f"n{i:02d}", n=50) for i in range(25)],
    }
    return {kind: write_report(of, at / f"{kind}.html") for kind, of in runs.items()}


KINDS = ("evaluation", "doubtful", "comparison", "defences", "certification", "uncertainty",
         "side by side", "training", "many")  # fmt: skip


@pytest.fixture
def shown(browser, pages) -> Iterator[object]:
    """Opens a page of a kind; whatever it asks for, or complains of, is a failure at the end."""
    contexts, faults = [], []

    def open_page(kind: str, width: int = 1400, **how: object):
        context = browser.new_context(
            viewport={"width": width, "height": 1000}, offline=True, accept_downloads=True, **how
        )
        contexts.append(context)
        page = context.new_page()
        address = pages[kind].as_uri()

        def asked(request) -> None:
            if request.url != address and not request.url.startswith("data:"):
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
    assert not faults


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_page_opens_and_can_be_read_by_all(shown, kind, scheme):
    axe = pytest.importorskip("axe_playwright_python.sync_playwright").Axe()
    page = shown(kind, color_scheme=scheme)
    for folded in page.locator("details").all():
        folded.evaluate("element => element.open = true")
    if page.locator("section[data-gallery]").count():
        page.locator(".browser").first.scroll_into_view_if_needed()
        page.locator(".tile").first.wait_for()
    found = axe.run(page).response["violations"]
    serious = {
        fault["id"]: [node["html"][:160] for node in fault["nodes"][:3]]
        for fault in found
        if fault["impact"] in ("serious", "critical")
    }
    assert not serious
    assert page.locator(".verdict").first.is_visible()


@pytest.mark.parametrize("kind", KINDS)
def test_nothing_is_wider_than_a_phone(shown, kind):
    page = shown(kind, width=400)
    assert page.evaluate("document.scrollingElement.scrollWidth") <= 400


def test_a_script_from_a_name_does_not_run(shown):
    page = shown("many")
    ran = page.evaluate(
        """() => new Promise(done => {
            document.addEventListener('securitypolicyviolation', () => done('refused'));
            const script = document.createElement('script');
            script.textContent = 'window.ran = true';
            document.body.append(script);
            setTimeout(() => done(window.ran ? 'ran' : 'nothing'), 2000);
        })"""
    )
    assert ran == "refused"
    (said,) = page.faults
    assert "Content Security Policy" in said
    page.faults.clear()  # the browser's own word on it


def column(page, number: int) -> list[str]:
    rows = page.locator("table.compare tbody tr:visible")
    return [
        row.evaluate(f"row => row.cells[{number}].firstChild.textContent") for row in rows.all()
    ]


def test_tables_sort_and_filter(shown):
    page = shown("comparison")
    head = page.get_by_role("button", name=re.compile("Robust accuracy apgd"))
    head.click()
    values = [float(text.split()[0]) for text in column(page, 2) if text.strip() != "—"]
    assert len(values) == 8 and values == sorted(values, reverse=True)
    head.focus()
    page.keyboard.press("Enter")
    texts = [text.strip() for text in column(page, 2)]
    assert texts[0] == "—" and texts[1] == "30.0\u00a0%"
    assert page.locator("th[aria-sort=ascending]").count() == 1
    page.get_by_role("button", name=re.compile("^Model")).click()
    assert column(page, 0) == [f"model-{i}" for i in range(9)]
    page.get_by_label("Filter").first.fill("MODEL-3")
    assert column(page, 0) == ["model-3"]
    assert page.get_by_text("1 of 9 rows").is_visible()


def test_lines_hide_and_show(shown):
    page = shown("comparison")
    chart = page.locator(".chart", has=page.locator("polyline")).first
    entry = chart.locator(".legend button").nth(1)
    shapes = chart.locator("svg.plot polyline[data-line='1'], svg.plot circle[data-line='1']")
    assert shapes.first.is_visible() and entry.get_attribute("aria-pressed") == "true"
    entry.focus()
    page.keyboard.press("Space")
    assert entry.get_attribute("aria-pressed") == "false"
    assert not any(shape.is_visible() for shape in shapes.all())
    entry.click()
    assert shapes.first.is_visible()


def test_values_are_read_by_mouse_and_by_keyboard(shown):
    page = shown("training")
    canvas = page.locator(".chart .canvas").first
    canvas.scroll_into_view_if_needed()
    box = canvas.locator("svg.plot").bounding_box()
    page.mouse.move(box["x"] + box["width"] * 10 / 24, box["y"] + 50)
    readout = canvas.locator(".readout")
    assert "validation, FGSM: 71.0\u00a0% at 10" in readout.text_content()
    page.mouse.move(0, 0)
    assert not readout.is_visible()
    canvas.focus()
    page.keyboard.press("ArrowRight")
    assert "at 1" in readout.text_content() and "at 10" not in readout.text_content()
    page.keyboard.press("End")
    assert "validation, clean:" in readout.text_content() and "at 24" in readout.text_content()
    page.keyboard.press("Escape")
    assert not readout.is_visible()


def test_figures_are_saved(shown):
    page = shown("evaluation")
    links = page.locator(".chart .downloads").first
    saved = {}
    for kind in ("SVG", "PNG", "CSV"):
        with page.expect_download() as waiting:
            links.get_by_text(kind).click()
        saved[kind] = Path(waiting.value.path()).read_bytes()
        assert waiting.value.suggested_filename.endswith(f".{kind.lower()}")
    picture = np.asarray(Image.open(io.BytesIO(saved["PNG"])).convert("RGB")).reshape(-1, 3)
    assert (picture == [0x0B, 0x7A, 0x6F]).all(1).any()  # the line, and not an empty sheet
    assert saved["SVG"].startswith(b"<svg")
    rows = list(csv.reader(io.StringIO(saved["CSV"].decode())))
    assert rows[1][:3] == ["apgd-ce, 20 steps, n = 256", "0.0", "0.80078125"]


def pixels(canvas) -> np.ndarray:
    values = canvas.evaluate(
        "c => Array.from(c.getContext('2d').getImageData(0, 0, c.width, c.height).data)"
    )
    return np.array(values).reshape(32, 32, 4)[..., :3] / 255


def test_the_slider_goes_from_clean_to_attacked(shown):
    page = shown("evaluation")
    section = page.locator("section[data-gallery]")
    section.scroll_into_view_if_needed()
    tile = section.locator(".tile[data-image='7']")
    tile.click()
    blend, shift = (section.locator(".viewer canvas").nth(i) for i in (0, 1))
    attacked = pixels(blend)
    slide = section.get_by_role("slider", name="From clean to attacked")
    slide.fill("0")
    clean = pixels(blend)
    assert np.abs(clean - (0.2 + 0.6 * colour_images(100)[7].transpose(1, 2, 0))).mean() < 0.02
    assert np.abs(pixels(shift) - 0.5).max() < 0.01  # nothing has changed yet
    assert np.abs(np.abs(attacked - clean) - EPS).max() < 1.5 / 255
    slide.focus()
    for _ in range(3):
        page.keyboard.press("ArrowRight")
    assert slide.input_value() == "3"
    assert np.abs(np.abs(pixels(blend) - clean) - 0.03 * EPS).max() < 1.5 / 255
    slide.fill("100")
    zoom = section.get_by_role("slider", name="Magnification")
    zoom.fill("5")
    assert np.abs(np.abs(pixels(shift) - 0.5) - 5 * EPS).max() < 1.5 / 255
    label = blend.get_attribute("aria-label")
    assert label == "Image 7, 100 % of the way from clean to attacked"


def test_images_are_found_by_class_fate_attack_and_margin(shown, pages):
    with (pages["evaluation"].parent / "evaluation" / "verdicts.csv").open() as file:
        rows = list(csv.DictReader(file))
    page = shown("evaluation")
    section = page.locator("section[data-gallery]")
    section.scroll_into_view_if_needed()
    section.locator(".tile").first.wait_for()
    assert section.get_by_text("1 – 48 of 100 images").is_visible()

    def labels() -> list[str]:
        return [tile.get_attribute("aria-label") for tile in section.locator(".tile").all()]

    section.get_by_label("Fate").select_option("broken")
    section.get_by_label("Attack", exact=True).select_option("apgd-t")
    wanted = [row["index"] for row in rows if row["attack"] == "apgd-t"]
    assert [text.split(",")[0] for text in labels()] == [f"no. {index}" for index in wanted]
    assert all("broken by apgd-t into" in text for text in labels())
    section.get_by_label("Attack", exact=True).select_option("all")
    section.get_by_label("Class").select_option("cat")
    wanted = [r["index"] for r in rows if r["attack"] not in ("", "clean") and r["label"] == "3"]
    assert [text.split(",")[0] for text in labels()] == [f"no. {index}" for index in wanted]
    section.get_by_label("Class").select_option("all")
    section.get_by_label("Fate").select_option("all")
    section.get_by_label("Order").select_option("standing by the least")
    standing = sorted(
        (row for row in rows if row["broken"] == "0"),
        key=lambda row: float(row["adversarial_confidence"]),
    )
    assert [text.split(",")[0] for text in labels()[:5]] == [
        f"no. {row['index']}" for row in standing[:5]
    ]
    section.get_by_role("button", name="next").click()
    assert section.get_by_text("49 – 96 of 100 images").is_visible()
    first = section.locator(".tile").first
    first.focus()
    page.keyboard.press("ArrowRight")
    focused = page.evaluate("document.activeElement.dataset.image")
    assert focused == section.locator(".tile").nth(1).get_attribute("data-image")
    assert section.locator(".tile[aria-current]").get_attribute("data-image") == focused


def test_without_scripts_all_figures_are_there(shown):
    page = shown("evaluation", java_script_enabled=False)
    assert page.locator(".chart svg.plot").first.is_visible()
    assert page.locator(".still .example img").first.is_visible()
    assert page.locator("table.by-class tbody tr").count() == 10
    assert page.locator("a[download$='.svg']").first.is_visible()
    assert not page.locator(".browser, .filter, .sort").count()
