"""`holdfast uncertainty`: one command, resumed where it stopped, and a page about it."""

from __future__ import annotations

import csv
import json
import math
import shutil
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest
import torch
from models import Wrapped, digits
from own_script import only_its_own_script
from verbs import uncertainty_command

from holdfast import cli
from holdfast import data as datasets
from holdfast.cli import uncertainty as command
from holdfast.data import digits as embedded
from holdfast.data.corruptions import CORRUPTIONS, SEVERITIES, corrupt
from holdfast.errors import InputError
from holdfast.evaluation.cards import unseen_validation
from holdfast.models import save_checkpoint
from holdfast.report import write_report
from holdfast.runs.files import read_json
from holdfast.runs.parts import Stages
from holdfast.runs.progress import ProgressLine
from holdfast.runs.records import UncertaintyRecord
from holdfast.uncertainty.calibration import TemperatureScaling
from holdfast.uncertainty.run import figures as run_figures
from holdfast.uncertainty.run import measurements
from holdfast.uncertainty.run.output import figures, summary_lines
from holdfast.uncertainty.run.probed_model import ProbedModel

N = 40


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    model, _, _ = digits(1)
    card = {
        "architecture": "small-cnn",
        "arguments": {"width": 8},
        "classes": [str(i) for i in range(10)],
        "threat": {"norm": "linf", "eps": 0.2},
    }
    return save_checkpoint(tmp_path_factory.mktemp("model") / "reads-digits", model, card)


@pytest.fixture(scope="module", autouse=True)
def small():
    """Budgets of a test; every stage runs all the same."""
    with pytest.MonkeyPatch.context() as patch:
        for module, name, value in (
            (measurements, "STEPS", 6),
            (measurements, "SET_STEPS", 4),
            (measurements, "CURVE_IMAGES", 12),
            (measurements, "CURVE_STEPS", 3),
            (measurements, "OOD_ATTACKED", 12),
            (measurements, "ROBUST_STEPS", 3),
            (command, "OUT_OF_DISTRIBUTION", 20),
            (command, "TRAINING", 300),
            (run_figures, "RESAMPLES", 20),
        ):
            patch.setattr(module, name, value)
        yield


def human_file(folder: Path) -> Path:
    """What ten people might say of every test digit."""
    labels = embedded.load().test.labels
    rng = np.random.default_rng(0)
    ease = rng.beta(6, 1, size=len(labels))[:, None]
    p = ease * np.eye(10)[labels] + (1 - ease) / 10
    file = folder / "human.npz"
    np.savez(file, probs=np.stack([rng.multinomial(10, row) for row in p]) / 10)
    return file


def ask(checkpoint: Path, out: Path, **changes: Any) -> dict[str, Any]:
    options: dict[str, Any] = {"attack": "fgsm", "limit": N} | changes
    return uncertainty_command(str(checkpoint), "digits", out, **options).to_dict()


@pytest.fixture(scope="module")
def finished(checkpoint, tmp_path_factory):
    """A finished run, interrupted once on its way, and how often each stage was worked on."""
    folder = tmp_path_factory.mktemp("runs")
    people = str(human_file(folder))
    worked: list[str] = []
    with pytest.MonkeyPatch.context() as patch:
        for name in ("attack_predictions", "attack_confidence", "attack_detector", "attack_sets"):
            whole = getattr(measurements, name)

            def counted(*arguments, whole=whole, name=name, **named):
                worked.append(name)
                if name == "attack_sets" and worked.count(name) == 1:
                    raise KeyboardInterrupt
                return whole(*arguments, **named)

            patch.setattr(measurements, name, counted)
        with pytest.raises(KeyboardInterrupt):
            ask(checkpoint, folder / "run", human=people)
        assert not (folder / "run" / "result.json").exists()
        result = ask(checkpoint, folder / "run", human=people)
        again = ask(checkpoint, folder / "run", human=people)
    assert again == result
    assert isinstance(result["log"], list)
    return folder / "run", result, worked


def test_an_interrupted_run_goes_on_from_its_last_stage(finished):
    _, _, worked = finished
    assert worked == [
        "attack_predictions",
        "attack_confidence",
        "attack_detector",
        "attack_detector",
        "attack_sets",
        "attack_sets",
    ]


def test_result_holds_what_the_contract_says(finished):
    run, result, _ = finished
    written = json.loads((run / "result.json").read_text())
    assert written.pop("seal")
    assert written == json.loads(json.dumps(result))
    for key in (
        "schema", "status", "identity", "model", "data", "n", "threat", "suite", "seed", "seconds",
        "conditions", "calibration", "confidence", "detectors", "foreign", "corruptions", "sets",
        "robust_sets", "abstaining", "human", "drawings", "flags",
    ):  # fmt: skip
        assert key in written, key
    assert written["schema"] == "holdfast/uncertainty/1" and written["status"] == "complete"
    assert written["n"] == N and written["threat"] == {"norm": "linf", "eps": 0.2}
    request = json.loads((run / "request.json").read_text())
    assert request["identity"] == written["identity"] and request["kind"] == "uncertainty"
    assert {f.name for f in run.iterdir()} == {
        "attack", "request.json", "result.json", "metrics.csv", "images.csv", "reliability.svg",
        "risk_coverage.svg", "scores.svg", "sets.svg", "corruptions.svg",
    }  # fmt: skip
    for picture in run.glob("*.svg"):
        root = ElementTree.fromstring(picture.read_text())
        assert root.tag.endswith("svg") and list(root.iter("{http://www.w3.org/2000/svg}polyline"))


def test_figures_say_what_the_attacks_did(finished):
    _, result, _ = finished
    conditions = result["conditions"]
    clean, suite, moved = (conditions[name] for name in ("clean", "suite", "miscalibrate"))
    assert moved["accuracy"] == clean["accuracy"]  # unchanged to the image
    assert moved["ece"]["value"] > clean["ece"]["value"] + 0.15
    assert suite["accuracy"]["value"] < clean["accuracy"]["value"] - 0.3
    assert result["confidence"]["answers_changed"] == 0
    right = result["confidence"]["right"]
    assert right["after"] < right["before"] - 0.15
    for name in measurements.AWARE:
        told = result["detectors"][name]
        assert told["aware"]["told"]["auroc"]["value"] < told["unaware"]["told"]["auroc"]["value"]
        for rate in ("0.05", "0.5"):
            aware, unaware = (told[w]["robust_error"][rate]["value"] for w in ("aware", "unaware"))
            assert aware >= unaware
        # The aware attacker may answer with what an unaware one found.
        assert told["aware"]["told"]["auroc"]["value"] < told["suite"]["told"]["auroc"]["value"]
    every = result["calibration_of_more"]
    assert every["n"] > N  # more images than were attacked
    assert every["temperature"]["value"] < every["none"]["value"]
    assert (
        every["temperature"]["low"] <= every["temperature"]["value"] <= every["temperature"]["high"]
    )
    for score in result["sets"]["by_score"].values():
        attacked = score["attacked"]
        assert attacked["covered"]["coverage"]["value"] <= score["clean"]["coverage"]["value"] - 0.3
        assert attacked["enlarged"]["mean_size"] >= score["clean"]["mean_size"]
        curve = score["against_eps"]
        assert curve["coverage"] == sorted(curve["coverage"], reverse=True)
        assert curve["mean_size"] == sorted(curve["mean_size"])
        assert len(score["splits"]["coverages"]) == run_figures.SPLITS
    robust = result["robust_sets"]
    assert robust["inside"]["coverage"]["high"] >= robust["promise"]
    assert robust["alpha_within"] < 0.1
    for told in result["foreign"].values():
        assert told["attacked"]["auroc"]["value"] < told["scores"]["max-softmax"]["auroc"]["value"]
    assert set(result["foreign"]) == {"noise", "textures"}
    assert len(result["corruptions"]["by_type"]) == 15
    assert result["human"]["compared"]["clean"]["n"] == N
    for rates in result["abstaining"].values():
        for shares in rates.get("rates", {}).values():
            total = shares["right"] + shares["wrong"] + shares["abstained"]
            assert total == pytest.approx(1)
        if "rates" in rates:
            worst = rates["rates"]["worst"]["right"]
            assert worst <= min(s["right"] for s in rates["rates"].values())


def test_tables_hold_the_same_figures(finished):
    run, result, _ = finished
    with (run / "images.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [int(row["index"]) for row in rows] == list(range(N))
    right = sum(row["clean_prediction"] == row["label"] for row in rows) / N
    assert right == pytest.approx(result["conditions"]["clean"]["accuracy"]["value"])
    for row in rows:
        assert row["clean_prediction"] == row["miscalibrate_prediction"]
        sure = 1 - float(row["clean_max-softmax"])
        assert sure == pytest.approx(float(row["clean_confidence"]), abs=1e-4)
    with (run / "metrics.csv").open() as file:
        by_name = {row["metric"]: row for row in csv.DictReader(file)}
    assert float(by_name["conditions.suite.ece"]["value"]) == pytest.approx(
        result["conditions"]["suite"]["ece"]["value"], rel=1e-4
    )
    assert all(math.isfinite(figure["value"]) for _, figure in figures(result))


def test_the_page_shows_one_run_and_two_side_by_side(finished, checkpoint, tmp_path):
    run, result, _ = finished
    page = write_report([run], tmp_path / "one.html").read_text()
    assert page.count("<h1>") == 1
    assert "Uncertainty report" in page and "Side by side" not in page
    error = 100 * result["conditions"]["miscalibrate"]["ece"]["value"]
    assert f"{error:.1f}" in page.replace("\u00a0", " ")
    other = tmp_path / "other"
    other.mkdir()
    changed = read_json(run / "result.json")  # without its seal
    changed["model"]["name"] = "<b>another</b>"
    (other / "result.json").write_text(json.dumps(changed))
    both = write_report([run, other, run / "attack"], tmp_path / "both.html").read_text()
    assert both.count("<h1>") == 1
    assert "Side by side" in both and "&lt;b&gt;another" in both and "<b>another" not in both
    assert "http:" not in both and only_its_own_script(both)


def test_terminal_and_document_say_the_same(finished, monkeypatch):
    _, result, _ = finished
    lines = list(summary_lines(UncertaintyRecord.checked(result, "the result")))
    error = f"{result['conditions']['miscalibrate']['ece']['value']:.1%}"
    assert error in "\n".join(lines) and f"n = {N}" in lines[-1]
    monkeypatch.syspath_prepend(str(Path(__file__).resolve().parents[1] / "benchmarks"))
    import uncertainty_page

    shown = result | {"machine": "two cores", "command": ["holdfast", "uncertainty"]}
    other = shown | {"model": {"name": "another"}}
    page = "\n".join(uncertainty_page.table([shown, other]))
    assert "| | reads-digits | another |" in page and error in page
    assert page.count("###") == 1  # one question, one table
    assert "None" not in page and "nan" not in page
    smaller = "\n".join(uncertainty_page.table([shown, shown | {"n": 7}]))
    assert smaller.count("###") == 2  # figures of other images never share a table


@pytest.mark.parametrize(
    ("spoil", "says"),
    [
        (lambda r: r.pop("n"), "'n'"),
        (lambda r: r["conditions"]["clean"].update(ece={"value": "low"}), "'value'"),
        (lambda r: r["drawings"]["clean"]["reliability"].update(confidence=[1]), "one length"),
        (lambda r: r.update(detectors=[1]), "JSON object"),
        (lambda r: r["sets"].update(promise=2), "'promise'"),
    ],
)
def test_a_damaged_result_is_one_line(finished, tmp_path, spoil, says):
    changed = read_json(finished[0] / "result.json")  # without its seal
    spoil(changed)
    (tmp_path / "result.json").write_text(json.dumps(changed))
    with pytest.raises(InputError) as error:
        write_report([tmp_path], tmp_path / "page.html")
    assert says in str(error.value) and "\n" not in str(error.value)
    assert not (tmp_path / "page.html").exists()


def test_another_question_is_refused(finished, checkpoint):
    with pytest.raises(InputError, match="holds another run"):
        ask(checkpoint, finished[0], alpha=0.2)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (["--alpha", "1"], "alpha must lie strictly between 0 and 1"),
        (["--alpha", "0"], "alpha must lie strictly between 0 and 1"),
        (["--risk", "1.5"], "risk must lie"),
        (["--alpha", "0.004"], "too few for alpha"),
        (["--radius", "0"], "--radius"),
        (["--sigma", "-1"], "sigma"),
        (["--calibration", "12"], "no image of class"),
        (["--calibration", "0"], "--calibration"),
        (["--limit", "0"], "--limit"),
        (["--attack", "swfit"], "'swfit'"),
        (["--norm", "l0", "--eps", "3"], "l0"),
        (["--ood", "/no/such/folder"], "/no/such/folder"),
        (["--human", "ORDER"], "not in the order of the labels"),
        (["--human", "SUMS"], "sums to"),
        (["--ensemble", "no-model"], "no-model"),
        (["--ensemble", "KNOWS"], "knows was trained on the validation images too"),
    ],
)
def test_bad_input_is_one_line_and_status_2(
    options, says, checkpoint, tmp_path, monkeypatch, capsys
):
    with np.load(human_file(tmp_path)) as file:
        probs = file["probs"]
    np.save(tmp_path / "order.npy", np.roll(probs, 1, axis=0))
    np.save(tmp_path / "sums.npy", 2 * probs)
    card = shutil.copytree(checkpoint, tmp_path / "knows") / "card.json"
    card.write_text(json.dumps(read_json(card) | {"trained_on": "train+validation"}))
    places = {
        name.upper(): str(tmp_path / file)
        for name, file in (("order", "order.npy"), ("sums", "sums.npy"), ("knows", "knows"))
    }
    out = tmp_path / "out"
    line = ["holdfast", "uncertainty", str(checkpoint), "--data", "digits", "--quiet"]
    line += ["--attack", "fgsm", "--out", str(out), *(places.get(o, o) for o in options)]
    monkeypatch.setattr(sys, "argv", line)
    with pytest.raises(SystemExit) as end:
        cli.main()
    assert end.value.code == 2
    error = capsys.readouterr().err
    assert error.startswith("holdfast: ") and error.count("\n") == 1
    assert says in error, error
    assert not out.exists()


def test_a_model_without_gradients_is_refused_before_any_work(checkpoint, tmp_path, monkeypatch):
    model, _, _ = digits(1)
    monkeypatch.setattr("holdfast.loading.load", lambda name, **named: lambda x: model(x).detach())
    with pytest.raises(InputError, match="cannot be differentiated"):
        ask(checkpoint, tmp_path / "out")
    assert not (tmp_path / "out" / "request.json").exists()


def test_stages_are_remembered_whole_or_not_at_all(tmp_path):
    def stages() -> Stages:
        return Stages(tmp_path, ProgressLine("", enabled=False), {"a": 1.0})

    first = stages().do("a", lambda report: ({"n": 3}, {"x": torch.arange(3)}))
    again = stages().do("a", lambda report: pytest.fail("done already"))
    assert again.figures == first.figures == {"n": 3}
    assert torch.equal(again.tensors["x"], torch.arange(3))
    assert stages().do("b", lambda report: ({}, {})).tensors == {}
    with pytest.raises(KeyError):
        stages().do("c", lambda report: {}["nothing"])
    assert not (tmp_path / "stages" / "c.safetensors").exists()
    (tmp_path / "stages" / "a.safetensors").write_bytes(b"torn")
    with pytest.raises(InputError, match=r"a.safetensors is damaged .*remove it"):
        stages().do("a", lambda report: ({}, {}))


def test_a_metric_without_a_value_is_none():
    logits, labels = torch.tensor([[2.0, 0.0], [3.0, 0.0]]), torch.tensor([0, 0])
    told = run_figures.prediction_metrics(logits, labels, seed=0)
    assert told["mistakes_auroc"] is None  # nothing is wrong
    assert told["accuracy"]["value"] == 1
    assert told["nll"]["value"] == pytest.approx(
        (math.log1p(math.exp(-2)) + math.log1p(math.exp(-3))) / 2
    )
    same = torch.zeros(2, 2)
    assert (
        run_figures.prediction_metrics(same, labels, seed=0)["aurc"] is None
    )  # a constant ranks nothing
    assert run_figures.diagrams(same, labels)["risk_coverage"] is None


def test_only_images_that_no_model_was_trained_on_are_fitted_on():
    dataset = datasets.load("digits")
    count = len(dataset.validation)
    for cards, kept in (
        ([{}], count),
        ([{"trained_on": "train"}], count),
        ([{"trained_on": "train+validation-40"}, {"trained_on": "train+validation-20"}], 20),
        ([{"trained_on": f"train+validation-{count + 5}"}], count),
    ):
        models = {f"model {i}": card for i, card in enumerate(cards)}
        unseen = unseen_validation(dataset, models)
        np.testing.assert_array_equal(unseen.images, dataset.validation.images[:kept])
        np.testing.assert_array_equal(unseen.labels, dataset.validation.labels[:kept])
    with pytest.raises(InputError, match="train_on=train"):
        unseen_validation(dataset, {"known": {"trained_on": "train+validation"}})


def test_a_search_that_could_not_be_faster_says_why():
    model, x, labels = digits(24)
    part = SimpleNamespace(floats=x, labels=labels)
    asked: Any = SimpleNamespace(test=part, device=torch.device("cpu"), classes=range(10))
    probed = ProbedModel(asked, TemperatureScaling(1.0))
    assert probed.fast_copy("steady", model).name != "original"
    assert probed.log == []
    shaky = Wrapped(model, before=lambda z: z + 0.3 * torch.randn_like(z)).eval()
    assert probed.fast_copy("shaky", shaky).name == "original"
    assert any(line.startswith("no plain float32 copy: ") for line in probed.log)


def test_published_corruptions_take_the_place_of_generated_ones(
    finished, checkpoint, tmp_path, capsys
):
    """The same images, once made and once read: the same figures; four more stand beside."""
    _, generated, _ = finished
    test = embedded.load().test
    images, place = datasets.to_tensor(test.images), tmp_path / "DIGITS-C"
    place.mkdir()
    for name in CORRUPTIONS:
        made = [(corrupt(images, name, s) * 255).round().byte().numpy() for s in SEVERITIES]
        np.save(place / f"{name}.npy", np.concatenate(made).transpose(0, 2, 3, 1))
    np.save(place / "saturate.npy", np.tile(test.images.transpose(0, 2, 3, 1), (5, 1, 1, 1)))
    np.save(place / "labels.npy", np.tile(test.labels, 5))
    result = ask(checkpoint, tmp_path / "run", corruptions=str(place))
    held = result["corruptions"]
    for key in ("n", "mean_accuracy", "by_type"):
        assert held[key] == generated["corruptions"][key], key
    for row, other in zip(
        held["by_severity"], generated["corruptions"]["by_severity"], strict=True
    ):
        assert row == pytest.approx(other, abs=1e-6)  # a batch of another size, another last bit
    assert list(held["beside"]) == ["saturate"] and len(set(held["beside"]["saturate"])) == 1
    assert (held["published"] == "DIGITS-C" and "told" not in held) or held["told"] == []
    page = write_report([tmp_path / "run"], tmp_path / "page.html").read_text()
    assert "severities, published in DIGITS-C, 40 images each" in page
    np.save(place / "fog.npy", np.zeros((1500, 8, 8, 1), np.uint8))
    with pytest.raises(InputError, match="the corrupted images are others"):
        ask(checkpoint, tmp_path / "run", corruptions=str(place))
