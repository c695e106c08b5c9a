"""Synthetic sentiment data in the pickles of MMSA: learnable, with known truth.

Every utterance has a sentiment; each word, audio frame and vision frame shows it with noise of its own, text the
clearest. The noise is Gaussian, so the best estimate from all that is shown is known in closed form.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import BaseModel, ConfigDict, Field

from mer_export.bundle import write_atomic
from mer_export.data.formats.format import Original, Synthesiser
from mer_export.data.formats.mmsa import reader as mmsa
from mer_export.data.formats.pickle_writer import dump_plain

FIRST_WORD = 103
"""Ids below are special tokens; words of rising polarity follow."""
SPREAD = 0.4
"""Standard deviation of the sentiment, as a part of the range's half."""


class SynthSentiment(BaseModel):
    """What to plant. `*_noise` is the deviation of one word's or frame's view of the sentiment (half range 1)."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    text_len: int = Field(50, ge=4)
    audio_len: int = Field(375, ge=2)
    vision_len: int = Field(500, ge=2)
    audio_dim: int = Field(5, ge=1)
    vision_dim: int = Field(20, ge=1)
    words: int = Field(200, ge=2)
    """Size of the vocabulary without special tokens."""
    text_noise: float = Field(0.5, gt=0)
    audio_noise: float = Field(2.0, gt=0)
    vision_noise: float = Field(3.0, gt=0)


@dataclass(frozen=True)
class Shape:
    """What makes a synthetic data set look like the real one: split sizes, lengths, widths, step of the labels."""

    sizes: tuple[int, int, int]
    lengths: tuple[int, int, int]
    dims: tuple[int, int]
    step: float | None


SHAPES: dict[str, Shape] = {
    "mosi": Shape((1284, 229, 686), (50, 375, 500), (5, 20), None),
    "mosei": Shape((16326, 1871, 4659), (50, 500, 500), (74, 35), None),
    "sims": Shape((1368, 456, 457), (39, 400, 55), (33, 709), 0.2),
}


def _original(shape: Shape) -> Original:
    """Lengths and widths of the real data set."""
    names = ("text_len", "audio_len", "vision_len", "audio_dim", "vision_dim")
    return Original(sum(shape.sizes), dict(zip(names, (*shape.lengths, *shape.dims), strict=True)))


DATASETS = {name: _original(shape) for name, shape in SHAPES.items()}


def write(dataset: str, out: Path, count: int, seed: int, config: SynthSentiment) -> list[Path]:
    """Writes `<DATA>/Processed/<file>` and ground_truth.json below `out`; split sizes are in the real proportions."""
    rng = np.random.default_rng(seed)
    form, shape = mmsa.DATASETS[dataset], SHAPES[dataset]
    mixing = {m: rng.normal(size=getattr(config, f"{m}_dim")) for m in ("audio", "vision")}
    parts = [max(2, round(count * n / sum(shape.sizes))) for n in shape.sizes[1:]]
    sizes = dict(zip(mmsa.SPLITS, (max(2, count - sum(parts)), *parts), strict=True))
    content, truth = {}, {}
    for split, items in sizes.items():
        content[split], truth[split] = _split(rng, split, items, form.limits[1], shape.step, mixing, config)
    files = [out / form.folder / "Processed" / form.files[0], out / "ground_truth.json"]
    files[0].parent.mkdir(parents=True, exist_ok=True)
    write_atomic(files[0], dump_plain(content))
    summary = {
        "dataset": dataset,
        "seed": seed,
        "settings": config.model_dump(),
        "planted": "every word and frame shows the sentiment plus Gaussian noise of its own; the best estimate is the "
        "posterior mean given all of them",
        "bounds": truth,
    }
    write_atomic(files[1], json.dumps(summary, indent=1).encode())
    return files


def _split(
    rng: np.random.Generator,
    split: str,
    items: int,
    limit: float,
    step: float | None,
    mixing: dict[str, np.ndarray],
    config: SynthSentiment,
) -> tuple[dict[str, Any], dict[str, float]]:
    sentiment = np.clip(rng.normal(0, SPREAD, items), -1, 1)
    labels = sentiment * limit
    if step is not None:
        labels = np.round(labels / step) * step
    text, evidence = _text(rng, sentiment, config)
    found: dict[str, Any] = {"text_bert": text}
    for m, weights in mixing.items():
        steps, noise = getattr(config, f"{m}_len"), getattr(config, f"{m}_noise")
        lengths = _lengths(rng, items, steps)
        shown = sentiment[:, None] + rng.normal(0, noise, (items, steps))
        frames = shown[..., None] * weights + rng.normal(0, 0.1, (items, steps, len(weights)))
        real = np.arange(steps) < lengths[:, None]
        found[m] = (frames * real[..., None]).astype(np.float32)
        found[f"{m}_lengths"] = lengths.tolist()
        evidence += np.stack([(shown * real).sum(1), lengths.astype(float)], axis=1) / noise**2
    guess = evidence[:, 0] / (evidence[:, 1] + 1 / SPREAD**2) * limit
    found["regression_labels"] = labels.astype(np.float32)
    found["id"] = [f"{split}{i // 10}$_${i % 10}" for i in range(items)]
    found["raw_text"] = [" ".join(f"w{t}" for t in row[row > 102]) for row in text[:, 0].astype(int)]
    bounds = {
        "utterances": float(items),
        "mae_of_the_mean": float(np.abs(labels - labels.mean()).mean()),
        "mae_of_the_best_estimate": float(np.abs(labels - guess).mean()),
    }
    return found, bounds


def _text(rng: np.random.Generator, sentiment: np.ndarray, config: SynthSentiment) -> tuple[np.ndarray, np.ndarray]:
    """The planes of `text_bert`, and per utterance the sum and weight of what its words say."""
    items = len(sentiment)
    planes = np.zeros((items, 3, config.text_len), dtype=np.float32)
    evidence = np.zeros((items, 2))
    lengths = _lengths(rng, items, config.text_len, least=4)
    for row, (value, length) in enumerate(zip(sentiment, lengths, strict=True)):
        shown = value + rng.normal(0, config.text_noise, length - 2)
        place = np.clip((shown / 2 + 1) / 2, 0, 1)
        ids = FIRST_WORD + np.round(place * (config.words - 1)).astype(int)
        planes[row, 0, :length] = [101, *ids, 102]
        planes[row, 1, :length] = 1
        evidence[row] = np.array([shown.sum(), len(shown)]) / config.text_noise**2
    return planes, evidence


def _lengths(rng: np.random.Generator, items: int, longest: int, least: int = 1) -> np.ndarray:
    drawn = np.round(longest * rng.beta(1.5, 4.0, items)).astype(int)
    return np.clip(drawn, least, longest)


SYNTHESISER = Synthesiser("utterances in the pickles of MMSA", DATASETS, SynthSentiment, write, fewest=6)
