"""The feature pickles of CMERC and M3NET, as their authors distribute them (both data sets).

`<DATA>_features*.pkl` holds dicts by dialogue id (ids of the videos, speakers, labels, text, audio, visual, sentences)
and the two splits; `<data>_features_roberta.pkl` holds four RoBERTa vectors per utterance. Public repositories:
HITSZ-HLT/CMERC, feiyuchen7/M3NET.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from mer_export.data.labels import class_indices
from mer_export.data.samples import Corpus, Sample
from mer_export.data.spec import DataSpec
from mer_export.errors import InputError, UsageError
from mer_export.untrusted.contents import together
from mer_export.untrusted.pickles import load_pickle

SPEAKERS, LABELS, AUDIO, VISION, SENTENCES, TRAIN, TEST = 1, 2, 4, 5, 6, 7, 8
"""Places in the first file; 3 is a text feature that the network does not use."""


@dataclass(frozen=True)
class Dataset:
    """Where one data set differs: file names, first of the four text vectors, class order, speakers."""

    name: str
    features: str
    roberta: str
    difficulty: str
    items: int
    first_vector: int
    roberta_items: int
    labels: tuple[str, ...]
    speakers: int
    speaker_index: Callable[[Any], int]


def _first_is_male(speaker: Any) -> int:
    return 0 if speaker == "M" else 1


def _one_hot(speaker: Any) -> int:
    return int(np.argmax(np.asarray(speaker)))


DATASETS: dict[str, Dataset] = {
    "iemocap": Dataset(
        name="iemocap",
        features="IEMOCAP_features.pkl",
        roberta="iemocap_features_roberta.pkl",
        difficulty="IEMOCAP_diff.pkl",
        items=9,
        first_vector=2,
        roberta_items=10,
        labels=("happy", "sad", "neutral", "angry", "excited", "frustrated"),
        speakers=2,
        speaker_index=_first_is_male,
    ),
    "meld": Dataset(
        name="meld",
        features="MELD_features_raw1.pkl",
        roberta="meld_features_roberta.pkl",
        difficulty="MELD_diff.pkl",
        items=10,
        first_vector=3,
        roberta_items=11,
        labels=("neutral", "surprise", "fear", "sadness", "joy", "disgust", "anger"),
        speakers=9,
        speaker_index=_one_hot,
    ),
}


def detect(path: Path, spec: DataSpec) -> bool:
    """True for a directory (or one with a `data` folder) that holds one of the authors' files."""
    return any((folder / name).is_file() for folder in _folders(path) for d in DATASETS.values() for name in _names(d))


def read(path: Path, spec: DataSpec, labels: Sequence[str] | None = None, split: str | None = None) -> Corpus:
    """Splits `train` and `test` in the files' order; sets, which have none, are sorted.

    Args:
        path: directory of the two pickles of a data set, or its parent where they are in `data/`.
        spec: `dataset` chooses where a directory holds both.
        labels: class names of the model; None takes the data set's.
        split: the only one to read.

    Raises:
        InputError: a file is missing, hostile or of another layout.
    """
    folder, dataset = _find(path, spec.dataset)
    content = _items(folder / dataset.features, dataset.items)
    roberta = _items(folder / dataset.roberta, dataset.roberta_items)
    vectors = roberta[dataset.first_vector : dataset.first_vector + 4]
    sources: dict[str, Sequence[Any]] = {"text": vectors, "audio": [content[AUDIO]], "vision": [content[VISION]]}
    classes = class_indices(dataset.labels, labels, f"{folder}: {dataset.name}")
    splits = {
        name: [_sample(key, content, sources, dataset, classes, folder) for key in _ids(content[place])]
        for name, place in (("train", TRAIN), ("test", TEST))
        if split in (None, name)
    }
    info = {
        "dataset": dataset.name,
        "labels": list(labels if labels is not None else dataset.labels),
        "speakers": dataset.speakers,
        "sentences": _sentences(content[SENTENCES]),
    }
    return Corpus(splits=splits, format="cmerc", info=info)


def _sentences(found: Any) -> dict[str, list[str]]:
    """Sentences by dialogue id; they are shown, not modelled, so a file without them is fine."""
    if not isinstance(found, dict):
        return {}
    return {str(k): [str(s) for s in v] for k, v in found.items() if isinstance(v, list | tuple)}


def files(path: Path, spec: DataSpec) -> list[Path]:
    """The two pickles."""
    folder, dataset = _find(path, spec.dataset)
    return [folder / name for name in _names(dataset)]


def _sample(
    key: Any, content: Any, sources: dict[str, Sequence[Any]], dataset: Dataset, classes: np.ndarray, folder: Path
) -> Sample:
    try:
        found = np.asarray([int(v) for v in content[LABELS][key]], dtype=np.int64)
        speaker = np.asarray([dataset.speaker_index(s) for s in content[SPEAKERS][key]], dtype=np.int64)
        parts = {m: [_vectors(v[key]) for v in vectors] for m, vectors in sources.items()}
    except (KeyError, TypeError, ValueError, IndexError) as error:
        raise InputError(f"{folder}: dialogue {key!r} is incomplete or malformed ({error})") from None
    for name, arrays in {**parts, "speaker": [speaker]}.items():
        for array in arrays:
            if len(array) != len(found):
                raise InputError(f"{folder}: dialogue {key!r} has {len(found)} labels but {len(array)} rows of {name}")
    if found.size and not 0 <= found.min() <= found.max() < len(classes):
        raise InputError(
            f"{folder}: dialogue {key!r} has labels from {found.min()} to {found.max()}, "
            f"the data set has classes 0..{len(classes) - 1}"
        )
    inputs = {
        "text": np.stack(parts["text"]),
        "audio": parts["audio"][0],
        "vision": parts["vision"][0],
        "speaker": speaker,
    }
    return Sample(
        id=str(key), inputs=inputs, units=tuple(f"{key}/{i}" for i in range(len(found))), labels=classes[found]
    )


def _vectors(rows: Any) -> np.ndarray:
    array = np.asarray(together(rows) if isinstance(rows, list) else rows, dtype=np.float32)
    if array.ndim != 2:
        raise ValueError(f"features of shape {array.shape}")
    return array


def _ids(ids: Iterable[Any]) -> list[Any]:
    return sorted(ids) if isinstance(ids, set | frozenset) else list(ids)


def _items(path: Path, count: int) -> Sequence[Any]:
    content = load_pickle(path, lazy=True)
    if not isinstance(content, list | tuple) or len(content) != count:
        size = len(content) if hasattr(content, "__len__") else "no"
        raise InputError(f"{path} holds a {type(content).__name__} of {size} items, this file has {count}")
    return content


def _find(path: Path, wanted: str | None) -> tuple[Path, Dataset]:
    found = [
        (folder, d)
        for d in DATASETS.values()
        for folder in _folders(path)
        if any((folder / name).is_file() for name in _names(d)) and wanted in (None, d.name)
    ]
    if not found:
        files = [n for d in DATASETS.values() if wanted in (None, d.name) for n in _names(d)]
        raise InputError(f"{path} holds none of the feature files {files}: point --data at their directory")
    if len({d.name for _, d in found}) > 1:
        raise UsageError(f"{path} holds several data sets: choose one with --set data.dataset={found[0][1].name}")
    folder, dataset = found[0]
    for name in _names(dataset):
        if not (folder / name).is_file():
            raise InputError(f"{folder}: {name} is missing, {dataset.name} needs {' and '.join(_names(dataset))}")
    return folder, dataset


def _folders(path: Path) -> tuple[Path, ...]:
    return (path, path / "data") if path.is_dir() else ()


def _names(dataset: Dataset) -> tuple[str, str]:
    return dataset.features, dataset.roberta
