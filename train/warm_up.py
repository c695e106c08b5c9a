"""A learning rate that rises from 0 and falls to 0 again, both along a line."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any


def warm_up_schedule(steps: float, share: float) -> Callable[[int], float]:
    """The factor of the learning rate at each step (from 0): a rise over `share` of all steps, then a fall to 0.

    `steps` need not be whole: a published recipe divides the number of batches by those per step without rounding.
    """
    rising = int(steps * share)
    return lambda step: step / max(1, rising) if step < rising else max(0.0, (steps - step) / max(1.0, steps - rising))


class WarmUp:
    """Sets the rate of each group of an optimiser before each of its steps; resumes from the number of the step."""

    def __init__(self, optimizer: Any, steps: float, share: float, step: int = 0):
        """`steps` are all that will be taken, `step` the number of the next one."""
        # Not the groups themselves: an optimiser that loads a state, as a resumed run's does, makes new ones.
        self.optimizer = optimizer
        self.rates = [group.setdefault("initial_lr", group["lr"]) for group in optimizer.param_groups]
        self.factor = warm_up_schedule(steps, share)
        self.at(step)

    def at(self, step: int) -> None:
        """Sets the rates of step number `step` (from 0)."""
        self.step = step
        for group, rate in zip(self.optimizer.param_groups, self.rates, strict=True):
            group["lr"] = rate * self.factor(step)

    def next(self, steps: int = 1) -> None:
        """To call after so many steps."""
        self.at(self.step + steps)


@contextmanager
def rates_kept(optimizer: Any) -> Iterator[None]:
    """Inside, a pass sets rates of its own; those of before come back."""
    before = [group["lr"] for group in optimizer.param_groups]
    try:
        yield
    finally:
        for group, rate in zip(optimizer.param_groups, before, strict=True):
            group["lr"] = rate
