"""Which data files an ONNX file reads, without the onnx package: a serving machine checks them before it loads one.

An ONNX file may keep tensors in other files, named inside it. In a bundle those names have to be files of the bundle,
so they are read here, straight from the protobuf encoding, by field number.
"""

from __future__ import annotations

import mmap
from collections.abc import Iterator
from pathlib import Path

from mer_export.errors import InputError
from mer_export.untrusted.places import Reach

MESSAGES: dict[str, dict[int, str]] = {
    "model": {7: "graph", 20: "training", 25: "function"},
    "training": {1: "graph", 2: "graph"},
    "graph": {1: "node", 5: "tensor", 15: "sparse"},
    "function": {7: "node", 11: "attribute"},
    "node": {5: "attribute"},
    "attribute": {5: "tensor", 6: "graph", 10: "tensor", 11: "graph", 22: "sparse", 23: "sparse"},
    "sparse": {1: "tensor", 2: "tensor"},
    "tensor": {13: "entry"},
}
"""Fields of each message that lead to a tensor, by number, as onnx.proto has them."""
KEY, VALUE = 1, 2
VARINT, FIXED64, BYTES, FIXED32 = 0, 1, 2, 5
DEEPEST = 100
"""Nested messages; protobuf itself reads no deeper ones."""


def data_files(path: Path) -> list[str]:
    """The names of the files that the tensors of an ONNX file lie in, as they stand there.

    Raises:
        ValueError: the file is not of the encoding.
    """
    if path.stat().st_size == 0:
        return []
    with (
        path.open("rb") as stream,
        mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ) as content,
        memoryview(content) as view,
    ):
        names = list(_names(view, 0, len(view), "model", 0))
    return list(dict.fromkeys(name.decode() for name in names))


def require_own_data(path: Path) -> None:
    """Raises InputError for an ONNX file that is damaged, or whose data files are not in its folder."""
    try:
        names = data_files(path)
    except ValueError as error:
        raise InputError(f"{path} is not an ONNX file: {error}") from None
    reach = Reach(path.parent)
    for name in names:
        reach.path(name, str(path))


def _names(view: memoryview, start: int, end: int, message: str, depth: int) -> Iterator[bytes]:
    if depth > DEEPEST:
        raise ValueError(f"messages are nested more than {DEEPEST} deep")
    for number, first, last in _fields(view, start, end):
        kind = MESSAGES[message].get(number)
        if kind == "entry":
            yield from _locations(view, first, last)
        elif kind:
            yield from _names(view, first, last, kind, depth + 1)


def _locations(view: memoryview, start: int, end: int) -> list[bytes]:
    """All values of an entry that names a location, however often it says so; without any it is the empty one."""
    found = [(number, bytes(view[first:last])) for number, first, last in _fields(view, start, end)]
    return [text for number, text in found if number == VALUE] or [b""] if (KEY, b"location") in found else []


def _fields(view: memoryview, start: int, end: int) -> Iterator[tuple[int, int, int]]:
    """Number and extent of each field with a length; the others are passed over."""
    place = start
    while place < end:
        tag, place = _varint(view, place, end)
        number, wire = tag >> 3, tag & 7
        if wire == BYTES:
            size, place = _varint(view, place, end)
            if place + size > end:
                raise ValueError(f"field {number} reaches past its message")
            yield number, place, place + size
            place += size
        elif wire == VARINT:
            _, place = _varint(view, place, end)
        elif wire in (FIXED64, FIXED32):
            place += 8 if wire == FIXED64 else 4
        else:
            raise ValueError(f"field {number} has wire type {wire}")
    if place != end:
        raise ValueError("a field reaches past its message")


def _varint(view: memoryview, place: int, end: int) -> tuple[int, int]:
    value = shift = 0
    while place < end and shift < 70:
        byte = view[place]
        value |= (byte & 0x7F) << shift
        place, shift = place + 1, shift + 7
        if byte < 0x80:
            return value, place
    raise ValueError("a number has no end")
