"""A tiny cmerc bundle with random weights and random labelled dialogues, quick to export and to run."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import onnx
import torch
from safetensors.torch import save_model

from mer_export import registry
from mer_export.bundle import WEIGHTS, Bundle, Manifest
from mer_export.data.samples import Sample
from mer_export.exporters import export_variant
from mer_export.weights import bundle_model

CONFIG = {
    "labels": ("neutral", "joy", "anger"),
    "speakers": 3,
    "text_dim": 16,
    "audio_dim": 8,
    "vision_dim": 6,
    "text_vectors": 2,
    "width": 16,
    "hidden": 16,
    "hypergraph_layers": 2,
    "frequency_layers": 2,
    "buckets": (4, 8),
}


def make_bundle(root: Path, seed: int = 0) -> Bundle:
    """A bundle without variants."""
    torch.manual_seed(seed)
    system = registry.get("cmerc")
    config = system.parse(CONFIG)
    manifest = Manifest(
        system="cmerc",
        variant="gru",
        config=config.model_dump(mode="json"),
        task=system.task(config),
        contract=system.contract(config),
    )
    bundle = Bundle.create(root, manifest)
    reweigh(bundle, seed)
    return bundle


def reweigh(bundle: Bundle, seed: int) -> None:
    """Replaces the weights of a bundle by others."""
    torch.manual_seed(seed)
    system = registry.get("cmerc")
    with bundle.commit() as change:
        save_model(system.build(system.parse(CONFIG)), str(change.file(WEIGHTS)))


def randomise(bundle: Bundle, seed: int = 0) -> None:
    """Gives every parameter and statistic of a bundle a value of its own, none 0, 1 or equal to another."""
    random = torch.Generator().manual_seed(seed)
    model = bundle_model(bundle)
    for name, value in model.state_dict().items():
        if value.dtype.is_floating_point:
            positive = "running_var" in name or "hyperedge_weight" in name or "node_weight" in name
            drawn = torch.rand(value.shape, generator=random)
            value.copy_(drawn + 0.5 if positive else (drawn - 0.5) * (2.0 if value.ndim < 2 else 0.8))
    with bundle.commit() as change:
        save_model(model, str(change.file(WEIGHTS)))


def export_all(root: Path) -> Bundle:
    """A bundle with values of its own, in every format and both buckets."""
    bundle = make_bundle(root)
    randomise(bundle)
    for lengths in bundle.manifest.contract.buckets:
        for name in ("torchscript", "exported_program", "onnx"):
            export_variant(bundle, name, lengths, example=make_samples())
    return bundle


def part_of(exported: Bundle, root: Path, *kept: tuple[str | int, ...]) -> Bundle:
    """A copy of an exported bundle with the variants of these formats, each with the lengths of its bucket, alone."""
    bundle = Bundle.open(shutil.copytree(exported.root, root))
    with bundle.commit() as change:
        listed = change.manifest.variants
        change.manifest.variants = [v for v in listed if (v.format, *v.lengths.values()) in kept]
    return bundle


def other_bytes(bundle: Bundle, name: str) -> None:
    """Gives an ONNX variant another file of the same graph, as an export by another release does."""
    variant = bundle.find(name)
    model = onnx.load(bundle.path(variant.model), load_external_data=False)
    model.doc_string = "another"
    with bundle.commit() as change:
        change.write(variant.model, model.SerializeToString())


def make_samples(count: int = 10, seed: int = 0) -> list[Sample]:
    """Labelled dialogues of 1 to 8 utterances."""
    random = np.random.default_rng(seed)
    samples = []
    for i in range(count):
        size = 1 + i % 8
        inputs = {
            "text": random.standard_normal((2, size, 16), dtype=np.float32),
            "audio": random.standard_normal((size, 8), dtype=np.float32),
            "vision": random.standard_normal((size, 6), dtype=np.float32),
            "speaker": random.integers(0, 3, size),
        }
        units = tuple(f"d{i}/{k}" for k in range(size))
        samples.append(Sample(f"d{i}", inputs, units, random.integers(0, 3, size)))
    return samples
