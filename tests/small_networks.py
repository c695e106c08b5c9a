"""A tiny network of every system and variant, and of every option that changes the graph, ready to be exported."""

from __future__ import annotations

from typing import Any

import mtee_bundles
import numpy as np
import small_bundle
import small_emt
import small_facialmmt
import small_tab
import torch

from mer_export import registry
from mer_export.data.example_inputs import random_inputs
from mer_export.exporters.export_job import ExportJob
from mer_export.reference import run_model

NETWORKS: dict[str, tuple[str, dict[str, Any]]] = {
    **{
        f"cmerc {base}": ("cmerc", small_bundle.CONFIG | {"base_model": base, "encode_audio_vision": True})
        for base in ("gru", "lstm", "transformer")
    },
    **small_emt.CONFIGS,
    **{f"facialmmt {name}": ("facialmmt", values) for name, values in small_facialmmt.VARIANTS.items()},
    **{f"tab {name}": ("tab", small_tab.values(name)) for name in small_tab.VARIANTS},
    **{f"mtee {name}": ("mtee", mtee_bundles.BASE | values) for name, values in mtee_bundles.CONFIGS.items()},
}


def job_of(name: str, batch: int = 0, **changes: Any) -> ExportJob:
    """The network of that name with random weights, its longest bucket, and three items of different lengths."""
    system_name, values = NETWORKS[name]
    system = registry.get(system_name)
    config = system.parse(values | changes)
    torch.manual_seed(0)
    model = system.build(config).requires_grad_(False)
    for part in getattr(model, "training_only", ()):
        delattr(model, part)
    draw = np.random.default_rng(0)
    vectors = {label: draw.normal(size=mtee_bundles.WORDS) for label in getattr(config, "labels", ())}
    contract = system.complete(system.contract(config), config, {"vectors": vectors})
    bucket = contract.buckets[-1]
    arrays = random_inputs(contract, bucket, items=3)
    return ExportJob(model, contract, bucket, batch, 20, arrays, run_model(model, contract, arrays))
