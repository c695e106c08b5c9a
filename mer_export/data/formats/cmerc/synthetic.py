"""Synthetic corpora in the authors' own file formats: learnable, with known truth.

Each speaker's emotions follow a sticky Markov chain, so the dialogue helps beyond the utterance; each modality shows a
noisy mean of the emotion, text the clearest. Because the process is known, so is the best that any model can do: the
ground truth holds the accuracy of the exact posterior with and without context.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import BaseModel, ConfigDict, Field

from mer_export.bundle import write_atomic
from mer_export.data.formats.cmerc.difficulty import write_difficulty
from mer_export.data.formats.cmerc.reader import DATASETS, Dataset
from mer_export.data.formats.format import Original, Synthesiser
from mer_export.data.formats.pickle_writer import dump_plain

LATENT = 8
"""Width of the space that the class means live in."""


class SynthConfig(BaseModel):
    """What to plant. `*_signal` scales the class means of a modality against unit noise; 0 makes it useless."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    text_dim: int = Field(1024, ge=LATENT)
    audio_dim: int = Field(300, ge=LATENT)
    vision_dim: int = Field(342, ge=LATENT)
    text_signal: float = Field(0.7, ge=0)
    audio_signal: float = Field(0.35, ge=0)
    vision_signal: float = Field(0.25, ge=0)
    stay: float = Field(0.7, ge=0, le=1)
    """Probability that a speaker keeps the emotion of the last own utterance."""
    test_part: float = Field(0.2, gt=0, lt=1)


@dataclass(frozen=True)
class Shape:
    """What makes a synthetic data set look like the real one."""

    dialogues: int
    typical: float
    spread: float
    shortest: int
    longest: int
    speakers: tuple[int, int]
    prior: tuple[float, ...]
    audio_dim: int


SHAPES: dict[str, Shape] = {
    "meld": Shape(1432, 8.0, 0.65, 1, 33, (1, 5), (0.30, 0.14, 0.08, 0.11, 0.16, 0.08, 0.13), 300),
    "iemocap": Shape(151, 46.0, 0.45, 8, 110, (2, 2), (0.09, 0.15, 0.23, 0.15, 0.14, 0.24), 1582),
}
"""Lengths and class frequencies like the real sets'; MELD's rare classes are less rare, to be learnable when small."""


@dataclass
class _Dialogue:
    speakers: np.ndarray
    labels: np.ndarray
    latent: dict[str, np.ndarray]
    alone: np.ndarray
    context: np.ndarray


def _write_cmerc(dataset: str, out: Path, count: int, seed: int, config: SynthConfig) -> list[Path]:
    form, shape = DATASETS[dataset], SHAPES[dataset]
    rng = np.random.default_rng(seed)
    means = {m: rng.normal(size=(len(form.labels), LATENT)) * s for m, s in _signals(config).items()}
    made = [_dialogue(rng, shape, form, means, config.stay) for _ in range(count)]
    tests = max(1, round(count * config.test_part))
    train = count - tests
    ids: list[Any] = [_identity(form, i, train) for i in range(count)]
    content = dict(zip(ids, made, strict=True))
    features = _features(rng, content, config)
    (out / "data").mkdir(parents=True, exist_ok=True)
    (out / "caldiff").mkdir(exist_ok=True)
    files = [out / "data" / form.features, out / "data" / form.roberta, out / "caldiff" / form.difficulty]
    write_atomic(files[0], dump_plain(_first_file(form, content, features, ids, train)))
    write_atomic(files[1], dump_plain(_second_file(form, content, features, ids, train)))
    write_difficulty(files[2], {str(i): _difficulty(content[i]) for i in ids[:train]})
    files.append(out / "ground_truth.json")
    truth = _truth(dataset, seed, config, form, content, ids, train)
    write_atomic(files[-1], json.dumps(truth, indent=1).encode())
    return files


SYNTHESISER = Synthesiser(
    "dialogues in the pickles of CMERC and M3NET",
    {name: Original(shape.dialogues, {"audio_dim": shape.audio_dim}) for name, shape in SHAPES.items()},
    SynthConfig,
    _write_cmerc,
)


def _signals(config: SynthConfig) -> dict[str, float]:
    return {"text": config.text_signal, "audio": config.audio_signal, "vision": config.vision_signal}


def _dialogue(
    rng: np.random.Generator, shape: Shape, form: Dataset, means: dict[str, np.ndarray], stay: float
) -> _Dialogue:
    length = int(np.clip(round(rng.lognormal(np.log(shape.typical), shape.spread)), shape.shortest, shape.longest))
    cast = rng.permutation(form.speakers)[: rng.integers(shape.speakers[0], shape.speakers[1] + 1)]
    speakers = rng.choice(cast, size=length)
    prior = np.asarray(shape.prior) / sum(shape.prior)
    labels = np.empty(length, dtype=np.int64)
    last: dict[int, int] = {}
    for t, speaker in enumerate(speakers):
        kept = speaker in last and rng.random() < stay
        labels[t] = last[speaker] if kept else rng.choice(len(prior), p=prior)
        last[speaker] = int(labels[t])
    latent = {m: mean[labels] + rng.normal(size=(length, LATENT)) for m, mean in means.items()}
    evidence = _evidence(latent, means)
    alone = _normalise(np.log(prior) + evidence)
    context = np.empty_like(alone)
    for speaker in np.unique(speakers):
        context[speakers == speaker] = _smooth(evidence[speakers == speaker], prior, stay)
    return _Dialogue(speakers, labels, latent, alone, context)


def _evidence(latent: dict[str, np.ndarray], means: dict[str, np.ndarray]) -> np.ndarray:
    """Log-likelihood (utterances, classes) of all modalities together."""
    return np.sum([-0.5 * ((x[:, None] - means[m][None]) ** 2).sum(-1) for m, x in latent.items()], axis=0)


def _smooth(evidence: np.ndarray, prior: np.ndarray, stay: float) -> np.ndarray:
    """Exact posterior of a speaker's chain: forward-backward."""
    likelihood = np.exp(evidence - evidence.max(axis=1, keepdims=True))
    step = stay * np.eye(len(prior)) + (1 - stay) * prior[None]
    forward, backward = np.empty_like(likelihood), np.ones_like(likelihood)
    for t in range(len(evidence)):
        forward[t] = likelihood[t] * (prior if t == 0 else forward[t - 1] @ step)
        forward[t] /= forward[t].sum()
    for t in range(len(evidence) - 2, -1, -1):
        backward[t] = step @ (likelihood[t + 1] * backward[t + 1])
        backward[t] /= backward[t].sum()
    posterior = forward * backward
    return posterior / posterior.sum(axis=1, keepdims=True)


def _normalise(scores: np.ndarray) -> np.ndarray:
    scores = np.exp(scores - scores.max(axis=1, keepdims=True))
    return scores / scores.sum(axis=1, keepdims=True)


def _features(
    rng: np.random.Generator, content: dict[Any, _Dialogue], config: SynthConfig
) -> dict[str, dict[Any, list[np.ndarray]]]:
    """Observed vectors by name: text has four (views of one latent, as four layers of an encoder are)."""
    dims = {
        **{f"text{k}": config.text_dim for k in range(4)},
        "audio": config.audio_dim,
        "vision": config.vision_dim,
    }
    found: dict[str, dict[Any, list[np.ndarray]]] = {}
    for name, dim in dims.items():
        mixing = rng.normal(size=(LATENT, dim)) / np.sqrt(LATENT)
        found[name] = {}
        for key, dialogue in content.items():
            latent = dialogue.latent[name.rstrip("0123")]
            noise = rng.normal(size=(len(latent), dim))
            found[name][key] = list((latent @ mixing + 0.3 * noise).astype(np.float32))
    return found


def _identity(form: Dataset, index: int, train: int) -> str | int:
    if form.name != "iemocap":
        return index
    # The fifth session is the test part of the real data set.
    return f"Ses{1 + index % 4 if index < train else 5:02d}{'MF'[index % 2]}_impro{index:04d}"


def _first_file(
    form: Dataset, content: dict[Any, _Dialogue], features: dict[str, Any], ids: list[Any], train: int
) -> tuple[Any, ...]:
    labels = {k: d.labels.tolist() for k, d in content.items()}
    items: tuple[Any, ...] = (
        {k: [f"{k}_{t:03d}" for t in range(len(d.labels))] for k, d in content.items()},
        _speakers(form, content),
        labels,
        features["text0"],
        features["audio"],
        features["vision"],
        _sentences(form, content),
        ids[:train],
        ids[train:],
    )
    # MELD's file has a tenth item, which the authors' reader ignores.
    return items if form.items == len(items) else (*items, labels)


def _second_file(
    form: Dataset, content: dict[Any, _Dialogue], features: dict[str, Any], ids: list[Any], train: int
) -> list[Any]:
    labels = {k: d.labels.tolist() for k, d in content.items()}
    head = [_speakers(form, content), *[labels] * (form.first_vector - 1)]
    vectors = [features[f"text{k}"] for k in range(4)]
    return [*head, *vectors, _sentences(form, content), ids[:train], ids[train:], []]


def _speakers(form: Dataset, content: dict[Any, _Dialogue]) -> dict[Any, list[Any]]:
    if form.name == "iemocap":
        return {k: ["MF"[s] for s in d.speakers] for k, d in content.items()}
    rows = np.eye(form.speakers, dtype=int).tolist()
    return {k: [rows[s] for s in d.speakers] for k, d in content.items()}


def _sentences(form: Dataset, content: dict[Any, _Dialogue]) -> dict[Any, list[str]]:
    return {k: [f"synthetic {form.labels[y]}" for y in d.labels] for k, d in content.items()}


def _difficulty(dialogue: _Dialogue) -> float:
    """Mean probability that the exact posterior with context withholds from the true class."""
    return float(1 - dialogue.context[np.arange(len(dialogue.labels)), dialogue.labels].mean())


def _truth(
    dataset: str,
    seed: int,
    config: SynthConfig,
    form: Dataset,
    content: dict[Any, _Dialogue],
    ids: list[Any],
    train: int,
) -> dict[str, Any]:
    best = {}
    for name, part in (("train", ids[:train]), ("test", ids[train:])):
        labels = np.concatenate([content[k].labels for k in part])
        alone = np.concatenate([content[k].alone for k in part]).argmax(1)
        context = np.concatenate([content[k].context for k in part]).argmax(1)
        best[name] = {
            "dialogues": len(part),
            "utterances": len(labels),
            "majority_accuracy": float(np.bincount(labels).max() / len(labels)),
            "best_accuracy_without_context": float((alone == labels).mean()),
            "best_accuracy_with_context": float((context == labels).mean()),
        }
    return {
        "dataset": dataset,
        "seed": seed,
        "settings": config.model_dump(),
        "classes": list(form.labels),
        "planted": "class means in an 8-dimensional latent space per modality, unit noise, scaled by *_signal; "
        "emotions stay with a speaker with probability `stay`, else follow the prior",
        "bounds": best,
        "labels": {str(k): d.labels.tolist() for k, d in content.items()},
        "difficulty": {str(k): _difficulty(d) for k, d in content.items()},
    }
