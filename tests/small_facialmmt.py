"""Tiny bundles of facialmmt with random weights, and random utterances of dialogues for them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from conftest import Once
from safetensors.torch import save_model

from mer_export import registry
from mer_export.bucket import Bucket
from mer_export.bundle import WEIGHTS, Bundle, Manifest
from mer_export.contract import Contract
from mer_export.data.samples import Sample
from mer_export.exporters import export_variant

LENGTHS = Bucket(text_len=14, audio_len=6, vision_len=5)
SWIN = {"image_size": 8, "patch": 2, "width": 4, "depths": [2, 1], "heads": [1, 2], "window": 2}
SMALL: dict[str, Any] = {
    "encoder": "bert",
    "bert": {"vocabulary": 120, "hidden": 8, "layers": 1, "heads": 2, "feed_forward": 8, "positions": 128},
    "audio_dim": 5,
    "vision_dim": 4,
    "width": 8,
    "heads": 2,
    "feed_forward": 12,
    "audio_layers": 1,
    "vision_layers": 1,
    "cross_heads": 2,
    "cross_layers": 1,
    "cross_vision_heads": 2,
    "cross_vision_layers": 1,
    "utterance_len": 4,
    "audio_len": 6,
    "vision_len": 5,
}
VARIANTS: dict[str, dict[str, Any]] = {
    "fusion": SMALL | {"variant": "fusion", "buckets": [LENGTHS]},
    "end_to_end": SMALL | {"variant": "end_to_end", "swin": SWIN, "buckets": [LENGTHS]},
    "vision": SMALL | {"variant": "vision"},
    "face": SMALL | {"variant": "face", "swin": SWIN},
}


def make(root: Path, variant: str, seed: int = 0) -> Bundle:
    """A bundle of a variant."""
    system = registry.get("facialmmt")
    config = system.parse(VARIANTS[variant])
    torch.manual_seed(seed)
    model = system.build(config)
    for parameter in model.parameters():
        # Biases and norms start at 0 and 1, where a slip does not show.
        parameter.data += 0.3 * torch.randn_like(parameter)
    manifest = Manifest(
        system=system.name,
        variant=variant,
        config=config.model_dump(mode="json"),
        task=system.task(config),
        contract=system.contract(config),
    )
    bundle = Bundle.create(root, manifest)
    with bundle.commit() as change:
        save_model(model, str(change.file(WEIGHTS)))
    return bundle


def export_staged(once: Once) -> Bundle:
    """The whole way of a face to a label, its stages as ONNX files; read only."""

    def made(root: Path) -> Bundle:
        bundle = make(root, "end_to_end")
        export_variant(bundle, "onnx", LENGTHS, example=utterances(bundle.manifest.contract), stages=True)
        return bundle

    return once("facialmmt end_to_end", made)


def utterances(contract: Contract, count: int = 3, seed: int = 0) -> list[Sample]:
    """Utterances of one dialogue: one text, spans of their own, frames of different lengths."""
    draw = np.random.default_rng(seed)
    tokens = draw.integers(5, 100, 11)
    names = {s.name for s in contract.features}
    found = []
    for number in range(count):
        frames = {"audio": int(draw.integers(1, 7)), "vision": int(draw.integers(1, 6))}
        inputs: dict[str, np.ndarray] = {"input_ids": tokens, "text_span": np.asarray([1 + 3 * number, 2])}
        for spec in contract.features:
            if spec.dtype == "float32" and spec.name != "gumbel_noise":
                steps = frames.get(str(spec.modality), 1)
                shape = [steps if isinstance(d, str) else d for d in spec.dims[1:]]
                inputs[spec.name] = (3 * draw.standard_normal(shape)).astype(np.float32)
        own = {n: a for n, a in inputs.items() if n in names}
        found.append(Sample(f"d{seed}/{number}", own, (f"d{seed}/{number}",), np.asarray([number % 7])))
    return found
