"""What a baseline reads of a recipe's samples: standardised sequences of vectors, and what is true of their units."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from mer_export.contract import BATCH, Contract, TensorSpec
from mer_export.data.collate import collate
from mer_export.data.samples import Sample, readable
from mer_export.errors import UsageError
from mer_export.task import Task

ONE = "one"
"""In place of a sequence dim, of inputs that are one vector."""


@dataclass(frozen=True)
class Items:
    """Samples as a baseline reads them.

    `sequences` holds for each sequence dim one array (steps, width) per item. Where an item is a dialogue (`by_step`)
    its units are the steps of the one sequence. `rows` are the places of the labelled units among all units, `labels`
    what is true of them, as in `Batch`.
    """

    sequences: dict[str, list[np.ndarray]]
    by_step: bool
    rows: np.ndarray
    labels: np.ndarray

    def pooled(self) -> np.ndarray:
        """A vector (units, width) of each unit: its own, or mean and deviation over the steps of every sequence."""
        if self.by_step:
            return np.concatenate(next(iter(self.sequences.values())))
        parts = [
            np.stack([statistic(steps, axis=0) for steps in arrays])
            for arrays in self.sequences.values()
            for statistic in (np.mean, np.std)
        ]
        return np.concatenate(parts, axis=1)


@dataclass(frozen=True)
class Scale:
    """Mean and deviation of columns, taken from training items; a column that does not vary becomes 0."""

    mean: np.ndarray
    deviation: np.ndarray

    @classmethod
    def of(cls, rows: np.ndarray) -> Scale:
        deviation = rows.std(axis=0)
        return cls(rows.mean(axis=0), np.where(deviation > 1e-6, deviation, np.inf))

    def __call__(self, rows: np.ndarray) -> np.ndarray:
        return (rows - self.mean) / self.deviation


class Reader:
    """Reads samples through the contract of a recipe; vectors that no training sample has are left out."""

    def __init__(self, contract: Contract, task: Task, training: Sequence[Sample]):
        """Raises UsageError where the recipe has no vectors for a baseline to read, InputError as `read` does."""
        self.contract, self.task = contract, task
        # They are held, so that no other one gets their identity.
        self._checked: dict[int, Sample] = {}
        self._check(readable(training, contract))
        there = {name for s in training for name in s.inputs}
        self.groups: dict[str, list[TensorSpec]] = {}
        for spec in contract.features:
            if spec.dtype == "float32" and spec.name in there and len(_sequence_dims(spec)) < 2:
                self.groups.setdefault((*_sequence_dims(spec), ONE)[0], []).append(spec)
        unit = contract.unit_dim
        if unit is not None:
            self.groups = {d: specs for d, specs in self.groups.items() if d == unit}
        if not self.groups:
            names = [s.name for s in contract.features]
            raise UsageError(f"a baseline reads vectors and sequences of them, of {names} the data have none")
        self.scales = {
            dim: Scale.of(np.concatenate([a for s in training if (a := self._steps(s, dim)) is not None]))
            for dim in self.groups
        }

    def read(self, samples: Sequence[Sample]) -> Items:
        """Those of the samples that are labelled and that the recipe can read; what an item lacks is the mean.

        Raises:
            InputError: values that the recipe refuses too.
            UsageError: none of them is labelled, or labels are of another kind than the task's.
        """
        items = [s for s in readable(samples, self.contract) if s.labels is not None]
        if not any(self.task.known(s.labels).any() for s in items if s.labels is not None):
            raise UsageError("a split has no labels to choose or measure by: leave it out of evaluate_splits")
        self._check(items)
        sequences = {dim: [self._scaled(s, dim) for s in items] for dim in self.groups}
        joined = np.concatenate([s.labels for s in items if s.labels is not None])
        self.task.refuse_others(joined, items[0].id)
        known = self.task.known(joined)
        return Items(sequences, self.contract.unit_dim is not None, np.flatnonzero(known), joined[known])

    def _check(self, samples: Sequence[Sample]) -> None:
        """Once for each sample; padding is where values are checked."""
        for sample in samples:
            if id(sample) not in self._checked:
                collate([sample], self.contract)
                self._checked[id(sample)] = sample

    def _scaled(self, sample: Sample, dim: str) -> np.ndarray:
        steps = self._steps(sample, dim)
        if steps is None:
            count = len(sample.units) if dim == self.contract.unit_dim else 1
            return np.zeros((count, len(self.scales[dim].mean)), dtype=np.float32)
        return self.scales[dim](steps).astype(np.float32)

    def _steps(self, sample: Sample, dim: str) -> np.ndarray | None:
        """The vectors along a dim side by side (steps, width); None where the sample has none of them."""
        specs = self.groups[dim]
        given = {s.name: _by_step(sample.inputs[s.name], s) for s in specs if s.name in sample.inputs}
        if not given:
            return None
        steps = len(next(iter(given.values())))
        # Of a modality that is missing beside others, zeros: what the recipe's network gets of it.
        parts = [given.get(s.name, np.zeros((steps, _width(s)), dtype=np.float32)) for s in specs]
        return np.concatenate(parts, axis=1)


def _sequence_dims(spec: TensorSpec) -> list[str]:
    return [d for d in spec.dims if isinstance(d, str) and d != BATCH]


def _width(spec: TensorSpec) -> int:
    return int(np.prod([d for d in spec.dims if isinstance(d, int)]))


def _by_step(array: np.ndarray, spec: TensorSpec) -> np.ndarray:
    """(steps, width), whatever stands before and behind the sequence dim."""
    dims = _sequence_dims(spec)
    if not dims:
        return np.asarray(array, dtype=np.float32).reshape(1, -1)
    moved = np.moveaxis(np.asarray(array, dtype=np.float32), spec.dims[1:].index(dims[0]), 0)
    return moved.reshape(len(moved), -1)
