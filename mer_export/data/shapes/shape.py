"""The shapes that samples have, whatever the source of their utterances."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from mer_export.data.dialogues import Dialogue
from mer_export.data.labels import LabelReader
from mer_export.data.samples import Sample
from mer_export.data.spec import DataSpec, Shape
from mer_export.registry import resolve

MakeSamples = Callable[[Dialogue, DataSpec, LabelReader], Iterator[Sample]]
SHAPES: dict[Shape, str] = {
    "dialogue": "mer_export.data.shapes.dialogue:samples",
    "utterance": "mer_export.data.shapes.sequences:samples",
    "context": "mer_export.data.shapes.context:samples",
    "packed": "mer_export.data.shapes.packed:samples",
}
"""What makes samples of a dialogue, as `module:function`: some bring encoders, which others need not import."""


def find_shape(name: Shape) -> MakeSamples:
    """The function that makes samples of this shape."""
    found: MakeSamples = resolve(SHAPES[name])
    return found
