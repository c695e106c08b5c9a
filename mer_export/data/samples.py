"""A sample is what one forward pass takes for one item: a dialogue, or an utterance with its context."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Self

import numpy as np

from mer_export.contract import BATCH, Contract
from mer_export.errors import InputError, UsageError


@dataclass(frozen=True, eq=False)
class Sample:
    """One unpadded item.

    `inputs` holds an array per contract input, without the batch dim; a modality that is missing is absent.
    `units` are the ids of what is predicted, one per row of the output. `labels` has one entry per unit: a class
    (int64, -1 where a unit has none), a score (float32, NaN where a unit has none), or a row of label indicators
    (float32, NaN where a unit has none); it is None for unlabelled data. `split` is the part of the data it is from.
    `group` names the dialogue or video that it is one utterance of; None where it stands alone, or is the whole.
    `unread` are the places of units that could not be read where others could: the inputs have no row of them.
    """

    id: str
    inputs: Mapping[str, np.ndarray]
    units: tuple[str, ...]
    labels: np.ndarray | None = None
    split: str | None = None
    group: str | None = None
    unread: tuple[int, ...] = ()

    @property
    def places(self) -> list[int]:
        """Of the units that could be read."""
        return [i for i in range(len(self.units)) if i not in self.unread]

    @property
    def read(self) -> Self:
        """The sample of those units alone."""
        if not self.unread:
            return self
        labels = None if self.labels is None else self.labels[self.places]
        return replace(self, units=tuple([self.units[i] for i in self.places]), labels=labels, unread=())

    def lengths(self, contract: Contract) -> dict[str, int]:
        """The real length of each sequence dim, 0 where its modality is missing.

        Raises:
            InputError: inputs disagree, are empty, or there are none.
        """
        found: dict[str, int] = {}
        for spec in contract.features:
            array = self.inputs.get(spec.name)
            if array is None:
                continue
            if array.ndim != len(spec.dims) - 1:
                raise InputError(f"{self.id}: {spec.name} has shape {array.shape}, expected dims {spec.dims[1:]}")
            for dim, size in zip(spec.dims[1:], array.shape, strict=True):
                if isinstance(dim, str):
                    if found.setdefault(dim, size) != size:
                        raise InputError(f"{self.id}: {spec.name} has {size} {dim}, other inputs have {found[dim]}")
                    if size == 0:
                        raise InputError(f"{self.id}: {spec.name} has no {dim}: remove the empty item")
        present = any(s.name in self.inputs and s.modality for s in contract.features)
        if not found and contract.sequence_dims and not present:
            missing = [d for d in contract.sequence_dims if d not in contract.shared_lengths]
            raise InputError(f"{self.id}: no input gives the length of {missing}: at least one modality is needed")
        for dim, fill in contract.fill.items():
            if dim in found:
                found[dim] = max(found[dim], fill.length)
        for dim, least in contract.shortest.items():
            if dim in found and found[dim] < least:
                raise InputError(f"{self.id}: {found[dim]} {dim} are fewer than the {least} that the network needs")
        return self._complete(found, contract)

    def _complete(self, found: dict[str, int], contract: Contract) -> dict[str, int]:
        """Lengths of all sequence dims in contract order: those of missing modalities are 0."""
        known = contract.shared_lengths | found
        for spec in contract.features:
            if spec.modality and spec.name not in self.inputs:
                known = {str(d): 0 for d in spec.dims if isinstance(d, str) and d != BATCH} | known
        missing = [d for d in contract.sequence_dims if d not in known]
        if missing:
            raise InputError(f"{self.id}: no input gives the length of {missing}")
        return {d: known[d] for d in contract.sequence_dims}

    def readable(self, contract: Contract) -> bool:
        """Whether it has anything to judge it by: one modality at least, of a model that reads some."""
        return not contract.modalities or bool(self.modalities(contract))

    def modalities(self, contract: Contract) -> tuple[str, ...]:
        """The modalities this sample has, in contract order."""
        given = self.inputs.keys()
        return tuple([m for m, names in contract.inputs_of if not names.isdisjoint(given)])


def readable(samples: Iterable[Sample], contract: Contract) -> list[Sample]:
    """Those that have anything to judge them by."""
    return [s for s in samples if s.readable(contract)]


@dataclass
class Corpus:
    """A read data set: named splits of samples, and what is known about it."""

    splits: dict[str, list[Sample]]
    format: str
    info: dict[str, Any] = field(default_factory=dict)

    def split(self, name: str) -> list[Sample]:
        """Samples of one split; raises UsageError with the existing names."""
        if name not in self.splits:
            raise UsageError(f"no split {name!r} in this data, there are {list(self.splits)}")
        return self.splits[name]

    def __iter__(self) -> Iterator[Sample]:
        for samples in self.splits.values():
            yield from samples
