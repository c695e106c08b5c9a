"""Parts of stored files that are read alone, in any order and by anybody: lines or row groups, whole dialogues."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from importlib import import_module
from typing import Any

from mer_export.data.formats.format import known_formats
from mer_export.data.open import OpenData
from mer_export.data.spec import DataSpec
from mer_export.errors import UsageError
from mer_export.untrusted.stored import Stored


@dataclass(frozen=True)
class Part:
    """From `begin` to before `end`, bytes or row groups as the format counts, `nbytes` of memory."""

    file: Stored
    format: str
    begin: int
    end: int
    nbytes: int

    @property
    def said(self) -> str:
        """Which part of which file."""
        return f"{self.file.said} [{self.begin}:{self.end}]"


@cache
def cutting_formats() -> dict[str, Any]:
    """What cuts each format that can be cut."""
    return {n: import_module(f.parts) for n, f in known_formats().items() if f.parts}


def format_of(file: Stored) -> str:
    """The format of a file by its ending; raises UsageError for one that cannot be cut."""
    for name, parts in cutting_formats().items():
        if file.said.endswith(parts.SUFFIXES):
            return name
    endings = [suffix for parts in cutting_formats().values() for suffix in parts.SUFFIXES]
    raise UsageError(
        f"{file.said} cannot be cut into blocks, that needs {', '.join(endings)}: make a Parquet file of the data with "
        "mer data convert, or leave --shards and --cluster out"
    )


def cut(file: Stored, most: int) -> Iterator[Part]:
    """A file in parts of about `most` bytes, in order; raises InputError where it cannot be read."""
    name = format_of(file)
    for begin, end, nbytes in cutting_formats()[name].cut(file, most):
        yield Part(file, name, begin, end, nbytes)


def open_part(part: Part, spec: DataSpec, labels: Sequence[str] | None = None) -> OpenData:
    """The dialogues of a part, as those of a whole file."""
    source = cutting_formats()[part.format].source(part.file, part.begin, part.end, spec)
    return OpenData(source, part.file.said, part.format, labels)
