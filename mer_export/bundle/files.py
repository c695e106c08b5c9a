"""Files of a bundle, which a stranger may have laid out: nothing is opened, written or moved through a link."""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import hashlib
import os
import secrets
import shutil
import stat
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

from mer_export import faults
from mer_export.errors import BundleError

AT_FDCWD, EXCHANGE = -100, 2
"""For `renameat2`: paths as they are, and each in the other's place."""


def plain(path: Path) -> os.stat_result | None:
    """What the system says of a regular file; None where there is nothing.

    Raises:
        BundleError: a symbolic link, a file that has another name elsewhere, or no regular file.
    """
    try:
        found = path.lstat()
    except (FileNotFoundError, NotADirectoryError):
        return None
    if stat.S_ISLNK(found.st_mode):
        raise BundleError(f"{path} is a symbolic link, a bundle holds plain files only")
    if not stat.S_ISREG(found.st_mode):
        raise BundleError(f"{path} is not a file, a bundle holds plain files only")
    if found.st_nlink > 1:
        raise BundleError(f"{path} is a hard link, which has another name elsewhere: copy the bundle and use the copy")
    return found


def plain_folder(path: Path) -> bool:
    """Whether there is a directory; raises BundleError for a link or a file in its place."""
    if path.is_symlink():
        raise BundleError(f"{path} is a symbolic link, a bundle holds plain files only")
    if path.exists() and not path.is_dir():
        raise BundleError(f"{path} is not a directory: the bundle is damaged")
    return path.is_dir()


def open_plain(path: Path, flags: int = os.O_RDONLY) -> int:
    """A descriptor of a regular file that is no link; raises as `plain` does, and OSError as `os.open` does."""
    plain(path)
    descriptor = os.open(path, flags | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK, 0o666)
    opened = os.fstat(descriptor)
    if not stat.S_ISREG(opened.st_mode) or opened.st_nlink > 1:
        os.close(descriptor)
        raise BundleError(f"{path} is a hard link or not a file, a bundle holds plain files only")
    return descriptor


def read_plain(path: Path, most: int) -> bytes:
    """The content of a regular file of at most so many bytes; raises as `open_plain` does, and BundleError past it."""
    with os.fdopen(open_plain(path), "rb") as stream:
        content = stream.read(most + 1)
    if len(content) > most:
        raise BundleError(f"{path} is larger than {most >> 20} MiB: it is not what mer writes")
    return content


def sha256(path: Path) -> str:
    """SHA-256 of a file, in hexadecimal."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def inside(root: Path, name: str) -> Path:
    """A name in a bundle as a path; refuses absolute names, `..`, names spelled unusually, and links on the way."""
    relative = PurePosixPath(name)
    if relative.is_absolute() or ".." in relative.parts or not relative.parts or str(relative) != name or "\0" in name:
        raise BundleError(f"{root}: {name!r} points outside the bundle")
    path = root
    for part in relative.parts:
        path = path / part
        if path.is_symlink():
            raise BundleError(f"{root}: {name} is a symbolic link, a bundle holds plain files only")
    return path


def plain_files(folder: Path) -> Iterator[Path]:
    """Every regular file below a directory; links are left out and not entered."""
    for where, folders, names in os.walk(folder):
        folders[:] = [f for f in folders if not (Path(where) / f).is_symlink()]
        yield from (p for n in names if not (p := Path(where) / n).is_symlink() and p.is_file())


def refuse_links(root: Path) -> None:
    """Raises BundleError for the first thing below a directory that is neither a plain file nor a directory."""
    for where, folders, names in os.walk(root):
        for name in (*folders, *names):
            path = Path(where) / name
            if path.is_symlink() or not path.is_dir():
                plain(path)


def write_atomic(path: Path, content: bytes) -> None:
    """Writes a file so that a reader or a killed writer sees the old or the new content, never a part."""
    with replacing(path) as temporary:
        temporary.write_bytes(content)


@contextlib.contextmanager
def replacing(path: Path, durable: bool = True) -> Iterator[Path]:
    """An empty file beside `path` to write; it takes its place when the block ends well, and is gone otherwise.

    It is locked as long as its process lives, so what a killed one left is known, and removed by the next. What is not
    `durable` does not wait for the disk: where the power fails it may be torn.
    """
    with faults.at(path):
        drop_leftovers(path)
        temporary, descriptor = _scratch(path)
        try:
            yield temporary
            if durable:
                os.fsync(descriptor)
            os.replace(temporary, path)
        finally:
            temporary.unlink(missing_ok=True)
            os.close(descriptor)
        if durable:
            with contextlib.suppress(PermissionError):
                fsync(path.parent)


@contextlib.contextmanager
def replacing_folder(path: Path, durable: bool = True) -> Iterator[Path]:
    """An empty folder beside `path` to fill; it takes its place when the block ends well, and is gone otherwise.

    Of a link it replaces what that leads to. What is not `durable` does not wait for the disk, as of `replacing`.
    """
    place = path.resolve()
    with faults.at(path), scratch_folder(place) as fresh:
        yield fresh
        for where, _, names in os.walk(fresh, topdown=False) if durable else ():
            for written in (*names, ""):
                fsync(Path(where) / written)
        _put_folder(fresh, place)
    if durable:
        with contextlib.suppress(PermissionError):
            fsync(place.parent)


@contextlib.contextmanager
def scratch_folder(path: Path) -> Iterator[Path]:
    """An empty folder beside `path`, which is gone when the block ends.

    It is locked as long as its process lives, so what a killed one left is known, and removed by the next.
    """
    # The working directory, for one, has no name of its own.
    path = path.resolve()
    path.parent.mkdir(parents=True, exist_ok=True)
    _drop_left_folders(path)
    fresh = path.with_name(f".{path.name}.{os.getpid()}.{secrets.token_hex(4)}.tmp")
    fresh.mkdir()
    try:
        with holding(fresh):
            yield fresh
    finally:
        # Itself, or what it has replaced.
        shutil.rmtree(fresh, ignore_errors=True)


@contextlib.contextmanager
def holding(folder: Path) -> Iterator[bool]:
    """Locks a folder for the block, or as long as this process lives; gives whether nobody else holds it.

    Some file systems have no locks: nobody removes leftovers there.
    """
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            ours = True
        except OSError:
            ours = False
        yield ours
    finally:
        os.close(descriptor)


def _drop_left_folders(path: Path) -> None:
    """Removes what writers of the folder `path` left that were killed; those that live hold theirs."""
    for leftover in _beside(path):
        with contextlib.suppress(OSError), holding(leftover) as ours:
            if ours:
                shutil.rmtree(leftover)


def _put_folder(fresh: Path, path: Path) -> None:
    """Makes a folder what is at `path`: in one step, also where there was another one if the file system can."""
    if not path.exists():
        fresh.rename(path)
    elif not _exchanged(fresh, path):
        old = fresh.with_name(f"{fresh.name}.old.tmp")
        path.rename(old)
        try:
            fresh.rename(path)
        except OSError:
            old.rename(path)
            raise
        shutil.rmtree(old, ignore_errors=True)


def _exchanged(one: Path, other: Path) -> bool:
    """Whether the system let two folders change places, which not every file system can."""
    call = getattr(ctypes.CDLL(None), "renameat2", None)
    names = [os.fsencode(p) for p in (one, other)]
    return call is not None and call(AT_FDCWD, names[0], AT_FDCWD, names[1], EXCHANGE) == 0


def _scratch(path: Path) -> tuple[Path, int]:
    """A new locked file beside `path`, under a name of its own."""
    while True:
        temporary = path.with_name(f".{path.name}.{os.getpid()}.{secrets.token_hex(4)}.tmp")
        descriptor = os.open(temporary, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o666)
        # Some file systems have no locks: nobody removes leftovers there either.
        with contextlib.suppress(OSError):
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        if os.fstat(descriptor).st_nlink:
            return temporary, descriptor
        # Another process took it for a leftover before it was locked.
        os.close(descriptor)


def drop_leftovers(path: Path) -> None:
    """Removes what writers of `path` left that were killed; those that live hold theirs."""
    for leftover in _beside(path):
        with contextlib.suppress(OSError, BundleError):
            descriptor = open_plain(leftover, os.O_RDWR)
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                leftover.unlink()
            finally:
                os.close(descriptor)


def _beside(path: Path) -> list[Path]:
    """What writers of `path` have begun, of those that live and of those that were killed."""
    names: list[str] = []
    with contextlib.suppress(OSError), os.scandir(path.parent) as entries:
        names = [e.name for e in entries if e.name.startswith(f".{path.name}.") and e.name.endswith(".tmp")]
    return [path.with_name(n) for n in names]


def write_new(path: Path, content: bytes, mode: int = 0o666) -> None:
    """Writes a file that is not there yet, to the disk."""
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, mode)
    with os.fdopen(descriptor, "wb") as stream:
        stream.write(content)
        stream.flush()
        os.fsync(stream.fileno())


def fsync(path: Path) -> None:
    """Waits until a file or directory is on the disk."""
    descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def drop_empty_folders(root: Path, name: str) -> None:
    """Removes the directories of a file that is gone, as far as they are empty."""
    with contextlib.suppress(OSError):
        for parent in PurePosixPath(name).parents[:-1]:
            (root / parent).rmdir()
