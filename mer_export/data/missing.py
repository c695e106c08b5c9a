"""Incomplete views: tokens and frames dropped at random, exactly as EMT-DLFR draws them (section 2.1).

The draw depends on the seed of the modality and on the shape of the padded array alone: rates are nested (a step that
is missing at 0.3 is missing at 0.5), and every epoch, model and training seed sees the same view.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np

from mer_export.contract import Lengths
from mer_export.data.samples import Sample
from mer_export.errors import UsageError

MODALITIES = ("text", "audio", "vision")
SEEDS = {"text": 111, "audio": 1111, "vision": 11111}
TOKENS = "input_ids"
UNKNOWN_TOKEN = 100
"""[UNK] in the vocabularies of bert-base-uncased and bert-base-chinese."""


@dataclass(frozen=True, eq=False)
class Incomplete(Sample):
    """A sample some of whose steps are missing: `inputs` are the incomplete view, the one that is predicted from.

    `complete` are the inputs before, `kept` tells by modality which real steps are left (bool).
    """

    complete: Mapping[str, np.ndarray] = field(default_factory=dict)
    kept: Mapping[str, np.ndarray] = field(default_factory=dict)

    @cached_property
    def whole(self) -> Sample:
        """The sample before steps went missing."""
        return Sample(self.id, self.complete, self.units, self.labels)


def incomplete(
    samples: Sequence[Sample],
    rates: Mapping[str, float],
    arrays: Lengths | None = None,
    seeds: Mapping[str, int] | None = None,
    unknown_token: int = UNKNOWN_TOKEN,
) -> list[Incomplete]:
    """Drops a share of the steps of every modality.

    Missing tokens become the unknown token and stay attended to; missing frames become zeros and keep their place. The
    first and the last token, which are special ones, are never dropped.

    Args:
        samples: the whole split, in file order: the draw belongs to the place in it.
        rates: probability that a step is missing, by modality.
        arrays: lengths of the padded arrays the split came from; None takes the longest item.
        seeds: by modality; None takes the published ones.
        unknown_token: id that stands for a missing token.

    Raises:
        UsageError: a rate outside 0..1.
    """
    for modality, rate in rates.items():
        if modality not in MODALITIES or not 0 <= rate <= 1:
            raise UsageError(f"missing rate {rate} of {modality!r}: give 0..1 for any of {list(MODALITIES)}")
    kept = {m: _kept(samples, m, rate, arrays, (seeds or SEEDS)[m]) for m, rate in rates.items()}
    found = []
    for i, sample in enumerate(samples):
        rows = {m: row for m, drawn in kept.items() if (row := drawn[i]) is not None}
        found.append(_drop(sample, rows, unknown_token))
    return found


def _kept(
    samples: Sequence[Sample], modality: str, rate: float, arrays: Lengths | None, seed: int
) -> list[np.ndarray | None]:
    found = [
        s.inputs.get(TOKENS, s.inputs.get(modality)) if modality == "text" else s.inputs.get(modality) for s in samples
    ]
    # Of a dialogue's text there may be several vectors side by side: (vectors, utterances, width).
    lengths = [0 if array is None else array.shape[max(0, array.ndim - 2)] for array in found]
    steps = arrays[f"{modality}_len"] if arrays else max(lengths, default=0)
    draw = np.random.RandomState(seed).uniform(size=(len(samples), steps))
    rows: list[np.ndarray | None] = []
    for sample, array, length, row in zip(samples, found, lengths, draw, strict=True):
        if array is None:
            rows.append(None)
            continue
        if length > steps:
            raise UsageError(f"{sample.id}: {length} steps of {modality} are more than the array's {steps}")
        keep = row[:length] > rate
        if modality == "text" and TOKENS in sample.inputs:
            keep[[0, -1]] = True
        rows.append(keep)
    return rows


def _drop(sample: Sample, kept: dict[str, np.ndarray], unknown_token: int) -> Incomplete:
    inputs = dict(sample.inputs)
    for modality, keep in kept.items():
        if modality == "text" and TOKENS in inputs:
            inputs[TOKENS] = np.where(keep, inputs[TOKENS], unknown_token)
        else:
            inputs[modality] = np.where(keep[:, None], inputs[modality], np.float32(0))
    own = sample.id, inputs, sample.units, sample.labels
    return Incomplete(*own, unread=sample.unread, complete=sample.inputs, kept=kept)
