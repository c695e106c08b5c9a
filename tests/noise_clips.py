"""Recordings of noise in a plain table, encoders of sound without a network, and what `mer features` made of them."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mer_export.data.open import open_corpus
from mer_export.data.samples import Sample
from mer_export.data.spec import DataSpec
from mer_export.encoders.signal.folder import write_signal_encoder

pytest.importorskip("pyarrow")
soundfile = pytest.importorskip("soundfile")

RATE, CLIPS = 16000, 24
HEADER = "clip,path,transcript,emotion,who,split"


def noise(seed: int, seconds: float = 0.3) -> np.ndarray:
    return np.random.default_rng(seed).normal(0, 0.1, int(seconds * RATE)).astype(np.float32)


def samples(path: Path, **spec: Any) -> dict[str, Sample]:
    return {s.id: s for s in open_corpus(path, DataSpec(**spec))}


def failed(path: Path) -> dict[str, str]:
    with path.open() as stream:
        return {row["utterance"]: row["reason"] for row in csv.DictReader(stream)}


def write_encoders(root: Path) -> Path:
    """Encoders of sound that need no network."""
    write_signal_encoder("log_mel", root / "vector", pooling="mean", mels=6)
    write_signal_encoder("mfcc", root / "states", every=5)
    write_signal_encoder("log_mel", root / "frames", mels=3, every=5)
    write_signal_encoder("log_mel", root / "finer", mels=3)
    return root


def write_clips(folder: Path) -> Path:
    """A plain table of recordings, by the names that people give columns."""
    (folder / "wav").mkdir()
    rows = [HEADER]
    for i in range(CLIPS):
        soundfile.write(folder / "wav" / f"{i}.wav", noise(i), RATE)
        split = "train" if i < 16 else "test"
        rows.append(f"c{i},wav/{i}.wav,What is number {i % 3},{('joy', 'anger')[i % 2]},s{i % 3},{split}")
    (folder / "clips.csv").write_text("\n".join(rows) + "\n")
    return folder
