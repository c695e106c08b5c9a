"""The dictionary of Speech-BERT: pairs of code-book indices as token ids."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from mer_export.errors import InputError

FIRST, LAST, UNKNOWN, SPECIAL = 0, 2, 3, 4
"""Ids of `<s>`, `</s>` and `<unk>` (`<pad>` is 1), and how many stand before the dictionary."""


@dataclass(frozen=True)
class SpeechDictionary:
    """Index pairs to ids."""

    ids: dict[tuple[int, ...], int]

    @classmethod
    def load(cls, path: Path | str) -> SpeechDictionary:
        """Reads a dict.txt: one `i-j count` per line, whose order gives the ids.

        Raises:
            InputError: not such a file.
        """
        try:
            lines = Path(path).read_text(encoding="utf-8").splitlines()
            pairs = [tuple(int(i) for i in line.split()[0].split("-")) for line in lines if line.strip()]
        except (OSError, ValueError) as error:
            raise InputError(f"{path} is no dictionary of speech tokens (`i-j count` per line): {error}") from None
        return cls({pair: SPECIAL + n for n, pair in enumerate(pairs)})

    @property
    def size(self) -> int:
        """Ids there are, with the mask token that pre-training puts last."""
        return SPECIAL + len(self.ids) + 1

    def encode(self, indices: np.ndarray) -> np.ndarray:
        """Ids (frames + 2) int64 of index tuples (frames, groups), between the two special tokens."""
        words = [self.ids.get(tuple(pair), UNKNOWN) for pair in indices.tolist()]
        return np.asarray([FIRST, *words, LAST], dtype=np.int64)
