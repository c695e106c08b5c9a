"""The dictionary of a fairseq model: a `dict.txt` whose order of lines gives the ids."""

from __future__ import annotations

from pathlib import Path

from mer_export.errors import InputError

FIRST, LAST, UNKNOWN, SPECIAL = 0, 2, 3, 4
"""Ids of `<s>`, `</s>` and `<unk>` (`<pad>` is 1), and how many stand before the dictionary."""


def read_dictionary(path: Path | str) -> dict[str, int]:
    """Ids by word, from one `word count` per line; raises InputError if the file cannot be read."""
    try:
        lines = Path(path).read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path} is not a fairseq dictionary (`word count` per line): {error}") from None
    words = [line.split()[0] for line in lines if line.strip()]
    return {word: SPECIAL + n for n, word in enumerate(words)}
