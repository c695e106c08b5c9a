"""Text to ids by the `tokenizers` package."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from mer_export.data.tokens.tokenizer_json import DOCUMENT, Json, read_tokenizer
from mer_export.errors import InputError, NotAvailableError
from mer_export.install import not_installed

if TYPE_CHECKING:
    from tokenizers import Tokenizer

RARE = "\U00010c00"
"""A letter that few vocabularies have: a model that has no token for what is unknown fails on it."""
HIDDEN = "\0 "
"""Put in front of a special token, it makes a word that splitting a text into words never gives."""


@dataclass(frozen=True)
class TextTokenizer:
    """A tokenizer that puts one special token before a text and one behind it, and makes none of the text itself."""

    library: Tokenizer
    path: Path
    dictionary: np.ndarray | None = None
    """Ids (int64) by the ids of the library, where a fairseq dictionary gives other ones."""

    @classmethod
    def load(cls, path: Path | str) -> TextTokenizer:
        """Opens a folder, a tokenizer.json or a vocab.txt.

        Raises:
            InputError: files are missing or damaged, or do not put two special tokens around a text.
            UnsupportedError: tokenizer_config.json asks for what the files alone do not give.
            NotAvailableError: `tokenizers` is missing.
        """
        path = Path(path)
        document, dictionary = read_tokenizer(path)
        return cls(_without_special_words(document, path), path, dictionary)

    @property
    def size(self) -> int:
        """One more than the largest id."""
        return self.library.get_vocab_size() if self.dictionary is None else int(self.dictionary.max()) + 1

    def encode(self, text: str) -> np.ndarray:
        """Ids (int64) with both special tokens; "[CLS]" or "</s>" in the text are words like any other."""
        # Half a surrogate pair is not a character: JSON can hold one, the library takes none.
        text = text.encode("utf-8", "ignore").decode()
        with _library(self.path):
            ids = np.asarray(self.library.encode(text).ids, dtype=np.int64)
        return ids if self.dictionary is None else self.dictionary[ids]


@contextmanager
def _library(path: Path) -> Iterator[None]:
    """Turns what the library raises into InputError: it has no type of its own, and its panics are not an Exception."""
    try:
        yield
    except (KeyboardInterrupt, SystemExit):
        raise
    except BaseException as error:
        raise InputError(f"{path} is not a tokenizer that works: {' '.join(str(error).split())}") from None


def _without_special_words(document: Json, path: Path) -> Tokenizer:
    """The tokenizer of a document, in which no text spells a special token.

    The library finds special tokens in a text, unless told otherwise. A vocabulary still has them among its words, and
    a model that splits at spaces alone, or a Unigram, takes them: there they get a name that is not a word.
    """
    found = _open(document, path)
    model, added = document["model"], document.get("added_tokens", ())
    special = {t["content"] for t in added if t["special"]} | set(found.encode("").tokens)
    # What is unknown keeps its name, by which the model looks it up: a text that spells it is unknown anyway.
    names = {word: HIDDEN + word for word in special if word != model.get("unk_token")}
    vocabulary = model["vocab"]
    if isinstance(vocabulary, dict):
        renamed: Any = {names.get(word, word): i for word, i in vocabulary.items()}
    else:
        renamed = [[names.get(word, word), score] for word, score in vocabulary]
    tokens = [t | {"content": names.get(t["content"], t["content"]), "special": t["content"] in special} for t in added]
    return _open(document | {"model": model | {"vocab": renamed}, "added_tokens": tokens}, path)


def _open(document: Json, path: Path) -> Tokenizer:
    try:
        from tokenizers import Tokenizer
    except ImportError:
        raise NotAvailableError(not_installed("tokenizers", "text")) from None
    with _library(path):
        found = Tokenizer.from_str(json.dumps(document))
        found.no_truncation()
        found.no_padding()
        found.encode_special_tokens = True
        found.encode(RARE)
        around = found.encode("").special_tokens_mask
    if around != [1, 1]:
        raise InputError(f"{path} does not put two special tokens around a text: its {DOCUMENT} is of another kind")
    return found
