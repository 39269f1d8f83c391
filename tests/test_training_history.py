"""What a run remembers: it survives JSON, and decides from figures alone."""

from __future__ import annotations

import json

import pytest
from test_training import digits, one_line, tiny

from holdfast.errors import InputError
from holdfast.training.history import MEMORISING, History, Window
from holdfast.training.job import TrainingJob


def test_a_history_survives_json():
    history = History(rows=[{"epoch": 1.0}], best={"epoch": 1.0}, best_live=0.25)
    history.window = Window(loss=3.5, right=2.0, seen=8.0, seconds=0.5)
    history.note(1.0, "kind", "detail")
    history.next_validation = 4
    again = History()
    again.restore(json.loads(json.dumps({**history.to_dict(), "schedule": "not a history's"})))
    assert again == history and isinstance(again.window, Window)


def test_a_checkpoint_that_lacks_a_part_is_noticed():
    held = History().to_dict()
    del held["best_live"]
    with pytest.raises(KeyError):
        History().restore(held)


def test_the_best_row_has_the_largest_sum_and_later_ones_win_ties():
    columns = ("validation_accuracy", "validation_pgd_accuracy")
    history = History()

    def row(standard: float, robust: float) -> dict[str, float]:
        return dict(zip(columns, (standard, robust), strict=True))

    assert history.is_best(row(0.1, 0.0), columns)  # whatever comes first
    history.best = row(0.5, 0.25)
    assert history.is_best(row(0.25, 0.5), columns)
    assert not history.is_best(row(0.5, 0.125), columns)
    assert not history.is_best(row(0.25, 0.5), columns[:1])


def test_memorising_is_said_once():
    history = History()
    apart = {"train_pgd_accuracy": 0.5, "validation_pgd_accuracy": 0.375}
    assert history.memorises({**apart, "train_pgd_accuracy": 0.45}) is None
    assert history.memorises({"validation_pgd_accuracy": 0.1}) is None  # nothing to compare
    said = history.memorises(apart)
    assert said is not None and "50%" in said and "38%" in said
    history.note(2.0, MEMORISING, said)
    assert history.memorises(apart) is None


def test_a_job_that_measures_more_than_it_holds_back_is_refused(tmp_path):
    recipe = tiny(train_on="train+validation-5")
    with pytest.raises(InputError, match=r"validation\.images is 20.*holds back only 5") as refused:
        TrainingJob(recipe, digits(), tmp_path, None)  # type: ignore[arg-type]
    assert one_line(refused)
    assert TrainingJob(tiny(), digits(), tmp_path, None).unseen is None  # type: ignore[arg-type]
