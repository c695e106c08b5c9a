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

from mer_export.bundle import write_atomic
from mer_export.errors import UsageError
from mer_export.untrusted.json_files import read_json

REQUEST, LOCK = "request.json", "lock"
VERSION = 1


@dataclass(frozen=True)
class Failure:
    """An utterance that is not in the data set, and why."""

    dialogue: str
    utterance: str
    row: int | None
    path: str
    reason: str


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

    def __init__(self, folder: Path):
        self.folder = folder

    @classmethod
    @contextmanager
    def open(cls, out: Path, request: Mapping[str, Any], force: bool) -> Iterator[Parts]:
        """That of a data set: an empty one, or one that a run for the same request left.

        Raises:
            UsageError: it is of another request, unless `force` says that it may go, or another process writes it.
        """
        parts = cls(out.with_name(f"{out.name}.parts"))
        wanted = {"version": VERSION, **request}
        parts.folder.mkdir(parents=True, exist_ok=True)
        with alone_in(parts.folder, LOCK):
            found = parts._request()
            if found != wanted:
                if found is not None and not force:
                    names = [n for n in wanted if found.get(n) != wanted[n]]
                    raise UsageError(
                        f"{parts.folder} holds what was done with other {' and '.join(names)}: run that to its end, or "
                        "pass --force to begin anew"
                    )
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
        return Record(said["utterances"], said["missing"], [Failure(**f) for f in said["failures"]])

    def note(self, block: int, record: Record) -> None:
        """Says what came of a block, before its file takes its place."""
        write_atomic(self._record(block), json.dumps(asdict(record)).encode())

    def remove(self) -> None:
        """The data set is there: what it was made of goes, first what says that it is of use to anybody."""
        (self.folder / REQUEST).unlink()
        shutil.rmtree(self.folder)

    def _record(self, block: int) -> Path:
        return self.file(block).with_suffix(".json")

    def _request(self) -> Any:
        path = self.folder / REQUEST
        return read_json(path) if path.is_file() else None

    def _clear(self) -> None:
        for file in self.folder.iterdir():
            if file.name != LOCK:
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
