"""What an open source holds: dialogues of utterances, before a shape makes samples of them."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from mer_export.data.spec import DataSpec
from mer_export.errors import InputError
from mer_export.marks import Marks, mark_of
from mer_export.untrusted.places import Reach

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


@dataclass(frozen=True)
class Recording:
    """A file of sound, pictures or both that an utterance names, from `start` to `end` in seconds (None: its ends).

    Where it lies is asked when it is read: a name that leads elsewhere harms nobody before. `where` names the utterance
    in messages.
    """

    name: str
    where: str
    reach: Reach
    start: float | None = None
    end: float | None = None

    @property
    def path(self) -> Path:
        """Where it lies; raises InputError for a URL, and for a path that leads out of the data."""
        if re.match(r"[A-Za-z][A-Za-z0-9+.-]+://", self.name):
            raise InputError(f"{self.where} names {self.name}, nothing is fetched: download it and name the file")
        return self.reach.path(self.name, self.where)


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
    made. `row` is its row in a table, which error messages name.
    """

    id: str
    speaker: str | int | None = None
    label: str | int | float | None = None
    score: float | None = None
    indicators: Mapping[str, float] | None = None
    sentence: str | None = None
    recording: Recording | None = None
    features: Mapping[str, tuple[np.ndarray, ...]] = field(default_factory=dict)
    inputs: Mapping[str, np.ndarray] = field(default_factory=dict)
    row: int | None = None
    speaker_name: str | None = None
    """Who `speaker` is, where that is an index within the dialogue and the data know the name too."""
    unreadable: bool = False
    """Whether a file that it names cannot be read: what is left of it tells of its neighbours' context, and answers
    nothing."""

    @property
    def person(self) -> str | None:
        """Who speaks, under the same name in every dialogue; None where the data do not say."""
        return self.speaker if isinstance(self.speaker, str) else self.speaker_name


@dataclass(frozen=True, eq=False)
class Dialogue:
    """Utterances in speaking order; `where` says in an error message where they stand.

    Raises:
        InputError: a name that cannot be written, as an answer has to name it.
    """

    id: str
    split: str
    utterances: Sequence[Utterance]
    where: str

    def __post_init__(self) -> None:
        check_names((self.id, self.split, *(u.id for u in self.utterances)), self.where)

    def only(self, places: Sequence[int]) -> Dialogue:
        """The dialogue with the utterances at these places."""
        if len(places) == len(self.utterances):
            return self
        return replace(self, utterances=[self.utterances[i] for i in places])


def speaker_of(value: Any) -> str | int | None:
    """Who speaks, as a file says it: a whole number is an index, however it is written."""
    found: str | int | None = int(value) if isinstance(value, float) and value.is_integer() else value
    return found


def name_of(value: Any, otherwise: str) -> str:
    """A name as a file says it; null is none."""
    return otherwise if value is None else str(value)


def check_names(names: Iterable[str], where: str) -> None:
    """Raises InputError for half of a surrogate pair: JSON and names of files can hold one, files of answers cannot."""
    for name in names:
        try:
            name.encode()
        except UnicodeEncodeError:
            shown = where.encode("utf-8", "backslashreplace").decode()
            raise InputError(f"{shown}: the name {name!r} cannot be written as UTF-8: rename it") from None


def distinct(dialogues: Iterable[Dialogue], apart: bool, seen: Marks | None = None) -> Iterator[Dialogue]:
    """Passes dialogues on as long as no name stands for two things.

    Eight bytes are kept of every name, so a file of any size may be streamed.

    Args:
        dialogues: in any order.
        apart: whether utterances stand on their own, so that those of one dialogue may lie in several splits.
        seen: the names are noted there.

    Raises:
        InputError: a dialogue comes twice, or an utterance of it does.
    """
    seen = Marks() if seen is None else seen
    for dialogue in dialogues:
        twice = _repeated([(dialogue.id, u.id) for u in dialogue.utterances], seen if apart else Marks())
        if twice is not None:
            again = dialogue.utterances[twice]
            rows = [str(u.row) for u in dialogue.utterances[: twice + 1] if u.id == again.id and u.row is not None]
            place = f" (row {' and row '.join(rows)})" if rows else ""
            raise InputError(
                f"{dialogue.where}: utterance {again.id!r} of dialogue {dialogue.id!r} is there twice{place}: give "
                "each its own id; of a table, name all columns that tell dialogues apart in data.dialogue"
            )
        if _repeated([(dialogue.split if apart else "", dialogue.id)], seen) is not None:
            raise InputError(
                f"{dialogue.where}: dialogue {dialogue.id!r} is there twice: put its utterances together, or give each "
                "dialogue its own id"
            )
        yield dialogue


def _repeated(names: Iterable[tuple[str, str]], seen: Marks) -> int | None:
    """The place of the first of `names` that was there before; notes the others."""
    return next((place for place, name in enumerate(names) if not seen.new(mark_of(*name))), None)


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
