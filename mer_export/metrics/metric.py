"""A metric as a noun: its unit, which direction is better, and how its values are written."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Literal

DIGITS = {"percent": 2, "plain": 4}
"""Digits after the point that a value is kept and compared with."""
PRINTED = {"percent": 1, "plain": 3}
"""Digits after the point that papers print."""


@dataclass(frozen=True)
class Metric:
    """What one number of an evaluation means.

    A `main` one is shown where there is room for a few only. One that is not `whole` has values of single labels alone,
    `f1/joy`. `written` is the name in a heading, where that does not
    follow from `name`.
    """

    name: str
    unit: Literal["percent", "plain"] = "percent"
    better: Literal["higher", "lower"] = "higher"
    main: bool = False
    whole: bool = True
    written: str = ""

    @property
    def title(self) -> str:
        """The name as people write it: `weighted F1`."""
        return self.written or self.name.replace("f1", "F1").replace("_", " ")

    @property
    def sign(self) -> int:
        """1 where more is better, -1 where less is."""
        return 1 if self.better == "higher" else -1

    def lost(self, reference: float, candidate: float) -> float:
        """By how much `candidate` is worse than `reference`; negative where it is better."""
        return self.sign * (reference - candidate)

    def rounded(self, value: float) -> float:
        """The value as reports keep it."""
        return round(value, DIGITS[self.unit])

    def text(self, value: float) -> str:
        """The value with all its digits: `71.20`, `0.8312`."""
        return f"{value:.{DIGITS[self.unit]}f}"

    def change(self, difference: float | None) -> str:
        """A difference with its sign, `+0.12`; a dash where it is not known."""
        return "–" if difference is None else f"{difference:+.{DIGITS[self.unit]}f}"

    def printed(self, value: float) -> str:
        """The value as a paper prints it: `71.2`, `0.831`, a dash where it does not exist."""
        return "–" if math.isnan(value) else f"{value:.{PRINTED[self.unit]}f}"

    def of(self, label: str) -> Metric:
        """The same metric of one label alone, `name/label`."""
        return replace(self, name=f"{self.name}/{label}", main=False, whole=True, written=f"{self.title}/{label}")


@dataclass(frozen=True)
class Family:
    """The metrics of one kind of task, and the name of the one that it is judged by."""

    metrics: tuple[Metric, ...]
    headline: str
