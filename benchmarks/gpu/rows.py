"""What a run on a GPU found, row by row: written after each, so that an end in the middle loses one piece of work."""

from __future__ import annotations

import json
import sys
import time
import traceback
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from benchmarks import output
from mer_export import machine
from mer_export.bundle import write_atomic
from mer_export.errors import NotAvailableError, UsageError

Row = dict[str, Any]
KEY = ("part", "network", "bucket", "batch", "way")
"""What a row is about."""
ALL = "all"
"""The way of a row that says why a whole piece of work was not done."""


class SkippedError(Exception):
    """A piece of work cannot be done here; the message says why."""


class Results:
    """Rows of one run in one file, and until when new work may begin."""

    def __init__(self, path: Path, command: str, device: str, minutes: float | None = None):
        """Continues the file where it is there: what was measured is not measured again.

        Raises:
            UsageError: the file is of another device.
        """
        self.path, self.device = path, device
        self._until = None if minutes is None else time.monotonic() + 60 * minutes
        before = json.loads(path.read_text()) if path.is_file() else {"runs": [], "rows": []}
        own = {"command": command, "device": device, "machine": machine.describe()}
        self.runs: list[dict[str, Any]] = [*before["runs"], own]
        _of_one_device(self.runs, f"{path} goes on with its own alone, pass another file as --out")
        self.rows: list[Row] = before["rows"]

    @property
    def in_time(self) -> bool:
        """Whether new work may still begin."""
        return self._until is None or time.monotonic() < self._until

    def has(self, **about: Any) -> bool:
        """Whether all of a piece of work was measured before."""
        return any(r["status"] == "measured" and all(r.get(k) == v for k, v in about.items()) for r in self.rows)

    def add(self, rows: Iterable[Row], **about: Any) -> None:
        """Writes rows with what they have in common."""
        self.rows = _later(self.rows, [{"status": "measured"} | about | row for row in rows])
        self.write()

    def forget(self, **about: Any) -> None:
        """Drops what an earlier run said of exactly this, where it no longer holds."""
        self.rows = [r for r in self.rows if _key(r) != _key(about)]

    @contextmanager
    def piece(self, **about: Any) -> Iterator[None]:
        """One piece of work: what it cannot do, or what breaks it, becomes a row, and the next piece goes on."""
        output.say(" ".join(str(v) for v in about.values()))
        try:
            yield
        except (SkippedError, NotAvailableError, ImportError) as error:
            self.add([{"status": "skipped", "reason": str(error)}], **about)
        except Exception as error:
            traceback.print_exc(file=sys.stderr)
            self.add([{"status": "failed", "reason": reason(error)}], **about)

    def write(self) -> None:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        write_atomic(self.path, json.dumps({"runs": self.runs, "rows": self.rows}, indent=1).encode())


def merge(paths: Iterable[Path]) -> dict[str, Any]:
    """The runs and rows of several files, later ones over earlier ones, without the last words of what failed.

    Raises:
        UsageError: rehearsals and runs on a GPU together, or runs on different GPUs.
    """
    found = [json.loads(p.read_text()) for p in paths]
    runs = [run for f in found for run in f["runs"]]
    _of_one_device(runs, "merge those of one")
    rows: list[Row] = []
    for file in found:
        # Last words name the places of a machine; they stay in the file of the run.
        rows = _later(rows, [{k: v for k, v in row.items() if k != "said"} for row in file["rows"]])
    return {"runs": runs, "rows": rows}


def _of_one_device(runs: Sequence[dict[str, Any]], advice: str) -> None:
    kinds = {(run["device"], *(g["name"] for g in run["machine"]["gpu"])) for run in runs}
    if len(kinds) != 1:
        raise UsageError(f"these results are of different devices, {sorted(kinds)}: {advice}")


def _later(before: Sequence[Row], rows: Sequence[Row]) -> list[Row]:
    """Earlier rows that still hold, then later ones.

    A row is replaced by one about the same; where it was timed in turns, by others that were timed in turns on the
    same work; and where it says why a whole piece of work was not done, by anything measured of that.
    """
    told = {_key(row) for row in rows}
    turns = {_key(row)[:-1] for row in rows if "p50_ms" in row}
    measured = [row for row in rows if row["status"] == "measured"]

    def holds(row: Row) -> bool:
        if row["way"] == ALL and any(_is_part(done, row) for done in measured):
            return False
        return _key(row) not in told and ("p50_ms" not in row or _key(row)[:-1] not in turns)

    return [row for row in before if holds(row)] + [*rows]


def _is_part(row: Row, whole: Row) -> bool:
    """Whether a row is about some of what another one is about."""
    return all(whole.get(k) in (None, row.get(k)) for k in KEY[:-1])


def reason(error: Exception) -> str:
    """Why something failed, in one line."""
    return f"{type(error).__name__}: {(str(error).splitlines() or [''])[0]}"


def _key(row: Row) -> tuple[Any, ...]:
    return tuple(row.get(k) for k in KEY)
