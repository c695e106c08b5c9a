"""Utterances and what was made of them as the rows of a data set."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from mer_export.data.dialogues import Dialogue, Recording, Utterance
from mer_export.data.formats.parquet.rows import Head, Row, beside, image_names
from mer_export.data.formats.parquet.writer import kind_of
from mer_export.data.labels import LabelReader
from mer_export.data.media.faces import FaceImages
from mer_export.data.shapes.dialogue import speaker_row
from mer_export.data.shapes.sequences import side_by_side
from mer_export.errors import InputError
from runtimes.features.encoded import Outcome
from runtimes.features.plan import stacks


def rows_of(
    dialogue: Dialogue, outcomes: Sequence[Outcome], head: Head, labels: LabelReader, folder: Path
) -> Iterator[Row]:
    """The rows of a dialogue, without utterances that failed; paths read from `folder`."""
    utterances = dialogue.utterances
    targets = labels.targets(utterances)
    said = [u.speaker for u in utterances]
    speakers = speaker_row(said, head.speakers) if any(s is not None for s in said) else None
    kept = [(i, u, o) for i, (u, o) in enumerate(zip(utterances, outcomes, strict=True)) if not o.problem]
    for index, (place, utterance, outcome) in enumerate(kept):
        row: Row = {"dialogue": dialogue.id, "index": index, "utterance": utterance.id, "split": dialogue.split}
        row["speaker"] = None if speakers is None else int(speakers[place])
        row["speaker_name"] = utterance.person
        row["sentence"] = utterance.sentence
        if utterance.recording is not None:
            row |= _recorded(utterance.recording, folder)
        if targets is not None:
            row[kind_of(targets)] = targets[place]
        yield (
            row
            | _stored(utterance, head, dialogue.where, folder)
            | {n: np.ascontiguousarray(a).ravel() for n, a in outcome.features.items()}
        )


def _recorded(recording: Recording, folder: Path) -> Row:
    try:
        name = beside(recording.path, folder)
    except InputError:
        # It was of no use to this run; whoever reads it is told why it may not be read.
        name = recording.name
    return {"recording": name, "start": recording.start, "end": recording.end}


def _stored(utterance: Utterance, head: Head, where: str, folder: Path) -> dict[str, Any]:
    """What the data hold already, as it is."""
    found: dict[str, Any] = {}
    for name, parts in utterance.features.items():
        place = f"{where}: {utterance.id}"
        found[name] = (np.concatenate(parts) if stacks(name, head.unit) else side_by_side(parts, place)).ravel()
    for name, array in utterance.inputs.items():
        found[name] = image_names(array, folder) if isinstance(array, FaceImages) else array.ravel()
    return found
