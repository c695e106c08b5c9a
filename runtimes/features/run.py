"""`mer features`: a data set of recordings and transcripts becomes one of features."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from mer_export import faults
from mer_export.data.dialogues import Dialogue
from mer_export.data.formats.parquet.rows import RowWriter, writing
from mer_export.data.open import OpenData
from mer_export.encoders.attached import Chosen, found_beside, save_beside
from mer_export.encoders.reading import check_together
from mer_export.errors import InputError
from mer_export.progress import SILENT, Progress, TimeLeft
from mer_export.terminal import summary_line
from mer_export.untrusted.parquet import open_parquet
from runtimes.encode import load_encoder
from runtimes.features.encoded import Encoder, Loaded, Outcome
from runtimes.features.parts import Failure, Key, Parts, Record, failures_beside, write_failures
from runtimes.features.plan import Plan, described_by, in_blocks, make_plan
from runtimes.features.rows import rows_of
from runtimes.features.stored import Stored


@dataclass(frozen=True)
class Request:
    """What is asked for.

    Attributes:
        data: an opened source of utterances.
        chosen: encoders by input.
        out: the Parquet file to write.
        workers: threads that decode.
        strict: the first utterance that fails ends the run.
        force: what was done for another request may go.
        options: how the networks run (see `runtimes.encode.Encoding`).
    """

    data: OpenData
    chosen: Chosen
    out: Path
    workers: int = 2
    strict: bool = False
    force: bool = False
    options: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Summary:
    """What came of it: utterances in the data set, those that are missing an input, failures and where they stand."""

    out: Path
    utterances: int
    missing: dict[str, int]
    failures: Sequence[Failure]
    failed: Path

    def said(self) -> dict[str, Any]:
        """As values for a person or a program."""
        failed = {"failed": len(self.failures), **({"failed_csv": str(self.failed)} if self.failures else {})}
        return {"out": str(self.out), "utterances": self.utterances, **failed, "missing": self.missing}

    def lines(self) -> list[str]:
        """As lines for a person."""
        counts = {"utterances": self.utterances, "failed": len(self.failures)}
        counts |= {f"without {name}": count for name, count in self.missing.items() if count}
        said = [f"{self.out}: {summary_line(counts)}"]
        return [*said, f"{self.failed}: why {len(self.failures)} could not be read"] if self.failures else said


def preview(request: Request) -> dict[str, Any]:
    """What a run would do, after the descriptions were read; raises as `make_features`."""
    plan = _planned(request)
    head = plan.head
    return {
        "data": request.data.labels.where,
        "out": str(request.out),
        "utterances": plan.utterances,
        "splits": {name: sum(sizes) for name, sizes in plan.sizes.items()},
        "sentences": len(plan.sentences),
        "unit": head.unit,
        "widths": dict(head.dims),
        "labels": list(head.labels),
        "extractors": {n: e.model_dump() for n, e in head.extractors.items()},
    }


def make_features(request: Request, progress: Progress = SILENT) -> Summary:
    """Writes the data set; what an earlier run of the same request made is taken over, what failed in it tried again.

    Raises:
        UsageError: encoders that do not fit the data or each other, or `out` holds parts of another request.
        InputError: the data are damaged, nothing could be read, or with `strict` something could not.
        NotAvailableError: a package is missing.
    """
    plan = _planned(request)
    with faults.at(request.out), ExitStack() as stack:
        loaded: Loaded = {
            n: [stack.enter_context(load_encoder(e, **request.options)) for e in encoders]
            for n, encoders in request.chosen.items()
        }
        identities = {n: [e.identity for e in own] for n, own in loaded.items()}
        head = plan.head
        # What is stored are indices: the same labels and speakers have others in another order.
        indexed = {"labels": head.labels, "speakers": head.speakers, "unit": head.unit}
        wanted = {"data": plan.digest, "encoders": identities, **indexed}
        parts = stack.enter_context(Parts.open(request.out, wanted, request.force))
        return _Run(request, plan, parts, Encoder(loaded, plan.sentences, request.workers)).all(progress)


def _planned(request: Request) -> Plan:
    for name, encoders in request.chosen.items():
        check_together(name, encoders)
    failures_beside(request.out)
    return make_plan(request.data, request.chosen)


@dataclass
class _Run:
    request: Request
    plan: Plan
    parts: Parts
    encoder: Encoder

    def __post_init__(self) -> None:
        self.done = {n: r for n in range(self.plan.blocks) if (r := self.parts.done(n))}
        """Blocks of an earlier run; what failed in them is tried again."""
        self.lacking = self.parts.failed if self.parts.finished else None
        """What the data set of a run that ended lacks: all else of it is there."""
        self.whole = Stored(self.request.out, self.request.chosen) if self.lacking is not None else None

    def all(self, progress: Progress) -> Summary:
        total = Record()
        left = TimeLeft(self.plan.utterances)
        progress.start("features", self.plan.blocks, "block", len(self._kept))
        try:
            for record, fresh in self._records():
                total.add(record)
                gone = total.utterances + len(total.failures)
                if fresh:
                    progress.end(f"{gone} of {self.plan.utterances} utterances, {left.text(gone)}")
                else:
                    left.skip(gone)
        finally:
            progress.close()
        failed = write_failures(self.request.out, total.failures)
        if not total.utterances:
            first = total.failures[0]
            self.parts.remove()
            raise InputError(f"none of {len(total.failures)} utterances could be read, see {failed}: {first.reason}")
        self._join()
        self.parts.finish(total.failures)
        return Summary(self.request.out, total.utterances, total.missing, total.failures, failed)

    def _encoders(self) -> Chosen:
        """Those of this run, and of stored features those that stand beside the data."""
        said = {n: e for n, e in self.plan.head.extractors.items() if n not in self.request.chosen}
        return {**found_beside(self.request.data.path, said), **self.request.chosen}

    def _records(self) -> Iterator[tuple[Record, bool]]:
        """What came of each block, and whether it was made now."""
        outcomes = self.encoder.outcomes(self._left(n, b) for n, b in self._blocks() if n not in self._kept)
        for number, block in self._blocks():
            if number in self._kept:
                yield self.done[number], False
            else:
                yield self._block(number, block, outcomes), True

    @cached_property
    def _kept(self) -> frozenset[int]:
        """Blocks that lack nothing."""
        return frozenset(n for n, record in self.done.items() if not record.failures)

    def _lacking(self, number: int) -> frozenset[Key] | None:
        """What of a block an earlier run could not read, where it wrote the rest; None where all is to be made."""
        done = self.done.get(number)
        return frozenset(f.key for f in done.failures) if done else self.lacking

    def _left(self, number: int, block: list[Dialogue]) -> Iterator[Dialogue]:
        """The dialogues of a block with the utterances that are to be made."""
        lacking = self._lacking(number)
        for dialogue in block:
            own = [u for u in dialogue.utterances if lacking is None or (dialogue.id, u.id) in lacking]
            if own:
                yield replace(dialogue, utterances=own)

    def _blocks(self) -> Iterator[tuple[int, list[Dialogue]]]:
        data = self.request.data
        blocks = (block for split in self.plan.head.splits for block in in_blocks(data.source.dialogues(split)))
        for number, block in enumerate(blocks):
            # What is done is that of the request alone: nothing else tells its utterances from others.
            if described_by(data) != self.plan.state:
                raise InputError(f"{data.path} was written while it was read: run the command again")
            yield number, block

    def _block(self, number: int, block: list[Dialogue], outcomes: Iterator[Outcome]) -> Record:
        record = Record(missing=dict.fromkeys(self.request.chosen, 0))
        lacking, file = self._lacking(number), self.parts.file(number)
        stored = Stored(file, self.request.chosen) if number in self.done else self.whole
        with writing(file, self.plan.head) as rows:
            for dialogue in block:
                keys = [(dialogue.id, u.id) for u in dialogue.utterances]
                own = [stored.take(k) if stored and k not in (lacking or ()) else next(outcomes) for k in keys]
                self._write(dialogue, own, rows, record)
            rows.flush()
            self.parts.note(number, record)
        return record

    def _write(self, dialogue: Dialogue, outcomes: list[Outcome], rows: RowWriter, record: Record) -> None:
        for utterance, outcome in zip(dialogue.utterances, outcomes, strict=True):
            if outcome.problem:
                path = utterance.recording.name if utterance.recording else ""
                failure = Failure(dialogue.id, utterance.id, utterance.row, path, outcome.problem)
                if self.request.strict:
                    raise InputError(f"{utterance.id}: {outcome.problem}")
                record.failures.append(failure)
                continue
            record.utterances += 1
            for name in self.request.chosen:
                record.missing[name] += name not in outcome.features
        # Recordings are named as they read from the data set, not from the folder of its parts.
        folder = self.request.out.parent
        rows.add(list(rows_of(dialogue, outcomes, self.plan.head, self.request.data.labels, folder)))

    def _join(self) -> None:
        """All blocks as one file, with the encoders beside it."""
        self.parts.gathered()
        # At once: those beside the source stand in the same folder where both are called alike.
        save_beside(self.request.out, self._encoders())
        with writing(self.request.out, self.plan.head) as rows:
            for number in range(self.plan.blocks):
                with open_parquet(self.parts.file(number)) as file:
                    rows.copy(file)
