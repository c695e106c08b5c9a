"""One block: what a worker is asked, what it says, and the worker itself, wherever it runs."""

from __future__ import annotations

import hashlib
import io
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from mer_export import faults
from mer_export.data.parts import Part, open_part
from mer_export.data.spec import DataSpec
from mer_export.errors import MerError, UsageError
from runtimes.pipeline import How
from runtimes.predict.output import COUNTS, counted, write_parquet
from runtimes.scale.desk import Desk


@dataclass(frozen=True)
class Block:
    """A part of the input, by its number in the order of all."""

    number: int
    part: Part


@dataclass(frozen=True)
class Asked:
    """What every worker of a run needs to know: which bundle answers and how, how each format is read, which split, and
    the checksum of the bundle, empty for any."""

    bundle: Path
    how: How
    specs: Mapping[str, DataSpec]
    split: str | None = None
    checksum: str = ""


@dataclass(frozen=True)
class Record:
    """What came of a block: checksum and bytes of its file, how many of what, who answered, what features passed."""

    sha256: str
    nbytes: int
    counts: Mapping[str, int]
    runtime: str
    precision: str
    variants: tuple[str, ...]
    unreadable: int = 0
    features: Mapping[str, Mapping[str, float]] = field(default_factory=dict)


@dataclass(frozen=True)
class Answered:
    """A block's Parquet file, what came of it, and the marks (uint64) of the names that no other part of its file may
    have."""

    block: Block
    content: bytes
    record: Record
    names: bytes = b""


@dataclass(frozen=True)
class Broken:
    """A block that could not be answered, or with `block` None a worker that could not begin, and why.

    `again` is whether another try may end otherwise.
    """

    block: Block | None
    reason: str
    exit_code: int
    again: bool = False


@dataclass(frozen=True)
class Died:
    """A worker that ended without a word, and the block it was at, if at any; `began` is whether it ever was ready."""

    block: Block | None
    reason: str
    began: bool
    # What ends a worker is mostly memory, which a person can mend.
    exit_code: int = UsageError.exit_code
    again: bool = True


@dataclass(frozen=True)
class Ready:
    """A worker that can take a block."""


Event = Answered | Broken | Died | Ready


class BlockWorker:
    """Answers blocks, one at a time. Nothing is raised: what goes wrong is said."""

    def __init__(self, asked: Asked):
        self.asked = asked
        self.desk: Desk | None = None

    def begin(self) -> Ready | Broken:
        """Opens the bundle."""
        try:
            self.desk = Desk(self.asked.bundle, self.asked.how, self.asked.checksum)
        except Exception as error:
            return _broken(None, error)
        return Ready()

    def answer(self, block: Block) -> Answered | Broken:
        """The file of a block."""
        try:
            return self._answer(block)
        except Exception as error:
            return _broken(block, error)

    def _answer(self, block: Block) -> Answered:
        assert self.desk is not None
        desk, predictor, sink = self.desk, self.desk.predictor, io.BytesIO()
        data = open_part(block.part, self.asked.specs[block.part.format], desk.labels)
        counts, unreadable = dict.fromkeys(COUNTS, 0), desk.unreadable
        predictions = counted(desk.predictions(data, self.asked.split), counts)
        write_parquet(predictions, sink, predictor.task, self.asked.how.beside)
        content = sink.getvalue()
        record = Record(
            sha256=hashlib.sha256(content).hexdigest(),
            nbytes=len(content),
            counts=counts,
            runtime=predictor.backend,
            precision=predictor.precision,
            variants=tuple(predictor.answered_by),
            unreadable=desk.unreadable - unreadable,
            features=predictor.features.seen(),
        )
        return Answered(block, content, record, np.fromiter(data.seen, dtype=np.uint64).tobytes())


def _broken(block: Block | None, error: Exception) -> Broken:
    known: Any = faults.explain(error)
    reason = str(known) if known else f"internal error: {type(error).__name__}: {error}"
    # What our own code refuses it refuses again; a full disk, a network or memory may be better next time.
    return Broken(block, reason, known.exit_code if known else 1, not isinstance(error, MerError))
