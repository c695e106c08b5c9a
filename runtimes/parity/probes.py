"""Samples made from real ones that hit what test sets leave out: one unit, a full bucket, a missing modality."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import combinations

import numpy as np

from mer_export.bucket import Bucket
from mer_export.contract import Contract
from mer_export.data.samples import Sample


def resized(sample: Sample, contract: Contract, lengths: Mapping[str, int]) -> Sample:
    """`sample` cut, or repeated, to exactly these lengths; without labels."""
    inputs = dict(sample.inputs)
    for spec in contract.features:
        if spec.name in inputs:
            array = inputs[spec.name]
            for axis, dim in enumerate(spec.dims[1:]):
                if isinstance(dim, str):
                    array = np.take(array, np.arange(lengths[dim]) % array.shape[axis], axis=axis)
            inputs[spec.name] = array
    count = units(contract, lengths)
    name = f"{sample.id} ({Bucket(lengths).name})"
    return replace(sample, id=name, inputs=inputs, units=tuple(f"{name}/{i}" for i in range(count)), labels=None)


def units(contract: Contract, lengths: Mapping[str, int]) -> int:
    """How many units a sample of these lengths has: the rows of the first output."""
    return lengths[contract.unit_dim] if contract.unit_dim else 1


def without(sample: Sample, contract: Contract, modalities: Sequence[str]) -> Sample:
    """`sample` with these modalities missing; without labels."""
    gone = {s.name for s in contract.features if s.modality in modalities}
    name = f"{sample.id} (no {', '.join(modalities)})"
    inputs = {n: a for n, a in sample.inputs.items() if n not in gone}
    names = tuple(f"{name}/{i}" for i in range(len(sample.units)))
    return replace(sample, id=name, inputs=inputs, units=names, labels=None)


def probes(samples: Sequence[Sample], contract: Contract, buckets: Sequence[Bucket]) -> list[Sample]:
    """One-unit, every-bucket-full and every-missing-modality versions of the most complete, longest of `samples`."""
    if not samples:
        return []
    base = max(samples, key=lambda s: (len(s.modalities(contract)), len(s.units)))
    single = Bucket({d: contract.shortest.get(d, 1) for d in contract.sequence_dims})
    shapes = [single, *(b for b in buckets if b != single)]
    made = [resized(base, contract, shape) for shape in shapes]
    smallest = min(buckets, default=single)
    short = resized(base, contract, {d: min(n, smallest[d]) for d, n in base.lengths(contract).items()})
    present = base.modalities(contract)
    return made + [without(short, contract, gone) for n in range(1, len(present)) for gone in combinations(present, n)]
