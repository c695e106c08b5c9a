"""What an exporter is given and what it gives back, and the example inputs that exports are traced and proven on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from mer_export.contract import BATCH, Contract, Lengths, TensorSpec
from mer_export.data.collate import collate
from mer_export.data.samples import Sample
from mer_export.errors import UsageError
from mer_export.task import Task

if TYPE_CHECKING:
    from torch import nn

PROOF_ATOL = 1e-4
"""Coarse bound (absolute plus relative) that a fresh export must meet before it is committed; parity is finer."""
KEPT_SAMPLES = 4
"""How many example items are kept beside an export."""


@dataclass(frozen=True)
class ExportJob:
    """One artefact to make.

    `example` holds every contract input, batched and padded to `lengths`; `reference` the model's outputs for it.
    `batch` 0 keeps the batch dim dynamic. A `precision` other than fp32 is held against fp32 on `samples`, if any, in
    the metric of `task`.
    """

    model: nn.Module
    contract: Contract
    lengths: Lengths
    batch: int
    opset: int
    example: dict[str, np.ndarray]
    reference: dict[str, np.ndarray]
    precision: str = "fp32"
    task: Task | None = None
    samples: Sequence[Sample] = ()

    def tensors(self) -> tuple[Any, ...]:
        """The example as torch tensors in contract order; two items where the batch dim is to stay dynamic."""
        import torch

        return tuple(torch.from_numpy(a) for a in self.feed(self.batch or 2).values())

    def feed(self, size: int, start: int = 0) -> dict[str, np.ndarray]:
        """Inputs in contract order for `size` items of the example, from item `start` on."""
        return {
            s.name: repeat(self.example[s.name][start : start + size], size) if s.batched else self.example[s.name]
            for s in self.contract.inputs
        }

    @property
    def items(self) -> int:
        """How many items the example has."""
        return len(self.example[self.contract.features[0].name])

    def dynamic_shapes(self) -> dict[str, Any] | None:
        """The batch dim of every input by name, as torch.export wants it; None where the batch is fixed."""
        import torch

        if self.batch:
            return None
        batch = torch.export.Dim(BATCH, min=1)
        return {s.name: {0: batch} if s.batched else None for s in self.contract.inputs}


@dataclass(frozen=True)
class Exported:
    """What an exporter did: who wrote the file, and what a runtime or a reader of the bundle should know."""

    exporter: str
    options: dict[str, Any] = field(default_factory=dict)


def repeat(array: np.ndarray, size: int) -> np.ndarray:
    """The first `size` items, starting over where there are fewer."""
    return np.ascontiguousarray(array[np.arange(size) % len(array)])


def example_inputs(contract: Contract, lengths: Lengths, samples: Sequence[Sample] | None) -> dict[str, np.ndarray]:
    """A few real samples that fit the bucket, longest first, padded to it; random values where there are none."""
    if samples:
        real = [(s.lengths(contract), s) for s in samples]
        fitting = [(n, s) for n, s in real if all(n[d] <= lengths[d] for d in n)]
        fitting.sort(key=lambda pair: tuple(pair[0].values()), reverse=True)
        if fitting:
            step = max(1, len(fitting) // KEPT_SAMPLES)
            return collate([s for _, s in fitting[::step]][:KEPT_SAMPLES], contract, lengths)
    return random_inputs(contract, lengths, items=2)


def random_inputs(contract: Contract, lengths: Lengths, items: int, seed: int = 0) -> dict[str, np.ndarray]:
    """Standard normal features, valid indices, and real lengths from the whole bucket down to half of it."""
    draw = np.random.default_rng(seed)
    arrays: dict[str, np.ndarray] = {}
    for spec in contract.inputs:
        shape = spec.shape(items, lengths)
        if spec.name in contract.shared_arrays:
            own = contract.shared_arrays[spec.name]
            values = np.zeros(shape, dtype=spec.dtype)
            values[: len(own)] = own
        elif spec.counts:
            longest = lengths[spec.counts]
            shortest = max(contract.shortest.get(spec.counts, 1), longest // 2)
            values = np.linspace(longest, shortest, items).astype(spec.dtype)
        elif spec.dtype == "int64":
            values = random_indices(spec, shape, draw)
            for row, longest in enumerate(np.linspace(1.0, 0.5, items) if spec.padding is not None else ()):
                values[row, round(longest * shape[1]) :] = spec.padding
        else:
            values = draw.standard_normal(shape, dtype=np.float32)
        arrays[spec.name] = values
    return arrays


def random_indices(spec: TensorSpec, shape: tuple[int, ...], draw: np.random.Generator) -> np.ndarray:
    """Valid values (int64) of an index input, none of which is its padding."""
    below = spec.below or 1
    if spec.padding is None:
        return draw.integers(0, below, shape)
    values = draw.integers(0, max(1, below - 1), shape)
    return values + (values >= spec.padding)


def run_model(model: nn.Module, contract: Contract, arrays: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Outputs of the PyTorch model, by contract name."""
    import torch

    with torch.no_grad():
        found = model(*(torch.from_numpy(arrays[s.name]) for s in contract.inputs))
    values = found if isinstance(found, tuple) else (found,)
    return {s.name: v.numpy() for s, v in zip(contract.outputs, values, strict=True)}


def prove(job: ExportJob, outputs: Sequence[np.ndarray], who: str) -> None:
    """Refuses an export whose outputs for the example are not the model's.

    Raises:
        UsageError: with the output and its largest error.
    """
    for spec, found in zip(job.contract.outputs, outputs, strict=True):
        wanted = job.reference[spec.name]
        if found.shape != wanted.shape:
            raise UsageError(f"{who} gives {spec.name} of shape {found.shape}, the model {wanted.shape}: not exported")
        error = np.abs(found - wanted)
        if not (error <= PROOF_ATOL * (1 + np.abs(wanted))).all():
            raise UsageError(f"{who} differs from the model in {spec.name} by {error.max():.2e}: it was not exported")


def write_samples(job: ExportJob, path: Path) -> None:
    """Keeps the example and the model's outputs for it as one .npz."""
    with path.open("wb") as stream:
        np.savez_compressed(stream, allow_pickle=False, **job.example, **job.reference)
