"""What the training of emt, tfr_net and mult shares: paired views of a batch, and the text encoder's groups."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from mer_export.contract import Contract
from mer_export.data.missing import UNKNOWN_TOKEN, Incomplete, incomplete
from mer_export.data.samples import Corpus, Sample, readable
from mer_export.layers.bert.network import Bert
from mer_export.layers.bert.pretrained import load_pretrained
from mer_export.task import Task
from train.batches import feed, for_batch_norm, in_batches
from train.model_metrics import batch_metrics
from train.padding import FromSamples, Inputs, Padding
from train.protocol import Protocol
from train.systems.emt.settings import Group, Incompleteness


@dataclass(frozen=True)
class PairedBatch:
    """Both views of a batch, the steps that only the complete one has, and the labels of its items."""

    incomplete: Inputs
    complete: Inputs
    missing: dict[str, Tensor]
    labels: Tensor


def paired_batch(samples: Sequence[Sample], contract: Contract, padding: Padding = FromSamples()) -> PairedBatch:
    """On the host, padded to the longest item of the batch.

    A sample that was not made incomplete is complete in both views.
    """
    lengths = {d: max(1, *(s.lengths(contract)[d] for s in samples)) for d in contract.sequence_dims}
    missing = {m: np.zeros((len(samples), lengths[f"{m}_len"]), dtype=np.float32) for m in contract.modalities}
    for row, sample in enumerate(samples):
        for m, kept in (sample.kept if isinstance(sample, Incomplete) else {}).items():
            if m in missing:
                missing[m][row, : len(kept)] = ~kept
    labels = np.stack([s.labels[0] for s in samples if s.labels is not None])
    return PairedBatch(
        incomplete=padding.inputs(samples, contract, lengths),
        complete=padding.inputs(whole(samples), contract, lengths),
        missing={m: torch.from_numpy(mask) for m, mask in missing.items()},
        labels=torch.from_numpy(labels),
    )


def whole(samples: Sequence[Sample]) -> list[Sample]:
    """The samples before steps went missing."""
    return [s.whole if isinstance(s, Incomplete) else s for s in samples]


def prediction_loss(output: Tensor, labels: Tensor, weight: Tensor | None = None) -> Tensor:
    """Mean absolute error of scores, negative log-likelihood of classes, which `weight` weighs."""
    if labels.dtype == torch.int64:
        return functional.nll_loss(output, labels, weight)
    return functional.l1_loss(output[:, 0], labels)


class IncompleteProtocol(Protocol):
    """Data with missing steps, and evaluation of the incomplete view with all losses."""

    settings: Incompleteness
    batch_size = 32
    """Items per batch of the measured splits."""
    batch_norm = True
    """Whether the network has batch norm over the items of a batch."""
    loss_digits = 6
    """To which the losses of measured splits are rounded."""

    def views(self, corpus: Corpus, model: Any) -> Corpus:
        """Every split with the steps missing that the seeds say."""
        rule, arrays = self.settings.missing, corpus.info.get("arrays", {})
        unknown = UNKNOWN_TOKEN if model.bert is None else model.bert.unknown_token
        splits: dict[str, list[Sample]] = {
            name: list(incomplete(samples, rule.rates, arrays.get(name), rule.seed_by_modality, unknown))
            for name, samples in corpus.splits.items()
        }
        return replace(corpus, splits=splits)

    def batches(self, samples: Sequence[Sample], size: int, model: Any) -> list[list[Sample]]:
        """Consecutive batches; one item left over joins the batch before it where batch norm needs two."""
        found = super().batches(samples, size, model)
        return for_batch_norm(found, size, "train on more items, or set batch=2 or more") if self.batch_norm else found

    def collate(self, samples: Sequence[Sample], contract: Contract) -> PairedBatch:
        """Both views."""
        return paired_batch(samples, contract, self.padding)

    def padded(self, samples: Sequence[Sample]) -> list[Sequence[Sample]]:
        """Both views."""
        return [samples, whole(samples)]

    def class_loss(self, output: Tensor, labels: Tensor) -> Tensor:
        """Of predictions alone."""
        return prediction_loss(self.adjusted(output), labels, self.weight)

    def losses_and_output(self, model: Any, batch: PairedBatch) -> tuple[dict[str, Tensor], Tensor]:
        """Losses of one batch by name and the output of the incomplete view, without gradients."""
        output = model(**batch.incomplete)
        loss = self.class_loss(output, batch.labels)
        return {"prediction": loss, "total": loss}, output

    @torch.no_grad()
    def evaluate(self, model: Any, samples: Sequence[Sample], contract: Contract, task: Task) -> dict[str, float]:
        """Task metrics of the incomplete view, `loss` (total) and `loss_prediction`, means over batches."""
        model.eval()
        device = next(model.parameters()).device
        labelled = [s for s in samples if s.labels is not None and task.known(s.labels).all()]
        known = readable(labelled, contract)
        scores, labels, parts = [], [], []
        for batch in feed(in_batches(known, self.batch_size), partial(self.collate, contract=contract), device):
            losses, output = self.losses_and_output(model, batch)
            scores.append(output.float())
            labels.append(batch.labels)
            parts.append(losses)
        metrics = batch_metrics(task, scores, labels, None)
        means = {n: float(torch.stack([p[n] for p in parts]).mean()) for n in ("total", "prediction")}
        return metrics | {
            "loss": round(means["total"], self.loss_digits),
            "loss_prediction": round(means["prediction"], self.loss_digits),
        }

    def set_up_text_encoder(self, bert: Bert | None) -> None:
        """Loads the pre-trained weights, and freezes them where they are not trained."""
        if bert is None:
            return
        (source,) = self.settings.sources
        if source.path is not None:
            load_pretrained(bert, source.path)
        bert.requires_grad_(self.settings.train_text_encoder)


def bert_groups(bert: Bert, group: Group) -> Iterable[dict[str, Any]]:
    """Parameter groups of the text encoder: biases and norms have no decay."""
    named = [(n, p) for n, p in bert.named_parameters() if p.requires_grad]
    if named:
        plain = [p for n, p in named if not is_bias_or_norm(n)]
        yield {"params": plain, "lr": group.lr, "weight_decay": group.weight_decay}
        yield {"params": [p for n, p in named if is_bias_or_norm(n)], "lr": group.lr, "weight_decay": 0.0}


def is_bias_or_norm(name: str) -> bool:
    """True for the parameters of BERT that have no weight decay."""
    *_, layer, kind = name.split(".")
    return kind == "bias" or "norm" in layer
