"""Tiny bundles of emt, mult and tfr_net with random weights, and random utterances for them."""

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

SHORT = Bucket(text_len=6, audio_len=5, vision_len=4)
LONG = Bucket(text_len=9, audio_len=12, vision_len=7)
BERT = {"vocabulary": 110, "hidden": 16, "layers": 1, "heads": 2, "feed_forward": 24, "positions": 16}
TRANSFORMER = {"bert": BERT, "arrays": LONG, "width": 8, "heads": 2, "levels": 1, "buckets": [SHORT, LONG]}
EMT = {
    "bert": BERT,
    "width": 8,
    "heads": 2,
    "depth": 2,
    "audio_hidden": 6,
    "audio_out": 5,
    "vision_hidden": 8,
    "vision_out": 8,
    "head_width": 12,
    "buckets": [SHORT, LONG],
}
UNSHARED = {"share_layers": False, "share_modalities": False, "share_directions": False}
MAXIMUM = {"fusion": "max", "generator": "none"}
CONFIGS: dict[str, tuple[str, dict[str, Any]]] = {
    "emt": ("emt", EMT),
    "emt unshared": ("emt", {**EMT, **UNSHARED, "scale": "sims"}),
    "emt vectors": (
        "emt",
        {**EMT, **UNSHARED, "bert": None, "text_dim": 7, "text_hidden": 6, "text_out": 6, "labels": ["a", "b", "c"]},
    ),
    "mult": ("mult", TRANSFORMER),
    "mult vectors": ("mult", {**TRANSFORMER, "bert": None, "text_dim": 7, "labels": ["a", "b", "c"]}),
    "tfr_net": ("tfr_net", {**TRANSFORMER, "fusion_widths": {"text": 4, "audio": 5, "vision": 6}, "fusion_layers": 2}),
    "tfr_net vectors": ("tfr_net", {**TRANSFORMER, **MAXIMUM, "bert": None, "text_dim": 7, "labels": ["a", "b", "c"]}),
    "tfr_net gru": ("tfr_net", {**TRANSFORMER, "fusion": "gru", "fuse_generated": True, "generator": "ctc"}),
    "tfr_net max": ("tfr_net", {**TRANSFORMER, **MAXIMUM}),
}


FORMATS = {
    "emt": ("torchscript", "exported_program", "onnx"),
    "emt vectors": ("torchscript", "onnx"),
    "mult": ("torchscript", "exported_program", "onnx"),
    "tfr_net": ("exported_program", "onnx"),
}
"""Formats to export by configuration; the others go to ONNX alone, to keep the suite short."""
BOTH = ("emt", "torchscript")
"""What is exported in both buckets, all else in the short one."""
DIMS = ("text_len", "audio_len")
TWO = {"modalities": ["text", "audio"], "buckets": [SHORT.only(DIMS), LONG.only(DIMS)]}
EXPORTED = {n: TWO if n in ("tfr_net vectors", "tfr_net gru") else {} for n in CONFIGS}
"""What is exported of each configuration: of three modalities TFR-Net has twice the layers, as `tfr_net` shows."""


def make_emt(root: Path, name: str, **changes: Any) -> Bundle:
    """A bundle without variants, some values of its configuration changed; every weight has a value of its own."""
    system_name, values = CONFIGS[name]
    system = registry.get(system_name)
    config = system.parse(values | changes)
    torch.manual_seed(0)
    model = system.build(config)
    for tensor in model.state_dict().values():
        if tensor.dtype.is_floating_point and tensor.ndim < 2:
            tensor.add_(0.1 * torch.rand(tensor.shape))
    manifest = Manifest(
        system=system_name,
        variant=system.variant_of(config),
        config=config.model_dump(mode="json"),
        task=system.task(config),
        contract=system.contract(config),
    )
    bundle = Bundle.create(root, manifest)
    with bundle.commit() as change:
        change.write("config.yaml", "data: {}\n")
        save_model(model, str(change.file(WEIGHTS)))
    return bundle


def export_emt(once: Once, name: str) -> Bundle:
    """The bundle of a configuration with its variants in `FORMATS`; read only."""

    def make(root: Path) -> Bundle:
        bundle = make_emt(root, name, **EXPORTED[name])
        contract = bundle.manifest.contract
        example = [utterance(contract, seed) for seed in range(3)]
        for kind in FORMATS.get(name, ("onnx",)):
            for lengths in contract.buckets if (name, kind) == BOTH else contract.buckets[:1]:
                export_variant(bundle, kind, lengths, example=example)
        return bundle

    return once(name, make)


def utterance(contract: Contract, seed: int, longest: dict[str, int] | None = None) -> Sample:
    """Random lengths up to `longest`, random content."""
    random = np.random.default_rng(seed)
    lengths = {d: int(random.integers(3, n + 1)) for d, n in (longest or SHORT).items()}
    inputs: dict[str, np.ndarray] = {}
    for spec in contract.features:
        shape = tuple(lengths[d] if isinstance(d, str) else d for d in spec.dims[1:])
        inputs[spec.name] = (
            random.integers(0, spec.below, shape) if spec.below else random.standard_normal(shape, dtype=np.float32)
        )
    return Sample(f"u{seed}", inputs, (f"u{seed}",), np.asarray([random.uniform(-3, 3)], dtype=np.float32))
