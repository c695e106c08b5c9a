"""From transcripts and wav files to token ids, whatever the kind of tokenizer."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path

import numpy as np

from mer_export.data.bytepairs import VOCABULARY, BytePairs
from mer_export.data.wordpiece import WordPiece

KEPT = ("vocab.txt", VOCABULARY, "merges.txt")
"""Files of a text tokenizer that belong into a bundle."""


@lru_cache(maxsize=4)
def load_tokenizer(path: str) -> BytePairs | WordPiece:
    """Byte pairs of a folder with vocab.json, else the word pieces of a vocab.txt; raises InputError for neither."""
    return BytePairs.load(path) if (Path(path) / VOCABULARY).is_file() else WordPiece.load(path)


def text_tokens(tokenizer: str, sentence: str, lower: bool = True) -> np.ndarray:
    """Ids (int64) of a sentence with both special tokens."""
    return load_tokenizer(tokenizer).encode(sentence.lower() if lower else sentence)


def speech_tokens(folder: str, recording: Path) -> np.ndarray:
    """Ids (int64) of a wav file through the speech tokeniser of a folder."""
    from mer_export.data.speech import load_speech_tokenizer

    return load_speech_tokenizer(folder).encode_file(recording)
