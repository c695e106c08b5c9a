"""The smallest sample that still shows a difference."""

from __future__ import annotations

from collections.abc import Callable

from mer_export.contract import Contract
from mer_export.data.samples import Sample
from mer_export.errors import MerError
from runtimes.parity.probes import resized, without


def smallest(sample: Sample, contract: Contract, shows: Callable[[Sample], bool]) -> Sample:
    """`sample` with as few modalities and steps as still show it: each dim is cut to the least power of two that does.

    Args:
        sample: one that shows it.
        contract: what samples have.
        shows: whether a sample does.
    """

    def does(made: Sample) -> bool:
        try:
            return shows(made)
        except MerError:
            return False

    for modality in sample.modalities(contract):
        if len(sample.modalities(contract)) > 1 and does(less := without(sample, contract, [modality])):
            sample = less
    for dim in contract.sequence_dims:
        # Another input holds places in these, which a cut would move.
        if dim in contract.whole or dim in contract.shared_lengths:
            continue
        own = sample.lengths(contract)
        size = contract.shortest.get(dim, 1)
        while size < own[dim]:
            made = resized(sample, contract, own | {dim: size})
            if does(made):
                sample = made
                break
            size *= 2
    return sample
