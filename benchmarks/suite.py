"""The networks at published sizes with random weights, and items of the lengths that their data sets have."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.flops import facialmmt_gflop
from mer_export import registry
from mer_export.bundle import WEIGHTS, Bundle, Manifest
from mer_export.contract import Contract, Lengths
from mer_export.data.samples import Sample
from mer_export.exporters.job import random_indices
from runtimes.probes import units
from train.config import load_preset


@dataclass(frozen=True)
class Network:
    """One network at its published size.

    `buckets` are what is timed, `lengths` the shortest and longest real items of each sequence dim that a sample
    brings. `gflop` counts the work of one padded batch from (config, batch, bucket); None where nobody counted it.
    """

    preset: str
    buckets: tuple[Lengths, ...]
    lengths: dict[str, tuple[int, int]]
    batches: tuple[int, ...]
    gflop: Callable[[Any, int, Lengths], float] | None = None
    stages: bool = False
    """Whether its stages are exported apart too."""

    @property
    def system(self) -> str:
        return self.preset.partition("/")[0]

    @property
    def config(self) -> Any:
        """The system's configuration, as the published recipe has it."""
        recipe = load_preset(self.preset)
        return registry.get(recipe.system).parse(recipe.model)


def cmerc_gflop(config: Any, batch: int, lengths: Lengths) -> float:
    """Multiply-adds of one padded forward pass as 2 operations each, in 1e9; norms and activations are left out.

    Counted by hand: PyTorch's counter does not see recurrent layers.
    """
    steps, width, hidden, half = lengths["utterances"], config.width, config.hidden, config.width // 2
    linear = (config.text_dim * width if config.text_linear else 0) + (config.audio_dim + config.vision_dim) * width
    recurrent = 2 * 2 * 3 * (width * half + half * half)  # 2 layers, 2 directions, 3 gates
    per_node = 3 * width * hidden + config.frequency_layers * 3 * (2 * hidden + steps * hidden)
    classify = 6 * hidden * len(config.labels)
    return 2e-9 * batch * steps * (linear + recurrent + per_node + classify)


NETWORKS = {
    "cmerc_iemocap": Network(
        preset="cmerc/iemocap",
        # The bucket of a usual dialogue, and the one that holds the longest.
        buckets=({"utterances": 64}, {"utterances": 110}),
        lengths={"utterances": (20, 110)},
        batches=(1, 16),
        gflop=cmerc_gflop,
    ),
    "cmerc_meld": Network(
        preset="cmerc/meld",
        buckets=({"utterances": 16}, {"utterances": 33}),
        lengths={"utterances": (1, 33)},
        batches=(1, 16),
        gflop=cmerc_gflop,
    ),
    # With BERT-base as text encoder.
    "emt_mosi": Network(
        preset="emt/mosi",
        buckets=({"text_len": 50, "audio_len": 375, "vision_len": 500},),
        lengths={"text_len": (5, 50), "audio_len": (30, 375), "vision_len": (40, 500)},
        batches=(1, 32),
    ),
    # With RoBERTa-large as text encoder. The lengths of the published arrays are not known, these are the presets'.
    "facialmmt_fusion": Network(
        preset="facialmmt/meld_fusion",
        buckets=({"text_len": 256, "audio_len": 512, "vision_len": 128},),
        lengths={"text_len": (40, 256), "audio_len": (25, 512), "vision_len": (5, 128)},
        batches=(1,),
        gflop=facialmmt_gflop,
        stages=True,
    ),
    # The expression model, Swin-tiny: one face, and the faces of a short utterance.
    "facialmmt_face": Network(
        preset="facialmmt/affwild",
        buckets=({},),
        lengths={},
        batches=(1, 16),
        gflop=facialmmt_gflop,
    ),
    # Text and speech tokens as utterances of IEMOCAP have them; 461 M parameters.
    "tab_iemocap": Network(
        preset="tab/iemocap",
        buckets=({"text_len": 32, "audio_len": 512}, {"text_len": 128, "audio_len": 1024}),
        lengths={"text_len": (4, 110), "audio_len": (60, 1000)},
        batches=(1, 8),
    ),
    "mtee_mosei": Network(
        preset="mtee/mosei",
        buckets=({"steps": 20, "emotions": 16},),
        lengths={"steps": (5, 20)},
        batches=(1, 64),
    ),
    "mtee_iemocap": Network(
        preset="mtee/iemocap",
        buckets=({"steps": 50, "emotions": 16},),
        lengths={"steps": (10, 50)},
        batches=(1, 64),
    ),
}


def random_bundle(root: Path, network: Network, seed: int = 0) -> Bundle:
    """A bundle of this network with random weights; inputs that items share have one random row for each label."""
    import torch
    from safetensors.torch import save_model

    torch.manual_seed(seed)
    config, system = network.config, registry.get(network.system)
    task, contract = system.task(config), system.contract(config)
    draw = np.random.default_rng(seed)
    for spec in contract.inputs:
        if not spec.batched:
            rows = draw.standard_normal(spec.shape(1, {str(spec.dims[0]): len(task.labels)}))
            contract = contract.with_shared(spec.name, dict(zip(task.labels, map(tuple, rows.tolist()), strict=True)))
    manifest = Manifest(
        system=system.name,
        variant=system.variant_of(config),
        config=config.model_dump(mode="json"),
        task=task,
        contract=contract,
        provenance={"origin": "random weights", "seed": seed, "preset": network.preset},
    )
    bundle = Bundle.create(root, manifest)
    with bundle.commit() as change:
        save_model(system.build(config), str(change.file(WEIGHTS)))
    return bundle


def random_samples(contract: Contract, lengths: dict[str, tuple[int, int]], count: int, seed: int = 0) -> list[Sample]:
    """Unlabelled random items, lengths evenly from shortest to longest.

    All dims of an item grow together, as text, audio and video of one utterance do.
    """
    random = np.random.default_rng(seed)
    sizes = {dim: np.linspace(*ends, count).round().astype(int).tolist() for dim, ends in lengths.items()}
    samples = []
    for i in range(count):
        own = {dim: size[i] for dim, size in sizes.items()}
        inputs: dict[str, np.ndarray] = {}
        for spec in contract.features:
            # A sample has no batch dim.
            shape = spec.shape(1, own)[1:]
            if spec.dtype == "int64":
                inputs[spec.name] = random_indices(spec, shape, random)
            else:
                inputs[spec.name] = random.standard_normal(shape, dtype=np.float32)
        samples.append(Sample(f"random{i}", inputs, tuple(f"random{i}/{k}" for k in range(units(contract, own)))))
    return samples
