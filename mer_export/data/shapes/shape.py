"""The shapes that samples have, whatever the source of their utterances."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from mer_export.data.dialogues import Dialogue
from mer_export.data.labels import LabelReader
from mer_export.data.samples import Sample
from mer_export.data.shapes import context, dialogue, packed, sequences
from mer_export.data.spec import DataSpec, Shape

SHAPES: dict[Shape, Callable[[Dialogue, DataSpec, LabelReader], Iterator[Sample]]] = {
    "dialogue": dialogue.samples,
    "utterance": sequences.samples,
    "context": context.samples,
    "packed": packed.samples,
}
