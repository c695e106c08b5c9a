"""The one way from samples to padded arrays, used by training, export, parity, benchmark and serving alike."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from mer_export.contract import Contract, TensorSpec
from mer_export.data.samples import Sample
from mer_export.errors import InputError


def collate(
    samples: Sequence[Sample],
    contract: Contract,
    lengths: Mapping[str, int] | None = None,
    batch: int | None = None,
    real: Sequence[Mapping[str, int]] | None = None,
) -> dict[str, np.ndarray]:
    """Pads samples on the right into the inputs of `contract`, after its `fill`: with zeros, or what an input says.

    Args:
        samples: at least one.
        contract: names, dtypes and dims of the result.
        lengths: fixed sequence lengths (a bucket); None pads to the longest sample.
        batch: fixed batch size, filled with empty items of length 0; None means as many as there are samples.
        real: the samples' own lengths, where they are known already.

    Returns:
        One array per contract input. A missing modality is padding alone. Counts inputs hold the real lengths (int64).

    Raises:
        InputError: a sample is empty, too long, of another width, or holds NaN, infinity or, for an input of integers,
            a fraction.
    """
    real = [s.lengths(contract) for s in samples] if real is None else real
    if lengths is None:
        lengths = longest(real, contract)
    for sample, own in zip(samples, real, strict=True):
        for dim, size in own.items():
            if size > lengths[dim]:
                raise InputError(
                    f"{sample.id}: {size} {dim} are more than the fixed {lengths[dim]}: "
                    f"re-export with --seq-len {dim}={size} or pass --overflow window|truncate"
                )
    size = len(samples) if batch is None else batch
    if len(samples) > size:
        raise InputError(f"{len(samples)} samples do not fit the fixed batch of {size}")
    arrays = {}
    for spec in contract.inputs:
        out = np.zeros(spec.shape(size, lengths), dtype=spec.dtype)
        if spec.padding:
            out.fill(spec.padding)
        if spec.counts:
            given = dict(contract.inputs_of).get(spec.modality or "", frozenset())
            there = [not spec.modality or not given.isdisjoint(s.inputs) for s in samples]
            out[: len(real)] = [r[spec.counts] if t else 0 for r, t in zip(real, there, strict=True)]
        elif not spec.batched:
            _share(out, spec, contract)
        else:
            with np.errstate(over="ignore", invalid="ignore"):  # it is refused
                for row, sample in enumerate(samples):
                    if spec.name in sample.inputs:
                        _place(out[row], sample.inputs[spec.name], spec, sample.id, contract)
            if _suspicious(out, spec) or _cut(samples, spec):
                _refuse_values(samples, spec)
        arrays[spec.name] = out
    return arrays


def longest(real: Sequence[Mapping[str, int]], contract: Contract) -> dict[str, int]:
    """The least lengths that hold samples with the `real` ones."""
    return {d: max(contract.shortest.get(d, 1), *(r[d] for r in real)) for d in contract.sequence_dims}


def _share(out: np.ndarray, spec: TensorSpec, contract: Contract) -> None:
    if spec.name not in contract.shared_arrays:
        raise InputError(f"{spec.name} has no values: give them with the data or the checkpoint")
    values = contract.shared_arrays[spec.name]
    out[: len(values)] = values


def _place(row: np.ndarray, given: np.ndarray, spec: TensorSpec, sample_id: str, contract: Contract) -> None:
    values = np.asarray(given)
    for dim, have, want in zip(spec.dims[1:], values.shape, row.shape, strict=True):
        if have != want and isinstance(dim, int):
            raise InputError(f"{sample_id}: {spec.name} is {have} wide, the model was made for {want}")
    row[tuple([_where(dim, n, contract) for dim, n in zip(spec.dims[1:], values.shape, strict=True)])] = values


def _suspicious(batch: np.ndarray, spec: TensorSpec) -> bool:
    """Whether some value of a whole batch may be one that no sample may hold."""
    if spec.below is not None:
        return bool(batch.size) and not 0 <= batch.min() <= batch.max() < spec.below
    return batch.dtype.kind == "f" and not np.isfinite(batch).all()


def _cut(samples: Sequence[Sample], spec: TensorSpec) -> bool:
    """Whether an input of integers was given numbers that are none; many files store integers as floats."""
    if np.dtype(spec.dtype).kind == "f":
        return False
    given = (np.asarray(s.inputs[spec.name]) for s in samples if spec.name in s.inputs)
    return any(bool((v != np.floor(v)).any()) for v in given if v.dtype.kind == "f")


def _refuse_values(samples: Sequence[Sample], spec: TensorSpec) -> None:
    """Raises InputError for the first sample with a value that it may not hold; padding may be anything."""
    for sample in samples:
        if spec.name not in sample.inputs:
            continue
        values = np.asarray(sample.inputs[spec.name])
        if values.dtype.kind == "f":
            finite = np.isfinite(_as_input(values, spec))
            if not finite.all():
                where = tuple(int(i) for i in np.argwhere(~finite)[0])
                said = f"{sample.id}: {spec.name} holds {values[where]} at {where}"
                raise InputError(f"{said}: repair or drop the modality")
            if _cut([sample], spec):
                value = values[values != np.floor(values)].flat[0]
                raise InputError(f"{sample.id}: {spec.name} holds {value}, the model reads integers there")
        if spec.below is not None and values.size and not 0 <= values.min() <= values.max() < spec.below:
            raise InputError(
                f"{sample.id}: {spec.name} goes from {values.min()} to {values.max()}, the model knows "
                f"0..{spec.below - 1}"
            )


def _as_input(values: np.ndarray, spec: TensorSpec) -> np.ndarray:
    """Numbers as the model gets them: one of float64 may be too large for it."""
    with np.errstate(over="ignore"):
        return values.astype(spec.dtype, copy=False) if np.dtype(spec.dtype).kind == "f" else values


def _where(dim: int | str, size: int, contract: Contract) -> slice:
    fill = contract.fill.get(dim) if isinstance(dim, str) else None
    start = fill.length - size if fill and fill.side == "left" and size < fill.length else 0
    return slice(start, start + size)
