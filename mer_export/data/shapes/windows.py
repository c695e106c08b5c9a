"""Context windows: the sentence vectors of neighbouring utterances side by side."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from typing import Literal

import numpy as np

from mer_export.errors import InputError


def context_windows(
    vectors: np.ndarray, groups: Sequence[Hashable], size: int, align: Literal["left", "centred"] = "left"
) -> np.ndarray:
    """Windows (utterances, (2 size + 1) width) float32 that end at the borders of a group.

    Args:
        vectors: (utterances, width), in speaking order.
        groups: what each utterance belongs to, a session or a dialogue.
        size: neighbours on each side.
        align: `left` fills slots from 0 on, so that an utterance near the beginning does not stand in the middle slot;
            `centred` keeps it there and leaves the slots before the beginning empty. Empty slots are zeros.

    Raises:
        InputError: as many groups as vectors are needed.
    """
    if vectors.ndim != 2 or len(vectors) != len(groups):
        raise InputError(f"{len(groups)} utterances do not fit sentence vectors of shape {vectors.shape}")
    count, width = vectors.shape
    found = np.zeros((count, 2 * size + 1, width), dtype=np.float32)
    members: dict[Hashable, list[int]] = {}
    for row, group in enumerate(groups):
        members.setdefault(group, []).append(row)
    for rows in members.values():
        for place, row in enumerate(rows):
            begin = max(place - size, 0)
            near = rows[begin : place + size + 1]
            slot = 0 if align == "left" else begin - (place - size)
            found[row, slot : slot + len(near)] = vectors[near]
    return found.reshape(count, -1)
