"""What a data set says of the network that takes it: labels, modalities, widths, speakers, lengths."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import Literal

import numpy as np

from mer_export.data.dialogues import MODALITIES
from mer_export.data.samples import Corpus, Sample
from mer_export.errors import InputError
from mer_export.task import known_units

Kind = Literal["classification", "multilabel", "regression"]
UTTERANCES = "utterances"
TOKENS = "input_ids"


@dataclass
class Facts:
    """`shapes` are the axes before the last of each input by how often they occur; of text in dialogues (vectors, n).

    `labelled` counts the labelled units of each split, `scores` are the least and the largest score.
    """

    labels: tuple[str, ...] = ()
    kind: Kind | None = None
    scores: tuple[float, float] = (0.0, 0.0)
    speakers: int = 1
    widths: dict[str, int] = field(default_factory=dict)
    shapes: dict[str, Counter[tuple[int, ...]]] = field(default_factory=dict)
    labelled: dict[str, int] = field(default_factory=dict)

    @property
    def modalities(self) -> tuple[str, ...]:
        """The modalities that come as vectors, in the fixed order."""
        return tuple(m for m in MODALITIES if m in self.widths)

    def steps(self, name: str) -> tuple[int, int]:
        """The median and the largest number of steps of an input."""
        sizes = sorted(shape[-1] for shape in self.shapes[name].elements())
        return sizes[(len(sizes) - 1) // 2], sizes[-1]


def facts(corpus: Corpus) -> Facts:
    """Looks at every sample.

    Raises:
        InputError: an input has two widths, or labels are of several kinds.
    """
    found = Facts(labels=tuple(corpus.info.get("labels", ())))
    first: dict[str, str] = {}
    for split, samples in corpus.splits.items():
        found.labelled[split] = 0
        for sample in samples:
            _note_labels(found, sample, split)
            for name, array in sample.inputs.items():
                if isinstance(array, np.ndarray):
                    _note_input(found, sample, name, array, first)
    return found


def _note_labels(found: Facts, sample: Sample, split: str) -> None:
    if sample.labels is None or not (known := known_units(sample.labels)).any():
        return
    kind: Kind = "classification"
    if sample.labels.dtype.kind == "f":
        kind = "multilabel" if sample.labels.ndim == 2 else "regression"
    if found.kind not in (None, kind):
        raise InputError(f"{sample.id}: labels are of several kinds, {found.kind} and {kind}: keep one of them")
    if kind == "regression":
        own = sample.labels[known]
        low, high = (float(own.min()), float(own.max()))
        found.scores = (low, high) if found.kind is None else (min(low, found.scores[0]), max(high, found.scores[1]))
    found.kind = kind
    found.labelled[split] += int(known.sum())


def _note_input(found: Facts, sample: Sample, name: str, array: np.ndarray, first: dict[str, str]) -> None:
    if name == "speaker":
        found.speakers = max(found.speakers, int(array.max()) + 1)
    vectors = array.dtype.kind == "f"
    if vectors:
        width = found.widths.setdefault(name, array.shape[-1])
        if array.shape[-1] != width:
            raise InputError(
                f"{name} is {width} wide in {first[name]} and {array.shape[-1]} in {sample.id}: features of a modality "
                "have one width"
            )
    first.setdefault(name, sample.id)
    found.shapes.setdefault(name, Counter())[array.shape[:-1] if vectors and array.ndim > 1 else array.shape[-1:]] += 1
