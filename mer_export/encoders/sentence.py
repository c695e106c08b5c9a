"""Sentence vectors without PyTorch: a folder with a BERT as ONNX and its tokenizer."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from mer_export.data.tokens.text_tokenizer import TextTokenizer
from mer_export.encoders.onnx_session import open_session
from mer_export.errors import InputError

CONFIG, MODEL = "config.json", "model.onnx"


@dataclass(frozen=True)
class SentenceEncoder:
    """One sentence at a time, whatever its length; what is longer than the encoder loses its end."""

    tokenizer: TextTokenizer
    longest: int
    session: Any

    @classmethod
    def load(cls, folder: Path | str) -> SentenceEncoder:
        """Opens a folder that `mer data sentence-encoder` wrote.

        Raises:
            InputError: no such folder, or a damaged one.
            NotAvailableError: ONNX Runtime or `tokenizers` is missing.
        """
        folder = Path(folder)
        try:
            longest = int(json.loads((folder / CONFIG).read_text())["longest"])
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise InputError(f"{folder} is not a sentence encoder: {str(error).splitlines()[0]}") from None
        session = open_session(folder / MODEL, "makes sentence vectors")
        return cls(TextTokenizer.load(folder), longest, session)

    def encode(self, sentence: str) -> np.ndarray:
        """The vector (width,) float32 of a sentence."""
        ids = self.tokenizer.encode(sentence)
        if len(ids) > self.longest:
            ids = np.concatenate([ids[: self.longest - 1], ids[-1:]])
        return self.session.run(None, {"input_ids": ids[None]})[0][0]

    def encode_all(self, sentences: Sequence[str]) -> np.ndarray:
        """Vectors (sentences, width) float32."""
        return np.stack([self.encode(s) for s in sentences])


@lru_cache(maxsize=2)
def load_sentence_encoder(folder: str) -> SentenceEncoder:
    """A folder's encoder, opened once."""
    return SentenceEncoder.load(folder)
