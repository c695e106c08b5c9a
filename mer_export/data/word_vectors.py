"""Word vectors of emotion words, whatever file they come in."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable
from pathlib import Path
from typing import Any

import numpy as np

from mer_export.contract import Table
from mer_export.data.spec import DataSpec
from mer_export.errors import InputError
from mer_export.untrusted.arrays import load_array
from mer_export.untrusted.impostors import refuse_impostor
from mer_export.untrusted.json_files import read_json
from mer_export.untrusted.pickles import load_pickle

Vectors = dict[str, np.ndarray]


def emotion_table(path: Path | None) -> dict[str, Table]:
    """Values of the shared input `emotions` from any file of word vectors; nothing without one."""
    if path is None:
        return {}
    return {"emotions": {word: tuple(vector.tolist()) for word, vector in read_word_vectors(path).items()}}


def read_word_vectors(path: Path | str, words: Collection[str] | None = None) -> Vectors:
    """Word to vector (float32).

    Args:
        path: a pickled dict (the authors' `glove.emotions.840B.300d.pt`), JSON of the same, npz with `words` and
            `embedding`, or the text form of GloVe (a word and its numbers per line).
        words: only these; text files of many words are then read without keeping the rest.

    Raises:
        InputError: another format, no words, vectors of different widths, or values that are not finite.
    """
    path = Path(path)
    if path.suffix not in READERS:
        raise InputError(f"{path} is not a file of word vectors: its ending must be one of {sorted(READERS)}")
    found = READERS[path.suffix](path, words)
    if not isinstance(found, dict):
        raise InputError(f"{path} holds a {type(found).__name__}, expected words with their vectors")
    vectors: Vectors = {}
    for word, values in found.items():
        if words is None or word in words:
            vectors[str(word)] = _vector(path, word, values)
    widths = {len(v) for v in vectors.values()}
    if len(widths) != 1:
        raise InputError(f"{path} holds vectors of widths {sorted(widths)}, expected words that all have one width")
    return vectors


def vectors_of(spec: DataSpec, folders: Iterable[Path]) -> dict[str, Any]:
    """What `registry.System.complete` wants of word vectors: those of the file that `emotions.vectors` names.

    Args:
        spec: the data section.
        folders: where the file is looked for, in order.

    Returns:
        `vectors` and `capitalise`; empty where no file is named, or the named one is in no folder.

    Raises:
        InputError: the file is damaged, or lies outside of the folder and the user did not say so.
    """
    options = spec.emotions
    if options.vectors is None:
        return {}
    for folder in folders:
        if (folder / options.vectors).is_file():
            file = spec.reach(folder).path(options.vectors, "data.emotions.vectors")
            return {"vectors": read_word_vectors(file), "capitalise": options.capitalise}
    return {}


def _vector(path: Path, word: Any, values: Any) -> np.ndarray:
    try:
        vector = np.asarray(values, dtype=np.float32).ravel()
    except (TypeError, ValueError):
        raise InputError(f"{path}: the vector of {word!r} is not made of numbers") from None
    if not vector.size or not np.isfinite(vector).all():
        raise InputError(f"{path}: the vector of {word!r} is empty or not finite")
    return vector


def _pickle(path: Path, _words: Collection[str] | None) -> Any:
    return load_pickle(path)


def _json(path: Path, _words: Collection[str] | None) -> Any:
    return read_json(path)


def _npz(path: Path, _words: Collection[str] | None) -> Any:
    names, vectors = load_array(path, "words"), load_array(path, "embedding")
    if names.ndim != 1 or vectors.ndim != 2 or len(names) != len(vectors):
        raise InputError(f"{path}: {names.shape} words and an embedding of shape {vectors.shape} do not fit")
    return dict(zip(names.tolist(), vectors, strict=True))


def _text(path: Path, words: Collection[str] | None) -> Any:
    refuse_impostor(path)
    found: dict[str, list[float]] = {}
    try:
        with path.open(encoding="utf-8", errors="replace") as lines:
            for line in lines:
                word, *values = line.rstrip().split(" ")
                if (words is None or word in words) and len(values) > 1:
                    found[word] = [float(v) for v in values]
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror or error}") from None
    except ValueError as error:
        raise InputError(f"{path}: a line is not a word and numbers ({error})") from None
    return found


READERS: dict[str, Callable[[Path, Collection[str] | None], Any]] = {
    ".pt": _pickle,
    ".p": _pickle,
    ".pkl": _pickle,
    ".json": _json,
    ".npz": _npz,
    ".txt": _text,
}
