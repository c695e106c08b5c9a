"""Metrics of a model in memory: `single` semantics as exported, or `batch` semantics as published."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from mer_export.contract import Contract, Semantics
from mer_export.data.samples import Sample, readable
from mer_export.errors import InputError, UnsupportedError
from mer_export.metrics import find
from mer_export.metrics.measure import class_tables, measure
from mer_export.metrics.tally import ClassTable
from mer_export.task import Task
from train.batches import feed, host_batch, in_batches
from train.padding import FromSamples, Padding

ClassLoss = Callable[[Tensor, Tensor], Tensor]
Published = Callable[[Sequence[Tensor], Sequence[Tensor]], dict[str, float]]
"""Metrics of the authors' own from the rows and labels of each batch."""
PUBLISHED_BATCH = 16


@dataclass(frozen=True)
class LossMean:
    """How the loss of a split is made from those of its batches: each counts alike, or by its size."""

    by_size: bool = False
    decimals: int | None = 4

    def of(self, losses: Sequence[float], sizes: Sequence[int]) -> float:
        mean = float(np.average(losses, weights=sizes if self.by_size else None))
        return mean if self.decimals is None else round(mean, self.decimals)


class Evaluated(NamedTuple):
    """Metrics of labelled units, rounded as published, and what they were measured on."""

    metrics: dict[str, float]
    task: Task
    truths: np.ndarray
    scores: np.ndarray

    def classes(self) -> list[ClassTable]:
        """How each label was decided."""
        return class_tables(self.task, self.truths, self.scores)


def evaluate_model(
    model: torch.nn.Module,
    samples: Sequence[Sample],
    contract: Contract,
    task: Task,
    semantics: Semantics = "single",
    batch: int = PUBLISHED_BATCH,
    class_loss: ClassLoss | None = None,
    mean: LossMean = LossMean(),
    published: Published | None = None,
    padding: Padding = FromSamples(),
) -> Evaluated:
    """Metrics of a model on labelled samples, rounded as published; leaves it in evaluation mode.

    Units of which there is nothing to read count as the original counts them (`Task.unanswered`), or not at all.
    """
    device = next(model.parameters()).device
    model.eval()
    scores, labels = [], []
    groups = in_batches(readable(samples, contract), batch)
    for made in feed(groups, partial(host_batch, contract=contract, padding=padding), device):
        if not len(made.labels):
            continue
        scores.append(made.rows(forward(model, made.inputs, semantics)))
        labels.append(made.labels)
    if not labels:
        raise InputError("none of these samples has a label: nothing to evaluate")
    further = published(scores, labels) if published and semantics == "batch" else {}
    unread = unread_labels(samples, contract, task)
    found = batch_metrics(task, scores, labels, class_loss, mean, unread)
    metrics = found | {n: find(n).rounded(v) for n, v in further.items()}
    return Evaluated(metrics, task, *_all_rows(task, scores, labels, unread))


def unread_labels(samples: Sequence[Sample], contract: Contract, task: Task) -> np.ndarray:
    """What is true of the units that count though there is nothing of them to read."""
    found = [s.labels for s in samples if s.labels is not None and not s.readable(contract)]
    return np.concatenate(found) if found and task.unanswered is not None else np.zeros(0, dtype=np.int64)


@torch.no_grad()
def forward(model: torch.nn.Module, inputs: dict[str, Any], semantics: Semantics) -> Tensor:
    """Scores (batch, units, labels) or (batch, labels) in either semantics."""
    if semantics == "single":
        found = model(**inputs)
        return found[0] if isinstance(found, tuple) else found
    in_batch = getattr(model, "in_batch", None)
    if in_batch is None:
        raise UnsupportedError(f"{type(model).__name__} has no batch semantics: evaluate with single")
    return in_batch(**inputs)


def batch_metrics(
    task: Task,
    scores: Sequence[Tensor],
    labels: Sequence[Tensor],
    class_loss: ClassLoss | None,
    mean: LossMean = LossMean(),
    unread: np.ndarray | None = None,
) -> dict[str, float]:
    """Metrics over all rows of all batches, rounded; `loss` is the mean over batches where there is a loss.

    `unread` are the labels of further units, which count as `Task.unanswered` and have no loss.
    """
    metrics = measure(task, *_all_rows(task, scores, labels, unread))
    rounded = {name: find(name).rounded(value) for name, value in metrics.items()}
    if class_loss is None:
        return rounded
    losses = torch.stack([class_loss(s, y) for s, y in zip(scores, labels, strict=True)]).tolist()
    return rounded | {"loss": mean.of(losses, [len(y) for y in labels])}


def _all_rows(
    task: Task, scores: Sequence[Tensor], labels: Sequence[Tensor], unread: np.ndarray | None
) -> tuple[np.ndarray, np.ndarray]:
    """Labels and scores of every unit, those that were not read among them."""
    truth, rows = torch.cat(list(labels)).cpu().numpy(), torch.cat(list(scores)).cpu().numpy()
    if unread is None or not len(unread):
        return truth, rows
    return np.concatenate([truth, unread]), np.concatenate([rows, task.unanswered_scores(len(unread))])
