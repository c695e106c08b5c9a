"""BERT's word pieces from a vocabulary file: lower-casing, punctuation and Chinese characters split off, greedy match.

Devlin et al., "BERT: Pre-training of Deep Bidirectional Transformers for Language Understanding", NAACL 2019.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from mer_export.errors import InputError

FIRST, LAST, UNKNOWN = "[CLS]", "[SEP]", "[UNK]"
LONGEST_WORD = 100
"""Characters from which a word is unknown as a whole."""
CHINESE = (
    (0x4E00, 0x9FFF),
    (0x3400, 0x4DBF),
    (0x20000, 0x2A6DF),
    (0x2A700, 0x2B73F),
    (0x2B740, 0x2B81F),
    (0x2B820, 0x2CEAF),
    (0xF900, 0xFAFF),
    (0x2F800, 0x2FA1F),
)


@dataclass(frozen=True)
class WordPiece:
    """A vocabulary: piece to id. `lower` folds case and accents, as the uncased and the Chinese models do."""

    vocabulary: dict[str, int]
    lower: bool = True

    @classmethod
    def load(cls, path: Path | str, lower: bool = True) -> WordPiece:
        """Reads a vocab.txt, or the one in a folder: one piece per line, the line number is the id."""
        file = Path(path) / "vocab.txt" if Path(path).is_dir() else Path(path)
        try:
            pieces = file.read_text(encoding="utf-8").split("\n")
        except (OSError, UnicodeDecodeError) as error:
            raise InputError(f"{file} is no vocabulary: {error}") from None
        vocabulary = {piece.rstrip("\r"): i for i, piece in enumerate(pieces) if piece}
        for special in (FIRST, LAST, UNKNOWN):
            if special not in vocabulary:
                raise InputError(f"{file} is no vocabulary of BERT: it has no {special}")
        return cls(vocabulary, lower)

    def encode(self, text: str) -> np.ndarray:
        """Ids (int64) of the pieces between the two special tokens."""
        pieces = [p for word in _words(text, self.lower) for p in self._pieces(word)]
        return np.asarray([self.vocabulary[p] for p in (FIRST, *pieces, LAST)], dtype=np.int64)

    def _pieces(self, word: str) -> list[str]:
        if len(word) > LONGEST_WORD:
            return [UNKNOWN]
        found: list[str] = []
        start = 0
        while start < len(word):
            prefix = "##" if start else ""
            ends = (e for e in range(len(word), start, -1) if prefix + word[start:e] in self.vocabulary)
            end = next(ends, None)
            if end is None:
                return [UNKNOWN]
            found.append(prefix + word[start:end])
            start = end
        return found


def _words(text: str, lower: bool) -> Iterator[str]:
    spaced = "".join(f" {c} " if _is_chinese(c) else _cleaned(c) for c in text)
    for word in spaced.split():
        if lower:
            folded = unicodedata.normalize("NFD", word.lower())
            word = "".join(c for c in folded if unicodedata.category(c) != "Mn")
        current = ""
        for c in word:
            if _is_punctuation(c):
                yield from (part for part in (current, c) if part)
                current = ""
            else:
                current += c
        if current:
            yield current


def _cleaned(c: str) -> str:
    """Spaces for white space, nothing for control characters."""
    if c in "\t\n\r" or unicodedata.category(c) == "Zs":
        return " "
    return "" if c in ("\0", "\ufffd") or unicodedata.category(c).startswith("C") else c


def _is_chinese(c: str) -> bool:
    return any(first <= ord(c) <= last for first, last in CHINESE)


def _is_punctuation(c: str) -> bool:
    # Every ASCII symbol counts, also those that Unicode does not call punctuation, such as $ and ^.
    ascii_symbol = 33 <= ord(c) <= 126 and not c.isalnum()
    return ascii_symbol or unicodedata.category(c).startswith("P")
