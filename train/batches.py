"""From samples to tensors on a device, for training and evaluation alike."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from mer_export.contract import Contract
from mer_export.data.collate import collate
from mer_export.data.samples import Sample


@dataclass(frozen=True)
class Batch:
    """Inputs by contract name, and which rows of the output are labelled with what.

    `labelled` (batch, units) is true at labelled units; `labels` holds their classes (int64) or scores (float32) in the
    same order. `per_item` says that an output has one row per item instead of one per unit.
    """

    inputs: dict[str, Tensor]
    labelled: Bool[Tensor, "batch units"]
    labels: Int[Tensor, " rows"] | Float[Tensor, " rows"]
    per_item: bool = False

    def rows(self, output: Tensor) -> Tensor:
        """The labelled rows of an output (batch, units, ...) or (batch, ...), concatenated, in float32."""
        return output[self.labelled[:, 0] if self.per_item else self.labelled].float()


def make_batch(samples: Sequence[Sample], contract: Contract, device: torch.device) -> Batch:
    """Pads to the longest sample, never further: batch norm statistics of the originals include padding."""
    arrays = collate(samples, contract)
    inputs = {name: torch.from_numpy(array).to(device) for name, array in arrays.items()}
    longest = max(len(s.units) for s in samples)
    scores = any(s.labels is not None and s.labels.dtype.kind == "f" for s in samples)
    labels = np.full((len(samples), longest), np.nan if scores else -1, dtype=np.float32 if scores else np.int64)
    for row, sample in enumerate(samples):
        if sample.labels is not None:
            labels[row, : len(sample.units)] = sample.labels
    padded = torch.from_numpy(labels).to(device)
    known = ~padded.isnan() if scores else padded >= 0
    per_item = not any(isinstance(d, str) for d in contract.outputs[0].dims[1:])
    return Batch(inputs, known, padded[known], per_item)


def in_batches(samples: Sequence[Sample], size: int) -> Iterator[list[Sample]]:
    """Consecutive batches in order; the last one may be smaller."""
    for start in range(0, len(samples), size):
        yield list(samples[start : start + size])
