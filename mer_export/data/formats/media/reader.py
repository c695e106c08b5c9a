"""An open source: a directory with recordings and nothing that describes them; each is an utterance without a label."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from mer_export.data.dialogues import ALL, Dialogue, Recording, Utterance
from mer_export.data.media.names import is_media
from mer_export.data.spec import DataSpec
from mer_export.errors import InputError, UsageError

PROSE = ("", ".md", ".txt", ".pdf", ".html")
"""Endings of README, LICENSE, SHA256SUMS and the like."""


def detect(path: Path, spec: DataSpec) -> bool:
    """True for a directory of recordings, and of nothing else than what is told of them in prose.

    A table or lines beside them would say more of them; other files say that they are a part of something else.
    """
    if not path.is_dir():
        return False
    files = [f for f in path.iterdir() if f.is_file() and not f.name.startswith(".")]
    if not all(is_media(f.name) or f.suffix.lower() in PROSE for f in files):
        return False
    return next(_names(path), None) is not None


def source(path: Path, spec: DataSpec) -> MediaSource:
    """The recordings of a directory and of those in it; raises InputError where there are none."""
    return MediaSource(path, spec)


def files(path: Path, spec: DataSpec) -> list[Path]:
    """The recordings."""
    return [path / name for name in sorted(_names(path))]


class MediaSource:
    """Files as utterances in order of their names; see `dialogues.Source`."""

    def __init__(self, path: Path, spec: DataSpec):
        self.path = path
        self.spec = spec.over({"unit": "utterance"}, str(path))
        self.reach = self.spec.reach(path)
        self.names = sorted(_names(path))
        if not self.names:
            raise InputError(f"{path} holds no recordings: their names end in .wav, .flac, .mp3, .mp4 or the like")
        self.splits: Sequence[str] = (ALL,)
        self.info: dict[str, Any] = {}

    def dialogues(self, split: str | None = None) -> Iterator[Dialogue]:
        """Yields (see `dialogues.Source`)."""
        if split not in (None, ALL):
            raise UsageError(f"no split {split!r} in {self.path}, there is {ALL!r}")
        for name in self.names:
            where = f"{self.path}: {name}"
            yield Dialogue(name, ALL, [Utterance(name, recording=Recording(name, where, self.reach))], where)


def _names(path: Path) -> Iterator[str]:
    """Recordings below a directory, relative to it; links to directories are not entered."""
    for where, folders, names in os.walk(path):
        folders[:] = [f for f in folders if not f.startswith(".")]
        yield from (os.path.relpath(os.path.join(where, n), path) for n in names if is_media(n))
