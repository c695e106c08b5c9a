"""Texts of FacialMMT's data: dialogues of MELD's annotation, packed, or those that a `.dt` cache holds packed."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from mer_export.data.shapes import packed as packing
from mer_export.data.shapes.dialogue_text import Packed
from mer_export.data.spec import DataSpec
from mer_export.errors import InputError
from mer_export.untrusted.json_files import read_json_object
from mer_export.untrusted.tables import read_table


@dataclass(frozen=True)
class UtterancePlace:
    """Whose utterance a row is: its name, the place of its dialogue, and its own place there."""

    utterance: str
    dialogue: int
    place: int


def utterance_place(found: Mapping[str, Any], row: int, where: str) -> UtterancePlace | None:
    """The profile of a row; None where the data have none at all."""
    profiles = found.get("profile")
    if profiles is None:
        return None
    own = profiles.get(str(row), profiles.get(row))
    if not isinstance(own, list | tuple) or len(own) != 5 or not all(isinstance(own[i], int) for i in (2, 4)):
        raise InputError(f"{where}: its profile is {own!r}, expected name, dialogue, its place, its length, own place")
    return UtterancePlace(str(own[0]), own[2], own[4])


def packed(folder: Path, split: str, found: Mapping[str, Any], spec: DataSpec) -> list[Packed]:
    """The dialogues of a split in the order of its annotation; empty where there is no text."""
    table = next((f for f in (folder / f"{split}_sent_emo.csv", folder / f"{split}.csv") if f.is_file()), None)
    if table is not None and spec.tokenizer is not None:
        return [
            packing.pack_sentences(d, spec) for d in _dialogues(table, folder / f"{split}_text.json", spec.encoding)
        ]
    if "separators" not in found:
        return []
    if spec.packing not in (None, found["packing"]):
        raise InputError(
            f"{folder} has texts of {split} packed for {found['packing']} alone, data.packing is {spec.packing}: "
            "put the .dt files of that encoder there, or CSV files and data.tokenizer"
        )
    return [
        Packed(np.asarray(ids[: int(mask.sum())], dtype=np.int64), tuple(np.flatnonzero(ends).tolist()), kind)
        for ids, mask, ends, kind in zip(
            found["input_ids"],
            found["input_mask"],
            found["separators"],
            [found["packing"]] * len(found["input_ids"]),
            strict=True,
        )
    ]


def inputs(dialogues: list[Packed], own: UtterancePlace, where: str) -> dict[str, np.ndarray]:
    """Tokens of the dialogue and the place of the utterance in them."""
    if not 0 <= own.dialogue < len(dialogues) or own.place < 0:
        raise InputError(f"{where}: its profile names dialogue {own.dialogue}, there are {len(dialogues)} texts")
    return packing.inputs(dialogues[own.dialogue], own.place)


def _dialogues(table: Path, sentences: Path, encoding: str) -> list[list[str]]:
    """Sentences by dialogue, in order of appearance; those of the JSON file go before the table's own."""
    columns = read_table(table, encoding)
    for name in ("Dialogue_ID", "Utterance_ID"):
        if name not in columns:
            raise InputError(f"{table} has no column {name}, there are {list(columns)}")
    said = read_json_object(sentences) if sentences.is_file() else {}
    own = columns.get("Utterance")
    if own is None and not said:
        raise InputError(f"{table} has no column Utterance and there is no {sentences.name}: one of them has the texts")
    found: dict[str, list[str]] = {}
    for row, (dialogue, utterance) in enumerate(zip(columns["Dialogue_ID"], columns["Utterance_ID"], strict=True)):
        name = f"dia{dialogue}_utt{utterance}"
        try:
            text = str(said[name]["txt"][0]) if name in said else own[row] if own is not None else None
        except (KeyError, IndexError, TypeError):
            raise InputError(f"{sentences}: {name} has no list of texts under 'txt'") from None
        if text is None:
            raise InputError(f"{sentences} has no {name}")
        found.setdefault(dialogue, []).append(text)
    return list(found.values())
