"""Emotion words and their vectors: the part of eea that is data."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from mer_export.contract import Table
from mer_export.errors import InputError
from mer_export.models.mtee.config import EMOTIONS, MteeConfig

TABLE = "textEmoEmbs.weight"
"""The authors' name of the frozen embedding table in a checkpoint."""
WORDS = {"excited": "exciting", "surprised": "surprising", "frustrated": "frustrating"}
"""Labels of IEMOCAP's nine classes that the original looks up under another word."""


def shared_inputs(config: MteeConfig, found: Mapping[str, Any]) -> dict[str, Table]:
    """Values of the shared inputs, from what an import or a training run has at hand.

    Args:
        config: the network.
        found: `vectors` (word to vector) with `capitalise`, or `state` (the authors' state_dict), whose own table is
            taken when it has as many rows as there are labels.

    Raises:
        InputError: no vectors, a word without one, or one of another width.
    """
    if config.model != "eea":
        return {}
    if found.get("vectors") is not None:
        return {EMOTIONS: look_up(config.labels, found["vectors"], bool(found.get("capitalise")))}
    rows = (found.get("state") or {}).get(TABLE)
    if rows is None:
        raise InputError(
            "no word vectors for the emotions: name their file in data.emotions.vectors, relative to the data directory"
        )
    if len(rows) != len(config.labels):
        raise InputError(
            f"the checkpoint knows {len(rows)} emotions, the config names {len(config.labels)} labels: "
            "give the vectors of all of them in data.emotions.vectors, or name as many labels"
        )
    return {EMOTIONS: {n: tuple(float(v) for v in r) for n, r in zip(config.labels, rows, strict=True)}}


def look_up(labels: Sequence[str], vectors: Mapping[str, Any], capitalise: bool = False) -> Table:
    """The vector of each label: under its own name, else under the word that the original uses for it.

    With `capitalise` words are looked up with a capital first letter, as the original's `--cap`.

    Raises:
        InputError: a label without a vector.
    """
    table: Table = {}
    for label in labels:
        words = [WORDS[label], label] if label in WORDS else [label]
        if capitalise:
            words = [w.capitalize() for w in words]
        word = next((w for w in words if w in vectors), None)
        if word is None:
            raise InputError(f"no word vector for {words[0]!r} among {len(vectors)}: add it or rename the label")
        table[label] = tuple(float(v) for v in np.asarray(vectors[word], dtype=np.float32).ravel())
    return table
