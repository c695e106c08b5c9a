"""The published networks with random weights, and items of the lengths that their data sets have."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from mer_export import registry
from mer_export.bundle import WEIGHTS, Bundle, Manifest
from mer_export.contract import Contract
from mer_export.data.samples import Sample

IEMOCAP: dict[str, Any] = {}
"""The config's defaults are the published IEMOCAP network."""
MELD: dict[str, Any] = {
    "labels": ["neutral", "surprise", "fear", "sadness", "joy", "disgust", "anger"],
    "speakers": 9,
    "audio_dim": 300,
    "text_linear": False,
    "width": 1024,
    "frequency_layers": 3,
    "dropout": 0.4,
    "buckets": [8, 16, 33],
}
NETWORKS = {"iemocap": IEMOCAP, "meld": MELD}
BUCKETS = {"iemocap": [{"utterances": 64}, {"utterances": 110}], "meld": [{"utterances": 16}, {"utterances": 33}]}
"""What is timed: the bucket of a usual dialogue, and the one that holds the longest."""
LENGTHS = {"iemocap": (20, 110), "meld": (1, 33)}


def random_bundle(root: Path, config: dict[str, Any], seed: int = 0) -> Bundle:
    """A cmerc bundle of this config with random weights."""
    import torch
    from safetensors.torch import save_model

    torch.manual_seed(seed)
    system = registry.get("cmerc")
    parsed = system.parse(config)
    manifest = Manifest(
        system=system.name,
        variant=system.variant_of(parsed),
        config=parsed.model_dump(mode="json"),
        task=system.task(parsed),
        contract=system.contract(parsed),
        provenance={"origin": "random weights", "seed": seed},
    )
    bundle = Bundle.create(root, manifest)
    with bundle.commit() as change:
        save_model(system.build(parsed), str(change.file(WEIGHTS)))
    return bundle


def random_samples(contract: Contract, lengths: tuple[int, int], count: int, seed: int = 0) -> list[Sample]:
    """Unlabelled random dialogues, lengths evenly from shortest to longest."""
    random = np.random.default_rng(seed)
    samples = []
    for i, size in enumerate(np.linspace(*lengths, count).round().astype(int).tolist()):
        inputs: dict[str, np.ndarray] = {}
        for spec in contract.features:
            shape = tuple(d if isinstance(d, int) else size for d in spec.dims[1:])
            if spec.dtype == "int64":
                inputs[spec.name] = random.integers(0, spec.below or 1, shape)
            else:
                inputs[spec.name] = random.standard_normal(shape, dtype=np.float32)
        samples.append(Sample(f"random{i}", inputs, tuple(f"random{i}/{k}" for k in range(size))))
    return samples


def gflop(config: Any, batch: int, steps: int) -> float:
    """Multiply-adds of one padded forward pass as 2 operations each, in 1e9; norms and activations are left out.

    Counted by hand: PyTorch's counter does not see recurrent layers.
    """
    width, hidden, half = config.width, config.hidden, config.width // 2
    linear = (config.text_dim * width if config.text_linear else 0) + (config.audio_dim + config.vision_dim) * width
    recurrent = 2 * 2 * 3 * (width * half + half * half)  # 2 layers, 2 directions, 3 gates
    per_node = 3 * width * hidden + config.frequency_layers * 3 * (2 * hidden + steps * hidden)
    classify = 6 * hidden * len(config.labels)
    return 2e-9 * batch * steps * (linear + recurrent + per_node + classify)
