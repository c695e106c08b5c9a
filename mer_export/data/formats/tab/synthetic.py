"""Synthetic IEMOCAP utterances in the files of tab: emotions that last, shown by words, sounds and sentence vectors.

Emotions of a session follow a sticky chain, so the neighbours' sentence vectors help beyond an utterance's own.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
from pydantic import BaseModel, ConfigDict, Field

from mer_export.bundle import write_atomic
from mer_export.data.formats.format import Original, Synthesiser
from mer_export.data.formats.tab.iemocap_release import CLASSES, LABELS, SESSIONS
from mer_export.data.formats.tab.prepare import write_labels, write_tokens, write_vectors
from mer_export.data.formats.tab.reader import AUDIO, CLASS_NAMES, TEXT

DATASETS = {"iemocap": Original(5531)}
SHARES = (0.2, 0.1, 0.2, 0.2, 0.3)
"""Of the five labels."""


class Settings(BaseModel):
    """What to plant. `*_signal` is the share of tokens that tell the class, or scales the sentence vectors' means."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    width: int = Field(768, ge=2)
    """Of a sentence vector."""
    text_vocabulary: int = Field(50265, ge=20)
    audio_vocabulary: int = Field(23673, ge=20)
    text_len: int = Field(14, ge=3)
    """Typical number of tokens."""
    audio_len: int = Field(60, ge=3)
    text_signal: float = Field(0.4, ge=0, le=1)
    audio_signal: float = Field(0.2, ge=0, le=1)
    context_signal: float = Field(1.0, ge=0)
    stay: float = Field(0.5, ge=0, lt=1)
    """Probability that an utterance has the emotion of the one before."""
    sizes: tuple[int, ...] = (3,)
    """Neighbours on each side of the windows that are written."""


def write(dataset: str, out: Path, count: int, seed: int, settings: Settings) -> list[Path]:
    """Writes `count` utterances over five sessions, and the ground truth."""
    draw = np.random.default_rng(seed)
    sessions = [SESSIONS[i * len(SESSIONS) // count] for i in range(count)]
    labels = _chain(draw, sessions, settings.stay)
    speakers = draw.choice(list("FM"), size=count)
    names = [f"{i}_{speakers[i]}_s_{sessions[i]}_{LABELS[label]}" for i, label in enumerate(labels)]
    classes = [CLASSES[label] for label in labels]
    out.mkdir(parents=True, exist_ok=True)
    write_labels(out, list(zip(names, labels, strict=True)))
    for folder, vocabulary, length, signal in (
        (TEXT, settings.text_vocabulary, settings.text_len, settings.text_signal),
        (AUDIO, settings.audio_vocabulary, settings.audio_len, settings.audio_signal),
    ):
        write_tokens(out / folder, zip(names, _tokens(draw, classes, vocabulary, length, signal), strict=True))
    means = draw.normal(size=(len(CLASS_NAMES), settings.width)) * settings.context_signal
    vectors = (means[classes] + draw.normal(size=(count, settings.width))).astype(np.float32)
    write_vectors(out, names, vectors, sessions, settings.sizes)
    truth = {"dataset": dataset, "seed": seed, "settings": settings.model_dump(), "classes": list(CLASS_NAMES)}
    truth |= {"planted": "class-specific tokens, class means of sentence vectors, emotions that last"}
    truth |= {"labels": dict(zip(names, classes, strict=True))}
    write_atomic(out / "ground_truth.json", json.dumps(truth, indent=1).encode())
    return sorted(p for p in out.rglob("*") if p.is_file())


def _chain(draw: np.random.Generator, sessions: list[int], stay: float) -> list[int]:
    labels: list[int] = []
    for i, session in enumerate(sessions):
        kept = i > 0 and sessions[i - 1] == session and draw.random() < stay
        labels.append(labels[-1] if kept else int(draw.choice(len(LABELS), p=SHARES)))
    return labels


def _tokens(
    draw: np.random.Generator, classes: list[int], vocabulary: int, typical: int, signal: float
) -> list[np.ndarray]:
    """Ids between the special tokens; some of them are of three that go with the class."""
    telling = 4 + draw.permutation(vocabulary - 5)[: 3 * len(CLASS_NAMES)].reshape(len(CLASS_NAMES), 3)
    found = []
    for number in classes:
        size = int(np.clip(round(draw.lognormal(np.log(typical), 0.4)), 1, 4 * typical))
        inner = draw.integers(4, vocabulary - 1, size)
        said = draw.random(size) < signal
        inner[said] = draw.choice(telling[number], size=int(said.sum()))
        found.append(np.asarray([0, *inner, 2], dtype=np.int64))
    return found


SYNTHESISER = Synthesiser("utterances of five sessions in the text files of tab", DATASETS, Settings, write, fewest=20)
