"""The authors' directory of IEMOCAP utterances: tokens and context windows, one text file per utterance.

labels_train_t.txt                          name and label id, in the order of the release
GPT2Tokens/, vqw2vTokens/                   token ids
FullBertEmb<c>/, or BertEmb/                context windows, or the sentence vectors that they are made of
Text/, Audio/                               transcripts and wav files, read where there are no tokens
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from mer_export.data.formats.tab.folds import cross_validation, session_five
from mer_export.data.formats.tab.iemocap_release import CLASSES
from mer_export.data.labels import class_indices
from mer_export.data.samples import Corpus, Sample
from mer_export.data.shapes.windows import context_windows
from mer_export.data.spec import ContextData, DataSpec
from mer_export.data.tokens.tokenizer import text_tokens
from mer_export.encoders.running import sentence_vectors, speech_tokens
from mer_export.errors import InputError
from mer_export.untrusted.cells import whole_number

TABLE = "labels_train_t.txt"
NAME = re.compile(r"(\d+)(?:_([FM]))?_s_(\d)_(\w{3})")
CLASS_NAMES = ("angry", "happy", "sad", "neutral")
TEXT, AUDIO, VECTORS = "GPT2Tokens", "vqw2vTokens", "BertEmb"
SPLITS = ("train", "valid", "test")


@dataclass(frozen=True)
class Row:
    """One line of the table. `older` is the name without the speaker, which some embedding files have."""

    name: str
    older: str
    session: int
    speaker: str
    label: int


def detect(path: Path, spec: DataSpec) -> bool:
    """True for a directory with the authors' table of labels."""
    return path.is_dir() and (path / TABLE).is_file()


def files(path: Path, spec: DataSpec) -> list[Path]:
    """The table and everything that stands beside an utterance."""
    windows = f"Full{VECTORS}{(spec.context or ContextData()).size}"
    folders = [path / name for name in (TEXT, AUDIO, windows, VECTORS)]
    return [path / TABLE, *(p for folder in folders if folder.is_dir() for p in sorted(folder.glob("*.txt")))]


def read(path: Path, spec: DataSpec, labels: Sequence[str] | None = None) -> Corpus:
    """All utterances, split as `spec.context.fold` says.

    Raises:
        InputError: a file is missing or damaged, or the model lacks a class.
    """
    context = spec.context or ContextData()
    rows = read_table(path / TABLE)
    classes = class_indices(CLASS_NAMES, labels, str(path))
    windows = read_windows(path, rows, context)
    pairs = zip(rows, windows, strict=True)
    samples = [_sample(path, replace(r, label=int(classes[r.label])), w, spec, context) for r, w in pairs]
    sessions = [r.session for r in rows]
    if context.fold is None:
        split = session_five(sessions, context.seed)
    else:
        split = cross_validation(sessions, [r.speaker for r in rows], context.fold, context.seed)
    parts = {name: [samples[i] for i in getattr(split, name)] for name in SPLITS}
    return Corpus(splits=parts, format="tab", info={"labels": list(labels or CLASS_NAMES), "fold": context.fold})


def read_table(path: Path) -> list[Row]:
    """The utterances in the order of the file, with 4-way classes; raises InputError for a line of another form."""
    found = []
    for number, line in enumerate(_content(path).splitlines(), start=1):
        name, _, said = line.strip().partition("\t")
        match, label = NAME.match(name), whole_number(said.strip())
        if match is None or "/" in name or label is None or label >= len(CLASSES):
            raise InputError(
                f"{path}: line {number} is {line[:80]!r}, expected `name<TAB>label id 0..{len(CLASSES) - 1}`"
            )
        stem = name.rsplit(".", 1)[0]
        older = f"{match[1]}_s_{match[3]}_{match[4]}"
        found.append(Row(stem, older, int(match[3]), match[2] or "", CLASSES[label]))
    return found


def read_windows(path: Path, rows: Sequence[Row], context: ContextData) -> list[np.ndarray | None]:
    """The window of every utterance, from the files or made of sentence vectors; None without either."""
    folder = path / f"Full{VECTORS}{context.size}"
    if folder.is_dir() and context.align == "left":
        return [_vector(_found(folder, row), context.width, 2 * context.size + 1) for row in rows]
    folder = path / VECTORS
    if folder.is_dir():
        vectors = [_vector(_found(folder, row), context.width) for row in rows]
    elif context.encoder and (path / "Text").is_dir():
        vectors = [*sentence_vectors(context.encoder, [_content(_found(path / "Text", row)) for row in rows])]
    else:
        return [None] * len(rows)
    if len({len(v) for v in vectors}) > 1:
        raise InputError(f"{folder} has sentence vectors of several widths: {sorted({len(v) for v in vectors})}")
    stacked = np.stack(vectors) if vectors else np.zeros((0, 1), dtype=np.float32)
    return list(context_windows(stacked, [r.session for r in rows], context.size, context.align))


def _sample(path: Path, row: Row, window: np.ndarray | None, spec: DataSpec, context: ContextData) -> Sample:
    text = _tokens(path / TEXT, row, context.max_text, lambda: _transcript(path, row, spec, context))
    audio = _tokens(path / AUDIO, row, context.max_audio, lambda: _recording(path, row, context))
    inputs = {"text_tokens": text, "audio_tokens": audio, "tab_embedding": window}
    given = {n: a for n, a in inputs.items() if a is not None}
    return Sample(id=row.name, inputs=given, units=(row.name,), labels=np.asarray([row.label], dtype=np.int64))


def _tokens(folder: Path, row: Row, most: int, otherwise: Callable[[], np.ndarray | None]) -> np.ndarray | None:
    """The first tokens; like the original, nothing marks the cut."""
    if not folder.is_dir():
        found = otherwise()
        return None if found is None else found[:most]
    file = _found(folder, row)
    try:
        return np.asarray([int(word) for word in _content(file).split()][:most], dtype=np.int64)
    except ValueError:
        raise InputError(f"{file} holds something that is not a token id") from None


def _transcript(path: Path, row: Row, spec: DataSpec, context: ContextData) -> np.ndarray | None:
    if spec.tokenizer is None or not (path / "Text").is_dir():
        return None
    return text_tokens(spec, _content(_found(path / "Text", row)).strip("\n"), context.lower)


def _recording(path: Path, row: Row, context: ContextData) -> np.ndarray | None:
    if context.speech is None or not (path / "Audio").is_dir():
        return None
    return speech_tokens(context.speech, path / "Audio" / f"{row.name}.wav")


def _found(folder: Path, row: Row) -> Path:
    file = folder / f"{row.name}.txt"
    return file if file.is_file() else folder / f"{row.older}.txt"


def _vector(file: Path, width: int | None, slots: int = 1) -> np.ndarray:
    try:
        values = np.asarray(_content(file).split(), dtype=np.float64).astype(np.float32)
    except ValueError:
        raise InputError(f"{file} holds something that is not a number") from None
    if len(values) % slots or len(values) != slots * (width or len(values) // slots):
        of = f" of {width}" if width else ""
        raise InputError(f"{file} has {len(values)} values, expected {slots} vectors{of}: set data.context.size")
    return values


def _content(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path} cannot be read: {error}") from None
