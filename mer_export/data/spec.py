"""The `data:` section of a configuration: which files hold what."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator


class ArraySource(BaseModel):
    """Feature vectors aligned to the rows of an utterance table.

    `file` (npz or npy, relative to the data directory) may hold `{split}`, which stands for the name of each split.
    `only_with_split` names the split columns these features may be used with: features of a network that was trained
    with the labels of one split say so here, and are refused with any other.

    With `unit: utterance` an array may hold sequences: `offsets` names the array of the same file that says where each
    row's steps begin, a third dim does without. `keys` names an array of strings that the rows are looked up by, with
    what `column` of the table says.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    file: str
    array: str | None = None
    offsets: str | None = None
    keys: str | None = None
    column: str | None = None
    only_with_split: tuple[str, ...] = ()


class DataSpec(BaseModel):
    """How to read a data set. The defaults read every format that describes itself.

    `dataset` chooses where a directory holds two of the authors' data sets. Everything from `table` on describes a
    dialogue table (see docs/data.md).
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    format: str = "auto"
    dataset: Literal["iemocap", "meld", "mosi", "mosei", "sims"] | None = None
    unit: Literal["dialogue", "utterance"] = "dialogue"
    """What one sample is: a dialogue of utterance vectors, or one utterance with a sequence per modality."""
    table: str | None = None
    """Utterance table (csv, tsv, parquet); `{split}` in the name means one file per split."""
    splits: tuple[str, ...] = ()
    """Splits to read, in this order; needed where `table` holds `{split}`."""
    dialogue: str | None = None
    order: str | None = None
    """Column to sort a dialogue's utterances by; None keeps the order of the table."""
    utterance: str | None = None
    speaker: str | None = None
    label: str | None = None
    score: str | None = None
    """Column of numbers that a regression predicts, with `unit: utterance`."""
    tokenizer: str | None = None
    """Vocabulary file, or folder with a vocab.txt, that turns `sentence` into word pieces, with `unit: utterance`."""
    split: str | None = None
    sentence: str | None = None
    row: str | None = None
    """Column with the row in the arrays; None means the position in the table."""
    speakers: int = Field(2, ge=1)
    """Speakers the model tells apart; later ones in a dialogue share the last index."""
    label_names: tuple[str, ...] = ()
    """Class names in index order, or the names of integer labels."""
    text: tuple[ArraySource, ...] = ()
    audio: tuple[ArraySource, ...] = ()
    vision: tuple[ArraySource, ...] = ()

    @field_validator("text", "audio", "vision", mode="before")
    @classmethod
    def _one_or_many(cls, value: object) -> object:
        return [value] if isinstance(value, dict) else value

    @property
    def sources(self) -> dict[str, tuple[ArraySource, ...]]:
        """The modalities that have arrays."""
        return {m: s for m, s in (("text", self.text), ("audio", self.audio), ("vision", self.vision)) if s}
