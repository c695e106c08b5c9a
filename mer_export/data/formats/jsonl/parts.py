"""Lines of a file that lies anywhere, cut between lines."""

from __future__ import annotations

import io
from collections.abc import Iterator
from functools import partial
from typing import BinaryIO

from mer_export.data.formats.jsonl.reader import SUFFIXES, Line, LineSource, head_of, parsed, without_head
from mer_export.data.spec import DataSpec
from mer_export.untrusted.impostors import HEAD, refuse_head
from mer_export.untrusted.stored import Stored

__all__ = ["SUFFIXES", "cut", "source"]

STEP = 1 << 16
"""Bytes that are read at a time where the end of a line is looked for."""


def cut(file: Stored, most: int) -> Iterator[tuple[int, int, int]]:
    """First byte, end and bytes of parts that end with a line; each has `most` bytes, and what its last line has more.

    Raises:
        InputError: the file cannot be read, or is no data.
    """
    begin = 0
    with file.open() as stream:
        refuse_head(stream.read(HEAD), file.said)
        while begin < file.size:
            stream.seek(min(begin + most, file.size))
            end = min(begin + most + _to_end_of_line(stream), file.size)
            yield begin, end, end - begin
            begin = end


def source(file: Stored, begin: int, end: int, spec: DataSpec) -> LineSource:
    """The dialogues of a part; raises InputError as the reader of whole files does."""
    head = parsed(io.BytesIO(_first_line(file)), file.said)
    spec = spec.over(head_of(head, file.said), f"{file.said}: line 1")
    reach = spec.reach(file.local) if file.local else None
    name = f"{file.said}, from byte {begin}" if begin else file.said
    return LineSource(name, spec, reach, partial(_lines, file, begin, end, name), part=True)


def _lines(file: Stored, begin: int, end: int, name: str) -> Iterator[Line]:
    lines = parsed(io.BytesIO(file.read(begin, end)), name)
    return lines if begin else without_head(lines)


def _first_line(file: Stored) -> bytes:
    """The first line that holds anything."""
    with file.open() as stream:
        while True:
            begin = stream.tell()
            size = _to_end_of_line(stream)
            stream.seek(begin)
            line = stream.read(size)
            if line.strip() or not size:
                return line


def _to_end_of_line(stream: BinaryIO) -> int:
    """Bytes from here through the end of the line, or to that of the file."""
    size = 0
    while piece := stream.read(STEP):
        found = piece.find(b"\n")
        if found >= 0:
            return size + found + 1
        size += len(piece)
    return size
