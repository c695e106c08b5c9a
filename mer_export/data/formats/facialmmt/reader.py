"""The files of FacialMMT for MELD (section 2.3 to 2.5): feature pickles, JSON side files, texts, and `.dt` caches.

    <root>/T+A+V/meld_<split>_audio_utt.pkl, meld_<split>_vision_utt.pkl, <split>_utt_profile.json
    <root>/T+A+V/<split>_facseqs_160_paths_final.json          paths of face crops
    <root>/T+A+V/<split>_sent_emo.csv, <split>_text.json       texts
    <root>/T+A+V/meld_multimodal_<split>_T+A+V_<encoder>.dt    everything, tokens included
    <root>/V/meld_<split>_vision_utt.pkl, meld_unimodal_<split>_V.dt

Public repository: NUSTM/FacialMMT.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from mer_export.data.formats.facialmmt import texts
from mer_export.data.labels import class_indices
from mer_export.data.media.faces import FaceImages
from mer_export.data.samples import Corpus, Sample
from mer_export.data.spec import DataSpec
from mer_export.errors import InputError
from mer_export.untrusted.arrays import load_arrays
from mer_export.untrusted.json_files import read_json_object
from mer_export.untrusted.pickles import load_pickle
from mer_export.untrusted.places import Reach

log = logging.getLogger("mer")

SPLITS = ("train", "val", "test")
LABELS = ("neutral", "surprise", "fear", "sadness", "joy", "disgust", "anger")
MULTIMODAL, UNIMODAL = "T+A+V", "V"
CLASSES = ("utils.dataset.loading_multimodal_dataset", "utils.dataset.loading_Vision_data")
EXPRESSIONS = "{split}_expression_logits.npz"
"""Ours: what the expression model says of the faces of each utterance, for a model without it."""


def detect(path: Path, spec: DataSpec) -> bool:
    """True for a directory with one of the splits, or a folder above it."""
    return path.is_dir() and _folder(path, spec) is not None


def files(path: Path, spec: DataSpec) -> list[Path]:
    """The files that are read, images left out."""
    folder = _folder(path, spec) or path
    return sorted(f for f in folder.iterdir() if f.suffix in (".pkl", ".dt", ".json", ".csv", ".npz"))


def read(path: Path, spec: DataSpec, labels: Sequence[str] | None = None) -> Corpus:
    """Splits `train`, `val` and `test`, as far as they are there; one sample per utterance.

    Features come from the pickles, without them from a `.dt` cache. Texts come from CSV and JSON with
    `data.tokenizer`, without it from a `.dt` cache; where there is neither, samples have no text. A sample has
    `images` with `data.faces.images`. `info["arrays"]` keeps the lengths of the padded arrays by split.

    Raises:
        InputError: missing, hostile or of another layout.
    """
    folder = _folder(path, spec)
    if folder is None:
        raise InputError(f"{path} holds no meld_<split>_vision_utt.pkl or .dt file: point --data at preprocess_data")
    classes = class_indices(LABELS, labels, str(path))
    splits: dict[str, list[Sample]] = {}
    arrays: dict[str, dict[str, int]] = {}
    for split in SPLITS:
        found = _content(folder, split, spec.packing)
        if found is None:
            continue
        splits[split] = _samples(found, folder, split, spec, spec.reach(path), classes)
        arrays[split] = {f"{m}_len": found[m].shape[1] for m in ("audio", "vision") if m in found}
    if not any("input_ids" in s.inputs for found in splits.values() for s in found) and folder.name != UNIMODAL:
        log.warning("%s has no texts: put CSV files there and set data.tokenizer, or a .dt file", folder)
    return Corpus(splits=splits, format="facialmmt", info={"labels": list(labels or LABELS), "arrays": arrays})


def _folder(path: Path, spec: DataSpec) -> Path | None:
    """The folder with the files of a data root, T+A+V before V unless vision is all that is read."""
    roots = (path, path / "preprocess_data")
    names = (UNIMODAL, MULTIMODAL) if spec.modalities == ("vision",) else (MULTIMODAL, UNIMODAL)
    folders = [root / name for name in names for root in roots] + [path]
    found = (f for f in folders if f.is_dir() and any(_has(f, s) for s in SPLITS))
    return next(found, None)


def _has(folder: Path, split: str) -> bool:
    return (folder / f"meld_{split}_vision_utt.pkl").is_file() or bool(_caches(folder, split))


def _caches(folder: Path, split: str) -> list[Path]:
    both = folder.glob(f"meld_multimodal_{split}_T+A+V_*.dt")
    return [*sorted(both), *sorted(folder.glob(f"meld_unimodal_{split}_V.dt"))]


def _cache(folder: Path, split: str, packing: str | None) -> Path | None:
    """The `.dt` file of a split: of those that differ in how texts are packed the one of `packing`."""
    found = _caches(folder, split)
    if packing is None and len(found) > 1:
        log.warning("%s is read of %d that differ in how texts are packed: set data.packing", found[0], len(found))
    return next((f for f in found if _packing(f) == packing), found[0] if found else None)


def _packing(cache: Path) -> str:
    return "roberta" if "roberta" in cache.stem else "bert"


def _content(folder: Path, split: str, packing: str | None) -> dict[str, Any] | None:
    """Arrays and side information of a split under our names; None where it is not there."""
    vision, cache = folder / f"meld_{split}_vision_utt.pkl", _cache(folder, split, packing)
    if not vision.is_file() and cache is None:
        return None
    found = _from_cache(cache) if cache is not None else {}
    if vision.is_file():
        own = _part(vision, split)
        found |= {"vision": _array(own, "vision", vision), "vision_mask": _array(own, "vision_utt_mask", vision)}
        found["labels"] = np.asarray(own["labels"]) if "labels" in own else None
        audio = folder / f"meld_{split}_audio_utt.pkl"
        if audio.is_file():
            own = _part(audio, split)
            found |= {"audio": _array(own, "audio", audio), "audio_mask": _array(own, "audio_utt_mask", audio)}
    for name, file in (
        ("profile", folder / f"{split}_utt_profile.json"),
        ("faces", folder / f"{split}_facseqs_160_paths_final.json"),
    ):
        if file.is_file():
            found[name] = read_json_object(file)
    count = len(found["vision"])
    wrong = {n: len(v) for n, v in found.items() if isinstance(v, np.ndarray) and len(v) != count and n in ROWS}
    if wrong:
        raise InputError(f"{folder}, {split}: there are {count} utterances of vision but {wrong}")
    return found


ROWS = ("audio", "audio_mask", "vision_mask", "labels")
CACHED = {
    "audio": "audio_feature",
    "audio_mask": "audio_utterance_mask",
    "vision": "vision_feature",
    "vision_mask": "vision_utterance_mask",
    "labels": "labels",
    "profile": "utt_profile",
    "faces": "utt_face_path",
    "input_ids": "text_input_ids",
    "input_mask": "text_input_mask",
    "separators": "text_sep_mask",
}
CACHED_VISION = {"vision": "modality_feature", "vision_mask": "utterance_mask", "labels": "labels"}


def _from_cache(file: Path) -> dict[str, Any]:
    content = load_pickle(file, records=CLASSES)
    if not isinstance(content, dict):
        raise InputError(f"{file} holds a {type(content).__name__}, expected a data set object of FacialMMT")
    names = CACHED if "vision_feature" in content else CACHED_VISION
    missing = [theirs for theirs in names.values() if theirs not in content]
    if missing:
        raise InputError(f"{file} is not a data set object of FacialMMT: it lacks {missing}")
    found = {ours: content[theirs] for ours, theirs in names.items()}
    return found | {"packing": _packing(file)}


def _part(file: Path, split: str) -> Mapping[str, Any]:
    content = load_pickle(file)
    if not isinstance(content, dict) or not isinstance(content.get(split), dict):
        raise InputError(f"{file} has no split {split!r}: it is not a feature file of FacialMMT")
    return content[split]


def _array(content: Mapping[str, Any], name: str, file: Path) -> np.ndarray:
    dims = 2 if name.endswith("mask") else 3
    value = np.asarray(content[name]) if name in content else None
    if value is None or value.ndim != dims or value.dtype.kind not in "fiub":
        shape = "nothing" if value is None else f"{value.dtype} {value.shape}"
        raise InputError(f"{file}: {name} is {shape}, expected numbers with {dims} dims")
    return value


def _class(value: np.ndarray, classes: np.ndarray, where: str) -> np.ndarray:
    """The model's index of a class of the files."""
    if value.ndim or value.dtype.kind not in "iuf" or not 0 <= value < len(classes):
        raise InputError(f"{where} has the label {value}, there are classes 0..{len(classes) - 1}")
    return classes[[int(value)]]


def _samples(
    found: Mapping[str, Any], folder: Path, split: str, spec: DataSpec, reach: Reach, classes: np.ndarray
) -> list[Sample]:
    packed = texts.packed(folder, split, found, spec)
    logits = _expressions(folder / EXPRESSIONS.format(split=split))
    samples = []
    for row in range(len(found["vision"])):
        where = f"{folder}: {split} row {row}"
        place = texts.utterance_place(found, row, where)
        name = f"{split}/{place.utterance if place else row}"
        inputs: dict[str, Any] = {}
        wanted = spec.modalities or ("text", "audio", "vision")
        if place and packed and "text" in wanted:
            inputs |= texts.inputs(packed, place, where)
        for m in ("audio", "vision"):
            if (
                m in wanted
                and m in found
                and (frames := _frames(found[m][row], found[f"{m}_mask"][row], m, where)) is not None
            ):
                inputs[m] = frames
        if place and "vision" in inputs:
            _add_faces(inputs, found, place.utterance, logits, lambda p: _located(p, folder, spec, reach), spec)
        labels = found.get("labels")
        label = None if labels is None else _class(np.asarray(labels[row]), classes, where)
        dialogue = str(place.dialogue) if place else None
        samples.append(Sample(name, inputs, (name,), label, group=dialogue))
    return samples


def _expressions(file: Path) -> dict[str, np.ndarray]:
    """The logits (frames, classes) of each utterance, as far as there are any."""
    found = load_arrays(file) if file.is_file() else {}
    for name, logits in found.items():
        if logits.ndim != 2 or logits.dtype.kind not in "fiu":
            raise InputError(f"{file}: {name} is {logits.dtype} {logits.shape}, expected numbers (frames, classes)")
    return found


def _add_faces(
    inputs: dict[str, Any],
    found: Mapping[str, Any],
    name: str,
    logits: Mapping[str, Any],
    locate: Callable[[str], Path],
    spec: DataSpec,
) -> None:
    """Face crops, or the logits of the expression model; as many frames as have both."""
    if spec.faces.images and (paths := found.get("faces", {}).get(name)):
        frames = min(len(paths), len(inputs["vision"]))
        inputs["images"] = FaceImages([locate(str(p)) for p in paths[:frames]], spec.faces.size)
        inputs["vision"] = inputs["vision"][:frames]
    elif name in logits:
        frames = min(len(logits[name]), len(inputs["vision"]))
        inputs["expression_logits"] = np.asarray(logits[name][:frames], dtype=np.float32)
        inputs["vision"] = inputs["vision"][:frames]


def _located(path: str, folder: Path, spec: DataSpec, reach: Reach) -> Path:
    """Where an image is here; its list was made on another machine."""
    rest = path.removeprefix(spec.faces.replace).lstrip("/") if spec.faces.replace else path
    return reach.path(rest, f"{folder}: a list of faces", Path(spec.faces.root or folder))


def _frames(array: np.ndarray, mask: np.ndarray, modality: str, where: str) -> np.ndarray | None:
    """The real frames, float32; None where there is none."""
    length = int((mask != 0).sum())
    if (mask[:length] == 0).any():
        raise InputError(f"{where}: the mask of {modality} must be ones, then zeros")
    return np.asarray(array[:length], dtype=np.float32) if length else None
