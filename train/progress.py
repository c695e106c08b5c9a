"""How a training run shows where it is: a bar on a terminal, plain lines otherwise, always on stderr."""

from __future__ import annotations

import sys
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from mer_export.metrics.table import find, main


class Quiet:
    """Shows nothing."""

    def start(self, title: str, epochs: int, done: int) -> None:
        """Called once per phase: what trains, for how many epochs, how many were done before."""

    def epoch(self, record: dict[str, Any]) -> None:
        """Called after every epoch with its line of metrics.jsonl."""

    def close(self) -> None:
        """Called when the phase has ended, however it ended."""


class Lines(Quiet):
    """One line per epoch."""

    def __init__(self) -> None:
        self.epochs = 0

    def start(self, title: str, epochs: int, done: int) -> None:
        self.epochs = epochs
        print(f"{title}: epochs {done + 1}..{epochs}", file=sys.stderr, flush=True)

    def epoch(self, record: dict[str, Any]) -> None:
        print(f"epoch {record['epoch']}/{self.epochs}  {summary(record)}", file=sys.stderr, flush=True)


class Bar(Quiet):
    """A progress bar with the latest metrics."""

    def __init__(self) -> None:
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
        self.bar = Progress(*columns, TextColumn("{task.fields[metrics]}"), console=Console(stderr=True))

    def start(self, title: str, epochs: int, done: int) -> None:
        self.bar.start()
        self.task = self.bar.add_task(title, total=epochs, completed=done, metrics="")

    def epoch(self, record: dict[str, Any]) -> None:
        self.bar.update(self.task, completed=record["epoch"], metrics=summary(record))

    def close(self) -> None:
        self.bar.stop()


def default_progress() -> Quiet:
    """A bar where stderr is a terminal, otherwise lines."""
    return Bar() if sys.stderr.isatty() else Lines()


def summary(record: dict[str, Any]) -> str:
    """Loss and main metrics of an epoch in a few words."""
    parts = [f"loss {record['train']['total']:.4f}"]
    for split, metrics in record.get("splits", {}).items():
        parts.append(f"{split}: " + " ".join(f"{find(n).title} {find(n).text(v)}" for n, v in main(metrics).items()))
    return "  ".join(parts)
