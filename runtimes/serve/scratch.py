"""A folder for the recordings of requests, which libraries read from files: gone at the end, or when the next one is
made after a server was killed."""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

PREFIX = "mer-serve-"


class Scratch:
    """A folder that only this user reads, locked as long as its process lives."""

    def __init__(self) -> None:
        """Makes it, and removes those of servers that are no more."""
        _drop_leftovers()
        self.path, self._descriptor = _locked()

    @contextlib.contextmanager
    def folder(self) -> Iterator[Path]:
        """One in it for a request."""
        with tempfile.TemporaryDirectory(dir=self.path) as folder:
            yield Path(folder)

    def close(self) -> None:
        """Removes it."""
        shutil.rmtree(self.path, ignore_errors=True)
        os.close(self._descriptor)


def _locked() -> tuple[Path, int]:
    while True:
        path = Path(tempfile.mkdtemp(prefix=PREFIX))
        with contextlib.suppress(FileNotFoundError):
            descriptor = _open(path)
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            if path.exists():
                return path, descriptor
            os.close(descriptor)
        # Another process took it for a leftover before it was locked.


def _drop_leftovers() -> None:
    with os.scandir(tempfile.gettempdir()) as entries:
        found = [e.path for e in entries if e.name.startswith(PREFIX) and _own_folder(e)]
    for path in found:
        with contextlib.suppress(OSError):
            descriptor = _open(Path(path))
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(path)
            finally:
                os.close(descriptor)


def _own_folder(entry: os.DirEntry[str]) -> bool:
    with contextlib.suppress(OSError):
        return entry.is_dir(follow_symlinks=False) and entry.stat(follow_symlinks=False).st_uid == os.geteuid()
    return False


def _open(folder: Path) -> int:
    return os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
