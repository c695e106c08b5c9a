"""What a run over a data set is about to do: one pass over its descriptions, before any recording is opened."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from hashlib import blake2b
from typing import Any

import numpy as np

from mer_export.data.dialogues import IMAGES, MODALITIES, READY, Dialogue, Utterance, distinct
from mer_export.data.formats.parquet.rows import Head
from mer_export.data.formats.parquet.writer import kind_of
from mer_export.data.open import OpenData, usual_order
from mer_export.data.spec import Extractor
from mer_export.encoders.attached import Chosen, together
from mer_export.encoders.reading import is_sequence
from mer_export.errors import InputError, UsageError
from mer_export.untrusted.file_state import States, states
from runtimes.features.sentences import Distinct

BLOCK = 128
"""Utterances of a block, which ends between dialogues: what stays done when a run is killed."""
SOURCES = {
    "text": ("a sentence", "sentence"),
    "audio": ("a recording", "recording"),
    "vision": ("a recording", "recording"),
}
"""What features of an input are made of, and the field of the data section that names its column."""


@dataclass
class Plan:
    """`sizes` are the utterances of each dialogue, by split in the order in which they are read; `sentences` are the
    distinct ones; `digest` tells these data from others; `state` is that of the file that describes them."""

    head: Head
    sizes: Mapping[str, Sequence[int]]
    sentences: Distinct
    digest: str
    state: States = ()

    @property
    def utterances(self) -> int:
        return sum(map(sum, self.sizes.values()))

    @property
    def blocks(self) -> int:
        return sum(1 for sizes in self.sizes.values() for _ in _cut(sizes, int))


def in_blocks(dialogues: Iterable[Dialogue]) -> Iterator[list[Dialogue]]:
    """The dialogues of one split in blocks."""
    return _cut(dialogues, lambda d: len(d.utterances))


def _cut(items: Iterable[Any], size: Any) -> Iterator[list[Any]]:
    block: list[Any] = []
    count = 0
    for item in items:
        block.append(item)
        count += size(item)
        if count >= BLOCK:
            yield block
            block, count = [], 0
    if block:
        yield block


def make_plan(data: OpenData, chosen: Chosen) -> Plan:
    """Reads what the data say of each utterance.

    Raises:
        InputError: the data are damaged, differ in width, or an utterance is there twice.
        UsageError: features that the data hold already are to be made, or there is nothing to make them of.
    """
    survey, state = _Survey(data, chosen), described_by(data)
    apart = data.spec.unit == "utterance"
    for dialogue in distinct(data.source.dialogues(), apart=apart):
        survey.add(dialogue)
    if not survey.sizes:
        raise InputError(f"{data.labels.where} has no utterances")
    for name in chosen:
        if not survey.sources[name]:
            what, column = SOURCES[name]
            raise UsageError(
                f"{data.labels.where}: no utterance names {what}, of which {name} is made: set data.{column}"
            )
    return replace(survey.plan(), state=state)


def described_by(data: OpenData) -> States:
    """The state of the file that describes utterances; nothing of a folder, in which others write too."""
    return states([data.path]) if data.path.is_file() else ()


@dataclass
class _Survey:
    """What was seen so far."""

    data: OpenData
    chosen: Chosen
    sizes: dict[str, list[int]] = field(default_factory=dict)
    sentences: Distinct = field(default_factory=Distinct)
    sources: dict[str, int] = field(default_factory=lambda: dict.fromkeys(SOURCES, 0))
    widths: dict[str, tuple[int, ...]] = field(default_factory=dict)
    """Of what is stored already: how wide a vector of each of its sources is."""
    kinds: set[str] = field(default_factory=set)
    speakers: int = 1
    vectors: bool = True
    """Whether all stored features are one vector of an utterance."""
    recorded: bool = False
    named: bool = False
    """Whether a speaker has a name."""
    mark: Any = field(default_factory=blake2b)

    def add(self, dialogue: Dialogue) -> None:
        self.sizes.setdefault(dialogue.split, []).append(len(dialogue.utterances))
        said = {u.speaker for u in dialogue.utterances if u.speaker is not None}
        self.speakers = max(self.speakers, len(said), *(s + 1 for s in said if isinstance(s, int)))
        targets = self.data.labels.targets(dialogue.utterances)
        if targets is not None:
            self.kinds.add(kind_of(targets))
        for utterance in dialogue.utterances:
            self._note(dialogue, utterance)

    def _note(self, dialogue: Dialogue, utterance: Utterance) -> None:
        said = utterance.recording
        self.recorded |= said is not None
        self.named |= utterance.person is not None
        self.sources["text"] += bool(utterance.sentence)
        self.sources["audio"] += said is not None
        self.sources["vision"] += said is not None or IMAGES in utterance.inputs
        if "text" in self.chosen and utterance.sentence:
            self.sentences.add(utterance.sentence)
        if taken := next((n for n in self.chosen if n in utterance.features), None):
            raise UsageError(
                f"{dialogue.where}: {utterance.id} has {taken} already: leave it out (--set data.{taken}=null), or "
                f"--encoder {taken}"
            )
        for name, parts in utterance.features.items():
            self.vectors &= name == "text" or max(map(len, parts)) == 1
            self._stored(dialogue, name, tuple(p.shape[-1] for p in parts))
        for name, array in utterance.inputs.items():
            self._stored(dialogue, name, array.shape[-1:] if name in READY and READY[name].ndim > 1 else ())
        where = None if said is None else (said.name, said.start, said.end)
        described = (dialogue.split, dialogue.id, utterance.id, utterance.speaker, utterance.label, utterance.score)
        self._digest(
            described, utterance.indicators and sorted(utterance.indicators.items()), utterance.sentence, where
        )
        if utterance.speaker_name is not None:
            self._digest(utterance.speaker_name)
        for name, values in (*utterance.features.items(), *utterance.inputs.items()):
            self._digest(name)
            for array in values if isinstance(values, tuple) else (values,):
                self.mark.update(np.ascontiguousarray(getattr(array, "fingerprint", array)).tobytes())

    def _stored(self, dialogue: Dialogue, name: str, widths: tuple[int, ...]) -> None:
        if self.widths.setdefault(name, widths) != widths:
            other = self.widths[name]
            raise InputError(f"{dialogue.where}: {name} is {widths} wide in {dialogue.id}, {other} elsewhere")

    def _digest(self, *values: object) -> None:
        self.mark.update(repr(values).encode("utf-8", "surrogatepass"))

    def plan(self) -> Plan:
        spec, labels = self.data.spec, self.data.labels.labels
        unit = self._unit()
        made = {n: sum(e.config.width for e in encoders) for n, encoders in self.chosen.items()}
        dims = {n: w[0] if stacks(n, unit) else sum(w) for n, w in self.widths.items() if w}
        order = [s for s in self.data.source.splits or usual_order(self.sizes) if s in self.sizes]
        head = Head(
            unit=unit,
            labels=[] if self.kinds == {"score"} else list(labels),
            speakers=spec.speakers or self.speakers,
            splits=order,
            dims=made | dims,
            source_format=self.data.format,
            lists=[n for n in (*MODALITIES, *READY, IMAGES) if n in made or n in self.widths],
            kinds=frozenset(self.kinds),
            extractors=_extractors(spec.extractors, self.chosen, self.widths),
            recorded=self.recorded,
            named=self.named,
        )
        return Plan(head, {s: self.sizes[s] for s in order}, self.sentences, self.mark.hexdigest()[:32])

    def _unit(self) -> str:
        """What a sample of the data set is: a dialogue where that has several utterances of vectors alone."""
        several = any(n > 1 for sizes in self.sizes.values() for n in sizes)
        sequences = any(is_sequence(e) for encoders in self.chosen.values() for e in encoders)
        ready = any(n in READY or n == IMAGES for n in self.widths)
        said = self.data.spec.unit if "unit" in self.data.spec.model_fields_set else "dialogue"
        return said if several and self.vectors and not sequences and not ready else "utterance"


def _extractors(said: Mapping[str, Extractor], chosen: Chosen, stored_names: Iterable[str]) -> dict[str, Extractor]:
    return {n: e for n, e in said.items() if n in stored_names} | {n: together(e) for n, e in chosen.items()}


def stacks(name: str, unit: str) -> bool:
    """Whether several vectors of an input lie one below the other in a row: those of a text of dialogues do."""
    return unit == "dialogue" and name == "text"
