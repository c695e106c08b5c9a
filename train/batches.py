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
from mer_export.task import known_units


@dataclass(frozen=True)
class Batch:
    """Inputs by contract name, and which rows of the output are labelled with what.

    `labelled` is true at labelled units, which are the leading dims of an output: (batch, units), or (batch,) where an
    item is one unit. `labels` holds their classes (int64), scores or label indicators (float32), in the same order.
    """

    inputs: dict[str, Tensor]
    labelled: Bool[Tensor, "batch ..."]
    labels: Int[Tensor, " rows"] | Float[Tensor, " rows"] | Float[Tensor, "rows labels"]

    def rows(self, output: Tensor) -> Tensor:
        """The labelled rows of an output (batch, units, ...) or (batch, ...), concatenated, in float32."""
        return output[self.labelled].float()


def make_batch(samples: Sequence[Sample], contract: Contract, device: torch.device) -> Batch:
    """Pads to the longest sample, never further: batch norm statistics of the originals include padding."""
    arrays = collate(samples, contract)
    inputs = {name: torch.from_numpy(array).to(device) for name, array in arrays.items()}
    labelled = np.zeros((len(samples), max(len(s.units) for s in samples)), dtype=bool)
    labels = [np.zeros(0, dtype=np.int64)]
    for row, sample in enumerate(samples):
        if sample.labels is not None:
            known = known_units(sample.labels)
            labelled[row, : len(known)] = known
            labels.append(sample.labels[known])
    if contract.unit_dim is None:
        labelled = labelled[:, 0]
    # The empty start keeps a batch without labels an array; it must not decide the shape of the others.
    joined = np.concatenate(labels[1:] or labels)
    return Batch(inputs, torch.from_numpy(labelled).to(device), torch.from_numpy(joined).to(device))


def in_batches(samples: Sequence[Sample], size: int) -> Iterator[list[Sample]]:
    """Consecutive batches in order; the last one may be smaller."""
    for start in range(0, len(samples), size):
        yield list(samples[start : start + size])
