"""Inputs to run a model on when nobody asks anything: a few real samples, or random values."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from mer_export.bucket import Bucket
from mer_export.contract import Contract, TensorSpec
from mer_export.data.collate import collate
from mer_export.data.samples import Sample, readable

KEPT_SAMPLES = 4
"""How many example items are kept beside an export."""


def repeat(array: np.ndarray, size: int) -> np.ndarray:
    """The first `size` items, starting over where there are fewer."""
    return np.ascontiguousarray(array[np.arange(size) % len(array)])


def example_inputs(contract: Contract, bucket: Bucket, samples: Sequence[Sample] | None) -> dict[str, np.ndarray]:
    """A few real samples that fit the bucket, longest first, padded to it; random values where there are none."""
    if samples:
        real = [(s.lengths(contract), s) for s in readable(samples, contract)]
        fitting = [(n, s) for n, s in real if bucket.holds(n)]
        fitting.sort(key=lambda pair: tuple(pair[0].values()), reverse=True)
        if fitting:
            step = max(1, len(fitting) // KEPT_SAMPLES)
            return collate([s for _, s in fitting[::step]][:KEPT_SAMPLES], contract, bucket)
    return random_inputs(contract, bucket, items=2)


def random_inputs(contract: Contract, bucket: Bucket, items: int, seed: int = 0) -> dict[str, np.ndarray]:
    """Standard normal features, valid indices, and real lengths from the whole bucket down to half of it."""
    draw = np.random.default_rng(seed)
    arrays: dict[str, np.ndarray] = {}
    for spec in contract.inputs:
        shape = spec.shape(items, bucket)
        if spec.name in contract.shared_arrays:
            own = contract.shared_arrays[spec.name]
            values = np.zeros(shape, dtype=spec.dtype)
            values[: len(own)] = own
        elif spec.counts:
            longest = bucket[spec.counts]
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
