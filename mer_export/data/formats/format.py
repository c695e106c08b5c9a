"""What a format announces: how its files are read, and how synthetic ones are written."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cache
from importlib import import_module
from pathlib import Path
from pkgutil import iter_modules
from typing import Any

from pydantic import BaseModel

from mer_export.data import formats
from mer_export.registry import resolve

OPEN = (
    *("unit", "context", "tokenizer", "packing", "faces", "splits", "speakers", "label_names", "label_columns"),
    *("text", "audio", "vision", "extractors"),
)
"""Fields of the data section that every open format reads; where no table is described, a modality is only left out."""


@dataclass(frozen=True)
class Original:
    """A data set that is imitated: its number of items, and settings that it fixes."""

    items: int
    defaults: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Synthesiser:
    """Synthetic data in one format; `write` takes data set, directory, number of items, seed, settings."""

    title: str
    datasets: dict[str, Original]
    settings: type[BaseModel]
    write: Callable[[str, Path, int, int, Any], list[Path]]
    fewest: int = 2


@dataclass(frozen=True)
class Format:
    """One kind of files.

    `reader` is a module that offers `detect(path, spec)`, `files(path, spec)` and, for the files of a system's authors,
    `read(path, spec, labels)`, which gives a corpus. An `open` format carries every shape of samples: its reader offers
    `source(path, spec)` instead, which gives a `data.dialogues.Source`. `synthetic` holds a `module:attribute`
    string of a `Synthesiser` for each system whose authors' files these are. `reads` are the fields of the data section
    that it heeds beside `format`; an override of another one is refused. Formats are tried in the order of `rank`.
    """

    name: str
    title: str
    reader: str
    rank: int
    reads: tuple[str, ...] = ()
    synthetic: dict[str, str] = field(default_factory=dict)
    open: bool = False
    directory: bool = False
    """Reads a directory, the others one file."""
    parts: str = ""
    """A module that cuts its files into parts and reads one: `SUFFIXES`, `cut` and `source` (see `data.parts`)."""

    def load(self) -> Any:
        """The module that reads it."""
        return import_module(self.reader)


@cache
def known_formats() -> dict[str, Format]:
    """Every format by name, in the order in which they are tried."""
    packages = (m.name for m in iter_modules(formats.__path__) if m.ispkg)
    found = [import_module(f"{formats.__name__}.{name}").FORMAT for name in packages]
    return {f.name: f for f in sorted(found, key=lambda f: f.rank)}


@cache
def synthesisers() -> dict[str, Synthesiser]:
    """What writes synthetic data, by system."""
    targets = {s: t for f in known_formats().values() for s, t in f.synthetic.items()}
    return {system: resolve(targets[system]) for system in sorted(targets)}
