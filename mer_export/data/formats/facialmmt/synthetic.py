"""Synthetic conversations in the files of FacialMMT, faces included, and faces with expressions as in Aff-Wild2.

Words, audio and face features show the emotion through noise that is known, so the best answer from them is known too.
A face crop shows it by where in a three by three grid it is bright.
"""

from __future__ import annotations

import contextlib
import csv
import io
import itertools
import json
import pickle
import sys
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import BaseModel, ConfigDict, Field

from mer_export.bundle import write_atomic
from mer_export.data.formats.affwild import reader as affwild
from mer_export.data.formats.facialmmt.reader import CACHED, CLASSES, LABELS, MULTIMODAL, SPLITS, UNIMODAL
from mer_export.data.formats.format import Original, Synthesiser
from mer_export.data.shapes.packed import pack_sentences
from mer_export.data.spec import DataSpec
from mer_export.errors import NotAvailableError
from mer_export.install import not_installed

DATASETS = {"meld": Original(1432), "affwild": Original(100)}
PRIOR = (0.3, 0.15, 0.08, 0.1, 0.17, 0.08, 0.12)
TELLING = 6
"""Words of each emotion."""
PADDED = 512
"""Tokens of a dialogue in a cache."""


class Settings(BaseModel):
    """What to plant. `*_signal` is the share of telling words, or scales class means against unit noise."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    audio_dim: int = Field(768, ge=1)
    vision_dim: int = Field(512, ge=1)
    audio_len: int = Field(60, ge=1)
    vision_len: int = Field(20, ge=1)
    words: int = Field(60, ge=1)
    """Words that tell nothing."""
    sentence_len: int = Field(8, ge=1)
    text_signal: float = Field(0.2, ge=0, le=1)
    audio_signal: float = Field(0.3, ge=0)
    vision_signal: float = Field(0.2, ge=0)
    face_signal: float = Field(1.0, ge=0)
    """Of face crops: brightness of the telling square against the noise of a pixel."""
    image_size: int = Field(16, ge=6)
    images: bool = True
    caches: bool = False
    """Write `.dt` files too, for the RoBERTa and the BERT packing of the same words."""
    no_face: float = Field(0.1, ge=0, le=1)
    """Part of the utterances without a face."""


def write(dataset: str, out: Path, count: int, seed: int, settings: Settings) -> list[Path]:
    """Writes `count` dialogues, or videos of faces; returns all files. Needs Pillow for images, PyTorch for caches."""
    draw = np.random.default_rng(seed)
    out.mkdir(parents=True, exist_ok=True)
    truth = {"dataset": dataset, "seed": seed, "settings": settings.model_dump(), "classes": list(LABELS)}
    truth |= _affwild(draw, out, count, settings) if dataset == "affwild" else _meld(draw, out, count, settings)
    write_atomic(out / "ground_truth.json", json.dumps(truth, indent=1).encode())
    return sorted(p for p in out.rglob("*") if p.is_file())


def _meld(draw: np.random.Generator, out: Path, count: int, settings: Settings) -> dict[str, Any]:
    both, vision = out / MULTIMODAL, out / UNIMODAL
    for folder in (both, vision, out / "tokenizer"):
        folder.mkdir(exist_ok=True)
    write_atomic(out / "tokenizer" / "vocab.txt", "\n".join(_vocabulary(settings)).encode())
    tests = max(1, count // 6)
    sizes = dict(zip(SPLITS, (count - 2 * tests, tests, tests), strict=True))
    means = {m: draw.normal(size=(len(LABELS), d)) / np.sqrt(d) for m, d in _dims(settings).items()}
    bounds = {}
    for split, dialogues in sizes.items():
        bounds[split] = _split(draw, both, vision, split, dialogues, means, settings)
    return {"planted": "telling words, class means of frames, a bright square in faces", "bounds": bounds}


def _dims(settings: Settings) -> dict[str, int]:
    return {"audio": settings.audio_dim, "vision": settings.vision_dim}


def _vocabulary(settings: Settings) -> list[str]:
    telling = [_word(e, i) for e in range(len(LABELS)) for i in range(TELLING)]
    return ["[PAD]", "[UNK]", "[CLS]", "[SEP]", *telling, *(f"w{i}" for i in range(settings.words))]


def _word(emotion: int, number: int) -> str:
    return f"{LABELS[emotion]}{number}"


def _split(
    draw: np.random.Generator,
    both: Path,
    vision: Path,
    split: str,
    dialogues: int,
    means: dict[str, np.ndarray],
    settings: Settings,
) -> dict[str, float]:
    sizes = draw.integers(1, 9, dialogues)
    labels = draw.choice(len(LABELS), size=int(sizes.sum()), p=np.asarray(PRIOR) / sum(PRIOR))
    evidence = np.log(np.asarray(PRIOR) / sum(PRIOR)) + np.zeros((len(labels), 1))
    place = [(d, u) for d, n in enumerate(sizes) for u in range(n)]
    names = [f"dia{d}_utt{u}" for d, u in place]
    sentences = [_sentence(draw, y, row, settings) for y, row in zip(labels, evidence, strict=True)]
    profile = {str(i): [names[i], f"dia{d}", int(d), int(sizes[d]), int(u)] for i, (d, u) in enumerate(place)}
    lengths = {"audio": draw.integers(1, settings.audio_len + 1, len(labels))}
    lengths["vision"] = np.where(
        draw.random(len(labels)) < settings.no_face, 0, draw.integers(1, settings.vision_len + 1, len(labels))
    )
    arrays: dict[str, np.ndarray] = {}
    for m, mean in means.items():
        arrays[m], own = _frames(draw, labels, lengths[m], mean, m, settings)
        arrays[f"{m}_mask"] = (np.arange(arrays[m].shape[1]) < lengths[m][:, None]).astype(np.float32)
        evidence += own
    seen = {"vision": arrays["vision"], "vision_utt_mask": arrays["vision_mask"], "labels": labels}
    heard = {"audio": arrays["audio"], "audio_utt_mask": arrays["audio_mask"]}
    for folder in (both, vision):
        write_atomic(folder / f"meld_{split}_vision_utt.pkl", _pickled({split: seen}))
    write_atomic(both / f"meld_{split}_audio_utt.pkl", _pickled({split: heard}))
    write_atomic(both / f"{split}_utt_profile.json", json.dumps(profile).encode())
    said = {n: {"txt": [s]} for n, s in zip(names, sentences, strict=True)}
    write_atomic(both / f"{split}_text.json", json.dumps(said).encode())
    write_atomic(both / f"{split}_sent_emo.csv", _table(place, sentences, labels))
    faces = _faces(draw, both, split, names, labels, lengths["vision"], settings) if settings.images else {}
    write_atomic(both / f"{split}_facseqs_160_paths_final.json", json.dumps(faces).encode())
    if settings.caches:
        _caches(both, vision, split, arrays, labels, profile, faces, sizes, sentences)
    return {
        "utterances": len(labels),
        "majority_accuracy": float(np.bincount(labels).max() / len(labels)),
        "best_accuracy_without_faces": float((evidence.argmax(1) == labels).mean()),
    }


def _sentence(draw: np.random.Generator, label: int, evidence: np.ndarray, settings: Settings) -> str:
    """Words of one utterance; adds to `evidence` (emotions) the log-likelihood of what was drawn."""
    words = []
    share = settings.text_signal
    for _ in range(draw.integers(1, settings.sentence_len + 1)):
        if draw.random() < share:
            emotion = int(label) if draw.random() < 0.7 else int(draw.integers(len(LABELS)))
            words.append(_word(emotion, int(draw.integers(TELLING))))
            other = 0.3 / len(LABELS)
            evidence += np.where(np.arange(len(LABELS)) == emotion, np.log(0.7 + other), np.log(other))
        else:
            words.append(f"w{draw.integers(settings.words)}")
    return " ".join(words)


def _frames(
    draw: np.random.Generator,
    labels: np.ndarray,
    lengths: np.ndarray,
    means: np.ndarray,
    modality: str,
    settings: Settings,
) -> tuple[np.ndarray, np.ndarray]:
    """Padded frames, and log-likelihoods (utterances, emotions)."""
    longest, signal = getattr(settings, f"{modality}_len"), getattr(settings, f"{modality}_signal")
    shown = signal * np.sqrt(means.shape[1]) * means
    frames = shown[labels][:, None] + draw.normal(size=(len(labels), longest, means.shape[1]))
    frames *= (np.arange(longest) < lengths[:, None])[..., None]
    total = frames.sum(1)
    likely = total @ shown.T - 0.5 * lengths[:, None] * (shown**2).sum(1)
    return frames.astype(np.float32), likely


def _faces(
    draw: np.random.Generator,
    both: Path,
    split: str,
    names: list[str],
    labels: np.ndarray,
    lengths: np.ndarray,
    settings: Settings,
) -> dict[str, list[str]]:
    found = {}
    for name, label, count in zip(names, labels, lengths, strict=True):
        found[name] = [f"faces/{split}/{name}/{i:03d}.png" for i in range(count)]
        for path in found[name]:
            _draw_face(draw, both / path, int(label), settings)
    return found


def _draw_face(draw: np.random.Generator, path: Path, emotion: int, settings: Settings) -> None:
    try:
        from PIL import Image
    except ImportError:
        raise NotAvailableError(not_installed("Pillow, which writes face images,", "faces")) from None
    size = settings.image_size
    third = size // 3
    pixels = 110 + 25 * draw.normal(size=(size, size, 3))
    top, left = (emotion // 3) * third, (emotion % 3) * third
    pixels[top : top + third, left : left + third] += 25 * 3 * settings.face_signal
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8)).save(path)


def _affwild(draw: np.random.Generator, out: Path, count: int, settings: Settings) -> dict[str, Any]:
    """Videos of eight to twenty frames each, a fifth of them for validation; some frames have no usable label."""
    back = {meld: i for i, meld in enumerate(affwild.TO_MELD)}
    for number in range(count):
        split = "val" if number < max(1, count // 5) else "train"
        labels = [int(draw.integers(len(LABELS))) for _ in range(draw.integers(8, 21))]
        lines = ["Neutral,Anger,Disgust,Fear,Happiness,Sadness,Surprise,Other"]
        for frame, label in enumerate(labels, start=1):
            if draw.random() < 0.1:
                lines.append(str(draw.choice([-1, 7])))
                continue
            lines.append(str(back[label]))
            _draw_face(draw, out / affwild.IMAGES[0] / f"video{number}" / f"{frame:05d}.jpg", label, settings)
        folder = out / affwild.ANNOTATIONS[0] / affwild.SPLITS[split][0]
        folder.mkdir(parents=True, exist_ok=True)
        write_atomic(folder / f"video{number}.txt", ("\n".join(lines) + "\n").encode())
    return {"planted": "a bright square in faces"}


def _table(place: list[tuple[int, int]], sentences: list[str], labels: np.ndarray) -> bytes:
    text = io.StringIO()
    rows = csv.writer(text)
    rows.writerow(("Dialogue_ID", "Utterance_ID", "Utterance", "Emotion"))
    rows.writerows((d, u, s, LABELS[y]) for (d, u), s, y in zip(place, sentences, labels.tolist(), strict=True))
    return text.getvalue().encode()


def _pickled(content: Any) -> bytes:
    return pickle.dumps(content, protocol=4)


def _caches(
    both: Path,
    vision: Path,
    split: str,
    arrays: dict[str, np.ndarray],
    labels: np.ndarray,
    profile: dict[str, Any],
    faces: dict[str, list[str]],
    sizes: np.ndarray,
    sentences: list[str],
) -> None:
    """The data set objects that the authors' code keeps, for one kind of packing each."""
    try:
        import torch
    except ImportError:
        raise NotAvailableError(not_installed("PyTorch, which writes .dt files,", "export")) from None
    starts = np.concatenate([[0], np.cumsum(sizes)])
    groups = [sentences[a:b] for a, b in itertools.pairwise(starts)]
    for kind in ("roberta", "bert"):
        spec = DataSpec(packing=kind, tokenizer=str(both.parent / "tokenizer"))  # type: ignore[arg-type]
        text = np.zeros((3, len(groups), PADDED), dtype=np.int64)
        for row, group in enumerate(groups):
            packed = pack_sentences(group, spec)
            text[0, row, : len(packed.ids)], text[1, row, : len(packed.ids)] = packed.ids, 1
            text[2, row, list(packed.closing)] = 1
        own = {**arrays, "labels": torch.from_numpy(labels), "profile": profile, "faces": faces}
        own |= dict(zip(("input_ids", "input_mask", "separators"), map(torch.from_numpy, text), strict=True))
        attributes = {theirs: own[ours] for ours, theirs in CACHED.items()}
        attributes |= {"choice_modality": "T+A+V", "split_type": split}
        for m in ("audio", "vision"):
            attributes |= {f"{m}_max_utt_len": arrays[m].shape[1], f"{m}_feat_dim": arrays[m].shape[2]}
        _save(both / f"meld_multimodal_{split}_T+A+V_{kind}-large.dt", CLASSES[0], attributes)
    attributes = {"modality_type": "vision", "modality_feature": arrays["vision"], "labels": labels}
    attributes |= {"utterance_mask": arrays["vision_mask"]}
    _save(vision / f"meld_unimodal_{split}_V.dt", CLASSES[1], attributes)


def _save(path: Path, name: str, attributes: dict[str, Any]) -> None:
    """An object of the authors' class, which is not here, with these attributes."""
    import torch

    module, _, kind = name.rpartition(".")
    with _stand_in(module, kind) as made:
        thing = made()
        vars(thing).update(attributes)
        content = io.BytesIO()
        torch.save(thing, content, pickle_protocol=4)
    write_atomic(path, content.getvalue())


@contextlib.contextmanager
def _stand_in(module: str, name: str) -> Iterator[type]:
    """A class that pickle finds under another module's name, while the block runs."""
    parts = module.split(".")
    before = {".".join(parts[: i + 1]): sys.modules.get(".".join(parts[: i + 1])) for i in range(len(parts))}
    kind = type(name, (), {"__module__": module, "__qualname__": name})
    for full in before:
        sys.modules[full] = types.ModuleType(full)
    setattr(sys.modules[module], name, kind)
    try:
        yield kind
    finally:
        for full, old in before.items():
            if old is None:
                del sys.modules[full]
            else:
                sys.modules[full] = old


SYNTHESISER = Synthesiser(
    "dialogues, or faces with expressions, in the files of FacialMMT", DATASETS, Settings, write, fewest=6
)
