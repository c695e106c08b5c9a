"""The normalisation that EMT-DLFR applies to SIMS before training on it (section 2.2)."""

from __future__ import annotations

import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from mer_export.bundle import write_atomic
from mer_export.errors import InputError
from mer_export.untrusted.pickles import load_pickle

EPSILON = 1e-6


def normalise(content: Mapping[str, Mapping[str, Any]]) -> dict[str, dict[str, Any]]:
    """Audio and vision frames of every split at the mean and deviation of the real frames of `train`.

    Padding stays 0, arrays keep their dtype, everything else is handed on.

    Raises:
        InputError: no split `train`, or one without the arrays.
    """
    try:
        statistics = {m: _statistics(content["train"], m) for m in ("audio", "vision")}
        return {
            name: {**split, **{m: _apply(split, m, *found) for m, found in statistics.items()}}
            for name, split in content.items()
        }
    except (KeyError, TypeError, IndexError) as error:
        raise InputError(f"not an MMSA feature file: {error} is missing or malformed") from None


def normalised_path(source: Path) -> Path:
    """Where the authors' script writes: `<name>_normalized.pkl` beside it."""
    return source.with_name(f"{source.stem}_normalized{source.suffix}")


def write_normalised(source: Path, target: Path) -> Path:
    """Normalises the pickle `source` into `target`; raises InputError if it is not an MMSA file."""
    write_atomic(target, pickle.dumps(normalise(load_pickle(source)), protocol=4))
    return target


def _real(split: Mapping[str, Any], modality: str) -> list[np.ndarray]:
    lengths = split[f"{modality}_lengths"]
    return [array[: int(n)] for array, n in zip(split[modality], lengths, strict=True)]


def _statistics(split: Mapping[str, Any], modality: str) -> tuple[np.ndarray, np.ndarray]:
    frames = np.concatenate(_real(split, modality))
    return frames.mean(axis=0), frames.std(axis=0)


def _apply(split: Mapping[str, Any], modality: str, mean: np.ndarray, std: np.ndarray) -> np.ndarray:
    array = np.zeros_like(split[modality])
    for row, frames in enumerate(_real(split, modality)):
        array[row, : len(frames)] = (frames - mean) / (std + EPSILON)
    return array
