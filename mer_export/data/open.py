"""The one way from a path to samples, whatever the format and the shape."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from mer_export.data.dialogues import USUAL_ORDER, Dialogue, Source, distinct
from mer_export.data.draft import undescribed_tables
from mer_export.data.formats.format import Format, known_formats
from mer_export.data.kept_samples import kept_or_read
from mer_export.data.labels import LabelReader, said_labels
from mer_export.data.samples import Corpus, Sample
from mer_export.data.shapes.shape import find_shape
from mer_export.data.spec import DataSpec, Extractor
from mer_export.data.tokens.tokenizer import bound
from mer_export.errors import InputError, UsageError
from mer_export.marks import Marks

Through = Callable[[Iterable[Dialogue]], Iterator[Dialogue]]
"""What dialogues of an open source pass before samples are made of them, one for one."""


def open_corpus(
    path: Path | str,
    spec: DataSpec | None = None,
    labels: Sequence[str] | None = None,
    through: Through | None = None,
) -> Corpus:
    """Reads a whole data set into memory.

    Args:
        path: file or directory.
        spec: the `data:` section; None detects the format by the files.
        labels: class names of the model, in index order.
        through: what dialogues of an open source pass on their way, such as encoders.

    Raises:
        InputError: missing, unknown, damaged, or holding labels or features that contradict `spec`.
    """
    path, spec = Path(path), spec or DataSpec()
    found = known_formats()[detect(path, spec)]
    if found.open:
        return OpenData.at(path, found, spec, labels).corpus(through)
    corpus: Corpus = found.load().read(path, spec, labels)
    corpus.info["extractors"] = spec.extractors
    return corpus


def said_extractors(path: Path, spec: DataSpec) -> Mapping[str, Extractor]:
    """What made the features of a data set, by input, as far as it or `spec` says."""
    found = known_formats()[detect(path, spec)]
    if not found.open:
        return spec.extractors
    reader = found.load()
    # Of a table the source is all of its rows.
    said: DataSpec = reader.described(path, spec) if hasattr(reader, "described") else reader.source(path, spec).spec
    return said.extractors


def stream_samples(
    path: Path | str,
    spec: DataSpec | None = None,
    labels: Sequence[str] | None = None,
    split: str | None = None,
    through: Through | None = None,
) -> Iterator[Sample]:
    """Yields samples in file order, one split or all, each with its `split`; Parquet and JSON lines are read with
    bounded memory. What was read of large files of the authors is kept for the next time (`kept_samples`).

    Args:
        path: file or directory.
        spec: the `data:` section; None detects the format by the files.
        labels: class names of the model, in index order.
        split: one of the data's, or all.
        through: what dialogues of an open source pass on their way, such as encoders.

    Raises:
        InputError: as `open_corpus`.
        UsageError: no such split.
    """
    path, spec = Path(path), spec or DataSpec()
    found = known_formats()[detect(path, spec)]
    if found.open:
        yield from OpenData.at(path, found, spec, labels).stream(split, through)
        return
    if found.by_split:
        yield from kept_or_read(path, found, spec, labels, split, lambda: _samples(path, found, spec, labels, split))
    else:
        yield from _samples(path, found, spec, labels, split)


def _samples(
    path: Path, found: Format, spec: DataSpec, labels: Sequence[str] | None, split: str | None
) -> list[Sample]:
    """The samples of a corpus, of one split or all."""
    read = found.load().read
    corpus: Corpus = read(path, spec, labels, split) if found.by_split else read(path, spec, labels)
    if split is not None and split not in corpus.splits:
        corpus = read(path, spec, labels)  # which names the splits that there are
    chosen = corpus.splits if split is None else {split: corpus.split(split)}
    return [replace(sample, split=name) for name, samples in chosen.items() for sample in samples]


def sentences(path: Path | str, spec: DataSpec, split: str) -> list[str]:
    """What is said in one split of an open source; raises UsageError where nothing is."""
    path = Path(path)
    found = known_formats()[detect(path, spec)]
    source: Source | None = found.load().source(path, spec) if found.open else None
    said = [u.sentence for d in source.dialogues(split) for u in d.utterances if u.sentence] if source else []
    if not said:
        raise UsageError(f"{path} has no sentences of split {split!r}: name their column in data.sentence")
    return said


class OpenData:
    """An open source, the shape that its utterances take, and the labels of the model (or its own)."""

    def __init__(self, source: Source, path: Path | str, format: str, labels: Sequence[str] | None = None):
        self.source, self.path, self.format = source, Path(path), format
        self.spec = bound(source.spec)
        names = self.spec.label_columns or self.spec.label_names
        values = () if labels or names else said_labels(u for d in source.dialogues() for u in d.utterances)
        self.labels = LabelReader(str(path), labels, names, values)
        self.seen = Marks()
        """The names that came by when samples were last made."""

    @classmethod
    def at(cls, path: Path, found: Format, spec: DataSpec, labels: Sequence[str] | None = None) -> OpenData:
        """That of a path in an open format."""
        return cls(found.load().source(path, spec), path, found.name, labels)

    def stream(self, split: str | None = None, through: Through | None = None) -> Iterator[Sample]:
        """Yields every sample with its `split`."""
        for dialogue, sample in self.samples(split, through):
            yield replace(sample, split=dialogue.split)

    def samples(self, split: str | None = None, through: Through | None = None) -> Iterator[tuple[Dialogue, Sample]]:
        """Yields every sample with the dialogue that it is made of."""
        shape = find_shape(self.spec.shape)
        self.seen = Marks()
        dialogues = distinct(self.source.dialogues(split), self.spec.shape == "utterance", self.seen)
        for dialogue in through(dialogues) if through else dialogues:
            for sample in shape(dialogue, self.spec, self.labels):
                yield dialogue, sample

    def corpus(self, through: Through | None = None) -> Corpus:
        """Everything, in memory."""
        splits: dict[str, list[Sample]] = {name: [] for name in self.source.splits}
        said: dict[str, list[str]] = {}
        people: dict[str, list[str | None]] = {}
        scores, speakers = False, 1
        before: Dialogue | None = None
        for dialogue, sample in self.samples(through=through):
            splits.setdefault(dialogue.split, []).append(sample)
            if dialogue is not before:
                # Once for all samples that are made of it.
                words = {u.id: u.sentence or "" for u in dialogue.utterances}
                names = {u.id: u.person for u in dialogue.utterances}
                named, before = any(names.values()), dialogue
            if any(words[unit] for unit in sample.units):
                said[sample.id] = [words[unit] for unit in sample.units]
            if named:
                people[sample.id] = [names[unit] for unit in sample.units]
            if "speaker" in sample.inputs:
                speakers = max(speakers, int(np.max(sample.inputs["speaker"])) + 1)
            scores |= sample.labels is not None and sample.labels.dtype.kind == "f" and sample.labels.ndim == 1
        info: dict[str, Any] = {
            "labels": [] if scores else list(self.labels.labels),
            "sentences": said,
            "people": people,
        }
        info |= {"speakers": self.spec.told_apart or speakers, "extractors": self.spec.extractors}
        order = self.source.splits or usual_order(splits)
        return Corpus({name: splits[name] for name in order}, self.format, info | dict(self.source.info))


def detect(path: Path, spec: DataSpec) -> str:
    """The name of the format of these files.

    A configured format holds for what it can read: a model trained on a directory of pickles also takes a single
    Parquet or JSONL file, which says itself what it is.
    """
    known = known_formats()
    if spec.format != "auto" and spec.format not in known:
        raise UsageError(f"no data format {spec.format!r}, there are {list(known)}")
    if re.match(r"[A-Za-z][A-Za-z0-9+.-]+:/", str(path)):
        raise InputError(f"{path} is an address, nothing is fetched: download it and name the file")
    if not path.exists():
        raise InputError(f"{path} does not exist: point --data at a file or directory")
    said = open_file_format(path, spec)
    if said is not None:
        return said
    if spec.format != "auto" and known[spec.format].directory == path.is_dir():
        return spec.format
    found = known_format(path, spec)
    if found is None:
        tables = [f.name for f in undescribed_tables(path)]
        if tables:
            raise InputError(
                f"{path} has {', '.join(tables)} and no table.yaml: `mer inspect {path} --draft` drafts one"
            )
        raise InputError(f"{path} is in no known format: set data.format to one of {list(known)}")
    return found


def known_format(path: Path, spec: DataSpec) -> str | None:
    """The first format that the files are in."""
    return next((name for name, record in known_formats().items() if record.load().detect(path, spec)), None)


def open_file_format(path: Path, spec: DataSpec) -> str | None:
    """The open format that a single file is in, by its name; None for a directory and for other files."""
    readers = {n: f.load() for n, f in known_formats().items() if f.open} if path.is_file() else {}
    return next((n for n, reader in readers.items() if reader.detect(path, spec)), None)


def usual_order(splits: Iterable[str]) -> list[str]:
    """Names of splits: train, dev, valid, test, then others."""
    return sorted(splits, key=lambda s: USUAL_ORDER.index(s) if s in USUAL_ORDER else len(USUAL_ORDER))
