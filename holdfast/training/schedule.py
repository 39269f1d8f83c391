"""The schedule of a run: by steps, or sized to the wall clock; and the learning rate along it."""

from __future__ import annotations

import math

_SLOW_STEPS = 3  # the first steps compile and fill caches: they say nothing about the speed


class Schedule:
    """How far a run has come, from 0 to 1, by steps or by the clock.

    By steps, each step advances by 1 / total. By the clock, the number of steps that still fit
    is estimated anew from the measured speed, and each step advances by its share of what is
    left: so progress is smooth, reaches 1 when the time is up, and forgives a machine that
    becomes slower or faster on the way.

    Args:
        total_steps: length of the schedule, where there is no budget.
        budget_seconds: wall-clock time for the whole run, validations included.
        validation_every: steps from one validation to the next.
    """

    def __init__(
        self,
        total_steps: int,
        budget_seconds: float | None = None,
        validation_every: float = math.inf,
    ):
        self.total_steps = max(1, total_steps)
        self.budget_seconds = budget_seconds
        self.validation_every = validation_every
        self.progress = 0.0
        self.steps = 0
        self.step_seconds = 0.0  # a running mean
        self.validation_seconds = 0.0  # of one validation
        self.spent_seconds = 0.0
        self.stopped = False  # before its end

    @property
    def done(self) -> bool:
        """Whether the run is at its end."""
        return self.stopped or self.progress >= 1 - 1e-9

    def lengthen(self, total_steps: int, budget_seconds: float | None) -> None:
        """Go on to another end: from here, as a schedule of that length goes on at this point."""
        self.total_steps, self.budget_seconds = max(1, total_steps), budget_seconds
        self.stopped = False
        if budget_seconds is None:
            self.progress = self.steps / self.total_steps
        else:
            self.progress = self.spent_seconds / budget_seconds

    def remaining_steps(self) -> float:
        """How many more steps there will be, at the present speed."""
        if self.budget_seconds is None:
            return self.total_steps - self.steps
        # The last validation comes when all steps are done; the others are spread over the steps.
        left = self.budget_seconds - self.spent_seconds - self.validation_seconds
        if left <= 0:
            return 0.0
        if not self.step_seconds:
            return math.inf
        return left / (self.step_seconds + self.validation_seconds / self.validation_every)

    def has_time_to_validate(self) -> bool:
        """Whether one more validation fits in before the last one."""
        if self.budget_seconds is None:
            return True
        left = self.budget_seconds - self.spent_seconds
        return left > 2 * self.validation_seconds + self.step_seconds

    def advance(self, seconds: float) -> None:
        """One step was done and took so long."""
        self.steps += 1
        self.spent_seconds += seconds
        if self.steps > _SLOW_STEPS:
            # Slow outliers (a pause of the machine) must not stick.
            weight = max(0.02, 1 / (self.steps - _SLOW_STEPS))
            if self.step_seconds and seconds > 3 * self.step_seconds:
                weight /= 10
            self.step_seconds += weight * (seconds - self.step_seconds)
        if self.budget_seconds is None:
            self.progress = self.steps / self.total_steps
        else:
            remaining = self.remaining_steps()
            self.progress += (1 - self.progress) / (remaining + 1)
            if remaining < 1:
                self.progress = 1.0

    def validated(self, seconds: float) -> None:
        """One validation was done and took so long."""
        self.spent_seconds += seconds
        self.validation_seconds = seconds

    def state(self) -> dict[str, float | int | None]:
        """All that a resumed run needs to go on from here."""
        return dict(vars(self))

    def restore(self, state: dict[str, float | int | None]) -> None:
        """Go back to what `state` gave."""
        vars(self).update(state)


def one_cycle(progress: float, warmup: float, hold: float = 0.0, floor: float = 0.0) -> float:
    """Share of the peak learning rate at a point of the schedule.

    Linear from 0 to 1 at `warmup`, 1 until `hold`, then linear to `floor` at the end. Without
    `hold` and `floor` it is the one-cycle policy of Smith & Topin, "Super-convergence", 2018.

    Args:
        progress: 0 to 1.
        warmup: share of the schedule, in (0, 1).
        hold: share of the schedule at which the fall begins; not before `warmup`.
        floor: the last value, 0 to 1.
    """
    if progress < warmup:
        return progress / warmup
    begins = max(hold, warmup)
    if progress <= begins:
        return 1.0
    left = max(1 - progress, 0.0) / (1 - begins)
    return floor + (1 - floor) * left
