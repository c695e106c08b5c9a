"""Arrays of npy and npz files, whose claims are held against what the files have before numpy takes memory."""

from __future__ import annotations

import math
import os
import struct
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, NamedTuple, Protocol

import numpy as np
from numpy.lib import format as npy

from mer_export.errors import InputError
from mer_export.untrusted.budget import Budget
from mer_export.untrusted.impostors import refuse_impostor

ZIP = b"PK\x03\x04"
HEAD, LENGTHS_AT = 30, 26
"""Bytes of what stands before a member of an archive, and where that says how long its own two texts are."""
TOGETHER = 1 << 16
"""Bytes of rows that are read along."""


def load_array(path: Path, name: str | None = None) -> np.ndarray:
    """An array of an npy file, or the one of that name (or the only one) of an npz file; raises InputError."""
    check_arrays(path)
    with _told(path), open(path, "rb") as stream:
        content = np.load(stream, allow_pickle=False)
        if isinstance(content, np.ndarray):
            return content
        names = content.files
        if name is None and len(names) == 1:
            name = names[0]
        if name not in names:
            raise InputError(f"{path} has no array {name!r}, there are {names}")
        return content[name]


def load_arrays(path: Path) -> dict[str, np.ndarray]:
    """All arrays of an npz file by name; raises InputError."""
    check_arrays(path)
    with _told(path), open(path, "rb") as stream, np.load(stream, allow_pickle=False) as content:
        return dict(content)


class Shaped(NamedTuple):
    """What an array says of itself."""

    shape: tuple[int, ...]
    dtype: np.dtype


class Steps(Protocol):
    """What is asked of an array whose rows are looked at one after the other."""

    @property
    def shape(self) -> tuple[int, ...]: ...

    @property
    def ndim(self) -> int: ...

    @property
    def dtype(self) -> np.dtype: ...

    def __len__(self) -> int: ...

    def __getitem__(self, index: Any, /) -> Any: ...


class FileArray:
    """An array that stays in its file. `begin` is where its values are; what is asked for next is read along.

    A view of the file's memory would be simpler, but a file that somebody cuts short would end the process.
    """

    def __init__(self, path: Path, begin: int, shape: tuple[int, ...], dtype: np.dtype):
        self.path, self.begin, self.shape, self.ndim, self.dtype = path, begin, shape, len(shape), dtype
        self._file = path.open("rb", buffering=0)
        self._row = math.prod(shape[1:]) * dtype.itemsize
        self._together = max(1, TOGETHER // max(1, self._row))
        self._first, self._held = 0, np.empty((0, *shape[1:]), dtype)

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, index: int | slice, /) -> np.ndarray:
        """A row, or some that stand together; raises InputError where the file has become shorter."""
        if isinstance(index, slice):
            first, last, _ = index.indices(len(self))
            return self._rows(first, max(first, last))
        return self._rows(index, index + 1)[0]

    def _rows(self, first: int, last: int) -> np.ndarray:
        end = self._first + len(self._held)
        if not self._first <= first <= last <= end:
            goes_on = self._first <= first <= end + self._together
            self._held = self._read(first, min(len(self), max(last, first + self._together)) if goes_on else last)
            self._first = first
        return self._held[first - self._first : last - self._first]

    def _read(self, first: int, last: int) -> np.ndarray:
        wanted = (last - first) * self._row
        content = os.pread(self._file.fileno(), wanted, self.begin + first * self._row)
        if len(content) < wanted:
            raise InputError(f"{self.path} became shorter while it was read: start again when nothing writes to it")
        return np.frombuffer(content, self.dtype).reshape(-1, *self.shape[1:])


def open_array(path: Path, name: str | None = None) -> Steps:
    """As `load_array`, but rows stay in the file where it has them one behind the other and not compressed."""
    check_arrays(path)
    with _told(path), open(path, "rb") as stream:
        if stream.read(len(ZIP)) == ZIP:
            begin, shape, by_columns, dtype = _member(stream, path, name)
        else:
            stream.seek(0)
            shape, by_columns, dtype = _header(stream)
            begin = stream.tell()
    if not begin or by_columns or not shape or 0 in shape[1:] or not dtype.itemsize:
        return load_array(path, name)
    return FileArray(path, begin, shape, dtype)


def _member(stream: IO[bytes], path: Path, name: str | None) -> tuple[int, tuple[int, ...], bool, np.dtype]:
    """Where an array of an archive begins in its file (0: nowhere, it is compressed), shape, order and dtype.

    It is read once, since the archive holds it against its checksum.
    """
    with zipfile.ZipFile(stream) as archive:
        entries = {e.filename.removesuffix(".npy"): e for e in archive.infolist()}
        if name is None and len(entries) == 1:
            name = next(iter(entries))
        if name is None or name not in entries:
            raise InputError(f"{path} has no array {name!r}, there are {list(entries)}")
        entry = entries[name]
        with archive.open(entry) as member:
            shape, by_columns, dtype = _header(member)
            begin = member.tell()
            if entry.compress_type != zipfile.ZIP_STORED:
                return 0, shape, by_columns, dtype
            while member.read(TOGETHER):
                pass
        stream.seek(entry.header_offset + LENGTHS_AT)
        begin += entry.header_offset + HEAD + sum(struct.unpack("<HH", stream.read(4)))
        return begin, shape, by_columns, dtype


def check_arrays(path: Path) -> dict[str, Shaped]:
    """Shape and dtype of the arrays of an npz file by name, or of the one of an npy file under an empty name.

    Damage of their contents is left to numpy.

    Raises:
        InputError: it claims more than it has, or is another kind of file by mistake.
    """
    refuse_impostor(path)
    budget = Budget.of(path)
    with _told(path), path.open("rb") as stream:
        if stream.read(len(ZIP)) != ZIP:
            stream.seek(0)
            return {"": _check(stream, budget.size, budget)}
        found = {}
        with zipfile.ZipFile(stream) as archive:
            for entry in archive.infolist():
                with archive.open(entry) as member:
                    found[entry.filename.removesuffix(".npy")] = _check(member, entry.file_size, budget)
        return found


@contextmanager
def _told(path: Path) -> Iterator[None]:
    """Says what is wrong with a file."""
    try:
        yield
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror or error}") from None
    except InputError:
        raise
    except Exception as error:  # zip, header and length errors have many types
        raise InputError(f"{path} is not a readable array file: {' '.join(str(error).split())[:120]}") from None


def _check(stream: IO[bytes], size: int, budget: Budget) -> Shaped:
    """One array of `size` bytes with its header."""
    shape, _, dtype = _header(stream)
    if dtype.hasobject:
        raise ValueError("it holds Python objects, save arrays of numbers or text")
    claimed = budget.take_array(shape, dtype)
    held = size - stream.tell()
    if claimed != held:
        raise InputError(
            f"{budget.name} was not read: an array of shape {shape} takes {claimed} bytes, the file has {held} for it"
        )
    return Shaped(shape, dtype)


def _header(stream: IO[bytes]) -> tuple[tuple[int, ...], bool, np.dtype]:
    version = npy.read_magic(stream)
    read: Any = {(1, 0): npy.read_array_header_1_0, (2, 0): npy.read_array_header_2_0}.get(version)
    shape, by_columns, dtype = read(stream) if read else npy._read_array_header(stream, version)  # type: ignore[attr-defined]
    if not all(type(n) is int and 0 <= n < 1 << 62 for n in shape):
        raise ValueError(f"shape {str(shape)[:60]}")
    return shape, by_columns, dtype
