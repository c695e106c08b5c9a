"""From an authors' checkpoint to a bundle."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from mer_export import __version__, registry
from mer_export.bundle import CONFIG, WEIGHTS, Bundle, Manifest, sha256
from mer_export.data.spec import DataSpec
from mer_export.data.tokenizers import keep_tokenizers
from mer_export.data.word_vectors import vectors_of
from mer_export.weights import import_weights, load_checkpoint


def import_checkpoint(
    system: str, checkpoint: Path, resolved: dict[str, Any], out: Path, force: bool = False
) -> tuple[Bundle, dict[str, int]]:
    """Makes a bundle from a state_dict with the authors' parameter names.

    Args:
        system: name in the registry.
        checkpoint: torch or safetensors file, or plain pickle, of tensors; nothing in it is executed.
        resolved: the whole configuration to keep in the bundle; its `model` section describes the network. Word vectors
            that its `data` section names are taken from there or from beside the checkpoint, else from the checkpoint.
        out: the new bundle.
        force: replace an existing bundle.

    Returns:
        The bundle, and how many entries were loaded, unused and kept at their own value.

    Raises:
        UsageError: with every missing, unexpected or misshapen entry.
    """
    from safetensors.torch import save_model

    record = registry.get(system)
    config = record.parse(resolved["model"])
    model = record.build(config)
    state = load_checkpoint(checkpoint)
    data = DataSpec.model_validate(resolved.get("data") or {})
    found = {"state": state} | vectors_of(data.emotions, (Path(), checkpoint.parent))
    report = import_weights(model, state, registry.resolve(record.weights), config)
    manifest = Manifest(
        system=system,
        variant=record.variant_of(config),
        config=config.model_dump(mode="json"),
        task=record.task(config),
        contract=record.complete(record.contract(config), config, found),
        provenance={
            "origin": "imported checkpoint",
            "file": checkpoint.name,
            "sha256": sha256(checkpoint),
            "source": record.source,
            "mer": __version__,
        },
    )
    bundle = Bundle.create(out, manifest, force)
    with bundle.commit() as change:
        change.write(CONFIG, yaml.safe_dump(resolved, sort_keys=False))
        keep_tokenizers(change, data)
        save_model(model, str(change.file(WEIGHTS)))
    return bundle, report
