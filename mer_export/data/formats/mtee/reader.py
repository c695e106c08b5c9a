"""The utterance sets of MTEE as its authors distribute them: aligned or unaligned steps of three modalities.

CMU-MOSEI emotions and sentiment, CMU-MOSI and IEMOCAP, as HDF5, pickles or the dataset caches of the public code
(wenliangdai/Modality-Transferable-MER). Nothing is normalised; in audio, and there only, minus infinity becomes 0.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from mer_export.data.formats.mtee import shots
from mer_export.data.samples import Corpus, Sample
from mer_export.data.spec import DataSpec, EmotionData
from mer_export.errors import InputError, UsageError
from mer_export.untrusted.hdf5 import load_hdf5
from mer_export.untrusted.pickles import load_pickle

PHASES = ("train", "valid", "test")
OLD = "old"
"""A further split of what few-shot training is not to forget."""
CACHES = ("", "processed_datasets")
"""Where dataset caches lie, relative to the data directory."""
MODALITIES = ("text", "audio", "vision")
MOSEI_LABELS = ("anger", "disgust", "fear", "happy", "sad", "surprise")
IEMOCAP_LABELS = ("neutral", "happy", "sad", "angry")
NINE_LABELS = ("angry", "excited", "fear", "sad", "surprised", "frustrated", "happy", "neutral", "disgust")
"""Finer classes of IEMOCAP; column 0 of their file is `other`, the last one `unknown`."""
SENTIMENT = ("sentiment",)
FACET_WIDTH = 35
FACET_WARNING = (
    "vision has the width of FACET features, which hold predicted emotion evidence besides action units: "
    "results with them may owe something to another emotion classifier"
)
"""Public issue #6 of the authors' repository."""


@dataclass(frozen=True)
class Phase:
    """One split: features (n, steps, width) by modality, labels (n, labels) float32, and the ids that were kept."""

    features: dict[str, np.ndarray]
    labels: np.ndarray
    ids: tuple[str, ...]

    def take(self, rows: np.ndarray) -> Phase:
        """These samples, with the ids they had."""
        kept = {m: x[rows] for m, x in self.features.items()}
        return Phase(kept, self.labels[rows], tuple(self.ids[i] for i in rows))


@dataclass(frozen=True)
class Dataset:
    """One of the authors' data sets. `files` gives the names that must be there for a phase.

    `load` reads it, and gives None where a pickle of all phases lacks this one.
    """

    labels: tuple[str, ...]
    cache: str
    files: Callable[[str, EmotionData], list[str]]
    load: Callable[[Path, str, EmotionData], Phase | None]
    zero_shot: Callable[[Path, str, Phase, int], Phase] | None = None
    few_shot: bool = False


def detect(path: Path, spec: DataSpec) -> bool:
    """True for a directory that holds a phase of one of the data sets."""
    return path.is_dir() and bool(_present(path, spec))


def read(path: Path, spec: DataSpec, labels: Sequence[str] | None = None, split: str | None = None) -> Corpus:
    """Splits `train`, `valid`, `test`, as far as their files are there, and `old` where it is asked for.

    Args:
        path: directory of the files.
        spec: `dataset` chooses among several; `emotions` says which part of it.
        labels: label names of the model; None takes the data's own. A model of fewer labels gets its own columns.
        split: the only one to read.

    Raises:
        UsageError: nothing to choose from, or a zero- or few-shot index that the data set does not have.
        InputError: a file is missing, hostile or of another layout.
    """
    name = _choose(path, spec)
    dataset, options = DATASETS[name], spec.emotions
    own = _labels(name, dataset, options)
    # Sentiment is one score per utterance; the labels of such a model name classes derived from it.
    columns = None if own == SENTIMENT else _columns(path, own, labels)
    splits = {}
    for phase in [p for p in (*PHASES, *([OLD] if options.old else [])) if split in (None, p)]:
        found = _phase(path, name, dataset, phase, options)
        if found is not None:
            found = replace(found, labels=found.labels[:, 0] if columns is None else found.labels[:, columns])
            splits[phase] = _samples(found, phase)
            if spec.trim_zeros:
                splits[phase] = [_trimmed(s, options.aligned) for s in splits[phase]]
    info: dict[str, Any] = {"dataset": name, "labels": [] if columns is None else list(labels or own)}
    widths = {s.inputs["vision"].shape[1] for samples in splits.values() for s in samples[:1]}
    if widths == {FACET_WIDTH}:
        info["warnings"] = [FACET_WARNING]
    return Corpus(splits=splits, format="mtee", info=info)


def files(path: Path, spec: DataSpec) -> list[Path]:
    """The files of the data set; caches too, from which a phase is read that raw files lack."""
    name = _choose(path, spec)
    dataset, options = DATASETS[name], spec.emotions
    names = [n for p in PHASES for n in dataset.files(p, options)]
    found = [path / n for n in dict.fromkeys(names) if (path / n).is_file()]
    for phase in PHASES:
        caches = _caches(path, dataset, name, phase, options)
        raw = _there(path, dataset, phase, options)
        found += caches.values() if raw else _one(caches, path).values()
    return found


def _present(path: Path, spec: DataSpec) -> list[str]:
    """Data sets of which a phase can be read, among those that `spec` leaves to choose from."""
    wanted = [spec.dataset] if spec.dataset in DATASETS else list(DATASETS) if spec.dataset is None else []
    return [
        name
        for name in wanted
        if any(
            _there(path, DATASETS[name], phase, spec.emotions)
            or _cache(path, DATASETS[name], name, phase, spec.emotions)
            for phase in PHASES
        )
    ]


def _choose(path: Path, spec: DataSpec) -> str:
    found = _present(path, spec)
    if not found:
        raise InputError(
            f"{path} holds no complete phase of {spec.dataset or 'any known set'}: check the directory, "
            "data.emotions.steps and data.emotions.aligned"
        )
    if len(found) > 1:
        raise UsageError(f"{path} holds {found}: choose one with data.dataset")
    return found[0]


def _labels(name: str, dataset: Dataset, options: EmotionData) -> tuple[str, ...]:
    """Label names after zero-shot changed them; raises UsageError for an index that does not exist."""
    if options.old and options.fsl is None:
        raise UsageError("data.emotions.old is what few-shot training is not to forget: set data.emotions.fsl too")
    if options.zsl is None and options.fsl is None:
        return dataset.labels
    if options.zsl is not None and dataset.zero_shot is None:
        raise UsageError(f"data.emotions.zsl: {name} has no zero-shot protocol")
    if options.fsl is not None and not dataset.few_shot:
        raise UsageError(f"data.emotions.fsl: {name} has no few-shot protocol, the original ignores the index")
    labels = dataset.labels
    if options.zsl is not None:
        choices = NINE_LABELS if name == "iemocap" else labels
        if options.zsl >= len(choices):
            raise UsageError(f"data.emotions.zsl is {options.zsl}, {name} has 0..{len(choices) - 1}: {list(choices)}")
        chosen = choices[options.zsl]
        if name != "iemocap":
            labels = tuple(n for n in labels if n != chosen)
        elif chosen in labels:
            raise UsageError(f"data.emotions.zsl {options.zsl} is {chosen!r}, which is one of the four classes already")
        else:
            labels = (*labels, chosen)
    if options.fsl is not None and options.fsl >= len(labels):
        raise UsageError(f"data.emotions.fsl is {options.fsl}, there are 0..{len(labels) - 1}: {list(labels)}")
    return labels


def _columns(path: Path, own: Sequence[str], labels: Sequence[str] | None) -> list[int]:
    wanted = own if labels is None else labels
    unknown = [n for n in wanted if n not in own]
    if unknown:
        raise InputError(f"{path} has no labels {unknown}, it has {list(own)}")
    return [list(own).index(n) for n in wanted]


def _phase(path: Path, name: str, dataset: Dataset, phase: str, options: EmotionData) -> Phase | None:
    if phase == OLD and options.fsl is not None:
        whole = _phase(path, name, dataset, "train", options.model_copy(update={"fsl": None}))
        return whole and whole.take(shots.without_positives(whole.labels, options.fsl))
    few = options.fsl if phase == "train" else None
    found = dataset.load(path, phase, options) if _there(path, dataset, phase, options) else None
    if found is None:
        cache = _cache(path, dataset, name, phase, options)
        if cache is None:
            return None
        found = _read_cache(cache, dataset)
    if found.labels.shape[1] != len(dataset.labels):
        raise InputError(f"{path}: {phase} has {found.labels.shape[1]} labels per sample, {name} {len(dataset.labels)}")
    if options.zsl is not None and dataset.zero_shot is not None:
        found = dataset.zero_shot(path, phase, found, options.zsl)
    if few is not None:
        choose = shots.few_of_both if options.balanced else shots.few_positives
        found = found.take(choose(found.labels, few))
    return found


def _samples(phase: Phase, split: str) -> list[Sample]:
    rows = zip(phase.ids, phase.labels, *(phase.features[m] for m in MODALITIES), strict=True)
    return [
        Sample(
            id=f"{split}/{name}",
            inputs=dict(zip(MODALITIES, features, strict=True)),
            units=(f"{split}/{name}",),
            labels=np.asarray([label]),
        )
        for name, label, *features in rows
    ]


def _trimmed(sample: Sample, aligned: bool) -> Sample:
    """An utterance without the zero rows at its ends; where steps are aligned, those that are zero in all modalities.

    One row stays of an utterance that has no other.
    """
    filled = {m: (x != 0).any(axis=1) for m, x in sample.inputs.items()}
    if aligned:
        filled = dict.fromkeys(filled, np.any(list(filled.values()), axis=0))
    ends = {m: np.flatnonzero(rows) if rows.any() else np.zeros(1, np.int64) for m, rows in filled.items()}
    return replace(sample, inputs={m: x[ends[m][0] : ends[m][-1] + 1] for m, x in sample.inputs.items()})


def _there(path: Path, dataset: Dataset, phase: str, options: EmotionData) -> bool:
    return all((path / n).is_file() for n in dataset.files(phase, options))


def _cache(path: Path, dataset: Dataset, name: str, phase: str, options: EmotionData) -> Path | None:
    """The cache of a phase. It stands in for raw files that are not there, which give the same."""
    return next(iter(_one(_caches(path, dataset, name, phase, options), path).values()), None)


def _one(caches: Mapping[int, Path], path: Path) -> Mapping[int, Path]:
    """Caches of which there is one at most; raises UsageError for several."""
    if len(caches) > 1:
        raise UsageError(f"{path} holds caches of {sorted(caches)} steps: choose with data.emotions.steps")
    return caches


def _caches(path: Path, dataset: Dataset, name: str, phase: str, options: EmotionData) -> dict[int, Path]:
    """The caches of a phase that may be meant, by their steps."""
    if (options.zsl is not None and name == "iemocap") or not dataset.cache:
        return {}
    # Their length and alignment are a part of the name alone: what is not said, the files say.
    marks = {True: "", False: "_noalign"}
    asked = [options.aligned] if "aligned" in options.model_fields_set else [True, False]
    for aligned in asked:
        pattern = re.compile(rf"{name}_(\d+)_{phase}{marks[aligned]}\.pt")
        there = {int(m[1]): p for folder in CACHES for p, m in _matching(path / folder, pattern)}
        if "steps" in options.model_fields_set or options.steps in there:
            there = {n: p for n, p in there.items() if n == options.steps}
        if there:
            return there
    return {}


def _matching(folder: Path, pattern: re.Pattern[str]) -> list[tuple[Path, re.Match[str]]]:
    files = sorted(folder.iterdir()) if folder.is_dir() else []
    return [(p, m) for p in files if (m := pattern.fullmatch(p.name)) and p.is_file()]


def _read_cache(path: Path, dataset: Dataset) -> Phase:
    content = load_pickle(path, records={f"src.dataset.{dataset.cache}"})
    if not isinstance(content, dict) or not {*MODALITIES, "labels", "id"} <= set(content):
        raise InputError(f"{path} is not a dataset cache: it lacks features, labels or ids")
    ids = [_identity(i) for i in content["id"]]
    return _checked(path, {m: content[m] for m in MODALITIES}, content["labels"], ids)


def _identity(value: Any) -> str:
    """An id as text; CMU-MOSI's are three byte strings: video, start, end."""
    parts = [value] if isinstance(value, str | bytes) or np.ndim(value) == 0 else list(np.ravel(value))
    return "_".join(p.decode("utf-8", "replace") if isinstance(p, bytes) else str(p) for p in parts)


def _checked(path: Path, features: dict[str, Any], labels: Any, ids: Sequence[str] | None = None) -> Phase:
    """Arrays of one phase as float32; raises InputError where they do not fit each other."""
    try:
        arrays = {m: np.asarray(x).astype(np.float32) for m, x in features.items()}
        found = np.asarray(labels).astype(np.float32)
    except (TypeError, ValueError) as error:
        raise InputError(f"{path}: features or labels are not numbers ({error})") from None
    if found.ndim != 2:
        # Sentiment comes as (samples, 1, 1) or (samples,).
        found = found.reshape(len(found) if found.ndim else 0, -1) if found.size else np.zeros((0, 1), np.float32)
    names = tuple(ids) if ids is not None else tuple(str(i) for i in range(len(found)))
    shapes = {m: x.shape for m, x in arrays.items()} | {"labels": found.shape, "ids": (len(names),)}
    if any(x.ndim != 3 for x in arrays.values()) or len({s[0] for s in shapes.values()}) != 1:
        raise InputError(f"{path}: shapes {shapes} do not fit, expected (samples, steps, width) features")
    arrays["audio"] = np.where(np.isneginf(arrays["audio"]), np.float32(0), arrays["audio"])
    return Phase(arrays, found, names)


def _mosei_files(phase: str, _options: EmotionData) -> list[str]:
    return [f"text_{phase}_emb.h5", f"audio_{phase}.h5", f"video_{phase}.h5", f"ey_{phase}.h5"]


def _mosei(path: Path, phase: str, options: EmotionData) -> Phase:
    text, audio, video, labels = (load_hdf5(path / n, "d1") for n in _mosei_files(phase, options))
    # Intensities; an emotion is there where its intensity is above 0.
    return _checked(path, {"text": text, "audio": audio, "vision": video}, labels > 0)


def _mosei_zero_shot(_path: Path, _phase: str, found: Phase, k: int) -> Phase:
    kept = found.take(shots.without_positives(found.labels, k))
    return replace(kept, labels=np.delete(kept.labels, k, axis=1))


def _from_pickle(file: Path, phase: str) -> dict[str, Any] | None:
    """A phase of a pickle that holds them all; None where it holds others only."""
    content = load_pickle(file)
    phases = {p: content[p] for p in PHASES if p in content} if isinstance(content, dict) else {}
    if phases and phase not in phases:
        return None
    part = phases.get(phase)
    if not isinstance(part, dict) or not {*MODALITIES, "labels"} <= set(part):
        raise InputError(f"{file} has no phase {phase!r} with text, audio, vision and labels")
    return part


def _aligned(name: str, options: EmotionData) -> str:
    return f"{name}.pkl" if options.aligned else f"{name}_noalign.pkl"


def _iemocap_files(phase: str, options: EmotionData) -> list[str]:
    finer = list(_nine_files(phase).values()) if options.zsl is not None else []
    return [_aligned("iemocap_data", options), *finer]


def _iemocap(path: Path, phase: str, options: EmotionData) -> Phase | None:
    file = path / _aligned("iemocap_data", options)
    part = _from_pickle(file, phase)
    if part is None:
        return None
    labels = np.asarray(part["labels"])
    if labels.ndim != 3 or labels.shape[1:] != (len(IEMOCAP_LABELS), 2):
        raise InputError(f"{file}: labels have shape {labels.shape}, expected (samples, 4, 2)")
    return _checked(file, {m: part[m] for m in MODALITIES}, labels.argmax(-1))


def _nine_files(phase: str) -> dict[str, str]:
    return {
        "text": f"text_{phase}.p",
        "audio": f"covarep_{phase}.p",
        "vision": f"facet_{phase}.p",
        "labels": f"y_{phase}.p",
    }


def _iemocap_zero_shot(path: Path, phase: str, found: Phase, k: int) -> Phase:
    """Appends the samples of finer class `k`, without their last step, and its label as one more column."""
    arrays = {n: np.asarray(load_pickle(path / file)) for n, file in _nine_files(phase).items()}
    classes = arrays.pop("labels")
    if classes.ndim != 2 or classes.shape[1] != len(NINE_LABELS) + 2:
        raise InputError(f"{path / _nine_files(phase)['labels']} has shape {classes.shape}, expected (samples, 11)")
    rows = np.flatnonzero(classes[:, k + 1])
    size, own = len(found.labels), found.labels.shape[1]
    more = {m: x[rows, :-1] for m, x in arrays.items()}
    labels = np.zeros((size + len(rows), own + 1), dtype=np.float32)
    labels[:size, :own], labels[size:, own] = found.labels, 1
    added = _checked(path, more, labels[size:])
    for m, x in added.features.items():
        if x.shape[1:] != found.features[m].shape[1:]:
            raise InputError(
                f"{path}: {m} of the finer classes is {x.shape[1:]}, the data are {found.features[m].shape[1:]}"
            )
    features = {m: np.concatenate([x, added.features[m]]) for m, x in found.features.items()}
    return Phase(features, labels, tuple(str(i) for i in range(len(labels))))


SHORT_STEPS = 20
"""The length of CMU-MOSI that comes as HDF5."""
MOSI_COLUMNS = {"text": slice(0, 300), "audio": slice(300, 305), "vision": slice(305, None)}


def _mosi_files(phase: str, options: EmotionData) -> list[str]:
    return [f"X_{phase}.h5", f"y_{phase}.h5"] if options.steps == SHORT_STEPS else [_aligned("mosi_data", options)]


def _mosi(path: Path, phase: str, options: EmotionData) -> Phase | None:
    if options.steps == SHORT_STEPS:
        x, labels = (load_hdf5(path / n, "data") for n in _mosi_files(phase, options))
        if x.ndim != 3 or x.shape[2] <= MOSI_COLUMNS["vision"].start:
            raise InputError(
                f"{path / _mosi_files(phase, options)[0]} has shape {x.shape}, expected (samples, 20, 325)"
            )
        return _checked(path, {m: x[:, :, columns] for m, columns in MOSI_COLUMNS.items()}, labels)
    return _with_ids(path / _aligned("mosi_data", options), phase)


def _with_ids(file: Path, phase: str) -> Phase | None:
    part = _from_pickle(file, phase)
    if part is None:
        return None
    ids = [_identity(i) for i in part["id"]] if "id" in part else None
    return _checked(file, {m: part[m] for m in MODALITIES}, part["labels"], ids)


def _senti_files(phase: str, options: EmotionData) -> list[str]:
    if options.steps == SHORT_STEPS:
        return [f"{m}_{phase}.h5" for m in (*MODALITIES, "y")]
    return [_aligned("mosei_senti_data", options)]


def _senti(path: Path, phase: str, options: EmotionData) -> Phase | None:
    if options.steps != SHORT_STEPS:
        return _with_ids(path / _aligned("mosei_senti_data", options), phase)
    *features, labels = (load_hdf5(path / n, "d1") for n in _senti_files(phase, options))
    return _checked(path, dict(zip(MODALITIES, features, strict=True)), labels)


DATASETS: dict[str, Dataset] = {
    "mosei_emo": Dataset(MOSEI_LABELS, "MOSEI", _mosei_files, _mosei, _mosei_zero_shot, few_shot=True),
    "iemocap": Dataset(IEMOCAP_LABELS, "IEMOCAP", _iemocap_files, _iemocap, _iemocap_zero_shot),
    "mosi": Dataset(SENTIMENT, "MOSI", _mosi_files, _mosi),
    "mosei_senti": Dataset(SENTIMENT, "", _senti_files, _senti),
}
