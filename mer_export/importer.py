"""From an authors' checkpoint to a bundle."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from mer_export import __version__, registry
from mer_export.bundle import CONFIG, WEIGHTS, Bundle, Manifest, sha256
from mer_export.bundle.bundle import taken
from mer_export.checkpoints import weight_files
from mer_export.data.spec import DataSpec
from mer_export.data.word_vectors import vectors_of
from mer_export.encoders.context import keep_tools
from mer_export.untrusted.places import Allowed
from mer_export.weights import WeightMap, import_weights, load_checkpoints, misfits, save_weights

if TYPE_CHECKING:
    from torch import Tensor, nn


def import_checkpoint(
    system: str,
    checkpoints: Path | str | Sequence[Path | str],
    resolved: dict[str, Any],
    out: Path | str,
    force: bool = False,
    key: str | None = None,
    allowed: Allowed = Allowed(),
) -> tuple[Bundle, dict[str, int]]:
    """Makes a bundle from a state_dict with the authors' parameter names.

    Args:
        system: name in the registry.
        checkpoints: torch file of any age, safetensors file, plain pickle of tensors, or model that was saved whole;
            several where the authors keep one network in several files. Nothing in them is executed.
        resolved: the whole configuration to keep in the bundle; its `model` section describes the network, up to sizes
            that only the checkpoint knows. Word vectors that its `data` section names are taken from there or from
            beside the checkpoint, else from the checkpoint.
        out: the new bundle.
        force: replace an existing bundle.
        key: where in the file the weights are, if several sets of them fit: `ema`, `teacher.state_dict`.
        allowed: where paths that `resolved` names may lead.

    Returns:
        The bundle, and how many entries were loaded, unused and kept at their own value.

    Raises:
        UsageError: `out` is not to be replaced; or with every missing, unexpected or misshapen entry.
    """
    taken(Path(out), force)
    read = read_checkpoint(system, checkpoints, resolved, key, allowed)
    bundle = Bundle.create(out, read.manifest, force)
    with bundle.commit() as change:
        change.write(CONFIG, yaml.safe_dump(read.resolved, sort_keys=False))
        keep_tools(change, read.data)
        save_weights(read.model, change.file(WEIGHTS))
    return bundle, read.report


@dataclass(frozen=True)
class Imported:
    """A checkpoint that has been read: what its bundle will say, the configuration completed from it, the network with
    its weights, and how many entries were loaded, unused and kept."""

    manifest: Manifest
    resolved: dict[str, Any]
    data: DataSpec
    model: nn.Module
    report: dict[str, int]


def read_checkpoint(
    system: str,
    checkpoints: Path | str | Sequence[Path | str],
    resolved: dict[str, Any],
    key: str | None = None,
    allowed: Allowed = Allowed(),
) -> Imported:
    """All of an import but the writing; arguments and errors as of `import_checkpoint`."""
    # Nothing can be made of a checkpoint without it, which is said before large files are read.
    import torch  # noqa: F401

    paths = [Path(p) for p in ([checkpoints] if isinstance(checkpoints, Path | str) else checkpoints)]
    files = [f for p in paths for f in weight_files(p)]
    record = registry.get(system)
    table = registry.resolve(record.weights)
    networks = _Networks(record, table, resolved["model"])
    state = load_checkpoints(paths, table, networks.problems, key)
    resolved = resolved | {"model": table.fit(resolved["model"], state)}
    config, model = networks.of(state)
    data = DataSpec.model_validate(resolved.get("data") or {}).allowing(allowed)
    found = {"state": state} | vectors_of(data, (Path(), paths[0].parent))
    report = import_weights(model, state, table, config)
    manifest = Manifest(
        system=system,
        variant=record.variant_of(config),
        config=config.model_dump(mode="json"),
        task=record.task(config),
        contract=record.complete(record.contract(config), config, found),
        provenance=_provenance(files, record),
    )
    return Imported(manifest, resolved, data, model, report)


def _provenance(files: list[Path], record: registry.System) -> dict[str, Any]:
    return {
        "origin": "imported checkpoint",
        "file": ", ".join(p.name for p in files),
        "sha256": ", ".join(sha256(p) for p in files),
        "source": record.source,
        "mer": __version__,
    }


class _Networks:
    """The networks that a configuration and the tables of a checkpoint may mean, each built once."""

    def __init__(self, record: registry.System, table: WeightMap, values: dict[str, Any]):
        self.record, self.table, self.values = record, table, values
        self._built: list[tuple[Any, nn.Module]] = []

    def of(self, state: dict[str, Tensor]) -> tuple[Any, nn.Module]:
        """The configuration that is completed with a table's sizes, and its network."""
        config = self.record.parse(self.table.fit(self.values, state))
        for known, model in self._built:
            if known == config:
                return known, model
        self._built.append((config, self.record.build(config)))
        return self._built[-1]

    def problems(self, state: dict[str, Tensor]) -> list[str]:
        """What keeps a table from being the network's weights."""
        config, model = self.of(state)
        return misfits(model.state_dict(), state, self.table, config)
