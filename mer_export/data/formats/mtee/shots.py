"""Which samples a zero-shot or few-shot experiment keeps, with the index meaning of the public MTEE code."""

from __future__ import annotations

import math

import numpy as np

Labels = np.ndarray
"""1 or 0 for each (sample, label)."""
Rows = np.ndarray
"""Positions of samples (int64), ascending."""
SHARE = 0.01
"""Part of the positives that few-shot training keeps."""


def without_positives(labels: Labels, k: int) -> Rows:
    """Samples that do not have label `k`, in order: zero-shot on CMU-MOSEI."""
    return np.flatnonzero(labels[:, k] != 1)


def few_positives(labels: Labels, k: int) -> Rows:
    """All samples without label `k` and the first few with it, in order: few-shot on CMU-MOSEI.

    A hundredth of the positives, rounded up, plus one: the original counts inclusively.
    """
    positive = labels[:, k] == 1
    return np.flatnonzero(~positive | (np.cumsum(positive) <= _few(positive)))


def few_of_both(labels: Labels, k: int) -> Rows:
    """As many samples with label `k` as without it, the first ones of each: the small set for fine-tuning."""
    positive = labels[:, k] == 1
    kept = np.where(positive, np.cumsum(positive), np.cumsum(~positive)) <= _few(positive)
    return np.flatnonzero(kept)


def _few(positive: np.ndarray) -> int:
    return math.ceil(SHARE * int(positive.sum())) + 1
