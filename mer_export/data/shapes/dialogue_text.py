"""A whole dialogue as one text, and the place of each utterance in it, packed as FacialMMT does (section 2.6)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from mer_export.errors import InputError

Packing = Literal["roberta", "bert"]
LONGEST = 512
UTTERANCES = 34
"""For so many utterances, the most in MELD, the original keeps room for special tokens."""


SEPARATORS = {"roberta": 2, "bert": 1}
"""Special tokens between the words of two utterances: closing ones, and opening ones if any."""


@dataclass(frozen=True)
class Packed:
    """Token ids (tokens) int64 of a dialogue, and the place of each utterance's closing token."""

    ids: np.ndarray
    closing: tuple[int, ...]
    packing: Packing

    def span(self, utterance: int) -> np.ndarray:
        """First token of utterance number `utterance` and how many it has, (2) int64; zeros where there is no such."""
        if utterance >= len(self.closing):
            return np.zeros(2, dtype=np.int64)
        start = 1 if utterance == 0 else self.closing[utterance - 1] + SEPARATORS[self.packing]
        return np.asarray([start, self.closing[utterance] - start], dtype=np.int64)


def pack(
    utterances: Sequence[Sequence[int]], packing: Packing, first: int, last: int, longest: int = LONGEST
) -> Packed:
    """Joins the tokens of all utterances with special tokens, long ones shortened until everything fits.

    Args:
        utterances: token ids of each utterance, without special tokens.
        packing: `roberta` opens each further utterance with `last` too, `bert` does not.
        first: id of the token that opens the text.
        last: id of the token that closes an utterance.
        longest: the most tokens of a packed dialogue.

    Raises:
        InputError: there is no utterance, or so many that even the special tokens do not fit.
    """
    between = SEPARATORS[packing]
    words = shorten(utterances, longest - between * UTTERANCES)
    ids: list[int] = []
    closing = []
    for number, own in enumerate(words):
        opening = [first] if number == 0 else [last] * (between - 1)
        ids += [*opening, *own, last]
        closing.append(len(ids) - 1)
    if not ids or len(ids) > longest:
        raise InputError(f"a dialogue of {len(words)} utterances makes {len(ids)} tokens, it must be 1..{longest}")
    return Packed(np.asarray(ids, dtype=np.int64), tuple(closing), packing)


def shorten(utterances: Sequence[Sequence[int]], limit: int) -> list[list[int]]:
    """Takes the last token from the longest utterance, the first of several, until at most `limit` are left."""
    words = [list(u) for u in utterances]
    sizes = [len(w) for w in words]
    while sum(sizes) > max(limit, 0):
        sizes[sizes.index(max(sizes))] -= 1
    return [w[:n] for w, n in zip(words, sizes, strict=True)]


def spans(separators: np.ndarray, utterances: np.ndarray, packing: Packing) -> np.ndarray:
    """`Packed.span` for rows of a mask that is 1 at closing tokens.

    Args:
        separators: (items, tokens), 1 at the closing token of each utterance.
        utterances: (items), number of the utterance in its dialogue.
        packing: how the dialogues were packed.

    Returns:
        (items, 2) int64.
    """
    found = [
        Packed(row, tuple(np.flatnonzero(row).tolist()), packing).span(int(k))
        for row, k in zip(separators, utterances, strict=True)
    ]
    return np.stack(found) if found else np.zeros((0, 2), dtype=np.int64)
