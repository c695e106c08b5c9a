"""What a file holds, without running anything in it: the facts a person wants before training or inferring."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from mer_export.bundle import MANIFEST, Bundle, sha256
from mer_export.data.draft import draft, undescribed_tables
from mer_export.data.formats.cmerc.difficulty import is_difficulty, read_difficulty
from mer_export.data.formats.format import known_formats
from mer_export.data.formats.table.reader import MAPPING, SUFFIXES
from mer_export.data.open import OpenData, detect, known_format
from mer_export.data.samples import Sample
from mer_export.data.spec import DataSpec
from mer_export.errors import InputError, MerError, UsageError
from mer_export.task import known_units
from mer_export.untrusted.arrays import check_arrays
from mer_export.untrusted.impostors import refuse_impostor
from mer_export.untrusted.json_files import read_json
from mer_export.untrusted.pickles import load_pickle

OUTLINE_DEPTH = 4
OUTLINE_ITEMS = 12
NAMED_BAD = 5
READING = {"format", "encoding", "separator"}
"""Fields of the data section that describe no columns."""


def inspect_file(path: Path | str, spec: DataSpec | None = None) -> dict[str, Any]:
    """Describes a data set, bundle, difficulty file, pickle, array or weight file, as JSON-able values.

    Open data are streamed. Every description has `path`, `kind` and `files` (size, SHA-256).

    Raises:
        InputError: missing, damaged, or nothing that is known.
        UsageError: a data format is named and `path` is a bundle.
    """
    path, spec = Path(path), spec or DataSpec()
    if not path.exists():
        raise InputError(f"{path} does not exist")
    if (path / MANIFEST).is_file():
        if spec.format != "auto":
            raise UsageError(f"{path} is a bundle, not a data set: leave --data-format {spec.format} out")
        return {"path": str(path), **_bundle(path)}
    if path.is_file() and path.suffix in SINGLE:
        return {"path": str(path), **SINGLE[path.suffix](path), "files": _checksums([path], path.parent)}
    tables = undescribed(path, spec)
    return {"path": str(path), **(_lacking(path, tables, spec) if tables else _corpus(path, spec))}


def undescribed(path: Path, spec: DataSpec) -> list[Path]:
    """The tables of which neither a `table.yaml` nor `spec` says what their columns are; none in other data."""
    folder = path if path.is_dir() else path.parent
    if spec.model_fields_set - READING or (folder / MAPPING).is_file() or not path.exists():
        return []
    if path.is_file():
        return [path] if path.suffix in SUFFIXES else []
    return [] if known_format(path, spec) else undescribed_tables(path)


def _lacking(path: Path, tables: list[Path], spec: DataSpec) -> dict[str, Any]:
    """What tables that nothing describes need, and a draft of it."""
    names = " and ".join(f.name for f in tables[:NAMED_BAD])
    return {
        "kind": "table without a description",
        "lacks": f"{names} {'look' if len(tables) > 1 else 'looks'} like a table: write {MAPPING}, for example",
        "draft": draft(path, spec).splitlines(),
        "files": _checksums(tables, path if path.is_dir() else path.parent),
    }


def _corpus(path: Path, spec: DataSpec) -> dict[str, Any]:
    name = detect(path, spec)
    known = known_formats()[name]
    splits: dict[str, _Tally] = {}
    if known.open:
        data = OpenData.at(path, known, spec)
        labels = list(data.labels.labels)
        pairs = ((dialogue.split, sample) for dialogue, sample in data.samples())
    else:
        corpus = known.load().read(path, spec)
        labels = corpus.info.get("labels", [])
        splits |= {split: _Tally() for split in corpus.splits}
        pairs = ((split, sample) for split, samples in corpus.splits.items() for sample in samples)
    for split, sample in pairs:
        splits.setdefault(split, _Tally()).add(sample)
    return {
        "kind": "data set",
        "format": name,
        "labels": labels,
        "splits": {split: tally.summary(labels) for split, tally in splits.items()},
        "files": _checksums(known.load().files(path, spec), path if path.is_dir() else path.parent),
    }


TOKENS = {"input_ids": "tokens", "text_tokens": "text tokens", "audio_tokens": "audio tokens"}
"""Inputs of token ids, and what a summary calls their lengths."""


class _Moments:
    """Running statistics of one modality."""

    def __init__(self) -> None:
        self.width = 0
        self.shape: tuple[int, ...] = ()
        self.dtype = ""
        self.dialogues = 0
        self.steps: Counter[int] = Counter()
        self.count = 0
        self.total = self.squares = 0.0
        self.low, self.high = math.inf, -math.inf
        self.bad: list[str] = []
        self.nan = self.infinite = 0

    def add(self, sample: Sample, array: np.ndarray) -> None:
        array = array[None] if array.ndim == 1 else array
        self.width, self.dtype = array.shape[-1], str(array.dtype)
        self.shape = array.shape[:-2]
        self.dialogues += 1
        self.steps[array.shape[-2]] += 1
        finite = array[np.isfinite(array)].astype(np.float64)
        self.nan += int(np.isnan(array).sum())
        self.infinite += int(np.isinf(array).sum())
        if finite.size != array.size and len(self.bad) < NAMED_BAD:
            self.bad.append(sample.id)
        if finite.size:
            self.count += finite.size
            self.total += float(finite.sum())
            self.squares += float(np.square(finite).sum())
            self.low, self.high = min(self.low, float(finite.min())), max(self.high, float(finite.max()))

    def summary(self) -> dict[str, Any]:
        mean = self.total / self.count if self.count else None
        spread = math.sqrt(max(0.0, self.squares / self.count - mean**2)) if mean is not None else None
        return {
            "width": self.width,
            "vectors": self.shape[0] if self.shape else 1,
            "dtype": self.dtype,
            "dialogues": self.dialogues,
            "steps": [min(self.steps, default=0), max(self.steps, default=0)],
            "mean": mean,
            "std": spread,
            "min": self.low if self.count else None,
            "max": self.high if self.count else None,
            "nan": self.nan,
            "infinite": self.infinite,
            "not_finite_in": self.bad,
        }


class _Tally:
    """Running statistics of one split."""

    def __init__(self) -> None:
        self.lengths: Counter[int] = Counter()
        self.labels: Counter[int] = Counter()
        self.scores = _Moments()
        self.tokens: dict[str, Counter[int]] = {}
        self.speakers: Counter[int] = Counter()
        self.unlabelled = 0
        self.images = 0
        self.modalities: dict[str, _Moments] = {}

    def add(self, sample: Sample) -> None:
        self.lengths[len(sample.units)] += 1
        if sample.labels is None:
            self.unlabelled += len(sample.units)
        else:
            self._label(sample, sample.labels)
        for name, array in sample.inputs.items():
            if not isinstance(array, np.ndarray):
                self.images += len(array)
            elif array.dtype.kind == "f":
                self.modalities.setdefault(name, _Moments()).add(sample, array)
            elif name == "speaker":
                self.speakers.update(array.tolist())
            elif name in TOKENS:
                self.tokens.setdefault(TOKENS[name], Counter())[len(array)] += 1

    def _label(self, sample: Sample, labels: np.ndarray) -> None:
        known = known_units(labels)
        self.unlabelled += int((~known).sum())
        if labels.ndim == 2:
            # How often each label holds.
            self.labels.update(np.nonzero(labels[known] > 0)[1].tolist())
        elif labels.dtype.kind == "f":
            self.scores.add(sample, labels[known, None])
        else:
            self.labels.update(labels[known].tolist())

    def summary(self, labels: list[str]) -> dict[str, Any]:
        return {
            "dialogues": self.lengths.total(),
            "utterances": sum(n * c for n, c in self.lengths.items()),
            "length": _quantiles(self.lengths),
            "labels": {_named(labels, i): c for i, c in sorted(self.labels.items())},
            **(
                {"scores": {k: self.scores.summary()[k] for k in ("mean", "std", "min", "max")}}
                if self.scores.count
                else {}
            ),
            "unlabelled": self.unlabelled,
            **{name: _quantiles(lengths) for name, lengths in self.tokens.items()},
            **({"images": self.images} if self.images else {}),
            "speakers": {str(i): c for i, c in sorted(self.speakers.items())},
            "modalities": {m: s.summary() for m, s in self.modalities.items()},
        }


def _named(labels: list[str], index: int) -> str:
    return labels[index] if index < len(labels) else str(index)


def _quantiles(lengths: Counter[int]) -> dict[str, Any]:
    """Utterances per dialogue: the smallest length that covers the share, and the histogram."""
    ordered, total = sorted(lengths.items()), lengths.total()

    def reach(share: float) -> int:
        seen = 0
        for length, count in ordered:
            seen += count
            if seen >= share * total:
                return length
        return 0

    return {
        "min": reach(0),
        "p50": reach(0.5),
        "p90": reach(0.9),
        "max": ordered[-1][0] if ordered else 0,
        "histogram": {str(n): c for n, c in ordered},
    }


def _bundle(path: Path) -> dict[str, Any]:
    bundle = Bundle.open(path)
    manifest = bundle.manifest
    return {
        "kind": "bundle",
        "system": manifest.system,
        "variant": manifest.variant,
        "labels": list(manifest.task.labels),
        "inputs": {s.name: [s.dtype, *s.dims] for s in manifest.contract.inputs},
        "outputs": {s.name: [s.dtype, *s.dims] for s in manifest.contract.outputs},
        "buckets": [dict(b) for b in manifest.contract.buckets],
        "features": {k: v.model_dump() for k, v in manifest.features.items()},
        "variants": [v.name for v in manifest.variants],
        "files": {name: entry.model_dump() for name, entry in manifest.files.items()},
    }


def _pickle(path: Path) -> dict[str, Any]:
    content = load_pickle(path)
    return _numbers(content, path) or {"kind": "pickle", "outline": outline(content)}


def _json(path: Path) -> dict[str, Any]:
    content = read_json(path)
    return _numbers(content, path) or {"kind": "json", "outline": outline(content)}


def _numbers(content: Any, path: Path) -> dict[str, Any] | None:
    """A dict of names to numbers: whole ones number a vocabulary or count, a difficulty is a fraction somewhere."""
    if not is_difficulty(content):
        return None
    if any(isinstance(v, float) for v in content.values()):
        return _difficulty(path)
    if sorted(content.values()) == list(range(len(content))):
        return {
            "kind": "vocabulary",
            "entries": len(content),
            "first": [str(k) for k in _first(content, OUTLINE_ITEMS)],
        }
    return None


def _difficulty(path: Path) -> dict[str, Any]:
    values = read_difficulty(path)
    numbers = np.asarray(list(values.values()))
    return {
        "kind": "difficulty file",
        "dialogues": len(values),
        "distinct": len(set(values.values())),
        "min": float(numbers.min()),
        "p50": float(np.median(numbers)),
        "max": float(numbers.max()),
        "easiest": min(values, key=values.__getitem__),
        "hardest": max(values, key=values.__getitem__),
    }


def _npz(path: Path) -> dict[str, Any]:
    check_arrays(path)
    try:
        with np.load(path, allow_pickle=False) as content:
            return {"kind": "arrays", "arrays": {name: _array(content[name]) for name in content.files}}
    except Exception as error:  # zip, header and length errors have many types
        raise InputError(f"{path} is not a readable npz file: {_short(error)}") from None


def _npy(path: Path) -> dict[str, Any]:
    check_arrays(path)
    try:
        return {"kind": "arrays", "arrays": {"": _array(np.load(path, allow_pickle=False))}}
    except Exception as error:
        raise InputError(f"{path} is not a readable npy file: {_short(error)}") from None


def _safetensors(path: Path) -> dict[str, Any]:
    from safetensors import SafetensorError, safe_open

    refuse_impostor(path)
    try:
        with safe_open(path, framework="numpy") as content:
            slices = {name: content.get_slice(name) for name in content.keys()}  # noqa: SIM118
            tensors = {n: {"shape": list(s.get_shape()), "dtype": s.get_dtype()} for n, s in slices.items()}
            return {"kind": "weights", "metadata": content.metadata() or {}, "arrays": tensors}
    except (SafetensorError, OSError) as error:
        raise InputError(f"{path} is not a readable safetensors file: {_short(error)}") from None


SINGLE: dict[str, Callable[[Path], dict[str, Any]]] = {
    ".pkl": _pickle,
    ".pickle": _pickle,
    ".json": _json,
    ".npz": _npz,
    ".npy": _npy,
    ".safetensors": _safetensors,
}
"""Single files by ending."""


def outline(value: Any, depth: int = 0) -> Any:
    """The structure of nested containers: types, sizes, keys and shapes, the first of items that look alike."""
    if isinstance(value, np.ndarray):
        return _array(value)
    if depth >= OUTLINE_DEPTH or not isinstance(value, Mapping | list | tuple | set | frozenset):
        return _leaf(value)
    kind = f"{type(value).__name__} of {len(value)}"
    if isinstance(value, Mapping):
        first = list(_first(value.items(), OUTLINE_ITEMS))
        if len(value) > OUTLINE_ITEMS or len({type(v) for _, v in first}) == 1:
            first = first[:1]
        return {"is": kind, "items": {_leaf(k): outline(v, depth + 1) for k, v in first}}
    items = list(_first(value, OUTLINE_ITEMS))
    # A short top-level sequence of an authors' file is a record: its places differ in meaning.
    shown = items if depth == 0 and len(value) <= OUTLINE_ITEMS else items[:1]
    return {"is": kind, "items": [outline(v, depth + 1) for v in shown]}


def _leaf(value: Any) -> str:
    if isinstance(value, Mapping | list | tuple | set | frozenset):
        return f"{type(value).__name__} of {len(value)}"
    text = repr(value)
    return text if len(text) <= 60 else f"{type(value).__name__} of {len(text)} characters"


def _first(values: Any, count: int) -> Iterator[Any]:
    for _, value in zip(range(count), values, strict=False):
        yield value


def _array(array: np.ndarray) -> dict[str, Any]:
    found: dict[str, Any] = {"shape": list(array.shape), "dtype": str(array.dtype)}
    if array.dtype.kind == "f":
        found["nan"] = int(np.isnan(array).sum())
        found["infinite"] = int(np.isinf(array).sum())
    return found


def _checksums(files: list[Path], root: Path) -> dict[str, Any]:
    found = {}
    for file in files:
        name = str(file.relative_to(root)) if file.is_relative_to(root) else str(file)
        found[name] = {"size": file.stat().st_size, "sha256": sha256(file)}
    return found


def _short(error: Exception) -> str:
    return str(error) if isinstance(error, MerError) else " ".join(str(error).split())[:120]
