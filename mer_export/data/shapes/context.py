"""Utterances with tokens and a context window, from the rows of a dialogue table or the lines of a JSONL file."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from mer_export.data.formats.table.reader import Arrays, Row, dialogues, split_order
from mer_export.data.labels import LabelReader
from mer_export.data.samples import Corpus, Sample
from mer_export.data.shapes.windows import context_windows
from mer_export.data.spec import ContextData, DataSpec
from mer_export.data.tokens.tokenizer import speech_tokens, text_tokens
from mer_export.encoders.sentence import load_sentence_encoder
from mer_export.errors import InputError, UsageError


@dataclass(frozen=True)
class Spoken:
    """What is known of one utterance; each modality as tokens, or as what tokens are made of."""

    name: str
    label: str | int | None = None
    text: Sequence[int] | None = None
    sentence: str = ""
    audio: Sequence[int] | None = None
    recording: str = ""


def read_context(path: Path, spec: DataSpec, rows: Sequence[Row], labels: Sequence[str] | None) -> Corpus:
    """One sample per row of a table, with the window over the sentence vectors of its dialogue.

    Raises:
        UsageError: no `data.dialogue`.
        InputError: arrays do not fit the table, or a label is unknown.
    """
    context = _context(spec)
    if spec.dialogue is None:
        raise UsageError("data.context needs data.dialogue: windows end at the borders of a dialogue")
    if not rows:
        raise InputError(f"{path}: the table {spec.table} has no rows in the chosen splits")
    reader = LabelReader(str(path / str(spec.table)), labels, spec.label_names, [r.cell(spec.label) for r in rows])
    arrays = Arrays(path, list(rows))
    labelled = spec.label in rows[0].table
    splits: dict[str, list[Sample]] = {}
    for (split, dialogue), group in dialogues(list(rows), spec).items():
        name = f"{split}/{dialogue}" if "{split}" in str(spec.table) else dialogue
        vectors = arrays.take(context.vectors, group) if context.vectors else None
        spoken = [
            Spoken(
                name=f"{name}/{r.cell(spec.utterance) if spec.utterance else i}",
                label=r.cell(spec.label) if labelled else None,
                sentence=r.cell(spec.sentence),
                recording=r.cell(context.recording),
            )
            for i, r in enumerate(group)
        ]
        made = samples_of(spoken, vectors, spec, path, reader if labelled else None)
        splits.setdefault(split, []).extend(made)
    info = {"labels": list(reader.labels), "split": spec.split}
    return Corpus(splits={s: splits[s] for s in split_order(splits, spec)}, format="dialogue_table", info=info)


def read_line(line: dict[str, Any], spec: DataSpec, folder: Path, reader: LabelReader) -> Iterator[Sample]:
    """The utterances of one dialogue of a JSONL file.

    An utterance has `text_tokens` or a `sentence`, `audio_tokens` or a `recording` (a wav file beside the JSONL file),
    and `text`, its sentence vector, which all utterances of the dialogue have or none; all are optional. A sentence
    encoder, where there is one, makes the vectors if none are given and every utterance has a sentence.
    """
    name, utterances = str(line["dialogue"]), line["utterances"]
    if not isinstance(utterances, list) or not utterances:
        raise ValueError(f"dialogue {name!r} has no utterances")
    given = [u.get("text") for u in utterances]
    if any(v is None for v in given) and any(v is not None for v in given):
        raise ValueError(f"dialogue {name!r} has sentence vectors for some utterances only")
    vectors = None if given[0] is None else np.asarray(given, dtype=np.float32)
    spoken = [
        Spoken(
            name=str(u.get("id", f"{name}/{i}")),
            label=u.get("label"),
            text=u.get("text_tokens"),
            sentence=str(u.get("sentence", "")),
            audio=u.get("audio_tokens"),
            recording=str(u.get("recording", "")),
        )
        for i, u in enumerate(utterances)
    ]
    known = any("label" in u for u in utterances)
    yield from samples_of(spoken, vectors, spec, folder, reader if known else None)


def samples_of(
    spoken: Sequence[Spoken], vectors: np.ndarray | None, spec: DataSpec, folder: Path, reader: LabelReader | None
) -> list[Sample]:
    """The utterances of one dialogue in speaking order; `vectors` are (utterances, width)."""
    context = _context(spec)
    if vectors is None and context.encoder and all(u.sentence for u in spoken):
        vectors = load_sentence_encoder(context.encoder).encode_all([u.sentence for u in spoken])
    windows: Sequence[np.ndarray | None] = [None] * len(spoken)
    if vectors is not None:
        if vectors.ndim != 2 or vectors.shape[1] != (context.width or vectors.shape[1]):
            raise InputError(
                f"{spoken[0].name}: sentence vectors have shape {vectors.shape}, expected one of width "
                f"{context.width or 'any'} for each utterance"
            )
        windows = list(context_windows(vectors, [0] * len(spoken), context.size, context.align))
    found = []
    for utterance, window in zip(spoken, windows, strict=True):
        inputs = {
            "text_tokens": _text(utterance, spec, context),
            "audio_tokens": _audio(utterance, folder, context),
            "tab_embedding": window,
        }
        labels = None if reader is None else reader.indices([utterance.label])
        given = {n: a for n, a in inputs.items() if a is not None}
        if not given:
            raise InputError(f"{utterance.name} has neither tokens nor anything to make them of: see docs/data.md")
        found.append(Sample(id=utterance.name, inputs=given, units=(utterance.name,), labels=labels))
    return found


def _text(utterance: Spoken, spec: DataSpec, context: ContextData) -> np.ndarray | None:
    if utterance.text is not None:
        return _ids(utterance.text, utterance.name)[: context.max_text]
    if not utterance.sentence or spec.tokenizer is None:
        return None
    return text_tokens(spec.tokenizer, utterance.sentence, context.lower)[: context.max_text]


def _audio(utterance: Spoken, folder: Path, context: ContextData) -> np.ndarray | None:
    if utterance.audio is not None:
        return _ids(utterance.audio, utterance.name)[: context.max_audio]
    if not utterance.recording or context.speech is None:
        return None
    return speech_tokens(context.speech, folder / utterance.recording)[: context.max_audio]


def _ids(values: Sequence[int], name: str) -> np.ndarray:
    ids = np.asarray(values)
    if ids.ndim != 1 or ids.dtype.kind not in "iu" or not len(ids):
        raise InputError(f"{name}: tokens are no list of ids")
    return ids.astype(np.int64)


def _context(spec: DataSpec) -> ContextData:
    assert spec.context is not None
    return spec.context
