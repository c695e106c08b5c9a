"""Tiny mtee bundles with random weights, one for each network and option that changes it, and random utterances."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from conftest import Once
from safetensors.torch import save_model

from mer_export import registry
from mer_export.bundle import WEIGHTS, Bundle, Manifest
from mer_export.contract import Contract
from mer_export.data.samples import Sample
from mer_export.exporters import export_variant

WIDTHS = {"text": 6, "audio": 5, "vision": 4}
WORDS = 6
BASE: dict[str, Any] = {
    **{f"{m}_dim": n for m, n in WIDTHS.items()},
    "labels": ["anger", "fear", "happy"],
    "hidden_sizes": [WORDS, 5, 4],
    "hidden_size": 5,
    "layers": 2,
    "buckets": [6, 9],
    "emotion_slots": 5,
}
MULT = {"width": 8, "heads": 2, "layers": 1}
CONFIGS: dict[str, dict[str, Any]] = {
    "eea": {},
    "eea_unaligned": {"aligned": False, "buckets": [{"text": 6, "audio": 9, "vision": 7}]},
    "eea_gru_text_vision": {"cell": "gru", "modalities": ["text", "vision"], "layers": 1},
    "eea_audio": {"bidirectional": False, "modalities": ["audio"]},
    "eea_filled": {"fill": 6, "buckets": [6]},
    "rnn_ef": {"model": "rnn", "fusion": "ef"},
    "rnn_lf": {"model": "rnn", "fusion": "lf", "cell": "gru", "aligned": False},
    "rnn_eflf": {"model": "rnn", "fusion": "eflf", "bidirectional": False},
    "mult": {
        "model": "mult",
        "mult": MULT,
        "aligned": False,
        "buckets": [{"text": 6, "audio": 9, "vision": 7}],
    },
    "mult_masked": {"model": "mult", "mult": MULT | {"masked": True, "streams": ["audio"]}},
    "transformer": {"model": "transformer", "transformer": {"width": 8, "heads": 2, "layers": 2, "feed_forward": 8}},
    "transformer_time": {
        "model": "transformer",
        "transformer": {"width": 8, "heads": 2, "layers": 2, "feed_forward": 8, "attention": "time"},
    },
    "regression": {"model": "rnn", "task": "regression", "labels": ["sentiment"]},
}


def config_of(name: str) -> Any:
    return registry.get("mtee").parse(BASE | CONFIGS[name])


def contract_of(config: Any, seed: int = 0) -> Contract:
    """The contract, with random word vectors where it shares any."""
    system = registry.get("mtee")
    draw = np.random.default_rng(seed)
    vectors = {label: draw.normal(size=WORDS) for label in config.labels}
    return system.complete(system.contract(config), config, {"vectors": vectors})


def randomised(config: Any, seed: int = 0) -> torch.nn.Module:
    """The network with a value of its own for every parameter."""
    torch.manual_seed(seed)
    model = registry.get("mtee").build(config)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn_like(parameter) * (0.4 if parameter.ndim > 1 else 0.7))
    return model


def make_bundle(root: Path, name: str) -> Bundle:
    """A bundle without variants."""
    system, config = registry.get("mtee"), config_of(name)
    manifest = Manifest(
        system="mtee",
        variant=config.variant,
        config=config.model_dump(mode="json"),
        task=system.task(config),
        contract=contract_of(config),
    )
    bundle = Bundle.create(root, manifest)
    with bundle.commit() as change:
        save_model(randomised(config), str(change.file(WEIGHTS)))
    return bundle


FORMATS = dict.fromkeys(("eea", "rnn_lf", "mult_masked", "transformer"), ("onnx", "torchscript", "exported_program"))
FORMATS |= dict.fromkeys(("eea_unaligned", "mult"), ("onnx", "torchscript"))
"""Formats to export by network; the others, of the same layers, go to ONNX alone, to keep the suite short."""


def export_mtee(once: Once, name: str) -> Bundle:
    """The bundle of a network, its longest bucket in `FORMATS`; read only."""

    def made(root: Path) -> Bundle:
        bundle = make_bundle(root, name)
        for kind in FORMATS.get(name, ("onnx",)):
            export_variant(bundle, kind, bundle.manifest.contract.buckets[-1])
        return bundle

    return once(f"mtee {name}", made)


def make_samples(config: Any, count: int = 8, seed: int = 0) -> list[Sample]:
    """Labelled utterances of different lengths; one lacks a modality, one starts with zero rows."""
    draw = np.random.default_rng(seed)
    samples = []
    for i in range(count):
        steps = {
            m: 5 + i % 2 if config.aligned else 5 + (i + k) % 2 + (m == "audio") for k, m in enumerate(config.used)
        }
        inputs = {m: draw.standard_normal((steps[m], WIDTHS[m]), dtype=np.float32) for m in config.used}
        if i == 1:
            for array in inputs.values():
                array[:2] = 0
        if i == 2 and len(inputs) > 1:
            del inputs[config.used[-1]]
        labels = draw.integers(0, 2, (1, len(config.labels))).astype(np.float32)
        if config.task == "regression":
            labels = draw.uniform(-3, 3, 1).astype(np.float32)
        samples.append(Sample(f"u{i}", inputs, (f"u{i}",), labels))
    return samples
