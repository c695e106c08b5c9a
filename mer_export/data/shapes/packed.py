"""Text of utterances as their whole dialogue, packed (see `dialogue_text`), from sentences and a tokenizer."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np

from mer_export.data.formats.table.reader import Row, dialogues
from mer_export.data.shapes.dialogue_text import Packed, pack
from mer_export.data.spec import DataSpec
from mer_export.data.tokens.tokenizer import load_tokenizer
from mer_export.errors import UsageError

Inputs = dict[str, np.ndarray]


def pack_sentences(sentences: Iterable[str], spec: DataSpec) -> Packed:
    """One dialogue; raises UsageError where `spec` does not say how."""
    if spec.packing is None or spec.tokenizer is None:
        raise UsageError("a dialogue is packed by data.packing and data.tokenizer: set both")
    tokenizer = load_tokenizer(spec.tokenizer)
    ends = tokenizer.encode("")
    words = [tokenizer.encode(s)[1:-1].tolist() for s in sentences]
    return pack(words, spec.packing, int(ends[0]), int(ends[-1]))


def inputs(packed: Packed, utterance: int) -> Inputs:
    """What a sample has of its dialogue."""
    return {"input_ids": packed.ids, "text_span": packed.span(utterance)}


def table_texts(rows: Sequence[Row], spec: DataSpec) -> dict[tuple[int, int], Inputs]:
    """The text inputs of every row of utterance tables, by table and place in it.

    Raises:
        UsageError: without the columns of dialogue and sentence.
    """
    if not spec.dialogue or not spec.sentence or spec.text:
        raise UsageError("data.packing needs the columns data.dialogue and data.sentence, and no data.text")
    found: dict[tuple[int, int], Inputs] = {}
    for group in dialogues(list(rows), spec).values():
        packed = pack_sentences((row.cell(spec.sentence) for row in group), spec)
        found |= {place(row): inputs(packed, number) for number, row in enumerate(group)}
    return found


def place(row: Row) -> tuple[int, int]:
    """A row by its table and its place there."""
    return id(row.table), row.at
