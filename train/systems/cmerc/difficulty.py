"""CMERC's difficulty of a dialogue (section 6.7): how often a trained M3NET trusts a degraded view more."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import torch
from torch import nn

from mer_export.bundle import Bundle
from mer_export.data.formats.cmerc.difficulty import read_difficulty, write_difficulty
from mer_export.data.samples import Sample
from mer_export.errors import InputError, UsageError
from mer_export.models.cmerc import contract
from mer_export.models.cmerc.network import Cmerc
from mer_export.weights import bundle_model
from train.batches import make_batch
from train.systems.cmerc.losses import rank
from train.systems.cmerc.views import degraded

CANDIDATES = ("difficulty.json", "caldiff/*_diff.pkl", "*_diff.pkl", "../caldiff/*_diff.pkl")
"""Where a difficulty file may lie, seen from the data directory (the authors keep `caldiff` beside `data`)."""

__all__ = ["CANDIDATES", "find_difficulty", "measure_difficulty", "read_difficulty", "write_difficulty"]


@torch.no_grad()
def measure_difficulty(source: Bundle | nn.Module, samples: Iterable[Sample]) -> dict[str, float]:
    """Difficulty of each labelled dialogue, one dialogue at a time.

    Args:
        source: a trained bundle or model (plain M3NET in the published recipe).
        samples: labelled dialogues; the published recipe measures the training split.

    Returns:
        Dialogue id to (hinge + speakers) / (speakers + utterances); higher is harder.
    """
    model = bundle_model(source) if isinstance(source, Bundle) else source
    if not isinstance(model, Cmerc):
        raise UsageError(f"difficulty is measured with a cmerc model, not with {type(model).__name__}")
    model.eval()
    device = next(model.parameters()).device
    spec = contract(model.config)
    found = {}
    for sample in samples:
        batch = make_batch([sample], spec, device)
        if not len(batch.labels):
            raise InputError(f"{sample.id} has no label: difficulty needs labelled dialogues")
        log_prob = batch.rows(model(**batch.inputs))
        views = {n: batch.rows(v) for n, v in degraded(model, batch.inputs, "single").items()}
        hinge = float(rank(log_prob, views, batch.labels))
        speakers = int(batch.inputs["speaker"].max()) + 1
        found[sample.id] = (hinge + speakers) / (speakers + len(sample.units))
    if not found:
        raise InputError("there is no dialogue to measure the difficulty of: name a split that has some")
    return found


def find_difficulty(data: Path, dataset: str | None = None) -> Path:
    """The difficulty file of a data directory, of `dataset` where several lie there.

    Raises:
        UsageError: there is none, or more than one.
    """
    folder = data if data.is_dir() else data.parent
    for pattern in CANDIDATES:
        files = sorted(folder.glob(pattern))
        if len(files) > 1 and dataset:
            files = [f for f in files if f.name.lower().startswith(dataset)]
        if len(files) > 1:
            names = [f.name for f in files]
            raise UsageError(f"{folder} has several difficulty files {names}: set protocol.curriculum.difficulty")
        if files:
            return files[0]
    raise UsageError(
        f"{folder} has no difficulty file ({CANDIDATES[0]} or {CANDIDATES[1]}): "
        "pass --set protocol.curriculum.difficulty=measure to train a plain model and measure"
    )
