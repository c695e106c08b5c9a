"""Losses of tab and the metrics that its authors report."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional

EPSILON = 1e-10


def margin_loss(
    logits: Float[Tensor, "batch labels"], target: Int[Tensor, " batch"], margin: float = 0.4
) -> Float[Tensor, ""]:
    """Multi-class margin loss on raw scores: how far each other score comes into the margin, over all classes."""
    return functional.multi_margin_loss(logits, target, p=1, margin=margin)


def attention_penalty(attention: Float[Tensor, "batch heads slots"], epsilon: float = EPSILON) -> Float[Tensor, ""]:
    """How far the heads' weights are from orthonormal, the mean Frobenius distance; keeps heads from looking alike."""
    gram = attention @ attention.transpose(1, 2)
    identity = torch.eye(attention.shape[1], device=attention.device, dtype=attention.dtype)
    return ((gram - identity).square().sum((1, 2)) + epsilon).sqrt().mean()


def batch_averages(
    logits: Sequence[Float[Tensor, "batch labels"]], targets: Sequence[Int[Tensor, " batch"]], margin: float = 0.4
) -> dict[str, np.ndarray]:
    """Loss and accuracies as the original reports them: plain means over batches, however small the last one is.

    The accuracy of a class is NaN for good once a batch has it neither as label nor as prediction; the mean over the
    classes of a batch leaves such classes out.
    """
    rows = [_batch(x.double(), t, margin) for x, t in zip(logits, targets, strict=True)]
    return {name: np.mean([row[name] for row in rows], axis=0) for name in rows[0]}


def _batch(logits: Tensor, target: Tensor, margin: float) -> dict[str, np.ndarray]:
    classes, predicted = logits.shape[1], logits.argmax(1)
    hits = torch.bincount(target[predicted == target], minlength=classes)
    labels, guesses = (torch.bincount(x, minlength=classes) for x in (target, predicted))
    occurring = (labels + guesses) > 0
    accuracy = hits / labels.clamp(min=1)
    return {
        "loss": margin_loss(logits, target, margin).numpy(),
        "unweighted_accuracy": accuracy[occurring].mean().numpy(),
        "weighted_accuracy": (predicted == target).double().mean().numpy(),
        "class_accuracy": torch.where(occurring, accuracy, torch.nan).numpy(),
    }
