"""A packed dialogue: one sample per utterance, whose text is its whole dialogue (see `dialogue_text`)."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import numpy as np

from mer_export.data.dialogues import Dialogue
from mer_export.data.labels import LabelReader
from mer_export.data.samples import Sample
from mer_export.data.shapes.dialogue_text import Packed, pack
from mer_export.data.shapes.sequences import frames
from mer_export.data.spec import DataSpec
from mer_export.data.tokens.tokenizer import load_tokenizer
from mer_export.errors import InputError, UsageError

TEXT = {"input_ids", "text_span"}


def samples(dialogue: Dialogue, spec: DataSpec, labels: LabelReader) -> Iterator[Sample]:
    """One sample per utterance: `input_ids` of the dialogue, `text_span` of the utterance, and its own frames.

    Utterances of a class that the data name and the model does not have are left out; their words stay in the dialogue.

    Raises:
        UsageError: there are sentences, and `spec` does not say how to pack them.
        InputError: tokens are ready for some utterances only, sources of one modality differ in steps, or a label is
            unknown.
    """
    utterances = dialogue.utterances
    ready = [u.inputs.keys() & TEXT for u in utterances]
    if any(ready) and any(names != TEXT for names in ready):
        raise InputError(f"{dialogue.where}: dialogue {dialogue.id!r} has {sorted(TEXT)} for some utterances only")
    said = not any(ready) and any(u.sentence is not None for u in utterances)
    packed = pack_sentences((u.sentence or "" for u in utterances), spec) if said else None
    for number, utterance in enumerate(utterances):
        if not labels.leaves_out(utterance):
            text = inputs(packed, number) if packed else {}
            found = text | frames(utterance, dialogue.where)
            yield Sample(utterance.id, found, (utterance.id,), labels.targets([utterance]), group=dialogue.id)


def pack_sentences(sentences: Iterable[str], spec: DataSpec) -> Packed:
    """One dialogue; raises UsageError where `spec` does not say how."""
    if spec.packing is None or spec.tokenizer is None:
        raise UsageError("a dialogue is packed by data.packing and data.tokenizer: set both")
    tokenizer = load_tokenizer(spec.tokenizer, spec.tokenizer_state)
    ends = tokenizer.encode("")
    words = [tokenizer.encode(s)[1:-1].tolist() for s in sentences]
    return pack(words, spec.packing, int(ends[0]), int(ends[-1]))


def inputs(packed: Packed, utterance: int) -> dict[str, np.ndarray]:
    """What a sample has of its dialogue."""
    return {"input_ids": packed.ids, "text_span": packed.span(utterance)}
