"""Cross-validation: one run per fold, and what they say together."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from mer_export.bundle import write_atomic
from mer_export.errors import UsageError
from train.config import TrainConfig, apply_overrides, parse_config
from train.fit import EVALUATION, fit

SUMMARY = "cross_validation.json"


def of_fold(config: TrainConfig, fold: int) -> TrainConfig:
    """The configuration of one fold; raises UsageError where its data have none."""
    if config.data.context is None:
        raise UsageError(f"{config.system} data have no folds: --fold is for data with a context section (tab)")
    found = parse_config(apply_overrides(config.model_dump(mode="json"), [f"data.context.fold={fold}"]))
    return found.model_copy(update={"data": found.data.allowing(config.data.allowed)})


def cross_validate(
    config: TrainConfig, data: Path, out: Path, folds: Sequence[int], force: bool = False, quiet: bool = False
) -> dict[str, Any]:
    """Trains every fold into `out/fold<k>` and writes means and deviations over them.

    Folds that are finished are left as they are, so that an interrupted run goes on.

    Args:
        config: the recipe; its fold is replaced.
        data: data set.
        out: directory of the bundles and of `cross_validation.json`.
        folds: which ones, at least one.
        force: starts every fold over.
        quiet: shows no progress.

    Returns:
        The summary: metrics by split, each with mean, deviation (over folds) and the value of every fold.
    """
    if not folds:
        raise UsageError("no folds were given")
    found = {}
    for fold in folds:
        bundle = fit(of_fold(config, fold), data, out / f"fold{fold}", force=force, quiet=quiet)
        found[fold] = json.loads(bundle.path(EVALUATION).read_text())
    summary: dict[str, Any] = {"folds": list(folds), "splits": {}}
    for split in found[folds[0]]:
        rows = [found[f][split]["single"] for f in folds]
        # A class that a fold lacks has no value there.
        names = [n for n in rows[0] if all(n in row for row in rows)]
        summary["splits"][split] = {n: _over_folds([row[n] for row in rows]) for n in names}
    write_atomic(out / SUMMARY, json.dumps(summary, indent=1).encode())
    return summary


def _over_folds(values: list[float]) -> dict[str, Any]:
    spread = float(np.std(values, ddof=1)) if len(values) > 1 else 0.0
    return {"mean": round(float(np.mean(values)), 4), "std": round(spread, 4), "values": values}
