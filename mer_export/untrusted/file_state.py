"""Which state of a file was read: who keeps something of it looks whether the file is still in that state."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path

State = tuple[int, int, int, int]
"""Which file, its size and when it was written: equal as long as nobody wrote it."""
States = tuple[State | None, ...]
"""Of several files, None for those that are not there."""


def state_of(found: os.stat_result) -> State:
    """The state of a file that the system was asked about."""
    return found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns


def states(paths: Iterable[Path | str]) -> States:
    """The states of files or folders."""
    return tuple([_state(path) for path in paths])


def _state(path: Path | str) -> State | None:
    try:
        return state_of(os.stat(path))
    except (OSError, ValueError):
        return None
