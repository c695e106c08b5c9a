"""An utterance of sequences: one sample with the steps of each modality, or with tokens for its text."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from mer_export.data.dialogues import Dialogue, Utterance
from mer_export.data.labels import LabelReader
from mer_export.data.samples import Sample
from mer_export.data.spec import DataSpec
from mer_export.data.tokens.tokenizer import text_tokens
from mer_export.errors import InputError


def samples(dialogue: Dialogue, spec: DataSpec, labels: LabelReader) -> Iterator[Sample]:
    """One sample per utterance.

    With a tokenizer text is tokens of the sentence. Utterances of a class that the data name and the model does not
    have are left out: a model trained on some emotions reads those.

    Raises:
        InputError: sources of one modality differ in steps, or a label is unknown.
    """
    for utterance in dialogue.utterances:
        if not labels.leaves_out(utterance):
            inputs = frames(utterance, dialogue.where)
            if spec.tokenizer and utterance.sentence is not None and "input_ids" not in inputs:
                inputs["input_ids"] = text_tokens(spec, utterance.sentence, lower=False)
            yield Sample(utterance.id, inputs, (utterance.id,), labels.targets([utterance]), group=dialogue.id)


def frames(utterance: Utterance, where: str) -> dict[str, np.ndarray]:
    """The modalities (steps, width) of an utterance, and what it has ready."""
    sequences = {m: side_by_side(parts, f"{where}: {utterance.id}") for m, parts in utterance.features.items()}
    return sequences | dict(utterance.inputs)


def side_by_side(parts: Sequence[np.ndarray], where: str) -> np.ndarray:
    """Sources of one modality as one array (steps, width): a source of one step is repeated over those beside it."""
    steps = max(len(p) for p in parts)
    wrong = [len(p) for p in parts if len(p) not in (1, steps)]
    if wrong:
        raise InputError(f"{where}: sources of one modality have {steps} and {wrong[0]} steps: give them one length")
    return np.concatenate([np.repeat(p, steps, axis=0) if len(p) < steps else p for p in parts], axis=1)
