"""By lunch: a sample as large as a budget of time or a precision makes it, and intervals that hold
although one stops by what one sees."""

from __future__ import annotations

import csv
import json
import re
import shutil
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from linear_classifiers import linear
from models import digits
from torch import nn
from verbs import evaluate_command, print_leaderboard

import holdfast as hf
from holdfast.attacks import FGSM, Stage, Suite
from holdfast.evaluation.limits import Limits, sample_order
from holdfast.evaluation.sample import Sampler
from holdfast.intervals import anytime_interval, clopper_pearson
from holdfast.parsing import parse_percentage
from holdfast.runs.records import EvaluationRecord
from holdfast.search.journal import Block

# --- the interval ------------------------------------------------------------------------------

LOOKS = np.unique(np.geomspace(8, 400, 14).astype(int))


def share_missed(p: float, population: int | None, interval, models: int = 300) -> float:
    """How often at least one look misses the truth: what somebody reaches who may stop at will."""
    rng, missed = np.random.default_rng(round(1000 * p)), 0
    for _ in range(models):
        if population is None:
            drawn, truth = (rng.random(LOOKS[-1]) < p).astype(float), p
        else:
            everything = (np.arange(population) < round(p * population)).astype(float)
            drawn, truth = rng.permutation(everything)[: LOOKS[-1]], everything.mean()
        bounds = [interval(drawn[:n]) for n in LOOKS]
        missed += any(not low <= truth <= high for low, high in bounds)
    return missed / models


@pytest.mark.parametrize(("p", "population"), [(0.4, 1000), (0.03, 1000), (0.4, None)])
def test_the_interval_covers_whenever_one_stops(p: float, population: int | None) -> None:
    assert share_missed(p, population, lambda drawn: anytime_interval(drawn, population)) <= 0.05


def test_the_usual_interval_does_not() -> None:
    missed = share_missed(0.4, None, lambda drawn: clopper_pearson(drawn.sum(), len(drawn)))
    assert missed > 0.1  # though it promises 0.05


def test_the_interval_is_not_much_wider_than_the_usual_one() -> None:
    drawn = (np.random.default_rng(1).random(1000) < 0.4).astype(float)
    low, high = anytime_interval(drawn)
    usual = clopper_pearson(drawn.sum(), 1000)
    assert low <= usual[0] and usual[1] <= high
    assert high - low < 1.75 * (usual[1] - usual[0])


def test_the_interval_closes_when_all_are_drawn() -> None:
    drawn = (np.random.default_rng(2).random(200) < 0.4).astype(float)
    assert anytime_interval(drawn, 200) == (drawn.mean(), drawn.mean())
    low, high = anytime_interval(drawn[:190], 200)
    # What is drawn is known, and its ends are whole images.
    assert drawn[:190].sum() / 200 <= low and high <= (drawn[:190].sum() + 10) / 200
    assert low * 200 == pytest.approx(round(low * 200))


def test_the_interval_of_shares_and_of_its_mirror() -> None:
    drawn = np.random.default_rng(3).random(400)
    low, high = anytime_interval(drawn)
    assert low < drawn.mean() < high and high - low < 0.1
    assert anytime_interval(1 - drawn) == pytest.approx((1 - high, 1 - low), abs=1e-9)
    assert anytime_interval(np.zeros(0)) == (0.0, 1.0)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (([0.5, 2.0],), "from 0 to 1"),
        (([float("nan")],), "from 0 to 1"),
        (([1.0, 1.0], 1), "cannot be drawn from 1"),
        (([1.0], 5, 1.0), "confidence"),
    ],
)
def test_what_is_no_sample_is_refused(arguments, says: str) -> None:
    with pytest.raises(hf.InputError, match=says):
        anytime_interval(np.array(arguments[0]), *arguments[1:])


# --- what is asked for --------------------------------------------------------------------------


def test_limits_as_people_write_them() -> None:
    assert Limits.of("30m", "2%").budget == 1800  # type: ignore[union-attr]
    assert Limits.of(90, None).budget == 90  # type: ignore[union-attr]
    for text in ("2%", " 2 %", "0.02", 0.02, "1/50"):
        assert Limits.of(None, text).until == pytest.approx(0.02)  # type: ignore[union-attr]
    assert Limits.of(None, None) is None
    assert parse_percentage("1/2%") == 0.005


@pytest.mark.parametrize(
    ("limits", "says"),
    [
        ({"budget": "30"}, "30s, 30m or 30h"),
        ({"budget": "soon"}, "no length of time"),
        ({"budget": "0m"}, "no length of time"),
        ({"budget": -1}, "above 0"),
        ({"budget": float("nan")}, "above 0"),
        ({"budget": True}, "above 0"),
        ({"until": "two"}, "no fraction"),
        ({"until": "%"}, "no fraction"),
        ({"until": "nan"}, "between 0 and 50%"),
        ({"until": "2"}, "between 0 and 50%"),
        ({"until": "0"}, "between 0 and 50%"),
        ({"until": "-2%"}, "between 0 and 50%"),
        ({"until": 0.5}, "between 0 and 50%"),
        ({"until": True}, "no fraction"),
    ],
)
def test_what_is_no_limit_is_one_line(limits, says: str) -> None:
    model, x, y = digits(2)
    with pytest.raises(hf.InputError, match=says) as caught:
        hf.evaluate(model, x, y, ("linf", 0.1), "fgsm", **limits)
    assert "\n" not in str(caught.value)


def test_several_processes_are_refused_in_one_line(monkeypatch) -> None:
    model, x, y = digits(2)
    for name, value in (("RANK", "0"), ("WORLD_SIZE", "2")):
        monkeypatch.setenv(name, value)
    with pytest.raises(hf.InputError, match="start it without torchrun"):
        hf.evaluate(model, x, y, ("linf", 0.1), "fgsm", until=0.1)


def test_the_order_belongs_to_the_seed() -> None:
    order = sample_order(1000, 0)
    assert order.sort().values.tolist() == list(range(1000))
    assert order.tolist() == sample_order(1000, 0).tolist() != sample_order(1000, 1).tolist()
    # Its beginning is no special part of the images.
    assert 350 < float(order[:200].double().mean()) < 650


# --- until ---------------------------------------------------------------------------------------


def test_until_on_models_whose_robust_accuracy_is_known() -> None:
    """Linear classifiers of two classes, which FGSM breaks exactly where they can be broken."""
    covered, sizes = 0, []
    for seed in range(12):
        model = linear(2, "free", count=400, seed=seed)
        distance = model.optimum("linf")
        eps = float(np.quantile(distance, 0.2 + 0.05 * seed))
        clear = np.abs(distance / eps - 1) > 1e-3
        x, y = model.images[clear], model.labels[clear]
        truth = float((distance[clear] > eps).mean())
        found = hf.evaluate(model, x, y, ("linf", eps), "fgsm", until=0.1, seed=seed)
        low, high = found.robust_accuracy_anytime_interval or (1.0, 0.0)
        assert found.stopped == "until" and found.population == len(x) and found.until == 0.1
        assert (high - low) / 2 <= 0.1
        covered += low <= truth <= high
        sizes.append(found.n)
    assert covered >= 11
    assert max(sizes) < 300


def test_a_sample_is_what_the_whole_run_says_of_its_images(tmp_path: Path) -> None:
    model, x, y = digits(120)
    whole = hf.evaluate(model, x, y, ("linf", 0.1), "swift")
    found = hf.evaluate(model, x, y, ("linf", 0.1), "swift", until=0.1, run=tmp_path / "run")
    assert found.stopped == "until" and 8 <= found.n < 120 == found.population
    drawn = sorted(sample_order(120, 0)[: found.n].tolist())
    assert [verdict.index for verdict in found.verdicts] == drawn
    assert [whole.verdicts[i] for i in drawn] == list(found.verdicts)
    assert torch.equal(found.adversarial, whole.adversarial[drawn])
    assert (
        found.n
        == len(found.broken)
        == sum(cost.broken for cost in found.attacks)
        + sum(verdict.attack in ("", "clean") for verdict in found.verdicts)
    )
    # What stands in the folder.
    held = json.loads((tmp_path / "run" / "result.json").read_text())
    assert held["stopped"] == "until" and held["n"] == found.n and held["population"] == 120
    rows = list(csv.DictReader((tmp_path / "run" / "verdicts.csv").read_text().splitlines()))
    assert [int(row["index"]) for row in rows] == drawn
    read = hf.read(tmp_path / "run")
    assert isinstance(read, EvaluationRecord) and "stopped until" in repr(read)
    assert read.robust_accuracy_anytime_interval == found.robust_accuracy_anytime_interval
    assert read.interval_shown("robust_accuracy") == found.robust_accuracy_anytime_interval
    low, high = read.robust_accuracy_interval  # type: ignore[misc]
    standing = round(found.robust_accuracy * found.n)
    assert (low, high) == pytest.approx(clopper_pearson(standing, found.n))


def decided(result: hf.Evaluation) -> set[tuple[int, bool, str, int, int]]:
    """What was decided on each image. Confidences are rounded in batches, which differ."""
    return {(v.index, v.broken, v.attack, v.forwards, v.backwards) for v in result.verdicts}


class Counting(nn.Module):
    """Counts images, and sleeps for each."""

    def __init__(self, model: nn.Module, seconds: float = 0.0):
        super().__init__()
        self.model, self.seconds = model, seconds
        self.counts = {"images": 0}  # a plain number would be one of the model's settings

    def forward(self, images):
        self.counts["images"] += len(images)
        time.sleep(self.seconds * len(images))
        return self.model(images)


def test_a_narrower_width_goes_on_and_repeats_no_search(tmp_path: Path) -> None:
    plain, x, y = digits(200)
    arguments = (x, y, ("linf", 0.04), "pgd")
    model = Counting(plain)
    first = hf.evaluate(model, *arguments, until=0.15, run=tmp_path / "run")
    of_first = model.counts["images"]
    again = hf.evaluate(model, *arguments, until="15%", run=tmp_path / "run")
    assert again.verdicts == first.verdicts and again.finished == first.finished
    model.counts["images"] = 0
    more = hf.evaluate(model, *arguments, until=0.08, run=tmp_path / "run")
    assert more.n > first.n and decided(first) < decided(more)
    went_on = model.counts["images"]
    model.counts["images"] = 0
    everything = hf.evaluate(model, *arguments, run=tmp_path / "run")  # no limit at all
    assert everything.n == 200 and everything.stopped is None
    assert decided(more) < decided(everything)
    # In one go.
    model.counts["images"] = 0
    at_once = hf.evaluate(model, *arguments, until=0.08)
    assert (
        of_first < went_on + of_first < 1.5 * model.counts["images"] + 600
    )  # 600: it is inspected twice
    if at_once.n == more.n:
        assert at_once.verdicts == more.verdicts
    same = hf.evaluate(model, *arguments)
    assert same.verdicts == everything.verdicts
    passes = [(cost.forwards, cost.backwards) for cost in same.attacks]
    assert [(cost.forwards, cost.backwards) for cost in everything.attacks] == passes


def test_a_wider_width_and_a_whole_run_are_read(tmp_path: Path) -> None:
    model, x, y = digits(40)
    whole = hf.evaluate(model, x, y, ("linf", 0.1), "fgsm", run=tmp_path / "run")
    read = hf.evaluate(model, x, y, ("linf", 0.1), "fgsm", run=tmp_path / "run", until=0.2)
    assert read.n == 40 and read.finished == whole.finished


def test_all_images_are_the_run_without_limits(tmp_path: Path) -> None:
    model, x, y = digits(24)
    for name, limits in (("whole", {}), ("sample", {"until": 0.001})):
        hf.evaluate(model, x, y, ("linf", 0.1), "swift", run=tmp_path / name, **limits)
    sample, whole = (hf.read(tmp_path / name) for name in ("sample", "whole"))
    assert sample.stopped == "all images" and sample.population == sample.n == 24  # type: ignore[attr-defined]
    assert sample.identity == whole.identity  # type: ignore[attr-defined]
    texts = [(tmp_path / name / "verdicts.csv").read_text() for name in ("sample", "whole")]
    assert texts[0] == texts[1]
    value = sample.robust_accuracy  # type: ignore[attr-defined]
    assert sample.robust_accuracy_anytime_interval == (value, value)  # type: ignore[attr-defined]
    # n was fixed beforehand: the usual interval stands first.
    usual = sample.robust_accuracy_interval  # type: ignore[attr-defined]
    assert sample.interval_shown("robust_accuracy") == usual  # type: ignore[attr-defined]


# --- a sign that calls for more attacks ---------------------------------------------------------


def test_what_a_sign_calls_for_is_made_up_for_on_the_images_before(monkeypatch) -> None:
    """A weak attack, a strong one on a sample, and the strong one on all if that broke an image."""
    late: list[int] = []
    anew = Sampler._anew
    monkeypatch.setattr(Sampler, "_anew", lambda self: [late.append(self.n), anew(self)])
    model = linear(2, "free", count=120, seed=3)
    eps = float(np.quantile(model.optimum("linf"), 0.7))
    suite = Suite("signed", (Stage(_Tiny()), Stage(FGSM(), share=0.05), Stage(FGSM(), after=1)))
    arguments = model.images, model.labels, ("linf", eps), suite
    whole = hf.evaluate(model, *arguments)
    assert whole.attacks[2].broken > 10  # the sign was seen
    found = hf.evaluate(model, *arguments, until=0.12)
    assert found.stopped == "until" and late and late[0] > 0
    assert list(found.verdicts) == [whole.verdicts[verdict.index] for verdict in found.verdicts]


class _Tiny(FGSM):
    """A step that breaks hardly anything."""

    name = "tiny"

    def step(self, oracle, state, threat):
        return super().step(oracle, state, threat).replace(finished=torch.ones_like(state.finished))


# --- a budget ------------------------------------------------------------------------------------


def test_a_budget_ends_in_time_and_more_of_it_goes_on(tmp_path: Path) -> None:
    plain, x, y = digits(300)
    model = Counting(plain, seconds=0.001)

    def timed(budget: float | str, run: Path | None) -> tuple[hf.Evaluation, float]:
        began = time.monotonic()
        arguments = model, x, y, ("linf", 0.02), "pgd"
        found = hf.evaluate(*arguments, batch_size=32, curve=True, budget=budget, run=run)
        return found, time.monotonic() - began

    # What inspection and one image take, on a machine that others may use, too.
    _, least = timed(0.001, None)
    budget = round(1.5 * least + 4, 1)
    first, took = timed(budget, tmp_path / "run")
    assert first.stopped == "budget" and first.budget == budget and first.population == 300
    assert 1 <= first.n < 300
    assert 0.7 * budget < took < 1.2 * budget + least
    assert first.seconds == pytest.approx(took, rel=0.3)
    read, _ = timed(f"{budget}s", tmp_path / "run")
    assert read.finished == first.finished
    more, took = timed(2 * budget, tmp_path / "run")
    assert took < 1.5 * budget + least  # what is left of it
    assert more.stopped == "budget" and more.n > first.n
    assert decided(first) < decided(more)
    page = tmp_path / "report.html"
    hf.write_report([tmp_path / "run"], page)
    text = page.read_text()
    assert "drawn at random" in text and "valid at any time" in text and "budget" in text


def test_a_budget_of_nothing_still_judges_an_image() -> None:
    model, x, y = digits(20)
    found = hf.evaluate(model, x, y, ("linf", 0.1), "fgsm", budget=0.001)
    assert found.stopped == "budget" and found.n == 1
    low, high = found.robust_accuracy_anytime_interval or (0.0, 0.0)
    assert high - low > 0.9


def test_a_long_budget_judges_all_images() -> None:
    model, x, y = digits(20)
    whole = hf.evaluate(model, x, y, ("linf", 0.1), "pgd", curve=True)
    found = hf.evaluate(model, x, y, ("linf", 0.1), "pgd", curve=True, budget="1h")
    assert found.stopped == "all images" and found.verdicts == whole.verdicts
    assert found.curve is not None and found.curve.n == 20


def test_a_random_model_is_sampled_too() -> None:
    class Noisy(nn.Module):
        def forward(self, images):
            return model(images + 0.02 * torch.randn_like(images))

    model, x, y = digits(80)
    found = hf.evaluate(Noisy(), x, y, ("linf", 0.1), "fgsm", until=0.2)
    assert found.stopped == "until" and len(found.verdicts) == found.n
    assert {figure.kind for figure in found.draws} == {"average", "worst", "majority"}


def test_the_closest_points_of_a_sample() -> None:
    model, x, y = digits(60)
    suite = Suite("near", (Stage(hf.attacks.DDN(steps=20, stop_inside=False)),), closest=True)
    whole = hf.evaluate(model, x, y, ("l2", 0.5), suite)
    found = hf.evaluate(model, x, y, ("l2", 0.5), suite, until=0.25)
    assert found.n < 60
    assert list(found.verdicts) == [whole.verdicts[v.index] for v in found.verdicts]
    assert found.curve is not None and found.curve.n == found.n


# --- the command line --------------------------------------------------------------------------


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    from holdfast.models import save_checkpoint

    model, _, _ = digits(1)
    card = {
        "architecture": "small-cnn",
        "arguments": {"width": 8},
        "threat": {"norm": "linf", "eps": 0.1},
        "classes": [str(i) for i in range(10)],
    }
    save_checkpoint(tmp_path / "model", model, card)
    return tmp_path / "model"


def test_the_command_says_where_it_stopped(checkpoint: Path, tmp_path: Path, capsys) -> None:
    from holdfast.cli import evaluate

    options = evaluate.Options(
        str(checkpoint), tmp_path / "runs" / "one", "digits", suite="pgd", until="10%", limit=200
    )
    result = evaluate.run(options)
    evaluate.show(result, options)
    told = capsys.readouterr()
    assert re.search(rf"^stopped: until, n = {result.n} of 200, until ± 10.00%$", told.out, re.M)
    low, high = result.robust_accuracy_anytime_interval or (0, 0)
    assert f"(95 %: {low:.2%} to {high:.2%}; at fixed n, Clopper-Pearson: " in told.out
    print_leaderboard(tmp_path / "runs")
    assert f"{result.n} of 200 drawn" in capsys.readouterr().out


def test_the_progress_line_shows_it_closing(checkpoint: Path, tmp_path: Path, monkeypatch) -> None:
    from holdfast.runs.progress import ProgressLine

    words: list[str] = []
    monkeypatch.setattr(ProgressLine, "show", lambda self, share, word: words.append(word))
    evaluate_command(
        str(checkpoint), "digits", tmp_path / "run", suite="pgd", until="8%", budget="10m", limit=99
    )
    pattern = re.compile(r"robust \d+\.\d % ± (\d+\.\d), (\d+) images, \d+:\d\d left")
    known = [found for word in words if (found := pattern.fullmatch(word))]
    widths = [float(found[1]) for found in known]
    assert widths and widths[0] > widths[-1] and widths[-1] <= 8.0


def test_the_time_left_counts_the_block_under_way(monkeypatch) -> None:
    words: list[str] = []
    line: Any = SimpleNamespace(show=lambda share, word: words.append(word))
    nothing: Any = None
    sampler = Sampler(
        nothing, nothing, nothing, None, line, Limits(None, 0.12, 0.0), torch.arange(80), 0.0
    )
    # Eight images that an earlier session had searched, then a block of 32 that takes minutes.
    sampler.n, sampler.width, sampler.blocks = 8, 0.45, [Block(0, 8, 0, 0.1)]
    sampler.block = 32
    for now, share in ((60, 0.1), (120, 0.5), (180, 0.9)):
        monkeypatch.setattr(time, "monotonic", lambda now=now: now)
        sampler.hear(share, "square")
    assert [word.split(", ")[-1] for word in words] == ["6:09 left", "4:40 left", "3:31 left"]


def test_results_of_before_have_no_sample(tmp_path: Path) -> None:
    model, x, y = digits(6)
    hf.evaluate(model, x, y, ("linf", 0.1), "fgsm", run=tmp_path / "run")
    held = json.loads((tmp_path / "run" / "result.json").read_text())
    assert "stopped" not in held and "robust_accuracy_anytime_interval" not in held
    shutil.copytree(tmp_path / "run", tmp_path / "copy")
    record = hf.read(tmp_path / "copy")
    assert isinstance(record, EvaluationRecord) and not record.is_sample
    assert record.interval_shown("robust_accuracy") == record.robust_accuracy_interval
