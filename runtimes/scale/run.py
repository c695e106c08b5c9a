"""One run: blocks that are missing go to workers, what comes back is kept, what fails is tried again and then named."""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from mer_export.data.feature_check import FeatureCheck
from mer_export.errors import BundleError, MerError, NotAvailableError, UnsupportedError, UsageError
from mer_export.progress import SILENT, Progress, TimeLeft
from runtimes.predict.output import COUNTS, check_counts, said_counts
from runtimes.scale.blocks import Answered, Asked, Block, Broken, Died, Event, Ready
from runtimes.scale.ledger import Ledger

TRIES = 3
"""How often a block is tried that ends its worker or meets a fault of the machine, and a worker that cannot begin."""
ONCE = "put its utterances together, or give each its own id"
ERRORS = {e.exit_code: e for e in (MerError, UsageError, NotAvailableError, BundleError, UnsupportedError)}


class Crew(Protocol):
    """Workers somewhere. One that dies is replaced without being asked."""

    @property
    def free(self) -> int:
        """How many are ready and have no block."""
        ...

    def give(self, block: Block) -> None:
        """A block for one that is free."""
        ...

    def event(self) -> Event:
        """The next thing that happens; waits for it."""
        ...


Hire = Callable[[Asked], AbstractContextManager[Crew]]
"""Starts workers for what is asked, who end with the block."""


@dataclass
class Run:
    """A run over what is missing. `failed` is why, by the number of a block; `exit_code` the worst of them."""

    ledger: Ledger
    crew: Crew
    progress: Progress = SILENT
    failed: dict[int, str] = field(default_factory=dict)
    exit_code: int = 0

    def __post_init__(self) -> None:
        self._todo = deque(b for b in self.ledger.blocks if b.number not in self.ledger.done)
        self._left = TimeLeft(sum(b.part.nbytes for b in self._todo))
        self._tries = Counter[int]()
        self._stillborn = self._units = self._bytes = 0

    def all(self) -> None:
        """Every block is done or has failed when this returns.

        Raises:
            MerError: no worker can begin, with the reason of one.
        """
        busy = 0
        self.progress.start("infer", len(self.ledger.blocks), "block", len(self.ledger.done))
        try:
            while self._todo or busy:
                # A worker has one block at a time, so no more lie in memory than there are workers.
                while self._todo and self.crew.free:
                    self.crew.give(self._todo.popleft())
                    busy += 1
                busy -= self._note(self.crew.event())
        finally:
            self.progress.close()

    def _note(self, event: Event) -> int:
        """What an event means; returns how many blocks have come back with it."""
        if isinstance(event, Answered):
            self._keep(event)
            return 1
        if isinstance(event, Broken | Died):
            if event.block is not None:
                self._failed(event.block, event)
                return 1
            self._cannot_begin(event)
        if isinstance(event, Ready):
            # Nodes come and go for days: only deaths in a row say that none can begin.
            self._stillborn = 0
        return 0

    def _keep(self, event: Answered) -> None:
        if reason := self._problem(event):
            return self._failed(event.block, Broken(event.block, reason, UsageError.exit_code))
        self.ledger.keep(event)
        self._units += event.record.counts["units"]
        self._bytes += event.block.part.nbytes
        self.progress.end(f"{self._units} units, {self._left.text(self._bytes)}")
        return None

    def _problem(self, event: Answered) -> str | None:
        """Why answers cannot stand beside those of the other blocks."""
        file = event.block.part.file
        if file.changed:
            return f"{file.said} has changed since the run began: begin anew with --force"
        twice = self.ledger.names.repeated(event)
        return f"{twice} is there twice, in another part of {file.said} too: {ONCE}" if twice else None

    def _failed(self, block: Block, event: Broken | Died) -> None:
        self._tries[block.number] += 1
        tries = self._tries[block.number]
        if event.again and tries < TRIES:
            self._todo.append(block)
        else:
            self.failed[block.number] = f"tried {tries} times: {event.reason}" if tries > 1 else event.reason
            self.exit_code = max(self.exit_code, event.exit_code)

    def _cannot_begin(self, event: Broken | Died) -> None:
        if isinstance(event, Broken):
            raise ERRORS[event.exit_code](event.reason)
        self._stillborn += not event.began
        if self._stillborn >= TRIES:
            raise NotAvailableError(f"workers end before they begin: {event.reason}")


def answer_all(
    ledger: Ledger, asked: Asked, hire: Hire, check: FeatureCheck, strict: bool = False, progress: Progress = SILENT
) -> dict[str, Any]:
    """Does what is missing of a run and says what came of all of it.

    Args:
        ledger: the opened folder.
        asked: what workers need to know.
        hire: where workers come from.
        check: judges the features of all blocks together.
        strict: features unlike those of training are an error.
        progress: shows how many blocks are done.

    Raises:
        MerError: blocks failed, of the worst exit code, no worker could begin, nothing could be read, or with `strict`
            features are foreign. What is done stays done.
    """
    before = len(ledger.done)
    if before < len(ledger.blocks):
        with hire(asked) as crew:
            run = Run(ledger, crew, progress)
            run.all()
        ledger.finish(run.failed)
        if run.failed:
            number = min(run.failed)
            raise ERRORS[run.exit_code](
                f"{len(run.failed)} of {len(ledger.blocks)} blocks have no answers, see {ledger.folder}/manifest.json; "
                f"block {number}, {ledger.blocks[number].part.said}: {run.failed[number]}"
            )
    summary = _summary(ledger, before, check)
    if asked.split is not None and not summary["units"]:
        raise UsageError(f"no split {asked.split!r} in the data")
    check.tell(strict)
    return summary


def _summary(ledger: Ledger, before: int, check: FeatureCheck) -> dict[str, Any]:
    records = [ledger.done[b.number] for b in ledger.blocks]
    counts = {n: sum(r.counts[n] for r in records) for n in COUNTS}
    check_counts(counts)
    for record in records:
        check.join(record.features)
    unreadable = sum(r.unreadable for r in records)
    return {
        **said_counts(counts),
        "blocks": len(records),
        "done_before": before,
        "runtime": _each(r.runtime for r in records),
        "precision": _each(r.precision for r in records),
        "variants": list(dict.fromkeys(v for r in records for v in r.variants)),
        **check.summary(),
        **({"unreadable": unreadable} if unreadable else {}),
    }


def _each(names: Iterable[str]) -> str:
    return " ".join(dict.fromkeys(names))


def check_folder(out: Path) -> None:
    """Raises UsageError where `out` names a file."""
    if out.suffix or out.is_file() or out == Path("-"):
        raise UsageError(f"--out {out} must be a directory: blocks are written as files in it, name one without ending")
