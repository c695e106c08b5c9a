"""A sample is what one forward pass takes for one item: a dialogue, or an utterance with its context."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from mer_export.contract import Contract
from mer_export.errors import InputError, UsageError


@dataclass(frozen=True, eq=False)
class Sample:
    """One unpadded item.

    `inputs` holds an array per contract input, without the batch dim; a modality that is missing is absent.
    `units` are the ids of what is predicted, one per row of the output; `labels`, one per unit, are classes (int64, -1
    where a unit has none) or scores (float32, NaN where a unit has none), and None for unlabelled data.
    """

    id: str
    inputs: Mapping[str, np.ndarray]
    units: tuple[str, ...]
    labels: np.ndarray | None = None

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
        if not found and contract.sequence_dims:
            raise InputError(f"{self.id}: it has none of {list(contract.modalities)}: at least one modality is needed")
        # A dim that only missing modalities have is 0 long.
        return {d: found.get(d, 0) for d in contract.sequence_dims}

    def modalities(self, contract: Contract) -> tuple[str, ...]:
        """The modalities this sample has, in contract order."""
        present = {s.modality for s in contract.features if s.name in self.inputs}
        return tuple(m for m in contract.modalities if m in present)


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
