"""A schedule by the clock ends on time with the learning rate at 0, whatever the machine does."""

from __future__ import annotations

import itertools
import json
import random
from collections.abc import Callable

import pytest

from holdfast.errors import InputError
from holdfast.parsing import parse_seconds
from holdfast.training.schedule import Schedule, one_cycle


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("90s", 90),
        ("60m", 3600),
        ("1.5h", 5400),
        ("1h30m", 5400),
        (" 1h 30m ", 5400),
        ("2 h", 7200),
        ("1d", 86400),
        (".5m", 30),
        ("2.s", 2),
    ],
)
def test_lengths_of_time(text, seconds):
    assert parse_seconds(text) == pytest.approx(seconds)


@pytest.mark.parametrize(
    "text",
    ["", " ", "soon", "h", "0", "0s", "-5", "-5m", "5m -4", "1m -5", "1h30", "5 10m", "1m2"],
)
def test_what_is_half_a_length_of_time(text):
    refused(text)


@pytest.mark.parametrize(("text", "said"), [("60", "60"), (7.5, "7.5"), (" 45 ", "45")])
def test_a_bare_number_is_asked_for_its_unit(text, said):
    with pytest.raises(InputError, match=rf"{said}s, {said}m or {said}h\?"):
        parse_seconds(text)


@pytest.mark.parametrize(
    "text",
    ["nan", "inf", "1e400", "9" * 400 + "h", "1e3s", "60min", "1,5h", "5ms", "0x10", "1M", "1h\n2"],
)
def test_what_is_no_length_of_time(text):
    refused(text)


def refused(text: str) -> None:
    with pytest.raises(InputError) as caught:
        parse_seconds(text)
    assert repr(text) in str(caught.value)


def test_by_steps_the_end_is_exact():
    schedule = Schedule(7)
    seen = []
    while not schedule.done:
        schedule.advance(random.random())
        seen.append(schedule.progress)
    assert seen == [k / 7 for k in range(1, 8)]


def test_a_schedule_goes_on_from_its_state():
    first = Schedule(1, 100.0, 10.0)
    for _ in range(20):
        first.advance(1.0)
    first.validated(2.0)
    second = Schedule(1, 100.0, 10.0)
    second.restore(json.loads(json.dumps(first.state())))
    for schedule in (first, second):
        schedule.advance(1.5)
    assert vars(first) == vars(second)


class Ended:
    """What became of a run on a made-up machine."""

    def __init__(
        self,
        step: Callable[[float, int], float],
        budget: float = 3600.0,
        validation: float = 20.0,
        every: int = 312,
    ):
        schedule = Schedule(1, budget, every)
        self.clock, self.rates, progress, due = 0.0, [], [0.0], every
        while not schedule.done:
            assert schedule.steps < 100_000
            self.rates.append(one_cycle(max(schedule.progress, 1e-3), 0.2))
            seconds = step(self.clock, schedule.steps)
            self.clock += seconds
            schedule.advance(seconds)
            progress.append(schedule.progress)
            if schedule.done or (schedule.steps >= due and schedule.has_time_to_validate()):
                due += every
                self.clock += validation
                schedule.validated(validation)
        self.steps = schedule.steps
        self.jumps = [b - a for a, b in itertools.pairwise(progress)]
        assert progress[-1] == 1
        assert schedule.spent_seconds == pytest.approx(self.clock)


noise = random.Random(0)
MACHINES = {
    "steady": lambda clock, n: 0.75,
    "slow first step": lambda clock, n: 0.75 if n else 60.0,
    "noisy": lambda clock, n: 0.75 * noise.lognormvariate(0, 0.5),
    "three times slower at half": lambda clock, n: 0.75 if clock < 1800 else 2.25,
    "three times slower near the end": lambda clock, n: 0.75 if clock < 3240 else 2.25,
    "five times slower at half": lambda clock, n: 0.75 if clock < 1800 else 3.75,
    "three times faster at half": lambda clock, n: 0.75 if clock < 1800 else 0.25,
    "three times faster near the end": lambda clock, n: 0.75 if clock < 3420 else 0.25,
}


@pytest.mark.parametrize("machine", MACHINES.values(), ids=MACHINES.keys())
def test_by_the_clock_the_run_ends_on_time_with_the_rate_at_zero(machine):
    ended = Ended(machine)
    slowest = machine(3599.0, 9)
    assert 3600 - 2 * slowest <= ended.clock <= 3600 + 3 * slowest
    assert ended.rates[-1] < 0.003  # of the peak
    assert min(ended.jumps) >= 0
    assert max(ended.jumps) < 0.003
    assert max(ended.rates) > 0.99


def test_pauses_of_the_machine_neither_stick_nor_break_the_end():
    ended = Ended(lambda clock, n: 30.0 if n % 100 == 50 else 0.75)
    assert abs(ended.clock - 3600) < 31
    assert ended.rates[-1] < 0.05
    assert min(ended.jumps) >= 0


def test_validations_that_cost_more_than_their_epoch_are_budgeted():
    # 9 steps of 10 ms, then a validation of 300 ms: the run must not stop after the first one.
    ended = Ended(lambda clock, n: 0.01, budget=10.0, validation=0.3, every=9)
    assert 9.5 <= ended.clock <= 10.1
    assert ended.steps > 150
    assert ended.rates[-1] < 0.05


def test_no_validation_is_begun_that_the_last_one_would_come_too_late_for():
    # A validation falls due just before the end, wherever the end lies between two of them.
    for budget in range(50, 70):
        ended = Ended(lambda clock, n: 1.0, budget=budget, validation=5.0, every=10)
        assert budget - 2 <= ended.clock <= budget + 2


def test_the_rate_can_be_held_and_need_not_end_at_zero():
    rates = [one_cycle(p, 0.2, hold=0.6, floor=0.1) for p in (0.1, 0.2, 0.4, 0.6, 0.8, 1.0, 1.1)]
    assert rates == pytest.approx([0.5, 1, 1, 1, 0.55, 0.1, 0.1])
    # A hold before the warm-up's end changes nothing.
    assert one_cycle(0.6, 0.2, hold=0.1) == one_cycle(0.6, 0.2)


def test_one_cycle():
    assert one_cycle(0, 0.2) == 0
    assert one_cycle(0.1, 0.2) == pytest.approx(0.5)
    assert one_cycle(0.2, 0.2) == pytest.approx(1)
    assert one_cycle(0.6, 0.2) == pytest.approx(0.5)
    assert one_cycle(1, 0.2) == 0
    assert one_cycle(1.1, 0.2) == 0
