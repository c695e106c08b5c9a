"""A dialogue of vectors: one sample with a vector per utterance and modality, and who speaks."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from mer_export.data.dialogues import MODALITIES, Dialogue
from mer_export.data.labels import LabelReader, speaker_indices
from mer_export.data.samples import Sample
from mer_export.data.shapes.sequences import side_by_side
from mer_export.data.spec import DataSpec
from mer_export.errors import InputError


def samples(dialogue: Dialogue, spec: DataSpec, labels: LabelReader) -> Iterator[Sample]:
    """One sample: `text` (vectors, n, width), `audio` and `vision` (n, width), `speaker` (n).

    The steps and sources of text are its vectors, those of another modality are put side by side. Of utterances that
    cannot be read the inputs have no row, unless nothing of the dialogue can be: then who speaks is all that it has.

    Raises:
        InputError: a modality is there for some utterances only, or differs in shape.
    """
    inputs = {}
    places = [i for i, u in enumerate(dialogue.utterances) if not u.unreadable]
    for modality in MODALITIES:
        vectors = utterance_arrays(dialogue.only(places), modality)
        if vectors is not None:
            inputs[modality] = np.ascontiguousarray(vectors.swapaxes(0, 1)) if modality == "text" else vectors[:, 0]
    speakers = [u.speaker for u in dialogue.utterances]
    if any(s is not None for s in speakers):
        inputs["speaker"] = speaker_row(speakers, spec.told_apart)[places or slice(None)]
    units = tuple(u.id for u in dialogue.utterances)
    unread = tuple(i for i in range(len(units)) if i not in places) if places else ()
    yield Sample(dialogue.id, inputs, units, labels.targets(dialogue.utterances), unread=unread)


def utterance_arrays(dialogue: Dialogue, modality: str) -> np.ndarray | None:
    """The vectors (utterances, vectors, width) of a modality, float32; None where no utterance has any."""
    given = [u.features.get(modality) for u in dialogue.utterances]
    if all(parts is None for parts in given):
        return None
    arrays = []
    for utterance, parts in zip(dialogue.utterances, given, strict=True):
        where = f"{dialogue.where}: {utterance.id}"
        if parts is None:
            raise InputError(f"{dialogue.where}: dialogue {dialogue.id!r} has {modality} for some utterances only")
        arrays.append(_stacked(parts, where) if modality == "text" else side_by_side(parts, where))
    shapes = {a.shape for a in arrays}
    if len(shapes) > 1 or (modality != "text" and len(arrays[0]) != 1):
        raise InputError(
            f"{dialogue.where}: dialogue {dialogue.id!r} has {modality} of shapes {sorted(shapes)}, expected one "
            "vector per utterance: sequences need data.unit=utterance"
        )
    return np.stack(arrays)


def _stacked(parts: Sequence[np.ndarray], where: str) -> np.ndarray:
    widths = {p.shape[1] for p in parts}
    if len(widths) > 1:
        raise InputError(f"{where}: text vectors of one utterance differ in width: {sorted(widths)}")
    return np.concatenate(parts)


def speaker_row(values: Sequence[str | int | None], speakers: int | None) -> np.ndarray:
    """The index (utterances) int64 of who speaks, of names by their first appearance in the dialogue."""
    if all(isinstance(v, int) for v in values):
        return np.asarray(values, dtype=np.int64)
    return speaker_indices([str(v) for v in values], speakers)
