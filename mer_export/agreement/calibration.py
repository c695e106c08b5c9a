"""Do the probabilities of a candidate still mean what those of the reference mean?"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from mer_export.agreement.answers import Compared, rows
from mer_export.bundle import Strict
from mer_export.task import Task

BINS = 15
"""Of equal width, as in Guo et al., "On Calibration of Modern Neural Networks", ICML 2017."""

FEWEST = 20
"""Units of which fewer may have the same label by chance."""


class Calibration(Strict):
    """One side's probabilities over all units.

    `ece` is the expected calibration error in points and `brier` the mean squared error of the probabilities, summed
    over classes, both None without labels; `entropy` is the mean entropy of a unit in bits. Where a unit has several
    labels each of them is a question of yes and no.
    """

    ece: float | None
    brier: float | None
    entropy: float


class CalibrationDrift(Strict):
    """Both sides, and the label that the candidate gives to every unit where the reference gives several."""

    reference: Calibration
    candidate: Calibration
    always: str | None = None


def calibration_drift(items: Sequence[Compared], task: Task) -> CalibrationDrift | None:
    """Calibration of both sides over the real ones of `items`; None where nothing has a probability."""
    real = [i for i in items if i.real]
    if task.kind not in ("classification", "multilabel") or not real:
        return None
    labels = [i.sample.labels for i in real]
    sides = [[rows(i.reference[task.output]) for i in real], [rows(i.candidate[task.output]) for i in real]]
    if not all(np.isfinite(s).all() for side in sides for s in side):
        return None
    reference, candidate = (_calibration(side, labels, task) for side in sides)
    return CalibrationDrift(reference=reference, candidate=candidate, always=_always(sides[0], sides[1], task))


def _calibration(scores: Sequence[np.ndarray], labels: Sequence[np.ndarray | None], task: Task) -> Calibration:
    probabilities = [_choices(task.probabilities(s), task) for s in scores]
    whole = np.concatenate(probabilities)
    entropy = float(-(whole * np.log2(np.maximum(whole, np.finfo(np.float64).tiny))).sum(axis=-1).mean())
    known = [(p, *_known(own, task)) for p, own in zip(probabilities, labels, strict=True) if own is not None]
    if not sum(len(truth) for _, _, truth in known):
        return Calibration(ece=None, brier=None, entropy=entropy)
    kept = np.concatenate([p[places] for p, places, _ in known])
    truth = np.concatenate([t for *_, t in known])
    brier = float(((kept - np.eye(kept.shape[1])[truth]) ** 2).sum(axis=-1).mean())
    return Calibration(ece=100 * expected_calibration_error(kept, truth), brier=brier, entropy=entropy)


def _choices(probabilities: np.ndarray, task: Task) -> np.ndarray:
    """One distribution per row: over the classes, or over no and yes for each label of each unit."""
    if task.kind == "classification":
        return probabilities
    flat = probabilities.reshape(-1, 1)
    return np.concatenate([1 - flat, flat], axis=1)


def _known(labels: np.ndarray, task: Task) -> tuple[np.ndarray, np.ndarray]:
    """Which rows of `_choices` have a truth, and those truths."""
    known = task.known(labels)
    truth = task.truth(labels[known]).reshape(-1)
    return (known if task.exclusive else np.repeat(known, len(task.labels))), truth


def expected_calibration_error(probabilities: np.ndarray, truth: np.ndarray) -> float:
    """Mean distance of confidence and accuracy over `BINS` bins of confidence, weighted by their rows.

    Args:
        probabilities: (rows, classes).
        truth: class index of each row.
    """
    confidence, right = probabilities.max(axis=1), probabilities.argmax(axis=1) == truth
    place = np.clip(np.ceil(confidence * BINS).astype(int) - 1, 0, BINS - 1)
    gap = np.bincount(place, confidence - right, minlength=BINS)
    return float(np.abs(gap).sum() / len(truth))


def _always(reference: Sequence[np.ndarray], candidate: Sequence[np.ndarray], task: Task) -> str | None:
    decisions = [np.concatenate([task.decisions(s) for s in side]) for side in (reference, candidate)]
    before, after = (np.unique(d, axis=0) for d in decisions)
    if len(decisions[0]) < FEWEST or len(before) < 2 or len(after) > 1:
        return None
    return ", ".join(task.holding(after[0])) or "no label"
