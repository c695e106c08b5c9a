"""Evaluation of a model on a split: `single` semantics as exported, or `batch` semantics as published."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mer_export import registry
from mer_export.bundle import CONFIG, Bundle
from mer_export.contract import Contract
from mer_export.data.samples import Sample
from mer_export.errors import InputError, UnsupportedError
from mer_export.metrics import SCORE_METRICS, task_metrics
from mer_export.models.cmerc.network import Cmerc, Semantics
from mer_export.task import Task
from mer_export.weights import bundle_model
from train.batches import in_batches, make_batch
from train.config import parse_config
from train.losses import absolute_error, weighted_nll
from train.protocols import protocol_class, recipe

ClassLoss = Callable[[Tensor, Tensor], Tensor]
PUBLISHED_BATCH = 16


def evaluate(
    bundle: Bundle,
    samples: Sequence[Sample],
    semantics: Semantics = "single",
    batch: int = PUBLISHED_BATCH,
    device: str = "cpu",
) -> dict[str, float]:
    """Metrics of the bundle's PyTorch model on labelled samples, in percent, rounded as published.

    Args:
        bundle: a trained or imported bundle.
        samples: in the order of the data set; with `batch` semantics the order matters.
        semantics: `single` is what exports compute; `batch` is the authors' own evaluation.
        batch: dialogues per batch, 16 in the published evaluation.
        device: `cpu` or `cuda`.

    Returns:
        `accuracy`, `weighted_f1`, `macro_f1`, `f1/<label>` (two decimals), `loss` (four decimals, mean over batches).
    """
    system = registry.get(bundle.manifest.system)
    config = system.parse(bundle.manifest.config)
    model = bundle_model(bundle).to(device)
    return evaluate_model(
        model, samples, system.contract(config), bundle.manifest.task, semantics, batch, _class_loss(bundle, device)
    )


def evaluate_published(bundle: Bundle, samples: Sequence[Sample], batch: int = PUBLISHED_BATCH) -> dict[str, float]:
    """The authors' own evaluation: batches of 16, `batch` semantics, rounded."""
    return evaluate(bundle, samples, "batch", batch)


def evaluate_model(
    model: torch.nn.Module,
    samples: Sequence[Sample],
    contract: Contract,
    task: Task,
    semantics: Semantics = "single",
    batch: int = PUBLISHED_BATCH,
    class_loss: ClassLoss | None = None,
) -> dict[str, float]:
    """As `evaluate`, for a model in memory; leaves it in evaluation mode."""
    device = next(model.parameters()).device
    model.eval()
    scores, labels = [], []
    for group in in_batches(samples, batch):
        made = make_batch(group, contract, device)
        if not len(made.labels):
            continue
        scores.append(made.rows(forward(model, made.inputs, semantics)))
        labels.append(made.labels)
    if not labels:
        raise InputError("none of these samples has a label: nothing to evaluate")
    return batch_metrics(task, scores, labels, class_loss or plain_loss(task))


def plain_loss(task: Task) -> ClassLoss:
    """Mean absolute error of scores, negative log-likelihood of classes."""
    return absolute_error if task.kind == "regression" else weighted_nll


@torch.no_grad()
def forward(model: torch.nn.Module, inputs: dict[str, Any], semantics: Semantics) -> Tensor:
    """Log-probabilities (batch, utterances, classes) in either semantics."""
    if semantics == "single":
        return model(**inputs)
    if not isinstance(model, Cmerc):
        raise UnsupportedError(f"{type(model).__name__} has no batch semantics: evaluate with single")
    return model.classify(model.features(**inputs, semantics=semantics), inputs["lengths"])


def batch_metrics(
    task: Task, scores: Sequence[Tensor], labels: Sequence[Tensor], class_loss: ClassLoss
) -> dict[str, float]:
    """Metrics over all rows of all batches; the loss is the unweighted mean over batches, as published."""
    loss = float(np.mean([float(class_loss(s, y)) for s, y in zip(scores, labels, strict=True)]))
    metrics = task_metrics(task, torch.cat(list(labels)).cpu().numpy(), torch.cat(list(scores)).cpu().numpy())
    return {n: round(v, 4 if n in SCORE_METRICS else 2) for n, v in metrics.items()} | {"loss": round(loss, 4)}


def _class_loss(bundle: Bundle, device: str) -> ClassLoss:
    """The class loss the bundle was trained with; plain likelihood for imported ones."""
    import yaml

    plain = plain_loss(bundle.manifest.task)
    if CONFIG not in bundle.manifest.files:
        return plain
    values = yaml.safe_load(bundle.path(CONFIG).read_text())
    if not isinstance(values, dict) or "protocol" not in values:
        return plain
    config = parse_config(values, source=f"{bundle.root}/{CONFIG}")
    settings = recipe(config.system).settings.model_validate(config.protocol)
    protocol = protocol_class(config.system)(settings)
    weights = bundle.manifest.provenance.get("class_weights")
    protocol.weight = None if weights is None else torch.tensor(weights, dtype=torch.float32, device=device)
    return protocol.class_loss
