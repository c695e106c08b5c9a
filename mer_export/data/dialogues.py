"""What an open source holds: dialogues of utterances, before a shape makes samples of them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from mer_export.data.spec import DataSpec
from mer_export.errors import InputError

ALL = "all"
"""Name of the one split of data that are not divided."""
USUAL_ORDER = ("train", "dev", "valid", "test")
MODALITIES = ("text", "audio", "vision")
IMAGES = "images"


@dataclass(frozen=True)
class Ready:
    """An input that data may hold as the model takes it: its dtype, and its dims for one utterance."""

    dtype: str
    ndim: int


READY: dict[str, Ready] = {
    "input_ids": Ready("int64", 1),
    "token_type_ids": Ready("int64", 1),
    "text_span": Ready("int64", 1),
    "text_tokens": Ready("int64", 1),
    "audio_tokens": Ready("int64", 1),
    "tab_embedding": Ready("float32", 1),
    "expression_logits": Ready("float32", 2),
    "gumbel_noise": Ready("float32", 2),
}
"""What has no modality's name: tokens and their places, context windows, values per frame."""


@dataclass(frozen=True, eq=False)
class Utterance:
    """One utterance.

    `label` is a class name or index, `score` a number, `indicators` 1 or 0 by label name; an utterance has one of them
    at most. What labelled data leave open is "" or NaN; None means that the data have no such thing.

    `features` holds arrays (steps, width) float32 by modality, one for each source of it. `inputs` are arrays that go
    into a sample as they are (see `READY`); what a shape would otherwise make of `sentence` or `recording` is then not
    made.
    """

    id: str
    speaker: str | int | None = None
    label: str | int | float | None = None
    score: float | None = None
    indicators: Mapping[str, float] | None = None
    sentence: str | None = None
    recording: Path | None = None
    features: Mapping[str, tuple[np.ndarray, ...]] = field(default_factory=dict)
    inputs: Mapping[str, np.ndarray] = field(default_factory=dict)


@dataclass(frozen=True, eq=False)
class Dialogue:
    """Utterances in speaking order; `where` says in an error message where they stand."""

    id: str
    split: str
    utterances: Sequence[Utterance]
    where: str


class Source(Protocol):
    """Data of one open format: a directory with a table, or a file.

    `spec` is the data section with what the data say of themselves. `splits` are the names of the splits where they are
    known before everything is read. `info` is what a corpus of these data notes.
    """

    spec: DataSpec
    splits: Sequence[str]
    info: Mapping[str, Any]

    def dialogues(self, split: str | None = None) -> Iterator[Dialogue]:
        """The dialogues of one split or of all, those of a split in order; raises UsageError for an unknown split."""
        ...


def ready_array(name: str, values: Any, where: str) -> np.ndarray:
    """A ready input as an array of its own; raises InputError for values of another kind."""
    ready = READY[name]
    try:
        array = np.asarray(values)
    except ValueError:
        array = np.empty(0, dtype=object)
    kinds = "iu" if ready.dtype == "int64" else "iuf"
    if array.ndim != ready.ndim or array.dtype.kind not in kinds or not array.size:
        what = "ids" if ready.dtype == "int64" else "numbers"
        raise InputError(f"{where}: {name} must be {what} in {ready.ndim} dims, they are {array.dtype} {array.shape}")
    return array.astype(ready.dtype)
