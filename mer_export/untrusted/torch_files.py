"""Files of `torch.save`, of any age but the tar archives of 2016, read without PyTorch.

A file is a pickle that refers to storages, and the bytes of each storage: in a zip archive since 2020, before that one
after the other (also inside every pickle of a tensor that was made without `torch.save`).
"""

from __future__ import annotations

import struct
import zipfile
from collections.abc import Callable, Collection
from functools import partial
from typing import Any

import numpy as np

from mer_export.untrusted.budget import MIB, Budget
from mer_export.untrusted.builders import BUILDERS, Refused, is_size
from mer_export.untrusted.tensors import STORAGES, decode, tensor_builders
from mer_export.untrusted.unpickle import DataUnpickler

MAGIC, VERSION = 0x1950A86A20F9469CFC6C, 1001
HEAD = 4096
"""Bytes that the pickle of one storage fits in."""
CHUNK = 16 * MIB


def builders(budget: Budget) -> dict[str, Callable[..., Any]]:
    """What a pickle may call: arrays, containers and tensors."""
    own = {"torch.storage._load_from_bytes": partial(_storage_of_bytes, budget)}
    return {**BUILDERS, **tensor_builders(budget), **own}


def read_zip(archive: zipfile.ZipFile, budget: Budget, kind: type[DataUnpickler], records: Collection[str]) -> Any:
    """The object of a zip archive."""
    found = archive.namelist()
    names = [n for n in found if n.split("/")[-1] == "data.pkl"]
    if any(n.split("/")[-1] == "constants.pkl" for n in found):
        raise Refused("a TorchScript program (save the model's state_dict() instead)")
    if len(names) != 1:
        raise ValueError("it holds no data.pkl")
    storages = _ZipStorages(archive, names[0].removesuffix("data.pkl"), budget)
    if storages.folder + "byteorder" in found and bytes(storages.bytes_of("byteorder")) != b"little":
        raise Refused("numbers of a big-endian machine")
    return kind(storages.bytes_of("data.pkl"), budget, builders(budget), records, storages).read_value()


class _ZipStorages:
    """The storages of an archive, each read once."""

    def __init__(self, archive: zipfile.ZipFile, folder: str, budget: Budget):
        self.archive, self.folder, self.budget = archive, folder, budget
        self._read: dict[tuple[str, str], np.ndarray] = {}

    def bytes_of(self, name: str) -> bytearray:
        entry = self.archive.getinfo(self.folder + name)
        # torch.save never compresses; a small file that claims to hold much was not written by it.
        if entry.compress_type != zipfile.ZIP_STORED or entry.file_size > self.budget.size:
            raise Refused("a compressed entry")
        self.budget.take(entry.file_size)
        content = bytearray(entry.file_size)
        view = memoryview(content)
        with self.archive.open(entry) as stream:
            while part := stream.read(CHUNK):
                view[: len(part)] = part
                view = view[len(part) :]
        if view:
            raise EOFError(f"{name} is cut off")
        return content

    def find(self, kind: str, key: str, numel: Any, view: Any) -> np.ndarray:
        if not key.isalnum():
            raise Refused(f"a storage {key[:60]!r}")
        if (kind, key) not in self._read:
            self._read[kind, key] = decode(kind, self.bytes_of(f"data/{key}"))
        return self._read[kind, key]


def is_legacy(head: bytes) -> bool:
    """True for the first bytes of a file of before 2020: the pickle of a number that nothing else has."""
    return MAGIC.to_bytes(10, "little") in head[:16]


def read_legacy(data: Any, budget: Budget, kind: type[DataUnpickler], records: Collection[str]) -> Any:
    """The object of a file of before 2020. Its pickle is read twice, as the storages lie behind it."""
    allowed = builders(budget)
    start = _skip_header(data, budget)
    kinds = _Kinds()
    blind = {n: b if n in BUILDERS else _nothing for n, b in allowed.items()}
    first = kind(data, budget, blind, records, kinds, at=start)
    first.load()
    keys, at = _next(data, budget, first.at)
    storages = _FollowingStorages(_following(data, at, budget, keys, kinds.found))
    return kind(data, budget, allowed, records, storages, at=start).read_value()


def _skip_header(data: Any, budget: Budget) -> int:
    """The place behind the numbers and the description that such a file begins with."""
    magic, at = _next(data, budget, 0)
    version, at = _next(data, budget, at)
    system, at = _next(data, budget, at)
    if magic != MAGIC or version != VERSION or not isinstance(system, dict):
        raise ValueError("its header is of no version that is known")
    if system.get("little_endian") is False:
        raise Refused("numbers of a big-endian machine")
    return at


def _next(data: Any, budget: Budget, at: int) -> tuple[Any, int]:
    """The value of the pickle that begins here, and the place behind it."""
    machine = DataUnpickler(data, budget, BUILDERS, at=at)
    return machine.read_value(), machine.at


def _nothing(*_arguments: Any) -> None:
    """A tensor whose storage is not there yet."""


class _Kinds:
    """Notes the kinds of storages that are not there yet."""

    def __init__(self) -> None:
        self.found: dict[str, str] = {}

    def find(self, kind: str, key: str, numel: Any, view: Any) -> None:
        self.found.setdefault(key, kind)


class _FollowingStorages:
    """The storages that were read behind a pickle."""

    def __init__(self, read: dict[str, tuple[str, bytearray]]):
        self._bytes = read
        self._read: dict[tuple[str, str], np.ndarray] = {}

    def find(self, kind: str, key: str, numel: Any, view: Any) -> np.ndarray:
        if (kind, key) not in self._read:
            self._read[kind, key] = decode(kind, self._bytes[key][1])
        values = self._read[kind, key]
        if view is None:
            return values
        if not isinstance(view, tuple) or len(view) != 3 or not all(is_size(n) for n in view[1:]):
            raise Refused("a malformed view of a storage")
        return values[view[1] : view[1] + view[2]]


def _following(
    data: Any, at: int, budget: Budget, keys: Any, kinds: dict[str, str]
) -> dict[str, tuple[str, bytearray]]:
    """The bytes of the storages from here on, in the order of their keys: each its length in items, then the items."""
    found: dict[str, tuple[str, bytearray]] = {}
    for key in keys if isinstance(keys, list) else ():
        (count,) = struct.unpack_from("<q", data, at)
        length = count * np.dtype(STORAGES[kinds[key]]).itemsize
        at += 8
        if not 0 <= length <= len(data) - at or key in found:
            raise EOFError("a storage is cut off")
        budget.take(length)
        found[key] = (kinds[key], bytearray(data[at : at + length]))
        at += length
    return found


def _storage_of_bytes(budget: Budget, content: Any) -> np.ndarray:
    """The one storage of a small file of the old form, which a tensor's pickle holds."""
    if not isinstance(content, bytes | bytearray):
        raise Refused("a tensor storage that is not bytes")
    head = content[:HEAD]
    kinds = _Kinds()
    machine = DataUnpickler(head, budget, {}, (), kinds, at=_skip_header(head, budget))
    machine.load()
    keys, at = _next(head, budget, machine.at)
    budget.take(objects=at)
    if not isinstance(keys, list) or list(kinds.found) != keys or len(keys) != 1:
        raise Refused("a tensor storage of another form")
    ((kind, values),) = _following(content, at, budget, keys, kinds.found).values()
    return decode(kind, values)
