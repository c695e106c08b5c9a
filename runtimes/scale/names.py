"""Which names the parts of a file have had: a dialogue stands in one of them only, as in a file that is read whole."""

from __future__ import annotations

import io
import os
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Sequence
from pathlib import Path

import numpy as np

from mer_export import faults
from mer_export.bundle.files import plain
from mer_export.marks import Marks, mark_of
from mer_export.untrusted.parquet import pyarrow_modules
from runtimes.scale.blocks import Answered, Block

HEAD, WIDTH = 16, 8
"""Bytes before the marks of a block, its number and how many marks there are, and of a mark."""


class Names:
    """The names of all files that are not done; those of a file that is are of no use and not kept in memory.

    They stand in a file too, for a run that goes on: of each block its number, how many marks, and the marks, uint64.
    """

    def __init__(self, path: Path, blocks: Sequence[Block], done: Collection[int]):
        """Takes over what is known of the blocks that are done."""
        self.path = path
        self._left = Counter(b.part.file.name for b in blocks if b.number not in done)
        self._seen: dict[str, Marks] = {}
        for number, marks in self._stored(lambda n: n in done and self._left[blocks[n].part.file.name] > 0):
            self._note(blocks[number], marks)

    def repeated(self, answered: Answered) -> str | None:
        """What a block has that another one of its file has too, for messages."""
        seen = self._seen.get(answered.block.part.file.name, ())
        twice = {m for m in np.frombuffer(answered.names, dtype=np.uint64).tolist() if m in seen}
        if not twice:
            return None
        _, parquet = pyarrow_modules()
        samples = parquet.read_table(io.BytesIO(answered.content), columns=["sample"])["sample"].to_pylist()
        found = next((s for s in samples if mark_of("", s) in twice), None)
        return "an utterance or dialogue" if found is None else f"dialogue {found!r}"

    def add(self, answered: Answered) -> None:
        """Notes those of a block."""
        block, marks = answered.block, np.frombuffer(answered.names, dtype=np.uint64)
        with faults.at(self.path), self.path.open("ab") as stream:
            stream.write(np.array([block.number, len(marks)], dtype=np.uint64).tobytes() + answered.names)
            stream.flush()
            os.fsync(stream.fileno())
        self._left[block.part.file.name] -= 1
        if self._left[block.part.file.name]:
            self._note(block, marks)
        else:
            self._seen.pop(block.part.file.name, None)

    def _note(self, block: Block, marks: np.ndarray) -> None:
        seen = self._seen.setdefault(block.part.file.name, Marks())
        for mark in marks.tolist():
            seen.new(mark)

    def _stored(self, wanted: Callable[[int], bool]) -> Iterator[tuple[int, np.ndarray]]:
        """The marks of each block that is wanted. The last ones may have been cut short: what is left of them goes."""
        if not (there := plain(self.path)):
            return
        with self.path.open("rb+") as stream:
            at = 0
            while at + HEAD <= there.st_size:
                number, count = np.frombuffer(stream.read(HEAD), dtype=np.uint64).tolist()
                if (end := at + HEAD + WIDTH * count) > there.st_size:
                    break
                if wanted(number):
                    yield number, np.frombuffer(stream.read(WIDTH * count), dtype=np.uint64)
                stream.seek(end)
                at = end
            stream.truncate(at)
