"""What of a run is done already: a folder beside the data set, with a file for each block and what was asked for."""

from __future__ import annotations

import csv
import fcntl
import io
import json
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from mer_export.bundle import sha256, write_atomic
from mer_export.errors import UsageError
from mer_export.untrusted.json_files import read_json
from mer_export.untrusted.parquet import open_parquet

REQUEST, LOCK, FINISHED = "request.json", "lock", "finished.json"
VERSION = 1
Key = tuple[str, str]
"""Dialogue and utterance, which no two of a data set share."""


@dataclass(frozen=True)
class Failure:
    """An utterance that is not in the data set, and why."""

    dialogue: str
    utterance: str
    row: int | None
    path: str
    reason: str

    @property
    def key(self) -> Key:
        return self.dialogue, self.utterance


@dataclass
class Record:
    """What came of a block: utterances that were written, features that are missing by input, and failures."""

    utterances: int = 0
    missing: dict[str, int] = field(default_factory=dict)
    failures: list[Failure] = field(default_factory=list)

    def add(self, other: Record) -> None:
        """Counts another block too."""
        self.utterances += other.utterances
        for name, count in other.missing.items():
            self.missing[name] = self.missing.get(name, 0) + count
        self.failures += other.failures


class Parts:
    """The folder of one run: `open` one."""

    def __init__(self, out: Path):
        self.out, self.folder = out, _folder(out)

    @classmethod
    @contextmanager
    def open(cls, out: Path, request: Mapping[str, Any], force: bool) -> Iterator[Parts]:
        """That of a data set: an empty one, or one that a run for the same request left.

        Raises:
            UsageError: it is of another request, or of a data set that was changed, unless `force` says that it may go;
                or another process writes it.
        """
        parts = cls(out)
        wanted = {"version": VERSION, **request}
        parts.folder.mkdir(parents=True, exist_ok=True)
        with alone_in(parts.folder, LOCK):
            problem = parts._other(wanted)
            if problem and not force:
                raise UsageError(f"{problem}, or pass --force to begin anew")
            if problem or not goes_on(out) or (force and parts.finished):
                parts._clear()
            write_atomic(parts.folder / REQUEST, json.dumps(wanted, indent=1).encode())
            yield parts

    def file(self, block: int) -> Path:
        """Where a block is written; it is done when the file is there."""
        return self.folder / f"{block:06}.parquet"

    def done(self, block: int) -> Record | None:
        """What came of a block, if it is done."""
        if not self.file(block).is_file():
            return None
        said = read_json(self._record(block))
        with open_parquet(self.file(block)) as file:
            # A run that was killed while it tried failures again may have noted more than it wrote.
            if file.metadata.num_rows != said["utterances"]:
                return None
        return Record(said["utterances"], said["missing"], [Failure(**f) for f in said["failures"]])

    @property
    def finished(self) -> bool:
        """Whether the data set is there, without some utterances that are worth another try."""
        return (self.folder / FINISHED).is_file()

    @property
    def failed(self) -> frozenset[Key]:
        """The utterances that a finished data set lacks."""
        return frozenset((d, u) for d, u in read_json(self.folder / FINISHED)["failed"])

    def note(self, block: int, record: Record) -> None:
        """Says what came of a block, before its file takes its place."""
        write_atomic(self._record(block), json.dumps(asdict(record)).encode())

    def gathered(self) -> None:
        """All blocks have files of their own: of the data set that was there nothing is needed any more."""
        (self.folder / FINISHED).unlink(missing_ok=True)

    def finish(self, failures: Sequence[Failure]) -> None:
        """The data set is there: what it was made of goes. Of failures it stays known which and of what request."""
        if not failures:
            return self.remove()
        said = {"data": sha256(self.out), "failed": [f.key for f in failures]}
        write_atomic(self.folder / FINISHED, json.dumps(said).encode())
        self._clear(REQUEST, FINISHED)
        return None

    def remove(self) -> None:
        """Nothing of the run stays, first not what says that it is of use to anybody."""
        (self.folder / REQUEST).unlink()
        shutil.rmtree(self.folder)

    def _other(self, wanted: Mapping[str, Any]) -> str:
        """Why these parts cannot be gone on with, and what else to do; nothing where they can."""
        path = self.folder / REQUEST
        found = read_json(path) if path.is_file() else wanted
        if names := " and ".join(n for n in wanted if found.get(n) != wanted[n]):
            if self.finished:
                return f"{self.out} exists and was made with other {names}: name another file"
            return f"{self.folder} holds what was done with other {names}: run that to its end"
        if self.finished and not (self.out.is_file() and sha256(self.out) == self._finished_data()):
            return f"{self.out} is not the file that lacks what {self.folder} lists: put that back"
        return ""

    def _finished_data(self) -> str:
        return str(read_json(self.folder / FINISHED)["data"])

    def _record(self, block: int) -> Path:
        return self.file(block).with_suffix(".json")

    def _clear(self, *kept: str) -> None:
        for file in self.folder.iterdir():
            if file.name not in (LOCK, *kept):
                file.unlink()


@contextmanager
def alone_in(folder: Path, lock: str) -> Iterator[None]:
    """Nobody else writes a folder as long as its lock file is held; raises UsageError where another process does."""
    descriptor = os.open(folder / lock, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(descriptor)
        raise UsageError(f"another process writes {folder}: wait for it") from None
    try:
        yield
    finally:
        os.close(descriptor)


def _folder(out: Path) -> Path:
    return out.with_name(f"{out.name}.parts")


def goes_on(out: Path) -> bool:
    """Whether a run for this data set was begun, or ended without some utterances: it may be gone on with."""
    return (_folder(out) / REQUEST).is_file()


COLUMNS = ("data", *(f.name for f in fields(Failure)))
"""Of `failed.csv`: which data set it is about, and what of it failed."""


def failures_beside(out: Path) -> list[dict[str, str]]:
    """The rows of `failed.csv` beside a data set that are about others.

    Raises:
        UsageError: a file of that name holds something else.
    """
    path = out.with_name("failed.csv")
    if not path.exists():
        return []
    try:
        with path.open(newline="", encoding="utf-8", errors="surrogateescape") as stream:
            rows = csv.DictReader(stream)
            if tuple(rows.fieldnames or ()) == COLUMNS:
                return [row for row in rows if row["data"] != out.name]
    except (OSError, csv.Error):
        pass
    raise UsageError(
        f"{path} is where failures are listed and holds something else: move it, or write to another folder"
    )


def write_failures(out: Path, failures: Sequence[Failure]) -> Path:
    """`failed.csv` beside a data set, a row for each utterance that is not in it; raises as `failures_beside`."""
    path, rows = out.with_name("failed.csv"), failures_beside(out)
    rows += [{"data": out.name, **asdict(f)} for f in failures]
    if not rows:
        path.unlink(missing_ok=True)
        return path
    text = io.StringIO()
    writer = csv.DictWriter(text, COLUMNS, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    write_atomic(path, text.getvalue().encode("utf-8", "surrogateescape"))
    return path
