"""What an earlier run made: the features of utterances that stay as they are."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np

from mer_export.data.formats.parquet.reader import source
from mer_export.data.spec import DataSpec
from mer_export.errors import InputError
from runtimes.features.encoded import Outcome
from runtimes.features.parts import Key


class Stored:
    """The rows of a file that such a run wrote, read in their order as they are asked for."""

    def __init__(self, path: Path, chosen: Iterable[str]):
        """Opens it; `chosen` are the inputs whose features were made."""
        self.path, self.chosen = path, tuple(chosen)
        self.rows = self._read()

    def take(self, key: Key) -> Outcome:
        """The features of an utterance that comes after the one before; raises InputError where it is not there."""
        for found, outcome in self.rows:
            if found == key:
                return outcome
        raise InputError(f"{self.path} lacks {' / '.join(key)}, which it is said to hold: pass --force to begin anew")

    def _read(self) -> Iterator[tuple[Key, Outcome]]:
        for dialogue in source(self.path, DataSpec()).dialogues():
            for utterance in dialogue.utterances:
                features = {n: np.concatenate(a) for n, a in utterance.features.items() if n in self.chosen}
                yield (dialogue.id, utterance.id), Outcome(features)
