"""The dictionary of Speech-BERT: pairs of code-book indices as token ids."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from mer_export.data.tokens.fairseq_dictionary import FIRST, LAST, SPECIAL, UNKNOWN, read_dictionary
from mer_export.errors import InputError


@dataclass(frozen=True)
class SpeechDictionary:
    """Index pairs to ids."""

    ids: dict[tuple[int, ...], int]

    @classmethod
    def load(cls, path: Path | str) -> SpeechDictionary:
        """Reads a dict.txt: one `i-j count` per line, whose order gives the ids.

        Raises:
            InputError: the file is not such a dictionary.
        """
        words = read_dictionary(path)
        try:
            return cls({tuple(int(i) for i in word.split("-")): n for word, n in words.items()})
        except ValueError as error:
            raise InputError(f"{path} is not a dictionary of speech tokens (`i-j count` per line): {error}") from None

    @property
    def size(self) -> int:
        """Ids there are, with the mask token that pre-training puts last."""
        return SPECIAL + len(self.ids) + 1

    def encode(self, indices: np.ndarray) -> np.ndarray:
        """Ids (frames + 2) int64 of index tuples (frames, groups), between the two special tokens."""
        words = [self.ids.get(tuple(pair), UNKNOWN) for pair in indices.tolist()]
        return np.asarray([FIRST, *words, LAST], dtype=np.int64)
