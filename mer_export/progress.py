"""How work that takes long shows where it is: a bar on a terminal, plain lines otherwise, always on standard error."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Self

if TYPE_CHECKING:
    from rich.progress import TaskID


class Progress:
    """Shows nothing; its subclasses show it."""

    def start(self, title: str, total: int | None, unit: str = "", done: int = 0) -> None:
        """Called once per phase: what begins, in how many parts (None: nobody knows) of what, and how many were done
        before."""

    def begin(self, text: str) -> None:
        """A part begins; the one before has ended."""

    def note(self, text: str) -> None:
        """Where the part that has begun is; lines leave it out."""

    def end(self, text: str) -> None:
        """A part has ended, with what came of it."""

    def close(self) -> None:
        """Called when the phase has ended, however it ended."""

    @contextmanager
    def over(self, title: str, total: int | None, unit: str = "") -> Iterator[Self]:
        """A phase as a block."""
        self.start(title, total, unit)
        try:
            yield self
        finally:
            self.close()


SILENT = Progress()


def duration(seconds: float) -> str:
    """`2 h 3 min`, `3 min 20 s` or `20 s`."""
    whole = round(seconds)
    hours, minutes, rest = whole // 3600, whole // 60 % 60, whole % 60
    if hours:
        return f"{hours} h {minutes} min"
    return f"{minutes} min {rest} s" if minutes else f"{rest} s"


class TimeLeft:
    """How long work of `total` parts will go on, by the parts of this run; those of an earlier one took no time."""

    def __init__(self, total: int, clock: Callable[[], float] = time.monotonic):
        self.total, self.clock = total, clock
        self.skip(0)

    def skip(self, done: int) -> None:
        """So many parts were done before."""
        self.first, self.begun = done, self.clock()

    def text(self, done: int) -> str:
        """`3 min 20 s left`, with `done` parts done."""
        made = done - self.first
        if made <= 0:
            return "time left unknown"
        return f"{duration((self.clock() - self.begun) / made * (self.total - done))} left"


def to_stderr(line: str) -> None:
    """A line on standard error, at once."""
    print(line, file=sys.stderr, flush=True)


class Lines(Progress):
    """One line per part."""

    def __init__(self, write: Callable[[str], None] = to_stderr) -> None:
        self.write = write
        self.total: int | None = None
        self.unit, self.number = "", 0

    def start(self, title: str, total: int | None, unit: str = "", done: int = 0) -> None:
        self.total, self.unit, self.number = total, unit, done
        if total is not None:
            self.write(f"{title}: {unit}s {done + 1}..{total}")

    def begin(self, text: str) -> None:
        self.number += 1
        self.write(text if self.total is None else f"{self.unit} {self.number}/{self.total}  {text}")

    def end(self, text: str) -> None:
        self.begin(text)


class Bar(Progress):
    """A progress bar with the latest text."""

    def __init__(self, console: Any = None) -> None:
        from rich import progress as rich
        from rich.console import Console

        columns = (
            rich.TextColumn("{task.description}"),
            *(rich.BarColumn(), rich.MofNCompleteColumn(), rich.TimeElapsedColumn(), rich.TimeRemainingColumn()),
            rich.TextColumn("{task.fields[text]}", markup=False),
        )
        # Drawn seldom: benchmarks run beside it.
        self.bar = rich.Progress(*columns, console=console or Console(stderr=True), refresh_per_second=2)
        self.task: TaskID | None = None
        self.begun = 0

    def start(self, title: str, total: int | None, unit: str = "", done: int = 0) -> None:
        self.bar.start()
        self.begun = done
        self.task = self.bar.add_task(title, total=total, completed=done, text="")

    def begin(self, text: str) -> None:
        self._show(self.begun, text)
        self.begun += 1

    def note(self, text: str) -> None:
        self._show(self.begun - 1, text)

    def end(self, text: str) -> None:
        self.begun += 1
        self._show(self.begun, text)

    def _show(self, completed: int, text: str) -> None:
        if self.task is not None:
            self.bar.update(self.task, completed=completed, text=text)

    def close(self) -> None:
        self.bar.stop()


def progress_unless(quiet: bool) -> Progress:
    """A bar where standard error is a terminal, otherwise lines; nothing where it is to be quiet."""
    if quiet:
        return SILENT
    return Bar() if sys.stderr.isatty() else Lines()
