"""The open columnar format: a Parquet file with one row per utterance, the rows of a dialogue together.

    dialogue string | index int32 | utterance string | split string | speaker int64 | label int64 | sentence string
    text_0 .. text_<k-1>, audio, vision: list<float32>, null in every row of a dialogue that lacks the modality

The schema metadata key `mer` holds class names, widths and where the data came from as JSON. Row groups end between
dialogues and between splits, so a reader holds one row group at most.
"""

from __future__ import annotations

import itertools
import json
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from mer_export.data.labels import LabelReader
from mer_export.data.samples import Corpus, Sample
from mer_export.data.spec import DataSpec
from mer_export.errors import InputError, NotAvailableError, UnsupportedError, UsageError
from mer_export.install import not_installed
from mer_export.untrusted.impostors import refuse_impostor

KEY = b"mer"
COLUMNS = ("text", "audio", "vision", "speaker")
"""Inputs that the format holds."""
VERSION = 1
GROUP_BYTES = 1 << 22
"""Features of a row group: what a streaming reader holds at a time, decoded."""
BATCH_ROWS = 512
REQUIRED = ("dialogue", "index", "utterance", "split", "speaker", "label")


def detect(path: Path, spec: DataSpec) -> bool:
    """True for a file with the usual ending."""
    return path.is_file() and path.suffix == ".parquet"


def write_parquet(corpus: Corpus, path: Path | str) -> int:
    """Writes a corpus atomically, so that a reader or a killed writer sees the old file or the new one.

    Returns:
        The number of utterances.

    Raises:
        InputError: samples differ in width or number of text vectors.
        NotAvailableError: no pyarrow.
        UnsupportedError: data of another shape than dialogues.
    """
    if any("input_ids" in s.inputs or (s.labels is not None and s.labels.dtype.kind == "f") for s in corpus):
        raise UnsupportedError(
            f"{path}: this format holds dialogues of vectors with classes, not word pieces, scores or label sets"
        )
    arrow, parquet = _pyarrow()
    path = Path(path)
    widths, vectors = _widths(corpus)
    schema = _schema(arrow, corpus, widths, vectors)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        with parquet.ParquetWriter(temporary, schema, compression="zstd") as writer:
            for split, samples in corpus.splits.items():
                for group in _groups(samples):
                    rows = _columns(group, split, corpus, widths, vectors)
                    writer.write_table(arrow.Table.from_pydict(rows, schema=schema))
        with temporary.open("rb") as stream:
            os.fsync(stream.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
    return sum(len(sample.units) for sample in corpus)


def pairs(
    path: Path, spec: DataSpec, labels: Sequence[str] | None = None, split: str | None = None
) -> Iterator[tuple[str, Sample]]:
    """Yields (split, sample) in file order, a part of a row group in memory at a time.

    Raises:
        InputError: not such a file, damaged, a dialogue's rows are not together, or a label the model does not know.
        UsageError: no such split.
    """
    with _opened(path) as file:
        meta = _metadata(path, file)
        if split is not None and split not in meta["splits"]:
            raise UsageError(f"no split {split!r} in {path}, there are {meta['splits']}")
        reader = LabelReader(str(path), labels, meta["labels"])
        wanted = [g for g in range(file.num_row_groups) if split is None or _split_of(file, g) in (None, split)]
        rows = _rows(path, file, wanted)
        for _, group in itertools.groupby(rows, key=lambda row: (row["split"], row["dialogue"])):
            sample = _sample(path, list(group), meta, reader)
            if split is None or sample[0] == split:
                yield sample


def read(path: Path, spec: DataSpec, labels: Sequence[str] | None = None) -> Corpus:
    """The whole file; see `pairs`."""
    with _opened(path) as file:
        meta = _metadata(path, file)
    splits: dict[str, list[Sample]] = {name: [] for name in meta["splits"]}
    for split, sample in pairs(path, spec, labels):
        splits.setdefault(split, []).append(sample)
    names = list(labels) if labels is not None else meta["labels"]
    info = {
        "labels": names,
        "speakers": meta["speakers"],
        "source_format": meta["source_format"],
        "sentences": _sentences(path),
    }
    return Corpus(splits=splits, format="parquet", info=info)


def class_names(path: Path, spec: DataSpec) -> list[str]:
    """The classes of the data, in index order."""
    with _opened(path) as file:
        return list(_metadata(path, file)["labels"])


def files(path: Path, spec: DataSpec) -> list[Path]:
    """The file itself."""
    return [path]


def _widths(corpus: Corpus) -> tuple[dict[str, int], int]:
    """Width per modality, and the number of text vectors; every sample must agree."""
    widths: dict[str, int] = {}
    vectors = 0
    for sample in corpus:
        others = [n for n in sample.inputs if n not in COLUMNS]
        if others:
            raise InputError(f"{sample.id}: {others[0]} has no place in this format, it holds vectors: keep the files")
        for name in ("text", "audio", "vision"):
            array = sample.inputs.get(name)
            if array is None:
                continue
            if widths.setdefault(name, array.shape[-1]) != array.shape[-1]:
                raise InputError(f"{sample.id}: {name} is {array.shape[-1]} wide, others have {widths[name]}")
            if name == "text" and (vectors := vectors or len(array)) != len(array):
                raise InputError(f"{sample.id}: {len(array)} text vectors, others have {vectors}")
    return widths, vectors


def _class_names(corpus: Corpus) -> list[str]:
    """The names that the corpus gives its classes, else their numbers."""
    top = max((int(s.labels.max(initial=-1)) for s in corpus if s.labels is not None), default=-1)
    return list(corpus.info.get("labels") or map(str, range(top + 1)))


def _feature_columns(widths: dict[str, int], vectors: int) -> list[str]:
    return [*(f"text_{k}" for k in range(vectors)), *(m for m in ("audio", "vision") if m in widths)]


def _schema(arrow: Any, corpus: Corpus, widths: dict[str, int], vectors: int) -> Any:
    scalars = {
        "dialogue": arrow.string(),
        "index": arrow.int32(),
        "utterance": arrow.string(),
        "split": arrow.string(),
        "speaker": arrow.int64(),
        "label": arrow.int64(),
        "sentence": arrow.string(),
    }
    meta = {
        "version": VERSION,
        "labels": _class_names(corpus),
        "speakers": int(corpus.info.get("speakers", 1)),
        "splits": list(corpus.splits),
        "dims": widths,
        "text_vectors": vectors,
        "source_format": corpus.format,
    }
    fields = [arrow.field(n, t) for n, t in scalars.items()]
    fields += [arrow.field(n, arrow.list_(arrow.float32())) for n in _feature_columns(widths, vectors)]
    return arrow.schema(fields, metadata={KEY: json.dumps(meta).encode()})


def _groups(samples: Sequence[Sample]) -> Iterator[list[Sample]]:
    """Samples in row groups of about `GROUP_BYTES`, never cutting a dialogue."""
    group: list[Sample] = []
    size = 0
    for sample in samples:
        group.append(sample)
        size += sum(array.nbytes for array in sample.inputs.values())
        if size >= GROUP_BYTES:
            yield group
            group, size = [], 0
    if group:
        yield group


def _columns(
    group: list[Sample], split: str, corpus: Corpus, widths: dict[str, int], vectors: int
) -> dict[str, list[Any]]:
    columns: dict[str, list[Any]] = {name: [] for name in (*REQUIRED, "sentence", *_feature_columns(widths, vectors))}
    sentences = corpus.info.get("sentences", {})
    for sample in group:
        size = len(sample.units)
        speaker = sample.inputs.get("speaker")
        columns["dialogue"] += [sample.id] * size
        columns["index"] += range(size)
        columns["utterance"] += sample.units
        columns["split"] += [split] * size
        columns["speaker"] += [None] * size if speaker is None else speaker.tolist()
        columns["label"] += [None] * size if sample.labels is None else sample.labels.tolist()
        spoken = sentences.get(sample.id, ())
        columns["sentence"] += spoken if len(spoken) == size else [None] * size
        text = sample.inputs.get("text")
        for k in range(vectors):
            columns[f"text_{k}"] += [None] * size if text is None else list(text[k])
        for name in ("audio", "vision"):
            if name in widths:
                array = sample.inputs.get(name)
                columns[name] += [None] * size if array is None else list(array)
    return columns


def _rows(path: Path, file: Any, groups: list[int]) -> Iterator[dict[str, Any]]:
    """Rows of the chosen row groups; vectors as numpy arrays."""
    arrow, _ = _pyarrow()
    try:
        # Group by group: asked for all at once, the library decodes ahead.
        for batch in (b for g in groups for b in file.iter_batches(batch_size=BATCH_ROWS, row_groups=[g])):
            columns = {name: _cells(arrow, batch.column(i)) for i, name in enumerate(batch.schema.names)}
            for i in range(batch.num_rows):
                yield {name: cells[i] for name, cells in columns.items()}
    except (OSError, arrow.ArrowException) as error:
        raise InputError(f"{path} is damaged: {' '.join(str(error).split())[:120]}") from None


def _cells(arrow: Any, column: Any) -> list[Any]:
    if not arrow.types.is_list(column.type):
        return column.to_pylist()
    values = column.values.to_numpy(zero_copy_only=False)
    offsets = column.offsets.to_numpy()
    valid = column.is_valid().to_pylist()
    return [values[a:b] if ok else None for a, b, ok in zip(offsets, offsets[1:], valid, strict=False)]


def _sample(path: Path, rows: list[dict[str, Any]], meta: dict[str, Any], labels: LabelReader) -> tuple[str, Sample]:
    name = str(rows[0]["dialogue"])
    if [r["index"] for r in rows] != list(range(len(rows))):
        raise InputError(f"{path}: the utterances of dialogue {name!r} are not together and in order")
    inputs: dict[str, np.ndarray] = {}
    text = [_stack(path, rows, f"text_{k}", meta["dims"].get("text")) for k in range(meta["text_vectors"])]
    if text and all(t is not None for t in text):
        inputs["text"] = np.stack([t for t in text if t is not None])
    for modality in ("audio", "vision"):
        array = _stack(path, rows, modality, meta["dims"].get(modality))
        if array is not None:
            inputs[modality] = array
    if rows[0]["speaker"] is not None:
        inputs["speaker"] = np.asarray([r["speaker"] for r in rows], dtype=np.int64)
    known = any(r["label"] is not None for r in rows)
    found = labels.indices(r["label"] for r in rows) if known else None
    return str(rows[0]["split"]), Sample(name, inputs, tuple(str(r["utterance"]) for r in rows), found)


def _stack(path: Path, rows: list[dict[str, Any]], column: str, width: int | None) -> np.ndarray | None:
    cells = [r.get(column) for r in rows]
    given = [c for c in cells if c is not None]
    if not given:
        return None
    if len(given) != len(cells) or any(len(c) != width for c in given):
        raise InputError(f"{path}: dialogue {rows[0]['dialogue']!r} has gaps or other widths than {width} in {column}")
    return np.stack(given).astype(np.float32)


def _sentences(path: Path) -> dict[str, list[str]]:
    with _opened(path) as file:
        if "sentence" not in file.schema_arrow.names:
            return {}
        table = file.read(columns=["dialogue", "sentence"])
    found: dict[str, list[str]] = {}
    for dialogue, sentence in zip(*(table.column(c).to_pylist() for c in ("dialogue", "sentence")), strict=True):
        if sentence is not None:
            found.setdefault(dialogue, []).append(sentence)
    return found


def _split_of(file: Any, group: int) -> str | None:
    """The split of a row group where its statistics prove that there is one only."""
    column = file.schema_arrow.names.index("split")
    statistics = file.metadata.row_group(group).column(column).statistics
    if statistics is None or not statistics.has_min_max or statistics.min != statistics.max:
        return None
    return str(statistics.min)


def _opened(path: Path) -> Any:
    arrow, parquet = _pyarrow()
    refuse_impostor(path)
    try:
        return parquet.ParquetFile(path)
    except (OSError, arrow.ArrowException) as error:
        raise InputError(f"{path} is no readable Parquet file: {' '.join(str(error).split())[:120]}") from None


def _metadata(path: Path, file: Any) -> dict[str, Any]:
    raw = (file.schema_arrow.metadata or {}).get(KEY)
    missing = [c for c in REQUIRED if c not in file.schema_arrow.names]
    if raw is None or missing:
        raise InputError(f"{path} was not written by mer data convert: describe it as a dialogue table in data.table")
    try:
        meta = json.loads(raw)
        version = int(meta["version"])
        for key in ("labels", "speakers", "splits", "dims", "text_vectors", "source_format"):
            meta[key]
    except (ValueError, KeyError, TypeError) as error:
        raise InputError(f"{path} has damaged metadata: {error}") from None
    if version > VERSION:
        raise InputError(f"{path} has format version {version}, this mer reads up to {VERSION}: update mer")
    return meta


def _pyarrow() -> tuple[Any, Any]:
    try:
        import pyarrow
        from pyarrow import parquet
    except ImportError:
        raise NotAvailableError(not_installed("pyarrow", "columnar")) from None
    return pyarrow, parquet
