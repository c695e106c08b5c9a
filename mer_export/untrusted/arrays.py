"""Arrays of npy and npz files, whose claims are held against what the files have before numpy takes memory."""

from __future__ import annotations

import zipfile
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.lib import format as npy

from mer_export.errors import InputError
from mer_export.untrusted.budget import Budget
from mer_export.untrusted.impostors import refuse_impostor

ZIP = b"PK\x03\x04"


def load_array(path: Path, name: str | None = None) -> np.ndarray:
    """An array of an npy file, or the one of that name (or the only one) of an npz file; raises InputError."""
    check_arrays(path)
    try:
        with open(path, "rb") as stream:
            content = np.load(stream, allow_pickle=False)
            if isinstance(content, np.ndarray):
                return content
            names = content.files
            if name is None and len(names) == 1:
                name = names[0]
            if name not in names:
                raise InputError(f"{path} has no array {name!r}, there are {names}")
            return content[name]
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror or error}") from None
    except InputError:
        raise
    except Exception as error:  # zip, header and length errors have many types
        raise InputError(f"{path} is not a readable array file: {' '.join(str(error).split())[:120]}") from None


def check_arrays(path: Path) -> None:
    """Raises InputError where an npy or npz file claims more than it has, or is another kind of file by mistake.

    Damage that numpy names itself is left to it.
    """
    refuse_impostor(path)
    budget = Budget.of(path)
    try:
        with path.open("rb") as stream:
            if stream.read(len(ZIP)) == ZIP:
                with zipfile.ZipFile(stream) as archive:
                    for entry in archive.infolist():
                        with archive.open(entry) as member:
                            _check(member, entry.file_size, budget)
            else:
                stream.seek(0)
                _check(stream, budget.size, budget)
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror or error}") from None
    except InputError:
        raise
    except Exception as error:  # zip, header and length errors have many types
        raise InputError(f"{path} is not a readable array file: {' '.join(str(error).split())[:120]}") from None


def _check(stream: IO[bytes], size: int, budget: Budget) -> None:
    """One array of `size` bytes with its header."""
    shape, dtype = _header(stream)
    if dtype.hasobject:
        raise ValueError("it holds Python objects, save arrays of numbers or text")
    claimed = budget.take_array(shape, dtype)
    held = size - stream.tell()
    if claimed != held:
        raise InputError(
            f"{budget.name} was not read: an array of shape {shape} takes {claimed} bytes, the file has {held} for it"
        )


def _header(stream: IO[bytes]) -> tuple[tuple[int, ...], Any]:
    version = npy.read_magic(stream)
    read: Any = {(1, 0): npy.read_array_header_1_0, (2, 0): npy.read_array_header_2_0}.get(version)
    shape, _, dtype = read(stream) if read else npy._read_array_header(stream, version)  # type: ignore[attr-defined]
    if not all(type(n) is int and 0 <= n < 1 << 62 for n in shape):
        raise ValueError(f"shape {str(shape)[:60]}")
    return shape, dtype
