"""From transcripts and wav files to token ids, whatever the kind of tokenizer."""

from __future__ import annotations

import shutil
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from mer_export.data.spec import DataSpec
from mer_export.data.tokens.bytepairs import MERGES, VOCABULARY, BytePairs
from mer_export.data.tokens.wordpiece import WordPiece

if TYPE_CHECKING:
    from mer_export.bundle import Bundle, Commit

FOLDER = "tokenizer"
"""Where a bundle keeps them."""
PARTS = {
    "speech": (f"{FOLDER}/speech", ("config.json", "model.onnx", "dict.txt")),
    "encoder": (f"{FOLDER}/sentences", ("config.json", "model.onnx", "vocab.txt")),
}
"""Folders that `data.context` names: where a bundle keeps each, and its files."""
TEXT_FILES = ("vocab.txt", VOCABULARY, MERGES)


def tokenizer_files(spec: DataSpec) -> dict[str, Path]:
    """The files of a data section's tokenizers by their place in a bundle.

    Raises:
        InputError: a text tokenizer that cannot be read.
    """
    found: dict[str, Path] = {}
    if spec.tokenizer:
        load_tokenizer(spec.tokenizer)
        given = Path(spec.tokenizer)
        files = {n: given / n for n in TEXT_FILES} if given.is_dir() else {TEXT_FILES[0]: given}
        found |= {f"{FOLDER}/{n}": p for n, p in files.items()}
    for part, (place, names) in PARTS.items():
        folder = getattr(spec.context, part, None)
        found |= {f"{place}/{n}": Path(folder) / n for n in names} if folder else {}
    return {name: path for name, path in found.items() if path.is_file()}


def keep_tokenizers(change: Commit, spec: DataSpec) -> None:
    """Copies the tokenizers into a bundle, so that it takes transcripts and recordings wherever it is."""
    for name, path in tokenizer_files(spec).items():
        shutil.copyfile(path, change.file(name))


def with_kept(spec: DataSpec, bundle: Bundle) -> DataSpec:
    """The data section with the tokenizers that the bundle keeps."""
    names = [n for n in bundle.manifest.files if n.startswith(f"{FOLDER}/")]
    for name in names:
        bundle.path(name)
    changed: dict[str, Any] = {}
    if any(f"{FOLDER}/{n}" in names for n in TEXT_FILES):
        changed["tokenizer"] = str(bundle.root / FOLDER)
    kept = {
        part: str(bundle.root / place) for part, (place, (first, *_)) in PARTS.items() if f"{place}/{first}" in names
    }
    if spec.context and kept:
        changed["context"] = spec.context.model_copy(update=kept)
    return spec.model_copy(update=changed)


@lru_cache(maxsize=4)
def load_tokenizer(path: str) -> BytePairs | WordPiece:
    """Byte pairs of a folder with vocab.json, else the word pieces of a vocab.txt; raises InputError for neither."""
    return BytePairs.load(path) if (Path(path) / VOCABULARY).is_file() else WordPiece.load(path)


def text_tokens(tokenizer: str, sentence: str, lower: bool = True) -> np.ndarray:
    """Ids (int64) of a sentence with both special tokens."""
    return load_tokenizer(tokenizer).encode(sentence.lower() if lower else sentence)


def speech_tokens(folder: str, recording: Path) -> np.ndarray:
    """Ids (int64) of a wav file through the speech tokeniser of a folder."""
    from mer_export.encoders.speech import load_speech_tokenizer

    return load_speech_tokenizer(folder).encode_file(recording)
