"""Where the padded inputs of a batch come from: from its samples, or from a split that was padded once and stays there.

There is one padding rule, `collate`. A batch of what is kept takes its rows and is cut to its longest item, which gives
what collating it gives: padding stands behind an item, or in a place that the item alone decides.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from mer_export import machine
from mer_export.contract import Contract, Lengths
from mer_export.data.collate import collate, longest
from mer_export.data.samples import Sample
from mer_export.errors import UsageError
from train.config import DeviceData

Inputs = dict[str, Tensor]
SHARE = 0.25
"""Part of a GPU's free memory that data may take unasked; the network, its gradients and states come on top."""

log = logging.getLogger("mer")


class Padding(Protocol):
    """Makes the inputs of batches."""

    def inputs(self, samples: Sequence[Sample], contract: Contract, lengths: Lengths | None = None) -> Inputs:
        """As `collate` pads them; without `lengths` to the longest sample."""

    def on_host(self, samples: Sequence[Sample], inputs: Inputs) -> Inputs:
        """`inputs` of these samples with ids and lengths on the host, to be looked at."""


class FromSamples:
    """Pads on the host, batch by batch."""

    def inputs(self, samples: Sequence[Sample], contract: Contract, lengths: Lengths | None = None) -> Inputs:
        return {name: torch.from_numpy(array) for name, array in collate(samples, contract, lengths).items()}

    def on_host(self, samples: Sequence[Sample], inputs: Inputs) -> Inputs:
        return inputs


class Kept:
    """Splits that were padded once, to their longest item, and stay on a device; other samples are padded as usual."""

    def __init__(self, splits: Iterable[Sequence[Sample]], contract: Contract, device: torch.device):
        self._splits = [list(samples) for samples in splits]
        self._device = device
        # The samples are held, so that no other one gets their identity.
        self._place = {id(s): (i, row) for i, samples in enumerate(self._splits) for row, s in enumerate(samples)}
        self._lengths = {id(s): s.lengths(contract) for samples in self._splits for s in samples}
        host = [FromSamples().inputs(samples, contract) for samples in self._splits]
        self._whole_numbers = [{n: t for n, t in inputs.items() if t.dtype == torch.int64} for inputs in host]
        self._kept = [{n: t.to(device) for n, t in inputs.items()} for inputs in host]

    def inputs(self, samples: Sequence[Sample], contract: Contract, lengths: Lengths | None = None) -> Inputs:
        place = self._rows(samples)
        if place is None:
            return FromSamples().inputs(samples, contract, lengths)
        split, rows = place
        if self._device.type == "cuda":
            rows = rows.pin_memory().to(self._device, non_blocking=True)
        wanted = lengths or longest([self._lengths[id(s)] for s in samples], contract)
        found = {}
        for spec in contract.inputs:
            shape = spec.shape(len(self._splits[split]), wanted)
            cut = self._kept[split][spec.name][tuple(map(slice, shape))]
            # Cut first: rows of the whole would have strides that products take another way through.
            found[spec.name] = cut.index_select(0, rows) if spec.batched else cut
        return found

    def on_host(self, samples: Sequence[Sample], inputs: Inputs) -> Inputs:
        place = self._rows(samples)
        if place is None:
            return inputs
        split, rows = place
        known = {}
        for name, whole in self._whole_numbers[split].items():
            known[name] = whole[(slice(None), *map(slice, inputs[name].shape[1:]))].index_select(0, rows)
        return inputs | known

    def _rows(self, samples: Sequence[Sample]) -> tuple[int, Tensor] | None:
        """The split of these samples and their rows in it; None where they are not of one split that is kept."""
        places = [self._place.get(id(s), (-1, 0)) for s in samples]
        splits = {split for split, _ in places}
        if len(splits) > 1 or -1 in splits:
            return None
        return splits.pop(), torch.tensor([row for _, row in places])


def padding(
    wanted: DeviceData, splits: Iterable[Sequence[Sample]], contract: Contract, device: torch.device
) -> FromSamples | Kept:
    """What makes the batches of these splits.

    `auto` keeps them on a GPU where they take no more than `SHARE` of its free memory.

    Raises:
        UsageError: `always`, and the memory does not hold them.
    """
    parts = [samples for samples in splits if samples]
    if wanted == "never" or (wanted == "auto" and device.type != "cuda"):
        return FromSamples()
    needed, free = sum(padded_bytes(samples, contract) for samples in parts), _free(device)
    said = f"the padded data take {needed / 2**20:.0f} MiB, {free / 2**20:.0f} are free on {device}"
    if wanted == "always" and needed > free:
        raise UsageError(f"device_data is always, but {said}: pass --set device_data=auto")
    if wanted == "auto" and needed > SHARE * free:
        log.info("data stay on the host: %s", said)
        return FromSamples()
    return Kept(parts, contract, device)


def padded_bytes(samples: Sequence[Sample], contract: Contract) -> int:
    """Bytes of the samples padded to the longest of them."""
    lengths: Mapping[str, int] = longest([s.lengths(contract) for s in samples], contract)
    return sum(math.prod(s.shape(len(samples), lengths)) * np.dtype(s.dtype).itemsize for s in contract.inputs)


def _free(device: torch.device) -> float:
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    available = machine.available_bytes()
    return math.inf if available is None else available
