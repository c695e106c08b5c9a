"""Tokens with context: one sample per utterance, with the sentence vectors of its neighbours in the dialogue."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from mer_export.data.dialogues import Dialogue, Utterance
from mer_export.data.labels import LabelReader
from mer_export.data.samples import Sample
from mer_export.data.shapes.dialogue import utterance_arrays
from mer_export.data.shapes.windows import context_windows
from mer_export.data.spec import ContextData, DataSpec
from mer_export.data.tokens.tokenizer import text_tokens
from mer_export.encoders.running import sentence_vectors, speech_tokens
from mer_export.encoders.sounds import Sounds
from mer_export.errors import InputError

WINDOW = "tab_embedding"


def samples(dialogue: Dialogue, spec: DataSpec, labels: LabelReader) -> Iterator[Sample]:
    """One sample per utterance: `text_tokens`, `audio_tokens`, and `tab_embedding` of its neighbours' sentence vectors.

    Tokens that are not there are made of the sentence and the recording. The sentence vector of an utterance is its
    `text`; without any, a sentence encoder makes them where every utterance has a sentence. An utterance that cannot be
    read has nothing; its sentence vector, where it has one, stands in the windows of the others.

    Raises:
        InputError: sentence vectors of another width or of some utterances only, or a sentence or recording that
            nothing makes tokens of.
    """
    context = spec.context or ContextData()
    windows, sounds = _windows(dialogue, context), Sounds()
    for utterance, window in zip(dialogue.utterances, windows, strict=True):
        if utterance.unreadable:
            yield Sample(utterance.id, {}, (utterance.id,), labels.targets([utterance]), group=dialogue.id)
            continue
        made = {
            "text_tokens": _text(utterance, spec, context),
            "audio_tokens": _audio(utterance, context, sounds),
            WINDOW: utterance.inputs.get(WINDOW, window),
        }
        inputs = {n: a for n, a in made.items() if a is not None}
        if not inputs and (utterance.sentence or utterance.recording):
            raise InputError(f"{utterance.id} has neither tokens nor anything to make them of: see docs/data.md")
        yield Sample(utterance.id, inputs, (utterance.id,), labels.targets([utterance]), group=dialogue.id)


def _windows(dialogue: Dialogue, context: ContextData) -> Sequence[np.ndarray | None]:
    utterances = dialogue.utterances
    given = any("text" in u.features for u in utterances)
    # One that cannot be read may lack the sentence vector that others have.
    places = [i for i, u in enumerate(utterances) if not (given and u.unreadable and "text" not in u.features)]
    vectors = _vectors(dialogue.only(places), context)
    found: list[np.ndarray | None] = [None] * len(utterances)
    if vectors is None:
        return found
    if vectors.ndim != 2 or vectors.shape[1] != (context.width or vectors.shape[1]):
        raise InputError(
            f"{dialogue.where}: sentence vectors of dialogue {dialogue.id!r} have shape {vectors.shape}, expected one "
            f"of width {context.width or 'any'} for each utterance"
        )
    windows = context_windows(vectors, [0] * len(places), context.size, context.align)
    for place, window in zip(places, windows, strict=True):
        found[place] = window
    return found


def _vectors(dialogue: Dialogue, context: ContextData) -> np.ndarray | None:
    given = utterance_arrays(dialogue, "text")
    if given is not None:
        return given[:, 0] if given.shape[1] == 1 else given
    said = [u.sentence for u in dialogue.utterances if u.sentence]
    ready = all(WINDOW in u.inputs for u in dialogue.utterances)
    if ready or context.encoder is None or len(said) < len(dialogue.utterances):
        return None
    return sentence_vectors(context.encoder, said)


def _text(utterance: Utterance, spec: DataSpec, context: ContextData) -> np.ndarray | None:
    if "text_tokens" in utterance.inputs:
        return utterance.inputs["text_tokens"][: context.max_text]
    if not utterance.sentence or spec.tokenizer is None:
        return None
    return text_tokens(spec, utterance.sentence, context.lower)[: context.max_text]


def _audio(utterance: Utterance, context: ContextData, sounds: Sounds) -> np.ndarray | None:
    said = utterance.recording
    # Also of one that is not read: a name that leads out of the data is refused.
    path = said.path if said else None
    if "audio_tokens" in utterance.inputs:
        return utterance.inputs["audio_tokens"][: context.max_audio]
    if said is None or path is None or context.speech is None:
        return None
    return speech_tokens(context.speech, path, sounds.read(said))[: context.max_audio]
