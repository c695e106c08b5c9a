"""The pickles of MMSA (MOSI, MOSEI, SIMS) that EMT-DLFR, TFR-Net and MulT are trained on.

`unaligned_50.pkl` and `unaligned_39.pkl` hold a dict of arrays per split: word pieces, audio and vision frames, their
lengths, one sentiment score per utterance. `aligned_50.pkl` has a frame per word piece and no lengths. `feature.pkl` is
what MMSA-FET extracts from any data set: a modality may be absent, and text may be vectors. Public repositories:
thuiar/MMSA, thuiar/MMSA-FET, sunlicai/EMT-DLFR.
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
    """One data set: its folder, its files, the published SHA-1 of the first one, and files to read where none is."""

    name: str
    folder: str
    files: tuple[str, ...]
    sha1: str
    limits: tuple[float, float]
    others: tuple[str, ...] = ()


UNALIGNED, ALIGNED, EXTRACTED = ("unaligned_50.pkl",), ("aligned_50.pkl",), "feature.pkl"
DATASETS: dict[str, Dataset] = {
    "mosi": Dataset("mosi", "MOSI", UNALIGNED, "5da0b8440fc5a7c3a457859af27458beb993e088", (-3, 3), ALIGNED),
    "mosei": Dataset("mosei", "MOSEI", UNALIGNED, "db3e2cff4d706a88ee156981c2100975513d4610", (-3, 3), ALIGNED),
    "sims": Dataset(
        "sims",
        "SIMS",
        ("unaligned_39.pkl", "unaligned_39_normalized.pkl"),
        "a00c73e92f66896403c09dbad63e242d5af756f8",
        (-1, 1),
    ),
}
OWN = Dataset("own", "", (EXTRACTED,), "", (-3, 3))
"""What MMSA-FET extracted from a data set that is none of these."""


def detect(path: Path, spec: DataSpec) -> bool:
    """True for one of the files, or a directory that holds one."""
    return bool(_candidates(path, spec.dataset))


def files(path: Path, spec: DataSpec) -> list[Path]:
    """The pickle."""
    return [_find(path, spec)[0]]


def read(path: Path, spec: DataSpec, labels: Sequence[str] | None = None, split: str | None = None) -> Corpus:
    """Splits `train`, `valid` and `test`, scores as labels.

    Array lengths are taken from the arrays; `info["arrays"]` keeps them by split, since drawing missing steps needs
    them. A file whose SHA-1 is not the published one is read with a warning.

    Args:
        path: the pickle, its directory, or a data root such as `Datasets` or its parent.
        spec: `dataset` chooses where there are several.
        labels: not used; the labels are scores.
        split: the only one to read.

    Raises:
        InputError: missing, hostile or of another layout.
    """
    file, dataset = _find(path, spec)
    digest = check_digest(file, dataset)
    content = load_pickle(file)
    if not isinstance(content, dict) or not any(s in content for s in SPLITS):
        raise InputError(f"{file} has none of the splits {list(SPLITS)}: it is not an MMSA feature file")
    chosen = {n: content[n] for n in SPLITS if split in (None, n) and content.get(n) is not None}
    for name, part in chosen.items():
        if not isinstance(part, dict):
            raise InputError(f"{file}: {name} is a {type(part).__name__}, expected arrays by name")
    splits = {name: split_samples(part, f"{file}: {name}") for name, part in chosen.items() if part}
    splits = {name: samples for name, samples in splits.items() if samples}
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

    Without lengths of their own frames are aligned with the text. Without `text_bert` the text is the vectors of
    `text`, up to the last that is not zero.

    Raises:
        InputError: arrays are missing or do not fit one another.
    """
    try:
        arrays = {m: np.asarray(content[name]) for m, name in _names(content).items()}
        lengths = {m: [int(n) for n in content[f"{m}_lengths"]] for m in arrays if f"{m}_lengths" in content}
        named = None if "id" not in content else [str(i) for i in content["id"]]
        scores = content.get("regression_labels")
        scores = None if scores is None else list(np.asarray(scores, dtype=np.float32))
    except (KeyError, TypeError, ValueError, OverflowError) as error:
        raise InputError(f"{where} is incomplete or malformed ({error})") from None
    planes = _tokens(content)
    if not arrays or any(a.ndim != 3 for a in arrays.values()) or planes not in (None, arrays["text"].shape[1]):
        shapes = {_names(content)[m]: a.shape for m, a in arrays.items()}
        raise InputError(f"{where} is malformed: arrays have shapes {shapes}")
    count = len(next(iter(arrays.values())))
    ids = [str(i) for i in range(count)] if named is None else named
    sizes = {m: len(a) for m, a in arrays.items()} | {"id": len(ids)}
    sizes |= {f"{m}_lengths": len(n) for m, n in lengths.items()}
    sizes |= {} if scores is None else {"regression_labels": len(scores)}
    wrong = {name: size for name, size in sizes.items() if size != count}
    if wrong:
        raise InputError(f"{where} has {count} utterances but {wrong}")
    samples = []
    for row, name in enumerate(ids):
        own = {m: n[row] for m, n in lengths.items()}
        inputs = _utterance({m: a[row] for m, a in arrays.items()}, own, planes, f"{where}: {name}")
        label = None if scores is None else np.asarray([scores[row]], dtype=np.float32)
        # The ids of MMSA are `video$_$clip`.
        video = name.rpartition("$_$")[0] or None
        samples.append(Sample(id=name, inputs=inputs, units=(name,), labels=label, group=video))
    return samples


PLANES = 3
"""Token ids, attention mask, token types."""


def _names(content: Mapping[str, Any]) -> dict[str, str]:
    """The array of each modality that the file has."""
    text = "text_bert" if "text_bert" in content else "text"
    names = {"text": text, "audio": "audio", "vision": "vision"}
    return {m: name for m, name in names.items() if name in content}


def _tokens(content: Mapping[str, Any]) -> int | None:
    """How many planes the text has to have; None for vectors."""
    return PLANES if "text_bert" in content else None


def _utterance(
    arrays: Mapping[str, np.ndarray], lengths: Mapping[str, int], tokens: int | None, where: str
) -> dict[str, np.ndarray]:
    found: dict[str, np.ndarray] = {}
    aligned: int | None = None
    if "text" in arrays:
        text = arrays["text"]
        found |= _text(text, where) if tokens else {"text": text[: _filled(text)].astype(np.float32)}
        aligned = len(next(iter(found.values())))
        # An utterance without a word that the vectors know.
        found = {n: a for n, a in found.items() if len(a)}
    for m in ("audio", "vision"):
        if m in arrays:
            length = lengths[m] if m in lengths else (aligned or _filled(arrays[m]))
            found[m] = _frames(arrays[m], length, m, where)
    return found


def _filled(array: np.ndarray) -> int:
    """Steps up to the last one that is not all zero."""
    real = np.flatnonzero((array != 0).any(axis=-1))
    return int(real[-1]) + 1 if len(real) else 0


def array_lengths(content: Mapping[str, Any]) -> dict[str, int]:
    """Lengths of the padded arrays of one split."""
    shapes = {m: np.asarray(content[name]).shape for m, name in _names(content).items()}
    return {f"{m}_len": shape[2 if m == "text" and _tokens(content) else 1] for m, shape in shapes.items()}


def check_digest(file: Path, dataset: Dataset) -> str:
    """The SHA-1 of a file; warns where it is not the published one. Derived files have none."""
    with file.open("rb") as stream:
        digest = hashlib.file_digest(stream, "sha1").hexdigest()
    if dataset.sha1 and file.name == dataset.files[0] and digest != dataset.sha1:
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
    found: Any = content.get("raw_text")
    several = isinstance(found, list | tuple) or (isinstance(found, np.ndarray) and found.ndim > 0)
    if not several or len(found) != len(samples):
        return []
    return [(s, str(t)) for s, t in zip(samples, found, strict=True)]


def _find(path: Path, spec: DataSpec) -> tuple[Path, Dataset]:
    found = _candidates(path, spec.dataset)
    if not found:
        names = sorted({n for d in DATASETS.values() for n in (*d.files, *d.others, EXTRACTED)})
        raise InputError(f"{path} holds none of {names}: point --data at the file or its directory")
    datasets = {d.name for _, d in found}
    if len(datasets) > 1:
        raise UsageError(f"{path} may be any of {sorted(datasets)}: choose one with --set data.dataset=NAME")
    return found[0]


def _candidates(path: Path, wanted: str | None) -> list[tuple[Path, Dataset]]:
    """Files that may be meant, by data set; the name of a folder decides between files of one name."""
    if wanted is not None and path.is_file():
        return [(path, DATASETS[wanted])] if wanted in DATASETS and path.suffix in (".pkl", ".pickle") else []
    # What was published goes before what else there is.
    for names in (lambda d: tuple(reversed(d.files)), lambda d: d.others, lambda d: (EXTRACTED,)):
        found = [
            (folder / name, dataset)
            for dataset in DATASETS.values()
            if wanted in (None, dataset.name)
            for folder in ((path.parent,) if path.is_file() else _folders(path, dataset))
            for name in names(dataset)
            if (folder / name).is_file() and (path.is_dir() or path == folder / name)
        ]
        named = [(f, d) for f, d in found if d.folder in f.absolute().parts]
        if wanted is None and found and not named and found[0][0].name == EXTRACTED:
            return [(found[0][0], OWN)]
        if found:
            return found if wanted is not None else named or found
    return []


def _folders(path: Path, dataset: Dataset) -> tuple[Path, ...]:
    roots = (path, path / dataset.folder, path / "Datasets" / dataset.folder)
    return tuple(folder for root in roots for folder in (root, root / "Processed"))
