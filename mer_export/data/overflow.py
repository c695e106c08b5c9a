"""What happens to a dialogue that is longer than the model's fixed length."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Literal

from mer_export.contract import Contract
from mer_export.data.samples import Sample
from mer_export.errors import InputError

Policy = Literal["error", "window", "truncate"]


@dataclass(frozen=True)
class Piece:
    """A part of a sample that fits.

    `keep` are the rows of this piece's output that count; `start` is the unit of the whole sample that the first kept
    row belongs to; `lengths` are its real ones.
    """

    sample: Sample
    keep: slice
    start: int
    lengths: Mapping[str, int]


def fit(sample: Sample, contract: Contract, longest: Mapping[str, int], policy: Policy = "error") -> list[Piece]:
    """Cuts a sample into pieces no longer than `longest`; one that fits comes back as it is.

    Args:
        sample: one item.
        contract: names the sequence dims; units are counted along that of the output.
        longest: longest length of each sequence dim.
        policy: `error` raises; `truncate` keeps the last utterances, earlier ones get no prediction (of a
            single utterance its last steps, its first where the model fills on the right); `window` takes
            overlapping windows (half a window apart) and each unit from the one where it is most central. A model
            whose answer depends on the whole dialogue sees less context in both.

    Raises:
        InputError: the sample is too long and `policy` is `error`, or is too long along a dim that has no units.
    """
    lengths = sample.lengths(contract)
    over = [d for d, n in lengths.items() if n > longest[d]]
    if not over:
        return [Piece(sample, slice(0, len(sample.units)), 0, lengths)]
    dim = over[0]
    size, limit = lengths[dim], longest[dim]
    if policy == "error":
        raise InputError(
            f"{sample.id}: {size} {dim} are more than the fixed {limit}: "
            f"re-export with --seq-len {dim}={size} or pass --overflow window|truncate"
        )
    if uncut := [d for d in over if d in contract.whole]:
        raise InputError(
            f"{sample.id}: {lengths[uncut[0]]} {uncut[0]} are more than {longest[uncut[0]]}, and cannot be cut: "
            f"export a longer bucket with --seq-len {uncut[0]}={lengths[uncut[0]]}"
        )
    if contract.unit_dim is None and policy == "truncate" and dim not in contract.shared_lengths:
        for dim in over:
            begin = 0 if _keeps_start(contract, dim) else lengths[dim] - longest[dim]
            sample = _cut_steps(sample, contract, dim, begin, begin + longest[dim])
        return [_piece(sample, contract, slice(0, len(sample.units)), 0)]
    if over != [contract.unit_dim]:
        raise InputError(f"{sample.id}: {size} {dim} are more than {limit}, and {policy} cuts whole utterances only")
    if policy == "truncate":
        return [_piece(_cut(sample, contract, dim, size - limit, size), contract, slice(0, limit), size - limit)]
    return [
        _piece(_cut(sample, contract, dim, begin, begin + limit), contract, slice(first - begin, last - begin), first)
        for begin, first, last in windows(size, limit)
    ]


def _piece(sample: Sample, contract: Contract, keep: slice, start: int) -> Piece:
    return Piece(sample, keep, start, sample.lengths(contract))


def windows(size: int, limit: int) -> list[tuple[int, int, int]]:
    """Windows over `size` units as (begin, first, last): a window of `limit` from `begin`, kept for first..last-1.

    Windows start half a window apart, the last one ends with the data; borders lie midway between window centres.
    """
    step = max(1, limit // 2)
    begins = [*range(0, size - limit, step), size - limit]
    borders = [(a + b + limit + 1) // 2 for a, b in pairwise(begins)]
    return list(zip(begins, [0, *borders], [*borders, size], strict=True))


def _keeps_start(contract: Contract, dim: str) -> bool:
    """A sequence that is filled on the right loses its end, every other one its beginning."""
    return dim in contract.keeps_start or (dim in contract.fill and contract.fill[dim].side == "right")


def _cut(sample: Sample, contract: Contract, dim: str, begin: int, end: int) -> Sample:
    """The units from `begin` to `end`."""
    labels = None if sample.labels is None else sample.labels[begin:end]
    sample = _cut_steps(sample, contract, dim, begin, end)
    return replace(sample, units=sample.units[begin:end], labels=labels)


def _cut_steps(sample: Sample, contract: Contract, dim: str, begin: int, end: int) -> Sample:
    """The steps from `begin` to `end` of every input along `dim`."""
    inputs = dict(sample.inputs)
    for spec in contract.features:
        if spec.name in inputs and dim in spec.dims:
            index = [slice(begin, end) if d == dim else slice(None) for d in spec.dims[1:]]
            inputs[spec.name] = inputs[spec.name][tuple(index)]
    return replace(sample, inputs=inputs)
