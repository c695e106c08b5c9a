"""The answer for one unit."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(frozen=True)
class Prediction:
    """The answer for one unit.

    `label` and `index` are of the class (of a regression, the derived one), or of the most probable label where a unit
    has any number; `labels` are all that hold. They are None and empty where overflow left a unit without an answer, or
    where nothing of it can be read (no `modalities`). A regression has a `score` and no probabilities. `gold` is what
    the data say of the unit, where that is asked for: a class, a score, or all labels that hold; `split` is its part of
    the data.
    """

    sample: str
    unit: str
    label: str | None
    index: int | None
    probabilities: dict[str, float]
    modalities: tuple[str, ...]
    labels: tuple[str, ...] = ()
    score: float | None = None
    split: str | None = field(default=None, compare=False)
    gold: str | float | tuple[str, ...] | None = field(default=None, compare=False)

    @property
    def numbers(self) -> tuple[float, ...]:
        """The score, or the probability of each class, as `Task.columns` names them; empty without a prediction."""
        return tuple(self.probabilities.values()) if self.score is None else (self.score,)
