"""Synthetic utterance sets in the files of MTEE: emotions, word vectors that know how emotions relate, and sentiment.

Every emotion is a point in a small space. Its word vector is a linear image of that point, and so is what the steps of
each modality show, noisily; several emotions add up. A model that learns the images from some emotions can therefore
recognise others from their word vectors alone, and the ground truth says which points were planted. Sentiment is one
point, shown as strongly as the score says, in either direction.
"""

from __future__ import annotations

import json
import pickle
from pathlib import Path

import numpy as np
from pydantic import BaseModel, ConfigDict, Field

from mer_export.bundle import write_atomic
from mer_export.data.formats.format import Original, Synthesiser
from mer_export.data.formats.mtee.reader import IEMOCAP_LABELS, MOSEI_LABELS, MOSI_COLUMNS, NINE_LABELS, SENTIMENT
from mer_export.errors import UsageError
from mer_export.untrusted.hdf5 import save_hdf5

MODALITIES = ("text", "audio", "vision")
VECTORS = "glove.emotions.840B.300d.pt"
PARTS = {"train": 0.7, "valid": 0.1, "test": 0.2}
WORDS = {"excited": "exciting", "surprised": "surprising", "frustrated": "frustrating"}


DATASETS = {
    "mosei_emo": Original(22413),
    "iemocap": Original(4453),
    "mosi": Original(2199, {"audio_dim": 5, "vision_dim": 20}),
    "mosei_senti": Original(22856),
}


class Settings(BaseModel):
    """What to plant. `*_signal` scales an emotion's image against unit noise; 0 makes a modality useless."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    text_dim: int = Field(300, ge=1)
    audio_dim: int = Field(74, ge=1)
    vision_dim: int = Field(35, ge=1)
    word_dim: int = Field(300, ge=1)
    steps: int = Field(20, ge=2)
    latent: int = Field(3, ge=1)
    """Width of the space of emotions: fewer than there are seen emotions, so that unseen ones lie among them."""
    text_signal: float = Field(1.0, ge=0)
    audio_signal: float = Field(0.6, ge=0)
    vision_signal: float = Field(0.4, ge=0)

    @property
    def dims(self) -> dict[str, int]:
        return {"text": self.text_dim, "audio": self.audio_dim, "vision": self.vision_dim}

    @property
    def signals(self) -> dict[str, float]:
        return {"text": self.text_signal, "audio": self.audio_signal, "vision": self.vision_signal}


class _World:
    """The planted emotions and their images."""

    def __init__(self, labels: tuple[str, ...], settings: Settings, seed: int):
        self.rng = np.random.default_rng(seed)
        self.settings = settings
        points = self.rng.normal(size=(len(labels), settings.latent))
        self.points = dict(zip(labels, points / np.linalg.norm(points, axis=1, keepdims=True), strict=True))
        self.images = {m: self.rng.normal(size=(settings.latent, n)) for m, n in settings.dims.items()}
        self.word_image = self.rng.normal(size=(settings.latent, settings.word_dim)) / np.sqrt(settings.latent)

    def vectors(self) -> dict[str, list[float]]:
        """Word vectors under the original's words, lower case and capitalised."""
        found = {}
        for label, point in self.points.items():
            word = WORDS.get(label, label)
            vector = point @ self.word_image
            noise = 0.02 * self.rng.normal(size=len(vector))
            found[word], found[word.capitalize()] = vector.tolist(), (vector + noise).tolist()
        return found

    def features(self, points: np.ndarray, steps: int) -> dict[str, np.ndarray]:
        """By modality (samples, steps, width): the image shows in the later steps, the first ones may be zero rows."""
        found = {}
        start = self.rng.integers(0, max(1, steps // 2), len(points))
        inside = np.arange(steps) >= start[:, None]
        for m, image in self.images.items():
            shown = self.settings.signals[m] * (points @ image)[:, None]
            noise = self.rng.normal(size=(len(points), steps, image.shape[1]))
            found[m] = ((shown + noise) * inside[..., None]).astype(np.float32)
        return found


def write(dataset: str, out: Path, count: int, seed: int, settings: Settings) -> list[Path]:
    """Writes the three phases, word vectors and the ground truth; returns the files."""
    out.mkdir(parents=True, exist_ok=True)
    labels, write_files = WRITERS[dataset]
    world = _World(labels, settings, seed)
    sizes = {p: max(4, round(count * share)) for p, share in PARTS.items()}
    files = write_files(out, world, sizes)
    write_atomic(out / VECTORS, pickle.dumps(world.vectors(), protocol=4))
    truth = {
        "dataset": dataset,
        "seed": seed,
        "settings": settings.model_dump(),
        "planted": "a point per emotion; word vectors and features are linear images of it, features with unit noise",
        "points": {n: p.tolist() for n, p in world.points.items()},
        "samples": sizes,
    }
    write_atomic(out / "ground_truth.json", json.dumps(truth, indent=1).encode())
    return [*files, out / VECTORS, out / "ground_truth.json"]


def _mosei(out: Path, world: _World, sizes: dict[str, int]) -> list[Path]:
    """Emotion intensities, several at once or none; the features show their sum."""
    files = []
    for phase, size in sizes.items():
        held = world.rng.random((size, len(MOSEI_LABELS))) < 0.25
        intensity = (held * world.rng.integers(1, 10, held.shape) / 3).astype(np.float32)
        features = world.features(held @ np.stack(list(world.points.values())), world.settings.steps)
        names = {"text": f"text_{phase}_emb.h5", "audio": f"audio_{phase}.h5", "vision": f"video_{phase}.h5"}
        content = {names[m]: x for m, x in features.items()} | {f"ey_{phase}.h5": intensity}
        files += [_saved(out / name, "d1", array) for name, array in content.items()]
    return files


def _iemocap(out: Path, world: _World, sizes: dict[str, int]) -> list[Path]:
    """One emotion per sample: the four classes in one pickle, the nine finer ones, a step longer, in four each."""
    four, files = {}, []
    for phase, size in sizes.items():
        classes = world.rng.integers(0, len(NINE_LABELS), size)
        points = np.stack([world.points[NINE_LABELS[c]] for c in classes])
        features = world.features(points, world.settings.steps + 1)
        columns = np.zeros((size, len(NINE_LABELS) + 2))
        columns[np.arange(size), classes + 1] = 1
        names = {"text": "text", "audio": "covarep", "vision": "facet"}
        for name, array in [*((names[m], x) for m, x in features.items()), ("y", columns)]:
            # Protocol 2 is what the authors' files have.
            write_atomic(out / f"{name}_{phase}.p", pickle.dumps(array.astype(np.float64), protocol=2))
            files.append(out / f"{name}_{phase}.p")
        rows = [i for i, c in enumerate(classes) if NINE_LABELS[c] in IEMOCAP_LABELS]
        index = [IEMOCAP_LABELS.index(NINE_LABELS[classes[i]]) for i in rows]
        pairs = np.eye(2)[np.eye(len(IEMOCAP_LABELS), dtype=int)[index]]
        four[phase] = {m: x[rows, :-1].astype(np.float64) for m, x in features.items()} | {"labels": pairs}
    write_atomic(out / "iemocap_data.pkl", pickle.dumps(four, protocol=2))
    return [*files, out / "iemocap_data.pkl"]


def _sentiment(world: _World, size: int) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """Features (size, steps, width) by modality, and scores (size, 1, 1) of -3 to 3 in thirds."""
    scores = world.rng.integers(-9, 10, size) / 3
    features = world.features(scores[:, None] * world.points[SENTIMENT[0]], world.settings.steps)
    return features, scores.reshape(-1, 1, 1).astype(np.float32)


def _mosi(out: Path, world: _World, sizes: dict[str, int]) -> list[Path]:
    """The three modalities side by side in one array."""
    for m in ("text", "audio"):
        columns = MOSI_COLUMNS[m]
        if world.settings.dims[m] != columns.stop - columns.start:
            wide = columns.stop - columns.start
            raise UsageError(f"{m}_dim is {world.settings.dims[m]}: CMU-MOSI's files have {wide} columns of {m}")
    files = []
    for phase, size in sizes.items():
        features, scores = _sentiment(world, size)
        content = {"X": np.concatenate([features[m] for m in MODALITIES], axis=2), "y": scores}
        files += [_saved(out / f"{n}_{phase}.h5", "data", x) for n, x in content.items()]
    return files


def _mosei_senti(out: Path, world: _World, sizes: dict[str, int]) -> list[Path]:
    """An array of each modality."""
    files = []
    for phase, size in sizes.items():
        features, scores = _sentiment(world, size)
        files += [_saved(out / f"{n}_{phase}.h5", "d1", x) for n, x in (features | {"y": scores}).items()]
    return files


def _saved(path: Path, name: str, array: np.ndarray) -> Path:
    save_hdf5(path, name, array)
    return path


WRITERS = {
    "mosei_emo": (MOSEI_LABELS, _mosei),
    "iemocap": (tuple(dict.fromkeys((*IEMOCAP_LABELS, *NINE_LABELS))), _iemocap),
    "mosi": (SENTIMENT, _mosi),
    "mosei_senti": (SENTIMENT, _mosei_senti),
}
"""What is planted of each data set, and what writes its files."""

SYNTHESISER = Synthesiser("utterances in the files of MTEE, word vectors too", DATASETS, Settings, write, fewest=20)
