"""The pickles of MMSA (MOSI, MOSEI, SIMS) that EMT-DLFR, TFR-Net and MulT are trained on.

`unaligned_50.pkl` and `unaligned_39.pkl` hold a dict of arrays per split: word pieces, audio and vision frames, their
lengths, one sentiment score per utterance. Public repositories: thuiar/MMSA, sunlicai/EMT-DLFR.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from mer_export.data.samples import Corpus, Sample
from mer_export.data.spec import DataSpec
from mer_export.errors import InputError, UsageError
from mer_export.untrusted.pickles import load_pickle

log = logging.getLogger("mer")

SPLITS = ("train", "valid", "test")
IDS, MASK, SEGMENTS = 0, 1, 2
"""Planes of `text_bert`."""


@dataclass(frozen=True)
class Dataset:
    """One data set: its folder, its files, and the published SHA-1 of the first one."""

    name: str
    folder: str
    files: tuple[str, ...]
    sha1: str
    limits: tuple[float, float]


DATASETS: dict[str, Dataset] = {
    "mosi": Dataset("mosi", "MOSI", ("unaligned_50.pkl",), "5da0b8440fc5a7c3a457859af27458beb993e088", (-3, 3)),
    "mosei": Dataset("mosei", "MOSEI", ("unaligned_50.pkl",), "db3e2cff4d706a88ee156981c2100975513d4610", (-3, 3)),
    "sims": Dataset(
        "sims",
        "SIMS",
        ("unaligned_39.pkl", "unaligned_39_normalized.pkl"),
        "a00c73e92f66896403c09dbad63e242d5af756f8",
        (-1, 1),
    ),
}


def detect(path: Path, spec: DataSpec) -> bool:
    """True for one of the files, or a directory that holds one."""
    return bool(_candidates(path, spec.dataset))


def files(path: Path, spec: DataSpec) -> list[Path]:
    """The pickle."""
    return [_find(path, spec)[0]]


def read(path: Path, spec: DataSpec, labels: Sequence[str] | None = None) -> Corpus:
    """Splits `train`, `valid` and `test`, scores as labels.

    Array lengths are taken from the arrays; `info["arrays"]` keeps them by split, since drawing missing steps needs
    them. A file whose SHA-1 is not the published one is read with a warning.

    Args:
        path: the pickle, its directory, or a data root such as `Datasets` or its parent.
        spec: `dataset` chooses where there are several.
        labels: not used; the labels are scores.

    Raises:
        InputError: missing, hostile or of another layout.
    """
    file, dataset = _find(path, spec)
    digest = check_digest(file, dataset)
    content = load_pickle(file)
    if not isinstance(content, dict) or not any(s in content for s in SPLITS):
        raise InputError(f"{file} has none of the splits {list(SPLITS)}: it is not an MMSA feature file")
    splits = {name: split_samples(content[name], f"{file}: {name}") for name in SPLITS if name in content}
    info = {
        "dataset": dataset.name,
        "labels": [],
        "sha1": digest,
        "arrays": {name: array_lengths(content[name]) for name in splits},
        "sentences": {s.id: [t] for name in splits for s, t in _texts(splits[name], content[name])},
    }
    return Corpus(splits=splits, format="mmsa", info=info)


def split_samples(content: Mapping[str, Any], where: str) -> list[Sample]:
    """Utterances of one split of the pickle, without padding; -inf in audio becomes 0, as the authors' loader does.

    Raises:
        InputError: arrays are missing or do not fit one another.
    """
    try:
        text = np.asarray(content["text_bert"])
        frames = {m: np.asarray(content[m]) for m in ("audio", "vision")}
        lengths = {m: [int(n) for n in content[f"{m}_lengths"]] for m in frames}
    except (KeyError, TypeError, ValueError) as error:
        raise InputError(f"{where} is incomplete or malformed ({error})") from None
    if text.ndim != 3 or text.shape[1] != 3 or any(f.ndim != 3 for f in frames.values()):
        shapes = {"text_bert": text.shape, **{m: f.shape for m, f in frames.items()}}
        raise InputError(f"{where} is malformed: arrays have shapes {shapes}")
    scores = content.get("regression_labels")
    count = len(text)
    ids = [str(i) for i in content.get("id", range(count))]
    sizes = {"audio": len(frames["audio"]), "vision": len(frames["vision"]), "id": len(ids)}
    sizes |= {f"{m}_lengths": len(n) for m, n in lengths.items()}
    sizes |= {} if scores is None else {"regression_labels": len(scores)}
    wrong = {name: size for name, size in sizes.items() if size != count}
    if wrong:
        raise InputError(f"{where} has {count} texts but {wrong}")
    samples = []
    for row, name in enumerate(ids):
        inputs = _text(text[row], f"{where}: {name}")
        for m, array in frames.items():
            inputs[m] = _frames(array[row], lengths[m][row], m, f"{where}: {name}")
        label = None if scores is None else np.asarray([scores[row]], dtype=np.float32)
        samples.append(Sample(id=name, inputs=inputs, units=(name,), labels=label))
    return samples


def array_lengths(content: Mapping[str, Any]) -> dict[str, int]:
    """Lengths of the padded arrays of one split."""
    return {
        "text_len": np.asarray(content["text_bert"]).shape[2],
        "audio_len": np.asarray(content["audio"]).shape[1],
        "vision_len": np.asarray(content["vision"]).shape[1],
    }


def check_digest(file: Path, dataset: Dataset) -> str:
    """The SHA-1 of a file; warns where it is not the published one. Derived files have none."""
    with file.open("rb") as stream:
        digest = hashlib.file_digest(stream, "sha1").hexdigest()
    if file.name == dataset.files[0] and digest != dataset.sha1:
        log.warning(
            "%s has SHA-1 %s, the published %s has %s: results are not comparable",
            file,
            digest,
            dataset.folder,
            dataset.sha1,
        )
    return digest


def _text(planes: np.ndarray, where: str) -> dict[str, np.ndarray]:
    mask = planes[MASK] != 0
    length = int(mask.sum())
    if not length or mask[length:].any():
        raise InputError(f"{where}: the attention mask of text_bert must be ones, then zeros")
    tokens = planes[[IDS, SEGMENTS], :length]
    if not np.isfinite(tokens).all():
        raise InputError(f"{where}: text_bert holds NaN or infinity")
    ids, segments = tokens.astype(np.int64)
    return {"input_ids": ids, "token_type_ids": segments}


def _frames(array: np.ndarray, length: int, modality: str, where: str) -> np.ndarray:
    if not 1 <= length <= len(array):
        raise InputError(f"{where}: {modality}_lengths is {length}, the array has {len(array)} frames")
    frames = array[:length].astype(np.float32)
    if modality == "audio":
        frames[np.isneginf(frames)] = 0.0
    return frames


def _texts(samples: Sequence[Sample], content: Mapping[str, Any]) -> list[tuple[Sample, str]]:
    """Raw sentences; they are shown, not modelled, so a file without them is fine."""
    found = content.get("raw_text")
    if found is None or len(found) != len(samples):
        return []
    return [(s, str(t)) for s, t in zip(samples, found, strict=True)]


def _find(path: Path, spec: DataSpec) -> tuple[Path, Dataset]:
    found = _candidates(path, spec.dataset)
    if not found:
        names = sorted({n for d in DATASETS.values() for n in d.files})
        raise InputError(f"{path} holds none of {names}: point --data at the file or its directory")
    datasets = {d.name for _, d in found}
    if len(datasets) > 1:
        raise UsageError(f"{path} may be any of {sorted(datasets)}: choose one with --set data.dataset=NAME")
    return found[0]


def _candidates(path: Path, wanted: str | None) -> list[tuple[Path, Dataset]]:
    """Files that may be meant, by data set; the name of a folder decides between files of one name."""
    if wanted is not None and path.is_file():
        return [(path, DATASETS[wanted])] if wanted in DATASETS and path.suffix in (".pkl", ".pickle") else []
    found = []
    for dataset in DATASETS.values():
        if wanted not in (None, dataset.name):
            continue
        for folder in (path.parent,) if path.is_file() else _folders(path, dataset):
            for name in reversed(dataset.files):
                file = folder / name
                if file.is_file() and (path.is_dir() or path == file):
                    found.append((file, dataset))
    if wanted is not None:
        return found
    named = [(f, d) for f, d in found if d.folder in f.absolute().parts]
    return named or found


def _folders(path: Path, dataset: Dataset) -> tuple[Path, ...]:
    roots = (path, path / dataset.folder, path / "Datasets" / dataset.folder)
    return tuple(folder for root in roots for folder in (root, root / "Processed"))
