"""The report: what it says, what it refuses, and that it is one safe, self-contained file."""

from __future__ import annotations

import base64
import csv
import io
import json
import re
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from own_script import only_its_own_script
from PIL import Image
from run_folders import (
    colour_images,
    evaluation_run,
    training_run,
    uncertainty_run,
    write_json,
)
from safetensors.numpy import load_file, save_file
from scipy.stats import binomtest

from holdfast.charts import ticks
from holdfast.errors import HoldfastError, InputError
from holdfast.report import write_report
from holdfast.report.format import duration
from holdfast.report.pictures import magnification, magnified, png
from holdfast.report.runs import Accuracy

RESULTS = Path(__file__).parents[1] / "benchmarks" / "results"
VOID = {"meta", "link", "img", "br"}


class Page(HTMLParser):
    """A page's elements and text; fails on tags that are not closed in order."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.html = path.read_text()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.words: list[str] = []
        self.open: list[str] = []
        self.feed(self.html)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if not {"style", "script"} & set(self.open):
            self.words.append(data)

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.words).replace("\u00a0", " ").split())

    def all(self, tag: str, css: str = "") -> list[dict[str, str | None]]:
        wanted = set(css.split())
        return [
            attributes
            for name, attributes in self.elements
            if name == tag and wanted <= set((attributes.get("class") or "").split())
        ]


def report(tmp_path: Path, *runs: Path) -> Page:
    return Page(write_report(runs, tmp_path / "report.html"))


def change(run: Path, **fields: object) -> None:
    path = run / "result.json"
    write_json(path, json.loads(path.read_text()) | fields)


@pytest.fixture
def run(tmp_path: Path) -> Path:
    return evaluation_run(tmp_path / "run")


def test_headline_says_what_was_measured(tmp_path, run):
    text = report(tmp_path, run).text
    assert "Standard accuracy 80.0 % 95 % interval 77.5 – 82.5 %" in text
    assert "Robust accuracy 41.0 % 95 % interval 38.0 – 44.0 %" in text
    for fact in ("cifar10 test, first 1,000", "the JPEG copy of the test images", "L∞ 8/255"):
        assert fact in text
    assert "names 800 of 1,000 images right" in text
    assert "up to 8/255 of its range makes it wrong on 390 of these; 410 still stand" in text
    assert "About half of what the model gets right stands under attack." in text


@pytest.mark.parametrize(
    ("robust", "words"),
    [
        (0.0, "Nothing stands"),
        (0.02, "Almost nothing"),
        (0.3, "Less than half"),
        (0.6, "More than"),
    ],
)
def test_verdict_follows_the_figures(tmp_path, robust, words):
    page = report(tmp_path, evaluation_run(tmp_path / "run", robust=robust))
    assert page.text.count(words) == 1


def test_ten_thousand_images_get_two_decimals(tmp_path):
    run = evaluation_run(tmp_path / "run", n=10_000, standard=0.8034, robust=0.4123)
    text = report(tmp_path, run).text
    assert "80.34 %" in text
    assert "41.23 %" in text


def test_page_is_one_file_that_needs_no_network(tmp_path, run):
    page = report(tmp_path, run, training_run(tmp_path / "train"))
    assert "http:" not in page.html
    assert "https:" not in page.html
    assert "url(" not in page.html
    assert only_its_own_script(page.html)
    assert len(page.all("h1")) == 1
    for _, attributes in page.elements:
        for name in ("src", "href"):
            if name in attributes:
                assert re.match(r"data:|#", attributes[name] or "")
    assert all("download" in a for a in page.all("a") if str(a["href"]).startswith("data:"))
    anchors = {a["href"] for a in page.all("a") if "download" not in a}
    ids = {"#" + str(attributes["id"]) for _, attributes in page.elements if "id" in attributes}
    assert anchors <= ids
    policy = page.all("meta")[3]
    assert policy["http-equiv"] == "Content-Security-Policy"
    assert policy["content"].startswith("default-src 'none'")


def test_same_runs_make_the_same_page(tmp_path, run):
    first = write_report([run], tmp_path / "a.html").read_bytes()
    assert write_report([run, run], tmp_path / "a.html").read_bytes() == first


def test_security_curve_stands_where_the_figures_say(tmp_path):
    points = [
        {"eps": eps, "robust_accuracy": value, "interval": [max(0, value - 0.1), value + 0.1]}
        for eps, value in ((0.0, 0.8), (0.1, 0.4), (0.2, 0.2), (0.4, 0.0), (0.8, 0.0))
    ]
    curve = {"attack": "apgd-ce, 20 steps", "n": 200, "points": points}
    page = report(tmp_path, evaluation_run(tmp_path / "run", eps=0.3, norm="l2", curve=curve))
    # The axis ends at 0.4, where nothing stands any more.
    dots = [(dot["cx"], dot["cy"]) for dot in page.all("circle", "dot robust") if dot["r"] == "3"]
    assert dots == [("0%", "20%"), ("25%", "60%"), ("50%", "80%"), ("100%", "100%")]
    assert page.all("polyline", "curve robust")[0]["points"] == "0,20 25,60 50,80 100,100"
    band = page.all("polygon", "band robust")[0]["points"]
    assert band == "0,10 25,50 50,70 100,90 100,100 50,90 25,70 0,30"
    # The suite's figure (41 %, 38.0 to 44.0) is a diamond of its own at ε = 0.3.
    assert [(d["x"], d["y"]) for d in page.all("svg") if "x" in d] == [("75%", "59%")]
    whisker = page.all("line", "whisker ink")[0]
    assert (whisker["x1"], whisker["y1"], whisker["y2"]) == ("75%", "55.95%", "62.05%")
    assert "20.0 % (10.0 % – 30.0 %)" in page.text
    assert "does not reach 0" not in page.text


def test_curve_that_never_reaches_zero_is_said_to(tmp_path):
    points = [{"eps": e, "robust_accuracy": 0.5, "interval": [0.4, 0.6]} for e in (0.0, 0.1)]
    curve = {"attack": "apgd-ce", "n": 64, "points": points}
    assert "does not reach 0" in report(tmp_path, evaluation_run(tmp_path / "r", curve=curve)).text


def test_what_the_images_lack_is_said(tmp_path, run):
    told = {
        "classes_without_images": ["cat", "<b>dog</b>"],
        "overlaps": [{"split": "test", "other": "train", "images": 1234}],
    }
    folder = evaluation_run(tmp_path / "lacking")
    held = json.loads((folder / "result.json").read_text())
    held["data"] |= told
    (folder / "result.json").write_text(json.dumps(held))
    page = write_report([folder], tmp_path / "page.html").read_text()
    assert "2: cat, &lt;b&gt;dog" in page and "1,234 of test are in train too" in page
    page = write_report([run], tmp_path / "other.html").read_text()
    assert "Classes without an image" not in page


def test_fired_flags_are_loud(tmp_path):
    quiet = report(tmp_path, evaluation_run(tmp_path / "quiet"))
    assert not quiet.all("div", "alarm-card")
    assert "None of 4 fired" in quiet.text
    page = report(tmp_path, evaluation_run(tmp_path / "run", fired=("gradients-vanish",)))
    assert len(page.all("div", "alarm-card")) == 1
    assert page.all("div", "big distrusted")
    assert "Do not rely on the robust accuracy yet: a health check fired." in page.text
    assert "Health check fired: gradients vanish" in page.text
    assert "share 0.61" in page.text
    assert page.text.count("share 0.0123") == 3


def test_a_figure_of_zero_needs_no_reservation(tmp_path):
    run = evaluation_run(tmp_path / "run", robust=0.0, fired=("gradients-vanish",))
    page = report(tmp_path, run)
    assert "Nothing stands under attack." in page.text
    assert "wrong on 800 of these; none is left." in page.text
    assert "Do not rely" not in page.text
    assert not page.all("div", "distrusted")


def test_classes_and_confusions_are_counted_from_the_verdicts(tmp_path, run):
    page = report(tmp_path, run)
    with (run / "verdicts.csv").open() as file:
        rows = list(csv.DictReader(file))
    cats = [row for row in rows if row["label"] == "3"]
    standing = sum(row["broken"] == "0" for row in cats)
    right = sum(row["clean_prediction"] == "3" for row in cats)
    clean, robust = Accuracy.of(right, len(cats)), Accuracy.of(standing, len(cats))
    assert f"cat {100 * clean.value:.1f} % {100 * robust.value:.1f} % {len(cats)}" in re.sub(
        r"\d+\.\d % \( ?\S+ – \S+ %\) ", "", page.text
    )
    broken = [row for row in cats if row["attack"].startswith("apgd")]
    turned = [sum(row["adversarial_prediction"] == str(k) for row in broken) for k in range(10)]
    shown = " ".join(str(t) if t else "·" for k, t in enumerate(turned) if k != 3)
    assert f"cat {shown} {len(broken)}" in page.text
    total = sum(row["attack"] not in ("", "clean") for row in rows)
    assert f"{total} images broken by attack" in page.text


def test_many_classes_show_the_weakest_and_the_commonest(tmp_path):
    names = [f"class {i}" for i in range(100)]
    page = report(tmp_path, evaluation_run(tmp_path / "run", n=2000, classes=names))
    assert "The 30 classes that are weakest under attack; 70 more" in page.text
    assert "The 20 commonest pairs" in page.text
    assert not page.all("table", "confusion")


def pixels(uri: str) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(uri.split(",")[1]))))


@pytest.mark.parametrize("shape", [(1, 8, 8), (3, 32, 32)])
def test_examples_show_the_images_themselves(tmp_path, shape):
    images = np.random.default_rng(0).uniform(size=(5, *shape)).astype(np.float32)
    run = evaluation_run(tmp_path / "run", images=images, eps=0.1)
    page = report(tmp_path, run)
    shown = [pixels(img["src"]) for img in page.all("img")]
    stored = load_file(run / "examples.safetensors")
    assert len(shown) == 15
    for i in range(5):
        for picture, tensor in ((shown[3 * i], "images"), (shown[3 * i + 2], "adversarial")):
            expected = np.rint(stored[tensor][i] * 255).astype(np.uint8).transpose(1, 2, 0)
            assert (picture.reshape(expected.shape) == expected).all()
        change = stored["adversarial"][i] - stored["images"][i]
        expected = np.clip((0.5 + 5 * change) * 255, 0, 255).transpose(1, 2, 0)
        # Half a grey level of rounding, plus float32's.
        assert np.abs(shown[3 * i + 1].reshape(expected.shape) - expected).max() < 0.51
    assert "perturbation × 5" in page.text


def test_example_captions_come_from_its_row(tmp_path, run):
    with (run / "verdicts.csv").open() as file:
        row = next(row for row in csv.DictReader(file) if row["attack"] == "apgd-ce")
    save_file(
        {
            "images": colour_images(1),
            "adversarial": colour_images(1),
            "index": np.array([int(row["index"])]),
        },
        run / "examples.safetensors",
    )
    names = json.loads((run / "result.json").read_text())["classes"]
    before, after = names[int(row["clean_prediction"])], names[int(row["adversarial_prediction"])]
    text = report(tmp_path, run).text
    assert f"{before} no. {row['index']} ✕ broken by apgd-ce" in text
    assert f"{before} {100 * float(row['clean_confidence']):.1f} %" in text
    assert f"L∞ 8/255 shown × 1 {after} {100 * float(row['adversarial_confidence']):.1f} %" in text


def test_magnification_never_clips_what_it_shows():
    for eps, factor in ((8 / 255, 10), (0.1, 5), (0.5, 1), (0.02, 20), (0, 1)):
        delta = np.array([[[[eps, -eps]]]], np.float32)
        assert magnification(delta) == factor
        grey = magnified(delta[0], factor)
        assert -1e-4 <= grey.min() <= grey.max() <= 1 + 1e-4
    assert pixels(png(np.full((1, 2, 2), 1.7))).tolist() == [[255, 255], [255, 255]]


def test_costs_add_up(tmp_path, run):
    text = report(tmp_path, run).text
    assert "apgd-ce 328 61,234 58,234 21.4 s" in text
    assert "Whole evaluation 473,579 467,579 2 min 35 s" in text
    assert "410 stand 328 broken by apgd-ce 62 broken by apgd-t 200 wrong before" in text


def test_request_and_command_are_there(tmp_path, run):
    text = report(tmp_path, run).text
    assert "holdfast evaluate 'a model' --data datasets --suite apgd --out run" in text
    assert "python 3.12.4, torch 2.13.0, holdfast 0.1.0" in text
    assert "AMD EPYC 9124, 2 cores" in text
    assert f"holdfast report {run} --out {tmp_path / 'report.html'}" in text


def test_training_curves(tmp_path):
    run = training_run(tmp_path / "train")
    page = report(tmp_path, run)
    low, high = (100 * v for v in (Accuracy.of(449, 1000).low, Accuracy.of(449, 1000).high))
    assert f"44.9 % under PGD ( {low:.1f} – {high:.1f} % )" in page.text
    assert "Epoch 10: catastrophic overfitting" in page.text
    with (run / "metrics.csv").open() as file:
        rows = list(csv.DictReader(file))
    measured = [row for row in rows if row["validation_pgd_accuracy"]]
    assert 0 < len(measured) < len(rows)
    drawn = page.all("polyline", "curve robust")[0]["points"].split()
    assert len(drawn) == len(measured)  # an epoch without a figure is no point, least of all at 0
    last = measured[-1]
    x = 100 * float(last["epoch"]) / len(rows)
    y = 100 - 100 * float(last["validation_pgd_accuracy"])
    assert drawn[-1] == f"{round(x, 2):g},{round(y, 2):g}"
    kept = {line["x1"] for line in page.all("line", "event calm")}
    assert f"{round(100 * 23 / 24, 2):g}%" in kept
    assert "objective: n-fgsm" in page.text


def test_figures_of_images_that_were_trained_on_are_not_called_validation(tmp_path):
    data = {"name": "cifar10", "split": "train+validation", "pixels": ""}
    page = report(tmp_path, training_run(tmp_path / "train", data=data))
    assert "On images that they were trained on too the weights kept have 79.7 %" in page.text
    assert "On validation images" not in page.text


def test_training_that_an_evaluation_names_is_added_once(tmp_path):
    train = training_run(tmp_path / "train")
    run = evaluation_run(tmp_path / "run", training_run="../train")
    assert report(tmp_path, run).text.count("Training curves") == 1
    assert report(tmp_path, run, train).text.count("Training curves") == 1
    change(run, training_run="../gone")
    assert "Training curves" not in report(tmp_path, run).text


def first_table(page: Page) -> str:
    return page.html[page.html.index("<table") : page.html.index("</table>")]


def test_comparison_keeps_suites_apart(tmp_path):
    a = evaluation_run(tmp_path / "a", name="one", robust=0.4)
    b = evaluation_run(tmp_path / "b", name="two", robust=0.5)
    page = report(tmp_path, a, b)
    assert "2 evaluations" in page.text
    table = page.text[page.text.index("2 evaluations") : page.text.index("bars: 95 %")]
    assert table.count("Robust accuracy") == 1
    assert "40.0 %" in table
    assert "50.0 %" in table
    assert first_table(page).count('class="strip"') == 2
    assert len(page.all("polyline", "curve tone-0")) == 1
    assert len(page.all("polyline", "curve tone-1")) == 1

    c = evaluation_run(tmp_path / "c", name="three", suite="autoattack", robust=0.3, curve=False)
    page = report(tmp_path, a, b, c)
    assert "Robust accuracy apgd · L∞ 8/255 Robust accuracy autoattack · L∞ 8/255" in page.text
    row = page.text[page.text.index("three cifar10") :]
    assert re.match(r"three cifar10 test, first 1,000 80\.0 % \S+ – \S+ % — 30\.0 %", row)
    assert first_table(page).count('class="strip"') == 3  # each in the column of its own suite


def test_a_model_has_one_row_however_many_suites_judged_it(tmp_path):
    runs = [
        evaluation_run(tmp_path / "weak", name="weak", robust=0.3, seed=1),
        evaluation_run(tmp_path / "swift", name="strong", robust=0.5),
        evaluation_run(tmp_path / "auto", name="strong", robust=0.48, n=100, suite="autoattack"),
    ]
    page = report(tmp_path, *runs)
    table = first_table(page)
    assert re.findall(r'<a href="#run-\d">([a-z]+)</a>', table) == ["strong", "weak"]
    assert table.index("50.0") < table.index("48.0") < table.index("30.0")
    assert "n = 100" in table and table.count('class="strip"') == 3
    assert page.all("a") and {"href": "#run-3"} in page.all("a")


def test_lines_of_many_models_differ(tmp_path):
    runs = [evaluation_run(tmp_path / f"r{i}", name=f"m{i}", seed=i) for i in range(9)]
    page = report(tmp_path, *runs)
    looks = [p["class"] for p in page.all("polyline") if "tone-" in str(p["class"])]
    assert len(looks) == len(set(looks)) == 9
    assert all(
        "quiet" in str(p["class"]) for p in page.all("polygon") if "tone-" in str(p["class"])
    )
    assert "intervals are in the table" in page.text


def test_radii_are_written_as_in_the_prose(tmp_path):
    points = [{"eps": e, "robust_accuracy": 0.5} for e in (0.0, 0.2)]
    curve = {"attack": "apgd-ce", "n": 64, "points": points}
    text = report(tmp_path, evaluation_run(tmp_path / "a", eps=0.2, curve=curve)).text
    assert "L∞ 0.2" in text and "/255" not in text and "ε (L∞)" in text
    assert "in steps of 1/255" in report(tmp_path, evaluation_run(tmp_path / "b")).text


def verdict(page: Page) -> tuple[str, str]:
    """The tone of the first box, and what it says."""
    (tone, inner), *_ = re.findall(r'<div class="verdict (\w+)">(.*?)</div>', page.html, re.S)
    return tone, " ".join(re.sub(r"<[^>]+>", " ", inner).replace("\u00a0", " ").split())


def test_every_page_opens_with_a_verdict(tmp_path, run):
    tone, said = verdict(report(tmp_path, run))
    assert tone == "good" and "To be believed: All 4 health checks that were run are clear." in said
    assert "known to ± 3.0 points on 1,000 images" in said
    tone, said = verdict(
        report(tmp_path, evaluation_run(tmp_path / "f", fired=("gradients-vanish",)))
    )
    assert tone == "doubt" and "Not to be believed" in said and "gradients vanish" in said
    tone, said = verdict(report(tmp_path, evaluation_run(tmp_path / "u", flags=[])))
    assert tone == "mind" and "No health check" in said
    tone, said = verdict(report(tmp_path, training_run(tmp_path / "t")))
    assert tone == "mind" and "went wrong once" in said
    seen = {"name": "cifar10", "split": "train+validation", "pixels": ""}
    calm = training_run(tmp_path / "s", collapse=False, data=seen)
    assert verdict(report(tmp_path, calm))[0] == "doubt"


@pytest.mark.parametrize(
    ("clean", "moved", "tone", "words"),
    [
        (0.02, 0.6, "mind", "believed on clean images; not under attack."),
        (0.02, 0.03, "good", "on clean images and under attack."),
        (0.2, 0.6, "doubt", "neither on clean images nor under attack."),
    ],
)
def test_verdict_on_uncertainty(tmp_path, clean, moved, tone, words):
    page = report(tmp_path, uncertainty_run(tmp_path / "run", clean=clean, moved=moved))
    found, said = verdict(page)
    assert found == tone and words in said
    assert "published without its bins" in page.text  # and no bare diagonal
    assert not page.all("line", "curve calm")
    assert "Uncertainty report" in page.text


def test_promises_are_in_percent(tmp_path):
    text = report(tmp_path, uncertainty_run(tmp_path / "run")).text
    assert "at least 80 % of the images are answered, with confidence 95 %" in text


def test_verdict_on_certificates(tmp_path):
    page = report(tmp_path, RESULTS / "certificates-gaussian")
    tone, said = verdict(page)
    assert tone == "good" and "holds with a probability of 99.9 %" in said
    assert "Certification report" in page.text and "Training report" not in page.text


def test_verdict_on_a_comparison_is_no_louder_than_its_test(tmp_path):
    labels = np.arange(1000) % 10
    runs = [
        evaluation_run(tmp_path / f"{i}", name=name, robust=robust, labels=labels, seed=seed)
        for i, (name, robust, seed) in enumerate(
            (("a", 0.41, 0), ("b", 0.42, 1), ("c", 0.6, 2), ("d", 0.41, 3))
        )
    ]
    tone, said = verdict(report(tmp_path, *runs[:2]))
    assert (
        tone == "mind" and said.startswith("b is the most robust of 2") and "may be chance" in said
    )
    tone, said = verdict(report(tmp_path, *runs))
    assert tone == "good" and "c is the most robust of 4" in said and "is not chance" in said
    other = evaluation_run(tmp_path / "other", name="e", robust=0.7, n=500, data="digits")
    assert "not measured on the same images" in verdict(report(tmp_path, runs[0], other))[1]


def test_a_defended_run_says_which_figure_to_believe(tmp_path):
    unaware = {"n": 1000, "robust_accuracy": 0.7, "robust_accuracy_interval": [0.67, 0.73],
               "attack": "apgd"}  # fmt: skip
    run = evaluation_run(tmp_path / "run", unaware=unaware)
    change(run, model={"name": "m", "defences": ["jpeg:quality=75"]})
    said = verdict(report(tmp_path, run))[1]
    assert "does not know of the defence leaves 70.0 % standing: believe the figure of" in said


def test_trainings_are_named_by_what_was_trained(tmp_path):
    page = report(tmp_path, training_run(tmp_path / "training"))
    assert "preact-resnet18 trained by n-fgsm" in page.text
    assert "Training report" in page.text


def test_what_was_asked_is_no_json(tmp_path, run):
    request = json.loads((run / "request.json").read_text())
    request["asked"] = {"threat": {"norm": "linf", "eps": 0.1}, "list": [{"a": 1}, {"a": 2}]}
    write_json(run / "request.json", request)
    page = report(tmp_path, run)
    again = page.text[page.text.rindex("How to make it again") :]
    assert "threat: norm linf" in again and "list 2: a 2" in again
    assert "{" not in again


def test_many_runs_make_a_table(tmp_path):
    runs = [evaluation_run(tmp_path / f"r{i}", name=f"m{i:02d}", n=20) for i in range(25)]
    train = training_run(tmp_path / "t", epochs=3)
    page = report(tmp_path, *runs, train)
    assert "26 runs" in page.text and "25 evaluations" in page.text
    assert not page.all("section", "") or "run-1-checks" not in page.html
    assert not [a for a in page.all("a") if str(a.get("href")).startswith("#run-")]
    assert len(page.html) < 1_000_000


def test_runs_on_different_images_are_said_to_be(tmp_path):
    a, b = evaluation_run(tmp_path / "a"), evaluation_run(tmp_path / "b", n=500)
    assert "The rows are not on the same images." in report(tmp_path, a, b).text
    b = evaluation_run(tmp_path / "c")
    assert "not on the same images" not in report(tmp_path, a, b).text


EVIL = "</style></title></pre><script>alert(1)</script><img src=x onerror=alert(1)>\"' {{7*7}}"


def test_hostile_names_stay_text(tmp_path):
    classes = [f"{EVIL} {i}" for i in range(10)]
    images = colour_images(3)
    run = evaluation_run(
        tmp_path / "<script>alert(2)<b>",
        name=EVIL,
        suite=EVIL,
        classes=classes,
        images=images,
        data=EVIL,
        pixels=EVIL,
        precision=EVIL,
        attacks=[{"name": EVIL, "broken": 390}],
        flags=[{"name": EVIL, "fired": True, "detail": EVIL, "figures": {EVIL: EVIL, "l": [EVIL]}}],
        curve={"attack": EVIL, "n": 8, "points": [{"eps": 0.01, "robust_accuracy": 0.5}]},
        model={"name": EVIL, "architecture": EVIL, "source": EVIL, "sha256": EVIL},
    )
    write_json(run / "request.json", {"command": [EVIL], "versions": {EVIL: EVIL}, EVIL: EVIL})
    train = training_run(
        tmp_path / "train", events=[{"epoch": 3, "kind": EVIL, "detail": EVIL}] * 2
    )
    (train / "metrics.csv").write_text('epoch,"<script>x"\n1,2\n')
    page = report(tmp_path, run, evaluation_run(tmp_path / "b", name=EVIL), train)
    assert only_its_own_script(page.html)
    assert len(page.all("style")) == 1
    assert all(str(img["src"]).startswith("data:image/png") for img in page.all("img"))
    assert not [a for _, attributes in page.elements for a in attributes if a.startswith("on")]
    assert EVIL in "".join(page.words)  # shown as it is, not run, not stripped, not evaluated


def test_lone_surrogates_do_not_stop_the_page(tmp_path):
    run = evaluation_run(tmp_path / "run", precision="\ud800")
    assert "0 · ?" in report(tmp_path, run).text


def test_what_has_no_value_is_a_dash(tmp_path, run):
    change(
        run,
        robust_accuracy=None,
        robust_accuracy_interval=None,
        attacks=[{"name": "apgd-ce"}],
        forwards=None,
        seconds=None,
        seed=None,
        flags=[{"name": "f", "fired": None, "detail": "", "figures": {"share": None}}],
    )
    text = report(tmp_path, run).text
    assert "Robust accuracy — 95 % interval —" in text
    assert "apgd-ce — — — —" in text
    assert "share —" in text
    assert "not run" in text
    assert "The evaluation reached no verdict." in text


def test_result_alone_makes_a_page(tmp_path, run):
    for name in ("request.json", "verdicts.csv", "examples.safetensors"):
        (run / name).unlink()
    change(run, curve=None, flags=[], attacks=[], classes=None)
    text = report(tmp_path, run).text
    assert "41.0 %" in text
    assert "no verdicts.csv" in text
    assert "no request.json" in text
    train = training_run(tmp_path / "train")
    (train / "metrics.csv").unlink()
    assert "no metrics.csv" in report(tmp_path, train).text


@pytest.mark.parametrize(("count", "n"), [(0, 34), (410, 1000), (9999, 10_000), (5, 5)])
def test_intervals_are_clopper_pearsons(count, n):
    reference = binomtest(count, n).proportion_ci(method="exact")
    ours = Accuracy.of(count, n)
    assert (ours.low, ours.high) == pytest.approx((reference.low, reference.high), abs=1e-6)


@pytest.mark.parametrize(
    ("low", "high", "expected"),
    [
        (0, 24, [0, 5, 10, 15, 20]),
        (0, 0.21, [0, 0.05, 0.1, 0.15, 0.2]),
        (1, 3, [1, 1.5, 2, 2.5, 3]),
        (0, 1e-9, [0, 2e-10, 4e-10, 6e-10, 8e-10, 1e-9]),
        (4, 4, [4]),
    ],
)
def test_ticks_are_round(low, high, expected):
    assert ticks(low, high) == pytest.approx(expected, abs=1e-15)


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.4, "0.40 s"),
        (59.96, "1 min 00 s"),
        (155.3, "2 min 35 s"),
        (3599.7, "1 h 00 min"),
        (3661, "1 h 01 min"),
        (None, "—"),
    ],
)
def test_durations(seconds, text):
    assert duration(seconds).replace("\u00a0", " ") == text


def drop(name):
    return lambda run: (run / name).unlink()


def write(name, content):
    return lambda run: (run / name).write_bytes(content)


def edit(**fields):
    return lambda run: change(run, **fields)


def cut_verdicts(run):
    lines = (run / "verdicts.csv").read_text().splitlines()
    (run / "verdicts.csv").write_text("\n".join(lines[:-1]))


def flip_verdict(run):
    text = (run / "verdicts.csv").read_text()
    (run / "verdicts.csv").write_text(text.replace(",0,,", ",1,x,", 1))


def bad_examples(**tensors):
    good = {"images": colour_images(2), "adversarial": colour_images(2), "index": np.arange(2)}
    return lambda run: save_file(good | tensors, run / "examples.safetensors")


BAD = {
    "not finished": (drop("result.json"), "result.json does not exist: the run is not finished"),
    "no JSON": (write("result.json", b'{"schema": '), "result.json cannot be read"),
    "no text": (write("result.json", b"\xff\xfe\x00"), "result.json cannot be read"),
    "no object": (write("result.json", b"[1]"), "result.json holds no JSON object"),
    "deep": (write("result.json", b"[" * 100_000), "result.json cannot be read"),
    "schema": (
        edit(schema="holdfast/evaluation/2"),
        "result.json has schema 'holdfast/evaluation/2'",
    ),
    "schema kind": (edit(schema=3), "'schema' must be text, not 3"),
    "status": (edit(status="running"), "result.json has status 'running'"),
    "n": (edit(n=None), "result.json has no 'n'"),
    "n zero": (edit(n=0), "'n' must be a whole number ≥ 1, not 0"),
    "accuracy": (edit(standard_accuracy=80.3), "'standard_accuracy' must be a number from 0 to 1"),
    "text": (edit(robust_accuracy="0.4"), "'robust_accuracy' must be a number from 0 to 1"),
    "huge": (edit(seconds=10**400), "'seconds' must be a number"),
    "interval": (edit(robust_accuracy_interval=[0.1]), "must be a list of two fractions"),
    "norm": (edit(threat={"norm": "l7", "eps": 1}), "result.json: 'threat': norm 'l7' is unknown"),
    "eps": (edit(threat={"norm": "l2", "eps": 0}), "'threat': eps must be a finite number above 0"),
    "attack": (
        edit(attacks=[{"name": "a", "broken": "x"}]),
        "attacks[0]: 'broken' must be a whole",
    ),
    "attacks": (edit(attacks={}), "'attacks' must be a list"),
    "flag": (edit(flags=[{"name": "f", "fired": "no"}]), "flags[0]: 'fired' must be true or false"),
    "curve": (edit(curve={"points": [{"eps": None}]}), "points[0] has no 'eps'"),
    "classes": (edit(classes=[1]), "'classes' must be a list of names"),
    "request": (write("request.json", b"{"), "request.json cannot be read"),
    "another run": (edit(identity="other"), "request.json asks for another run than"),
    "column": (write("verdicts.csv", b"index,label\n1,2\n"), "verdicts.csv has no column"),
    "empty": (write("verdicts.csv", b""), "verdicts.csv has no column 'index'"),
    "rows": (cut_verdicts, "verdicts.csv holds 999 images, but"),
    "disagrees": (flip_verdict, "verdicts.csv counts 409 of 1000 images for robust_accuracy"),
    "tensors": (write("examples.safetensors", b"not tensors"), "examples.safetensors is damaged"),
    "shapes": (bad_examples(index=np.arange(3)), "do not belong together"),
    "unknown image": (
        bad_examples(index=np.array([1, 5000])),
        "shows image 5000, which has no row",
    ),
    "nan": (bad_examples(images=colour_images(2) * np.nan), "values that are not finite"),
}


@pytest.mark.parametrize("damage", BAD)
def test_bad_runs_are_named_in_one_line(tmp_path, run, damage):
    spoil, message = BAD[damage]
    spoil(run)
    out = tmp_path / "report.html"
    with pytest.raises(InputError) as error:
        write_report([run], out)
    assert message in str(error.value)
    assert str(run) in str(error.value)
    assert "\n" not in str(error.value)
    assert not out.exists()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("epoch,train_loss\n1,2\n2,x\n", "metrics.csv line 3: train_loss is 'x', not a number"),
        ("epoch,train_loss\n1,2,3\n", "metrics.csv line 2 has not the 2 fields of its header"),
        ("epoch,train_loss\n1\n", "metrics.csv line 2 has not the 2 fields of its header"),
    ],
)
def test_bad_metrics_are_named(tmp_path, content, message):
    run = training_run(tmp_path / "train")
    (run / "metrics.csv").write_text(content)
    with pytest.raises(InputError, match=re.escape(message)):
        write_report([run], tmp_path / "report.html")


def test_other_bad_input(tmp_path, run):
    with pytest.raises(InputError, match="no run to report on"):
        write_report([], tmp_path / "report.html")
    with pytest.raises(InputError, match="gone does not exist"):
        write_report([run, tmp_path / "gone"], tmp_path / "report.html")
    with pytest.raises(InputError, match="is a folder"):
        write_report([run], tmp_path)


def test_page_is_replaced_whole_or_not_at_all(tmp_path, run, monkeypatch):
    out = tmp_path / "deep" / "er" / "report.html"
    write_report([run], out)
    before = out.read_bytes()
    change(run, seed=7)

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(HoldfastError, match=r"cannot write .*report.html: No space left on device"):
        write_report([run], out)
    assert out.read_bytes() == before
    assert [path.name for path in out.parent.iterdir()] == ["report.html"]


def test_images_of_other_channels_are_said_to_be_unshown(tmp_path):
    run = evaluation_run(tmp_path / "run", images=np.full((2, 4, 8, 8), 0.5, np.float32))
    page = report(tmp_path, run)
    assert "Images of 4 channels cannot be shown" in page.text
    assert not page.all("img")
