"""Losses of MTEE on logits (section 6), and the class weights that go with them."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional

Logits = Float[Tensor, "rows labels"]
Targets = Float[Tensor, "rows labels"]


def positive_weights(labels: np.ndarray) -> np.ndarray:
    """Negatives per positive of each label (float32) over a training set (samples, labels).

    Infinite for a label without positives, as in the original, whose loss is then not a number.
    """
    positive = (labels > 0).sum(0)
    with np.errstate(divide="ignore"):
        return ((len(labels) - positive) / positive).astype(np.float32)


def bce(logits: Logits, targets: Targets, weight: Tensor | None = None) -> Tensor:
    """Binary cross-entropy, mean over all entries; `weight` (labels,) multiplies the positive terms."""
    return functional.binary_cross_entropy_with_logits(logits, targets, pos_weight=weight)


def cross_entropy(logits: Logits, targets: Targets, weight: Tensor | None = None) -> Tensor:
    """Softmax cross-entropy with label sets as targets, which are not brought to sum 1; mean over units.

    With `weight` (labels,) the mean is that of PyTorch: divided by the sum of the weights of the targets.
    """
    log_prob = functional.log_softmax(logits, dim=-1)
    if weight is None:
        return -(targets * log_prob).sum(-1).mean()
    return -(targets * weight * log_prob).sum() / (targets * weight).sum()


def mean_absolute(logits: Logits, targets: Targets, weight: Tensor | None = None) -> Tensor:
    return functional.l1_loss(logits, targets)


def mean_square(logits: Logits, targets: Targets, weight: Tensor | None = None) -> Tensor:
    return functional.mse_loss(logits, targets)


LOSSES: dict[str, Callable[[Logits, Targets, Tensor | None], Tensor]] = {
    "bce": bce,
    "ce": cross_entropy,
    "l1": mean_absolute,
    "mse": mean_square,
}
"""By the name of the original's --loss; l1 and mse are never weighted."""


def usable_weights(weights: np.ndarray) -> Tensor:
    """`weights` with 1 where a label has no positives: nothing is weighted there, and the loss stays finite."""
    return torch.from_numpy(np.where(np.isfinite(weights), weights, np.float32(1)))
