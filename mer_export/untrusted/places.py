"""Where a path that a file names may lead: into the data or the bundle, else only where the user says.

A table, a preset or a bundle may come from a stranger, and so may what it points at. What a user types is theirs:
folders after `--outside`, and paths in `--set`.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mer_export.errors import InputError

SPLIT = "{split}"
"""Stands in a path for the name of each split."""


@dataclass(frozen=True)
class Allowed:
    """What the user said: folders that paths may lead to, and paths that are theirs, as they typed them."""

    folders: tuple[str, ...] = ()
    typed: frozenset[str] = frozenset()

    @classmethod
    def by(cls, outside: Iterable[Path | str] | None, settings: Any = None) -> Allowed:
        """Of a command line: its `--outside`, and the values that its `--set` sets."""
        return cls(tuple(map(str, outside or ())), frozenset(_texts(settings)))

    def __or__(self, other: Allowed) -> Allowed:
        return Allowed((*self.folders, *other.folders), self.typed | other.typed)


class Reach:
    """How far paths lead that files name: to `home`, to `others`, and where the user allowed; links are followed."""

    def __init__(self, home: Path, allowed: Allowed = Allowed(), *others: Path | str):
        self.home = home
        self.typed = allowed.typed
        self._roots = [os.path.realpath(root) for root in (home, *others, *allowed.folders)]

    def path(self, name: str, where: str, base: Path | None = None, split: str = "") -> Path:
        """Where a path leads.

        Args:
            name: as it stands in the file; may hold `{split}`.
            where: what names it, for the error.
            base: what it is relative to; None is `home`.
            split: stands in for `{split}`.

        Raises:
            InputError: it leads elsewhere, or a split is named so that the path would.
        """
        if SPLIT in name and ("/" in split or split in ("", "..")):
            raise InputError(f"{where}: {name} asks for the name of a file, and a split is called {split!r}")
        path = (self.home if base is None else base) / name.replace(SPLIT, split)
        if "\0" in str(path):
            raise InputError(f"{where} names {name!r}, which is not a path")
        real = os.path.realpath(path)
        if name in self.typed or any(os.path.commonpath((root, real)) == root for root in self._roots):
            return path
        raise InputError(
            f"{where} names {name!r}, which leads out of {self.home}: pass --outside {os.path.dirname(real)!r} if it "
            "may be read"
        )


def within(reach: Reach | None, name: object, where: str) -> Reach:
    """Where files may lie that data name; raises InputError where none is read."""
    if reach is None:
        raise InputError(f"{where} names the file {str(name)!r}, and no file is read here: send what is in it")
    return reach


def _texts(value: Any) -> Iterator[str]:
    """Every string in nested containers."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict | list):
        for item in value.values() if isinstance(value, dict) else value:
            yield from _texts(item)
