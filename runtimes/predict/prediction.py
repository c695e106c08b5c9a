"""The answer for one unit, and how it is read off a network's scores."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np

from mer_export.contract import Contract
from mer_export.data.samples import Sample
from mer_export.task import Task, shortest


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


def predictions(
    task: Task,
    contract: Contract,
    samples: Sequence[Sample],
    units: Sequence[slice],
    scores: np.ndarray,
    gold: bool = False,
) -> Iterator[Prediction]:
    """What the rows of `scores` say of these units of the samples, one after the other.

    Args:
        task: what the scores mean.
        contract: of the network that they come from.
        samples: each with some units among `units`.
        units: which units of each sample.
        scores: float `(units of all, outputs)`; a row of NaN is a unit without an answer.
        gold: also say what the samples' labels say.
    """
    answered = ~np.isnan(scores).any(axis=-1)
    shown = np.where(answered[:, None], scores, 0)
    decisions = task.decisions(shown)
    # No more digits than the scores have.
    numbers = shortest(shown if task.kind == "regression" else task.probabilities(shown))
    best = (decisions[:, 0] if task.exclusive else shown.argmax(axis=1)).tolist()
    rows = zip(answered.tolist(), decisions, best, numbers, strict=True)
    for sample, own in zip(samples, units, strict=True):
        modalities = sample.modalities(contract)
        names, gone = sample.units[own], {sample.units[i] for i in sample.unread}
        known = task.gold(sample.labels[own]) if gold and sample.labels is not None else [None] * len(names)
        # The names end first: nothing of the next sample's rows is taken.
        for unit, said, (has_answer, decision, index, row) in zip(names, known, rows, strict=False):
            if not has_answer:
                held = () if unit in gone else modalities
                yield Prediction(sample.id, unit, None, None, {}, held, (), None, sample.split, said)
                continue
            label = task.labels[index]
            held = (label,) if task.exclusive else task.holding(decision)
            score = row[0] if task.kind == "regression" else None
            named = {} if score is not None else dict(zip(task.labels, row, strict=True))
            yield Prediction(sample.id, unit, label, index, named, modalities, held, score, sample.split, said)
