"""Byte-level BPE of GPT-2 and RoBERTa from vocab.json and merges.txt, and how to learn a small one.

Radford et al., "Language Models are Unsupervised Multitask Learners", 2019; Liu et al., RoBERTa, 2019.
"""

from __future__ import annotations

import json
import re
import unicodedata
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from functools import cache
from itertools import pairwise
from pathlib import Path

import numpy as np

from mer_export.errors import InputError

FIRST, PADDING, LAST, UNKNOWN = SPECIAL = ("<s>", "<pad>", "</s>", "<unk>")
VOCABULARY, MERGES = "vocab.json", "merges.txt"
CONTRACTIONS = ("'s", "'t", "'re", "'ve", "'m", "'ll", "'d")
WORD = re.compile(r" ?L+| ?N+| ?O+|[ S]+(?![LNO])|[ S]+")
"""Words over the classes of characters: letters, numbers, others; a space belongs to what follows it."""


@dataclass(frozen=True)
class BytePairs:
    """Symbols to ids, and merges to their rank."""

    vocabulary: dict[str, int]
    ranks: dict[tuple[str, str], int]
    known: dict[str, tuple[str, ...]] = field(default_factory=dict, compare=False)
    """Words that have been split before."""

    @classmethod
    def load(cls, folder: Path | str) -> BytePairs:
        """Reads vocab.json and merges.txt of a folder; raises InputError where they are missing or damaged."""
        folder = Path(folder)
        try:
            vocabulary = json.loads((folder / VOCABULARY).read_text(encoding="utf-8"))
            lines = (folder / MERGES).read_text(encoding="utf-8").split("\n")
        except (OSError, ValueError) as error:
            raise InputError(f"{folder} is no byte-pair tokenizer: {error}") from None
        if not isinstance(vocabulary, dict) or any(s not in vocabulary for s in (FIRST, LAST, UNKNOWN)):
            raise InputError(
                f"{folder / VOCABULARY} is no vocabulary of RoBERTa: it lacks {FIRST}, {LAST} or {UNKNOWN}"
            )
        pairs = [tuple(line.split(" ")) for line in lines if line and not line.startswith("#version")]
        if any(len(p) != 2 for p in pairs):
            raise InputError(f"{folder / MERGES} holds a line that is no pair of symbols")
        return cls(vocabulary, {(a, b): rank for rank, (a, b) in enumerate(pairs)})

    def encode(self, text: str) -> np.ndarray:
        """Ids (int64) between the two special tokens; no space is put in front of the text."""
        symbols = [s for word in split_words(text) for s in self._symbols(word)]
        unknown = self.vocabulary[UNKNOWN]
        inner = [self.vocabulary.get(s, unknown) for s in symbols]
        return np.asarray([self.vocabulary[FIRST], *inner, self.vocabulary[LAST]], dtype=np.int64)

    def _symbols(self, word: str) -> tuple[str, ...]:
        if word not in self.known:
            self.known[word] = self._merged(_bytes(word))
        return self.known[word]

    def _merged(self, symbols: tuple[str, ...]) -> tuple[str, ...]:
        while len(symbols) > 1:
            ranked = [(self.ranks[p], p) for p in pairwise(symbols) if p in self.ranks]
            if not ranked:
                break
            symbols = _merge(symbols, min(ranked)[1])
        return symbols


def learn(texts: Iterable[str], size: int) -> BytePairs:
    """A tokenizer of `size` symbols at most whose merges are the most frequent pairs in `texts`."""
    counted = Counter(_bytes(word) for text in texts for word in split_words(text))
    words, counts = list(counted), list(counted.values())
    frequency: Counter[tuple[str, str]] = Counter()
    places: dict[tuple[str, str], set[int]] = {}
    for n, word in enumerate(words):
        for pair in pairwise(word):
            frequency[pair] += counts[n]
            places.setdefault(pair, set()).add(n)
    symbols = [*SPECIAL, *byte_symbols().values()]
    ranks: dict[tuple[str, str], int] = {}
    while len(symbols) + 1 < size and frequency:
        best = min(frequency, key=lambda p: (-frequency[p], p))
        if frequency[best] < 2:
            break
        ranks[best] = len(ranks)
        symbols.append("".join(best))
        for n in places.pop(best):
            before, after = words[n], _merge(words[n], best)
            for pair in pairwise(before):
                frequency[pair] -= counts[n]
            for pair in pairwise(after):
                frequency[pair] += counts[n]
                places.setdefault(pair, set()).add(n)
            words[n] = after
        frequency = +frequency
    vocabulary = {symbol: i for i, symbol in enumerate(dict.fromkeys([*symbols, "<mask>"]))}
    return BytePairs(vocabulary, ranks)


def write(pairs: BytePairs, folder: Path) -> list[Path]:
    """The two files of a tokenizer."""
    folder.mkdir(parents=True, exist_ok=True)
    lines = ["#version: 0.2", *(" ".join(p) for p in sorted(pairs.ranks, key=lambda p: pairs.ranks[p]))]
    (folder / VOCABULARY).write_text(json.dumps(pairs.vocabulary, ensure_ascii=False), encoding="utf-8")
    (folder / MERGES).write_text("\n".join(lines) + "\n", encoding="utf-8")
    return [folder / VOCABULARY, folder / MERGES]


def split_words(text: str) -> Iterator[str]:
    """Words of a text: contractions, runs of letters, of numbers or of signs with the space before, white space."""
    kinds = "".join(_kind(c) for c in text)
    at = 0
    while at < len(text):
        contraction = next((c for c in CONTRACTIONS if text.startswith(c, at)), None)
        match = WORD.match(kinds, at)
        assert match is not None
        end = at + len(contraction) if contraction else match.end()
        yield text[at:end]
        at = end


def _kind(c: str) -> str:
    if c == " ":
        return c
    if c.isspace():
        return "S"
    category = unicodedata.category(c)[0]
    return category if category in "LN" else "O"


@cache
def byte_symbols() -> dict[int, str]:
    """A printable character for each byte, in the order of the GPT-2 vocabulary."""
    printable = [*range(ord("!"), ord("~") + 1), *range(0xA1, 0xAC + 1), *range(0xAE, 0xFF + 1)]
    rest = [b for b in range(256) if b not in printable]
    return {b: chr(b) for b in printable} | {b: chr(256 + n) for n, b in enumerate(rest)}


def _bytes(word: str) -> tuple[str, ...]:
    symbols = byte_symbols()
    return tuple(symbols[b] for b in word.encode("utf-8"))


def _merge(symbols: tuple[str, ...], pair: tuple[str, str]) -> tuple[str, ...]:
    found: list[str] = []
    at = 0
    while at < len(symbols):
        both = symbols[at : at + 2] == pair
        found.append("".join(pair) if both else symbols[at])
        at += 2 if both else 1
    return tuple(found)
