"""The one way from a path to samples, whatever the format."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from mer_export.data.formats.format import known_formats
from mer_export.data.samples import Corpus, Sample
from mer_export.data.spec import DataSpec
from mer_export.errors import InputError, UsageError


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
    return known_formats()[detect(path, spec)].load().read(path, spec, labels)


def stream_samples(
    path: Path | str, spec: DataSpec | None = None, labels: Sequence[str] | None = None, split: str | None = None
) -> Iterator[Sample]:
    """Yields samples in file order, one split or all; Parquet and JSONL are read with bounded memory.

    Raises:
        InputError: as `open_corpus`.
        UsageError: no such split.
    """
    path, spec = Path(path), spec or DataSpec()
    chosen = known_formats()[detect(path, spec)]
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
    if spec.format != "auto" and spec.format not in known_formats():
        raise UsageError(f"no data format {spec.format!r}, there are {list(known_formats())}")
    if not path.exists():
        raise InputError(f"{path} does not exist: point --data at a file or directory")
    if spec.format != "auto" and known_formats()[spec.format].directory == path.is_dir():
        return spec.format
    for name, known in known_formats().items():
        if known.load().detect(path, spec):
            return name
    raise InputError(f"{path} is in no known format: set data.format to one of {list(known_formats())}")
