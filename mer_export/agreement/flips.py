"""Decisions that a candidate changes, and which of them are near ties that rounding may turn either way."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from mer_export.agreement.answers import Compared
from mer_export.agreement.error import row_scale
from mer_export.agreement.policy import RULES
from mer_export.bundle import Strict
from mer_export.task import Task


class Flip(Strict):
    """A decision that the candidate changes: the label of a unit, or whether one of its labels holds.

    `margin` is the reference's top minus second score (or distance to the threshold), `difference` the largest score
    difference of this unit, `noise` whether the margin is numeric noise (`Noise`), `label` the truth where known.
    """

    sample: str
    unit: str
    reference: str
    candidate: str
    label: str | None
    margin: float
    difference: float
    noise: bool


class Noise:
    """Margins that rounding may turn either way, measured on `items`.

    A margin is noise where it is at most twice the difference that this candidate makes to a typical unit: the median
    over units of their largest score difference, and never less than the tolerance of fp32. The largest difference of
    all would not do. No label can flip whose margin is more than twice its unit's difference, so that every flip would
    be noise, the more so the worse a candidate is.
    """

    def __init__(self, items: Sequence[Compared], task: Task):
        largest = [np.abs(a - b).max(axis=-1) for a, b in (i.scores(task) for i in items)]
        differences = np.concatenate(largest) if largest else np.zeros(0)
        differences = differences[np.isfinite(differences)]
        self.typical = float(np.median(differences)) if len(differences) else 0.0

    def margins(self, reference: np.ndarray) -> np.ndarray:
        """The largest margin of each unit (units, 1) that is noise."""
        fp32 = RULES["fp32"]
        return 2 * np.maximum(self.typical, fp32.atol + fp32.rtol * row_scale(reference))


def find_flips(items: Sequence[Compared], task: Task) -> list[Flip]:
    """Every changed decision of the real samples among `items`, the widest margin first.

    A decision counts once, however often its sample was run.
    """
    real = [i for i in items if i.real]
    noise = Noise(real, task)
    found: dict[tuple[int, int, int], Flip] = {}
    for item in real:
        for (unit, place), flip in _sample_flips(item, task, noise).items():
            key = id(item.sample), unit, place
            if key not in found or found[key].difference < flip.difference:
                found[key] = flip
    return sorted(found.values(), key=lambda f: -f.margin)


def _sample_flips(item: Compared, task: Task, noise: Noise) -> dict[tuple[int, int], Flip]:
    """The flips of one sample by unit and place of the decision."""
    a, b = item.scores(task)
    before, after = task.decisions(a), task.decisions(b)
    margin, limit = task.margin(a).reshape(before.shape), noise.margins(a)
    difference = np.nan_to_num(np.abs(a - b), nan=3.4e38, posinf=3.4e38)
    return {
        (i, j): Flip(
            sample=item.sample.id,
            unit=item.sample.units[i],
            reference=task.word(int(before[i, j]), j),
            candidate=task.word(int(after[i, j]), j),
            label=_truth(item, task, i, j),
            margin=float(margin[i, j]),
            difference=float(difference[i].max() if task.exclusive else difference[i, j]),
            noise=bool(margin[i, j] <= limit[i, 0]),
        )
        for i, j in changed(a, b, task)
    }


def changed(reference: np.ndarray, candidate: np.ndarray, task: Task) -> list[tuple[int, int]]:
    """(unit, place) of every decision that differs between two arrays of scores (units, width)."""
    found = np.argwhere(task.decisions(reference) != task.decisions(candidate))
    return [(int(unit), int(place)) for unit, place in found]


def _truth(item: Compared, task: Task, unit: int, place: int) -> str | None:
    """The true decision in words, where it is known."""
    labels = item.sample.labels
    if labels is None or not task.known(labels)[unit]:
        return None
    return task.word(int(task.truth(labels[unit : unit + 1]).reshape(-1)[place]), place)


def sign_flips(items: Sequence[Compared], task: Task) -> tuple[int, int] | None:
    """Scores of real samples that change sign (0 counts as positive), and those of them that are not noise.

    None where the task is not a regression.
    """
    if task.kind != "regression":
        return None
    real = [i for i in items if i.real]
    noise, total, beyond = Noise(real, task), 0, 0
    for a, b in (i.scores(task) for i in real):
        turned = (a >= 0) != (b >= 0)
        total += int(turned.sum())
        beyond += int((turned & (np.abs(a) > noise.margins(a))).sum())
    return total, beyond


def flip_matrix(items: Sequence[Compared], task: Task) -> list[list[int]]:
    """Units of real samples by label: row = reference, column = candidate; empty where a unit has several labels."""
    if not task.exclusive:
        return []
    matrix = np.zeros((len(task.labels), len(task.labels)), dtype=np.int64)
    for a, b in (i.scores(task) for i in items if i.real):
        np.add.at(matrix, (task.decide(a), task.decide(b)), 1)
    return matrix.tolist()
