"""Utterances through encoders, in order: files are decoded by threads while the networks compute."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from mer_export.data.dialogues import Dialogue, Utterance
from mer_export.data.samples import Sample
from mer_export.encoders.inputs import Room
from mer_export.encoders.reading import Reading, features_of, side_by_side
from mer_export.encoders.sounds import Sounds
from mer_export.errors import InputError
from runtimes.encode import Encoding
from runtimes.features.ahead import ahead
from runtimes.features.sentences import Distinct, Sentences

PORTION, PORTION_BYTES = 64, 1 << 26
"""Utterances, and bytes of what encoders read of them, that go through the networks together, batched by bucket."""
AHEAD = 4
"""Utterances for each thread that are decoded and wait."""
TEXT = "text"
Loaded = Mapping[str, Sequence[Encoding]]


@dataclass
class Outcome:
    """Features (steps, width) of an utterance by input, or why it has none; an input that is missing is absent."""

    features: dict[str, np.ndarray] = field(default_factory=dict)
    problem: str = ""


@dataclass
class _Read:
    """What was decoded of an utterance: by input for each encoder the prepared raw things."""

    block: int
    name: str
    utterance: Utterance
    prepared: dict[str, list[list[Any]]] = field(default_factory=dict)
    problem: str = ""

    @property
    def nbytes(self) -> int:
        return sum(_bytes(p) for parts in self.prepared.values() for raws in parts for p in raws)


class Encoder:
    """Encoders by input, and threads that read for them.

    With all sentences of the data `known` each distinct one is encoded once; without, they are encoded as they
    pass. Features that an utterance has already are not made again.
    """

    def __init__(self, loaded: Loaded, known: Distinct | None, workers: int):
        self.loaded, self.workers, self.sounds = loaded, workers, Sounds()
        self.sentences = Sentences(known, loaded[TEXT]) if known is not None and TEXT in loaded else None
        self.media = {n: e for n, e in loaded.items() if n != TEXT or self.sentences is None}

    def outcomes(self, blocks: Iterable[Iterable[Dialogue]]) -> Iterator[Outcome]:
        """One for each utterance, in order; those of one block go through the networks apart from all others.

        Raises:
            InputError: several encoders of an input give sequences of other lengths.
            NotAvailableError: a library that reads files is not installed.
        """
        named = ((n, f"{d.id}/{u.id}", u) for n, block in enumerate(blocks) for d in block for u in d.utterances)
        for portion in _portions(ahead(self._read, named, self.workers, AHEAD * self.workers)):
            yield from self._encoded(portion)

    def _read(self, named: tuple[int, str, Utterance]) -> _Read:
        block, name, utterance = named
        read, reading = _Read(block, name, utterance), Reading(utterance, self.sounds)
        try:
            for modality, encodings in self.media.items():
                if modality not in utterance.features:
                    read.prepared[modality] = [_prepared(e, reading, name) for e in encodings]
        except (InputError, OSError) as error:
            return _Read(block, name, utterance, problem=str(error))
        return read

    def _encoded(self, portion: list[_Read]) -> Iterator[Outcome]:
        found: list[Outcome] = [self._said(read) for read in portion]
        for modality, encodings in self.media.items():
            able = [(r, o) for r, o in zip(portion, found, strict=True) if modality in r.prepared and not o.problem]
            parts = [_finished(e, [r.prepared[modality][i] for r, _ in able]) for i, e in enumerate(encodings)]
            for (read, outcome), *own in zip(able, *parts, strict=True):
                if all(p is not None for p in own):
                    outcome.features[modality] = self._joined(modality, own, read.name)
        yield from found

    def _said(self, read: _Read) -> Outcome:
        """The outcome with the features of the sentence."""
        sentence = read.utterance.sentence
        if read.problem or self.sentences is None or not sentence or not sentence.strip():
            return Outcome(problem=read.problem)
        try:
            parts = self.sentences(sentence)
        except InputError as error:
            return Outcome(problem=str(error))
        return Outcome({TEXT: self._joined(TEXT, parts, read.name)})

    def _joined(self, modality: str, parts: Sequence[Any], name: str) -> np.ndarray:
        return side_by_side(f"{name}: {modality}", [e.encoder for e in self.loaded[modality]], parts)


def _prepared(encoding: Encoding, reading: Reading, name: str) -> list[Any]:
    """What comes before the network of the raw things of an utterance."""
    prepared: list[Any] = []
    room = Room(name)
    for number, raw in enumerate(reading.raws(encoding.encoder)):
        prepared.append(encoding.prepare(raw, f"{name} {number}" if number else name))
        room.take(_bytes(prepared[-1]))
    return prepared


def _portions(reads: Iterable[_Read]) -> Iterator[list[_Read]]:
    portion: list[_Read] = []
    size = 0
    for read in reads:
        if portion and portion[0].block != read.block:
            # A run that goes on with a block brings the networks the same batches as one that was not cut.
            yield portion
            portion, size = [], 0
        portion.append(read)
        size += read.nbytes
        if len(portion) >= PORTION or size >= PORTION_BYTES:
            yield portion
            portion, size = [], 0
    if portion:
        yield portion


def _finished(encoding: Encoding, prepared: Sequence[list[Any]]) -> list[np.ndarray | None]:
    """The features of each utterance, None where it has no raw things."""
    flat = encoding.finish(p for raws in prepared for p in raws)
    groups = [[next(flat) for _ in raws] for raws in prepared]
    return [features_of(encoding.encoder, group) if group else None for group in groups]


def _bytes(prepared: Any) -> int:
    if isinstance(prepared, np.ndarray):
        return prepared.nbytes
    samples: list[Sample] = prepared
    return sum(a.nbytes for s in samples for a in s.inputs.values())
