"""The one way from a path to samples, whatever the format."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

from mer_export.data.samples import Corpus, Sample
from mer_export.data.spec import DataSpec
from mer_export.errors import InputError, UsageError


@dataclass(frozen=True)
class Format:
    """One file format.

    `module` offers `detect(path, spec)`, `files(path, spec)`, `read(path, spec, labels)` and, where it `streams`,
    `pairs(path, spec, labels, split)`, which yields (split, sample).
    """

    title: str
    module: str
    reads: bool = True
    writes: bool = False
    streams: bool = False
    directory: bool = False
    """Reads a directory, the others one file."""

    def load(self) -> Any:
        """The module of this format."""
        return import_module(self.module)


FORMATS: dict[str, Format] = {
    "dialogue_table": Format(
        "utterance table (csv, tsv, parquet) and arrays (npz, npy)",
        "mer_export.data.readers.dialogue_table",
        directory=True,
    ),
    "cmerc": Format(
        "feature pickles of CMERC and M3NET (IEMOCAP, MELD)",
        "mer_export.data.readers.cmerc",
        writes=True,
        directory=True,
    ),
    "mmsa": Format(
        "feature pickles of MMSA (MOSI, MOSEI, SIMS)",
        "mer_export.data.readers.mmsa",
        writes=True,
    ),
    "mtee": Format(
        "utterance sets of MTEE (CMU-MOSEI, IEMOCAP, CMU-MOSI) and their caches",
        "mer_export.data.readers.mtee",
        writes=True,
        directory=True,
    ),
    "tab": Format(
        "IEMOCAP tokens and context windows as text files (tab)",
        "mer_export.data.readers.tab",
        writes=True,
        directory=True,
    ),
    "facialmmt": Format(
        "features, texts and faces of FacialMMT (MELD), and its caches",
        "mer_export.data.readers.facialmmt",
        writes=True,
        directory=True,
    ),
    "affwild": Format(
        "faces with expression labels (Aff-Wild2)",
        "mer_export.data.readers.affwild",
        writes=True,
        directory=True,
    ),
    "parquet": Format("columnar file of mer data convert", "mer_export.data.columnar", writes=True, streams=True),
    "jsonl": Format("one dialogue per line", "mer_export.data.readers.jsonl", streams=True),
}
"""Formats in the order in which they are tried."""


def open_corpus(path: Path | str, spec: DataSpec | None = None, labels: Sequence[str] | None = None) -> Corpus:
    """Reads a whole data set into memory.

    Args:
        path: file or directory.
        spec: the `data:` section; None detects the format by the files.
        labels: class names of the model, in index order.

    Raises:
        InputError: missing, unknown, damaged, or holding labels or features that contradict `spec`.
    """
    path, spec = Path(path), spec or DataSpec()
    return FORMATS[detect(path, spec)].load().read(path, spec, labels)


def stream_samples(
    path: Path | str, spec: DataSpec | None = None, labels: Sequence[str] | None = None, split: str | None = None
) -> Iterator[Sample]:
    """Yields samples in file order, one split or all; Parquet and JSONL are read with bounded memory.

    Raises:
        InputError: as `open_corpus`.
        UsageError: no such split.
    """
    path, spec = Path(path), spec or DataSpec()
    chosen = FORMATS[detect(path, spec)]
    if chosen.streams:
        for _, sample in chosen.load().pairs(path, spec, labels, split):
            yield sample
        return
    corpus = chosen.load().read(path, spec, labels)
    yield from corpus if split is None else corpus.split(split)


def detect(path: Path, spec: DataSpec) -> str:
    """The name of the format of these files.

    A configured format holds for what it can read: a model trained on a directory of pickles also takes a single
    Parquet or JSONL file, which says itself what it is.
    """
    if spec.format != "auto" and spec.format not in FORMATS:
        raise UsageError(f"no data format {spec.format!r}, there are {list(FORMATS)}")
    if not path.exists():
        raise InputError(f"{path} does not exist: point --data at a file or directory")
    if spec.format != "auto" and FORMATS[spec.format].directory == path.is_dir():
        return spec.format
    for name, known in FORMATS.items():
        if known.load().detect(path, spec):
            return name
    raise InputError(f"{path} is in no format that can be recognised: set data.format to one of {list(FORMATS)}")
