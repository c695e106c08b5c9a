"""Files on this machine or in object storage, by path or address, through `pyarrow.fs` and what fsspec knows beside."""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, BinaryIO

from mer_export.errors import InputError, NotAvailableError
from mer_export.untrusted.parquet import pyarrow_modules

ADDRESS = re.compile(r"([A-Za-z][A-Za-z0-9+.-]+)://")
SECRET = re.compile(r"(?<=://)[^/@]*@")
"""Name and password in an address."""


@dataclass(frozen=True)
class Stored:
    """One file: its absolute path or address, bytes, and what changes when its content does (an etag, a time)."""

    name: str
    size: int
    mark: str

    @property
    def said(self) -> str:
        """Its name for messages and manifests, without what lets one in and how one gets there."""
        return _said(self.name)

    @property
    def local(self) -> Path | None:
        """Where it lies on this machine."""
        found = ADDRESS.match(self.name)
        if found is None:
            return Path(self.name)
        return Path(_place(self.name)[1]) if found[1] == "file" else None

    @property
    def changed(self) -> bool:
        """Whether a file of this machine is not what it was when it was listed; of one at an address nobody knows."""
        if self.local is None:
            return False
        try:
            found = self.local.stat()
        except OSError:
            return True
        return (found.st_size, str(found.st_mtime_ns)) != (self.size, self.mark)

    def open(self) -> BinaryIO:
        """Its bytes, to seek in; raises InputError where it cannot be read."""
        files, path = _place(self.name)
        try:
            opened: BinaryIO = files.open_input_file(path)
        except (OSError, ValueError) as error:
            raise _unreadable(self.said, error) from None
        return opened

    def read(self, begin: int, end: int) -> bytes:
        """The bytes of a part; raises InputError where the file has fewer."""
        with self.open() as stream:
            stream.seek(begin)
            found = stream.read(end - begin)
        if len(found) < end - begin:
            raise InputError(f"{self.said} ends at byte {begin + len(found)}, it had {self.size}: it has changed")
        return found


def stored_files(name: str) -> list[Stored]:
    """The file of that path or address, or all that a directory holds, by name; hidden ones (`.`, `_`) are none.

    Raises:
        InputError: nothing is there, or it cannot be read.
        NotAvailableError: what reads such addresses is not installed.
    """
    name = name if ADDRESS.match(name) else str(Path(name).absolute())
    from pyarrow import fs

    files, path = _place(name)
    said, (address, options) = _said(name), _options(name)
    try:
        found = files.get_file_info(path)
        listed = files.get_file_info(fs.FileSelector(path)) if found.type == fs.FileType.Directory else [found]
    except (OSError, ValueError) as error:
        raise _unreadable(said, error) from None
    if found.type == fs.FileType.NotFound:
        raise InputError(f"{said} does not exist: name a file or a directory of files")
    own = [f for f in listed if f.type == fs.FileType.File and (f is found or not f.base_name.startswith((".", "_")))]
    return [
        Stored(name if f is found else f"{address.rstrip('/')}/{f.base_name}{options}", f.size, _mark(files, f))
        for f in sorted(own, key=lambda f: f.base_name)
    ]


def _options(name: str) -> tuple[str, str]:
    """An address, and how one gets there: `?endpoint_override=…`. A path may have a question mark of its own."""
    address, mark, options = name.partition("?") if ADDRESS.match(name) else (name, "", "")
    return address, mark + options


def _said(name: str) -> str:
    return SECRET.sub("", _options(name)[0])


@lru_cache(maxsize=256)
def _place(name: str) -> tuple[Any, str]:
    """The file system of a path or address, and the path in it. Asking where a bucket lies may take a while."""
    pyarrow_modules()
    from pyarrow import fs

    found = ADDRESS.match(name)
    if found is None:
        return fs.LocalFileSystem(), name
    try:
        files, path = fs.FileSystem.from_uri(name)
    except (ValueError, NotImplementedError):
        return _of_fsspec(name, found[1])
    return files, path


def _of_fsspec(name: str, protocol: str) -> tuple[Any, str]:
    from pyarrow import fs

    try:
        import fsspec

        files, path = fsspec.core.url_to_fs(name)
    except ImportError as error:
        raise NotAvailableError(f"what reads {protocol}:// is not installed: it is the package {error.name}") from None
    except ValueError as error:
        raise InputError(f"{_said(name)} cannot be read: {error}") from None
    return fs.PyFileSystem(fs.FSSpecHandler(files)), path


def _mark(files: Any, found: Any) -> str:
    """What changes with the content: the etag where the storage has some, else the time of the last change."""
    own = getattr(getattr(files, "handler", None), "fs", None)
    if own is not None:
        info = own.info(found.path)
        tag = next((info[n] for n in ("ETag", "etag", "md5Hash", "mtime", "created") if info.get(n)), "")
        return str(tag)
    return str(found.mtime_ns or "")


def _unreadable(name: str, error: Exception) -> InputError:
    return InputError(f"{name} cannot be read: {' '.join(str(error).split())[:160]}")
