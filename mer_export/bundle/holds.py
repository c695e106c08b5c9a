"""Who may read and who may write a bundle at the same time, by locks of the operating system.

One process at a time writes: it has the lock file for as long as it prepares a change, which may be hours. Readers do
not wait for it. Only while a change lands, some milliseconds, readers and the writer keep each other out, by a lock on
the directory itself, which needs no file and works where nothing may be written.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import threading
import time
from collections.abc import Iterator
from pathlib import Path

from mer_export.bundle.files import open_plain
from mer_export.bundle.manifest import JOURNAL, LOCK
from mer_export.errors import BundleError, MerError

PATIENCE = 60.0
"""Seconds to wait for the other side while a change lands."""
PAUSE = 0.002
BUSY = (errno.EWOULDBLOCK, errno.EAGAIN)
PROBED = 0.1
"""Seconds for which the lock file may be taken by readers that ask whether somebody writes."""

_held = threading.local()


@contextlib.contextmanager
def writing(root: Path) -> Iterator[None]:
    """Holds the lock file; freed when the process ends.

    Raises:
        BundleError: another process has it.
    """
    descriptor = open_plain(root / LOCK, os.O_RDWR | os.O_CREAT)
    try:
        until = time.monotonic() + PROBED
        while not (taken := _take(descriptor, fcntl.LOCK_EX)) and time.monotonic() < until:
            time.sleep(PAUSE)
        if not taken:
            owner = os.pread(descriptor, 64, 0).decode(errors="replace").strip() or "another process"
            raise BundleError(f"{root} is being written by {owner}: wait for it to end")
        # A full disk keeps the name of the owner out, not the owner.
        with contextlib.suppress(OSError):
            os.ftruncate(descriptor, 0)
            os.pwrite(descriptor, f"process {os.getpid()}".encode(), 0)
        yield
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def reading(root: Path) -> Iterator[None]:
    """Keeps changes from landing while files are read; waits for one that is landing now."""
    with _holding(root, fcntl.LOCK_SH):
        yield


@contextlib.contextmanager
def landing(root: Path) -> Iterator[None]:
    """Keeps readers out while files are moved; waits for those that are reading now."""
    with _holding(root, fcntl.LOCK_EX):
        yield


@contextlib.contextmanager
def _holding(root: Path, kind: int) -> Iterator[None]:
    """Holds the directory in this thread, once however often it is asked for."""
    descriptor = os.open(root, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        found = os.fstat(descriptor)
        key, held = (found.st_dev, found.st_ino), _held.__dict__.setdefault("roots", set())
        if key in held:
            if kind == fcntl.LOCK_EX:
                raise MerError(f"{root}: a change cannot land in a thread that reads")
            yield
            return
        _wait(root, descriptor, kind)
        held.add(key)
        try:
            yield
        finally:
            held.discard(key)
    finally:
        os.close(descriptor)


def _wait(root: Path, descriptor: int, kind: int) -> None:
    until = time.monotonic() + PATIENCE
    while not (_take(descriptor, kind) and (kind == fcntl.LOCK_EX or not _about_to_land(root))):
        _take(descriptor, fcntl.LOCK_UN)
        if time.monotonic() > until:
            raise BundleError(f"{root} is held by another process for more than {PATIENCE:.0f} s: try again later")
        time.sleep(PAUSE)


def _take(descriptor: int, kind: int) -> bool:
    try:
        fcntl.flock(descriptor, kind | fcntl.LOCK_NB)
    except OSError as error:
        # A file system without locks on directories has no other writer's either.
        return error.errno not in BUSY
    return True


def _about_to_land(root: Path) -> bool:
    """Whether a living writer has said what it will move: it goes first, or readers could keep it out for ever."""
    return (root / JOURNAL).exists() and being_written(root)


def being_written(root: Path) -> bool:
    """Whether a process has the lock file."""
    try:
        descriptor = open_plain(root / LOCK)
    except OSError:
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except OSError:
        return True
    finally:
        os.close(descriptor)
    return False
