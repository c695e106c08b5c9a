"""From samples to tensors on a device, for training and evaluation alike."""

from __future__ import annotations

import contextlib
import math
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, fields, replace
from typing import Any, TypeVar

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from mer_export.contract import Contract
from mer_export.data.samples import Sample
from mer_export.errors import UsageError
from mer_export.task import known_units
from train.padding import FromSamples, Padding

Group = TypeVar("Group")
Made = TypeVar("Made")
WINDOW = 8
"""Batches whose items are sorted by length together."""
AHEAD = 2
"""Batches that are collated before they are asked for."""


@dataclass(frozen=True)
class Batch:
    """Inputs by contract name, and which rows of the output are labelled with what.

    `units` are the leading dims of an output: (batch, units), or (batch,) where an item is one unit. `labelled` holds
    the flat indices of those that have a label; a mask would make the host wait for a GPU, which has to count it.
    `labels` holds their classes (int64), scores or label indicators (float32), in the same order.
    """

    inputs: dict[str, Tensor]
    units: tuple[int, ...]
    labelled: Int[Tensor, " rows"]
    labels: Int[Tensor, " rows"] | Float[Tensor, " rows"] | Float[Tensor, "rows labels"]

    def rows(self, output: Tensor) -> Tensor:
        """The labelled rows of an output (batch, units, ...) or (batch, ...), concatenated, in float32."""
        flat = output.reshape(math.prod(self.units), *output.shape[len(self.units) :])
        return flat.index_select(0, self.labelled).float()


def make_batch(samples: Sequence[Sample], contract: Contract, device: torch.device) -> Batch:
    """A batch on a device, made at once; see `host_batch`."""
    return each_tensor(host_batch(samples, contract), lambda tensor: tensor.to(device))


def host_batch(samples: Sequence[Sample], contract: Contract, padding: Padding = FromSamples()) -> Batch:
    """Pads to the longest sample, never further: batch norm statistics of the originals include padding."""
    inputs = padding.inputs(samples, contract)
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
    return Batch(inputs, labelled.shape, torch.from_numpy(np.flatnonzero(labelled)), torch.from_numpy(joined))


def feed(
    groups: Iterable[Group], collate: Callable[[Group], Made], device: torch.device, depth: int = AHEAD
) -> Iterator[Made]:
    """What `collate` makes of each group, on a device.

    A thread of its own collates up to `depth` batches ahead of the steps, into memory that a GPU copies from while the
    host goes on. `collate` gives dataclasses of tensors, on the host or where they are kept, and must not draw random
    numbers: their order would change.
    """
    on_gpu = device.type == "cuda"

    def make(group: Group) -> Made:
        made = collate(group)
        if not on_gpu:
            return made
        with torch.cuda.device(device):
            return each_tensor(made, lambda tensor: tensor if tensor.is_cuda else tensor.pin_memory())

    with contextlib.closing(ahead(make, groups, depth)) as batches:
        for batch in batches:
            yield each_tensor(batch, lambda tensor: tensor.to(device, non_blocking=on_gpu))


def ahead(make: Callable[[Group], Made], groups: Iterable[Group], depth: int = AHEAD) -> Generator[Made, None, None]:
    """What `make` gives for each group, in order, made in a thread up to `depth` groups before it is asked for."""
    waiting: deque[Future[Made]] = deque()
    worker = ThreadPoolExecutor(1, thread_name_prefix="collate")
    try:
        for group in groups:
            waiting.append(worker.submit(make, group))
            if len(waiting) > depth:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:
        worker.shutdown(cancel_futures=True)


def each_tensor(batch: Any, change: Callable[[Tensor], Tensor]) -> Any:
    """A batch with every tensor changed: a dataclass of tensors, of dicts of them, and of what stays as it is."""
    if isinstance(batch, Tensor):
        return change(batch)
    if isinstance(batch, Mapping):
        return {name: each_tensor(value, change) for name, value in batch.items()}
    if hasattr(batch, "__dataclass_fields__"):
        return replace(batch, **{f.name: each_tensor(getattr(batch, f.name), change) for f in fields(batch)})
    return batch


def by_length(samples: Sequence[Sample], size: int, contract: Contract) -> list[Sample]:
    """Samples in an order whose consecutive batches hold items of like length.

    Sorted within windows of `WINDOW` batches, so that the order that is given still decides who meets whom; then the
    batches are shuffled from torch's global random stream, but for a last one that is not full.
    """
    volumes = {id(s): math.prod(max(1, n) for n in s.lengths(contract).values()) for s in samples}
    windows = in_batches(samples, WINDOW * size)
    batches = [b for window in windows for b in in_batches(sorted(window, key=lambda s: volumes[id(s)]), size)]
    full = [b for b in batches if len(b) == size]
    rest = [s for b in batches if len(b) < size for s in b]
    return [s for i in torch.randperm(len(full)).tolist() for s in full[i]] + rest


def for_batch_norm(batches: list[list[Sample]], size: int, advice: str) -> list[list[Sample]]:
    """Batches for a network with batch norm over units, which needs two: one left over joins the batch before it.

    Raises:
        UsageError: a unit would still be alone, as in batches of `size` 1; ends with `advice`.
    """
    if size > 1 and len(batches) > 1 and _is_one_unit(batches[-1]):
        batches = [*batches[:-2], batches[-2] + batches[-1]]
    if alone := next(filter(_is_one_unit, batches), None):
        raise UsageError(f"{alone[0].id} alone would be a batch of one unit, and batch norm needs two: {advice}")
    return batches


def _is_one_unit(batch: Sequence[Sample]) -> bool:
    return len(batch) == 1 and len(batch[0].units) == 1


def in_batches(samples: Sequence[Sample], size: int) -> Iterator[list[Sample]]:
    """Consecutive batches in order; the last one may be smaller."""
    for start in range(0, len(samples), size):
        yield list(samples[start : start + size])
