"""Dialogues as JSON lines: one dialogue per line, read one at a time.

    {"labels": ["neutral", "joy"], "speakers": 2}                                     (optional first line)
    {"dialogue": "d1", "split": "test", "utterances": [
        {"id": "u1", "speaker": "Ann", "label": "joy", "sentence": "...", "text": [[...]], "audio": [...]}, ...]}

`text` is one vector or a list of vectors; a modality is given for every utterance of a dialogue or for none. A speaker
is a name or an index; `label` a class name, an index or null. For models that read an utterance with its context each
utterance becomes a sample, see `context_utterances.read_line`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from mer_export.data.labels import LabelReader, speaker_indices
from mer_export.data.samples import Corpus, Sample
from mer_export.data.spec import DataSpec
from mer_export.errors import InputError, UsageError
from mer_export.untrusted.impostors import refuse_impostor
from mer_export.untrusted.json_files import parse_json

ALL = "all"
SUFFIXES = (".jsonl", ".ndjson")
WIDTH_AXES = {"text": 3, "audio": 2, "vision": 2}


def detect(path: Path, spec: DataSpec) -> bool:
    """True for a file with the usual ending."""
    return path.is_file() and path.suffix in SUFFIXES


def pairs(
    path: Path, spec: DataSpec, labels: Sequence[str] | None = None, split: str | None = None
) -> Iterator[tuple[str, Sample]]:
    """Yields (split, sample) line by line.

    Without `labels`, `label_names` or a first line that names the classes, the file is first read through for them.

    Raises:
        InputError: a line is no such dialogue; the message has its number.
        UsageError: no such split.
    """
    reader = _labels(path, spec, labels)
    speakers = _speaker_count(path, spec)
    seen: set[str] = set()
    for number, line in _lines(path):
        name = str(line.get("split", ALL))
        seen.add(name)
        if split not in (None, name):
            continue
        try:
            found = _samples(path, line, spec, reader, speakers)
        except (KeyError, TypeError, ValueError, AttributeError, OverflowError) as error:
            what = f"{error} is missing" if isinstance(error, KeyError) else str(error)
            raise InputError(f"{path}: line {number} is no dialogue: {what}") from None
        for sample in found:
            yield name, sample
    if split is not None and split not in seen:
        raise UsageError(f"no split {split!r} in {path}, there are {sorted(seen)}")


def read(path: Path, spec: DataSpec, labels: Sequence[str] | None = None) -> Corpus:
    """The whole file; see `pairs`."""
    splits: dict[str, list[Sample]] = {}
    for split, sample in pairs(path, spec, labels):
        splits.setdefault(split, []).append(sample)
    found = _labels(path, spec, labels).labels
    sentences = {str(line["dialogue"]): _sentences(line) for _, line in _lines(path) if _sentences(line)}
    info = {"labels": list(found), "speakers": _speaker_count(path, spec), "sentences": sentences}
    return Corpus(splits=splits, format="jsonl", info=info)


def class_names(path: Path, spec: DataSpec) -> list[str]:
    """The classes of the data, in index order."""
    return list(_labels(path, spec, None).labels)


def files(path: Path, spec: DataSpec) -> list[Path]:
    """The file itself."""
    return [path]


def _labels(path: Path, spec: DataSpec, labels: Sequence[str] | None) -> LabelReader:
    names = spec.label_names or tuple(_header(path).get("labels", ()))
    return LabelReader(str(path), labels, names, () if labels or names else _all_labels(path))


def _speaker_count(path: Path, spec: DataSpec) -> int:
    count = _header(path).get("speakers", spec.speakers)
    if not isinstance(count, int) or count < 1:
        raise InputError(f"{path}: speakers is {count!r}, it must be a number from 1")
    return count


def _samples(path: Path, line: dict[str, Any], spec: DataSpec, labels: LabelReader, speakers: int) -> list[Sample]:
    """A dialogue, or its utterances where the model reads those."""
    if spec.packing is not None:
        return _packed(line, spec, labels)
    if spec.context is None:
        return [_sample(line, labels, speakers)]
    from mer_export.data.shapes.context import read_line

    return list(read_line(line, spec, path.parent, labels))


def _packed(line: dict[str, Any], spec: DataSpec, labels: LabelReader) -> list[Sample]:
    """Utterances with the words of the whole dialogue; audio and vision, where given, are one vector or several."""
    from mer_export.data.shapes.packed import inputs, pack_sentences

    utterances = line["utterances"]
    if not isinstance(utterances, list) or not utterances:
        raise ValueError(f"dialogue {line['dialogue']!r} has no utterances")
    packed = pack_sentences([str(u.get("sentence", "")) for u in utterances], spec)
    samples = []
    for number, utterance in enumerate(utterances):
        name = str(utterance.get("id", f"{line['dialogue']}/{number}"))
        frames = {m: utterance[m] for m in ("audio", "vision") if utterance.get(m) is not None}
        own = {m: np.atleast_2d(np.asarray(v, dtype=np.float32)) for m, v in frames.items()}
        found = labels.indices([utterance.get("label")]) if "label" in utterance else None
        samples.append(Sample(name, inputs(packed, number) | own, (name,), found))
    return samples


def _sample(line: dict[str, Any], labels: LabelReader, speakers: int) -> Sample:
    name, utterances = str(line["dialogue"]), line["utterances"]
    if not isinstance(utterances, list) or not utterances:
        raise ValueError(f"dialogue {name!r} has no utterances")
    inputs: dict[str, np.ndarray] = {}
    for modality, axes in WIDTH_AXES.items():
        given = [u.get(modality) for u in utterances]
        if all(v is None for v in given):
            continue
        if any(v is None for v in given):
            raise ValueError(f"dialogue {name!r} has {modality} for some utterances only")
        inputs[modality] = _vectors(given, axes, modality)
    inputs["speaker"] = _speakers([u.get("speaker", 0) for u in utterances], speakers)
    known = any("label" in u for u in utterances)
    found = labels.indices(u.get("label") for u in utterances) if known else None
    units = tuple(str(u.get("id", f"{name}/{i}")) for i, u in enumerate(utterances))
    return Sample(id=name, inputs=inputs, units=units, labels=found)


def _vectors(values: list[Any], axes: int, modality: str) -> np.ndarray:
    array = np.asarray(values, dtype=np.float32)
    if axes == 3:
        array = array[:, None] if array.ndim == 2 else array
        array = array.swapaxes(0, 1) if array.ndim == 3 else array
    if array.ndim != axes:
        raise ValueError(f"{modality} has shape {array.shape}")
    return np.ascontiguousarray(array)


def _speakers(values: list[Any], speakers: int) -> np.ndarray:
    if all(isinstance(v, int) for v in values):
        return np.asarray(values, dtype=np.int64)
    return speaker_indices([str(v) for v in values], speakers)


def _sentences(line: dict[str, Any]) -> list[str]:
    found = [u.get("sentence", "") for u in line.get("utterances", [])]
    return found if any(found) else []


def _all_labels(path: Path) -> Iterator[str]:
    for _, line in _lines(path):
        for utterance in line.get("utterances", []):
            if utterance.get("label") not in (None, ""):
                yield str(utterance["label"])


def _header(path: Path) -> dict[str, Any]:
    for _, line in _parsed(path):
        return line if "dialogue" not in line and "labels" in line else {}
    raise InputError(f"{path} is empty: it needs one dialogue per line")


def _lines(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """Dialogue lines with their numbers."""
    for number, line in _parsed(path):
        if number > 1 or "dialogue" in line or "labels" not in line:
            yield number, line


def _parsed(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    refuse_impostor(path)
    try:
        with path.open(encoding="utf-8") as stream:
            for number, text in enumerate(stream, start=1):
                if not text.strip():
                    continue
                line = parse_json(text, f"{path}: line {number}")
                if not isinstance(line, dict):
                    raise InputError(f"{path}: line {number} is a {type(line).__name__}, not a dialogue")
                yield number, line
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror or error}") from None
    except UnicodeDecodeError as error:
        raise InputError(f"{path} is no UTF-8 text: {error}") from None
