"""Cross-validation as an experiment: a recipe over the folds of its data."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import PurePosixPath

from mer_export import registry
from mer_export.errors import UsageError
from mer_export.experiment import TableSpec
from mer_export.overrides import apply_overrides
from train.config import TrainConfig, parse_config
from train.experiments.experiment import Cell, Job, Plan

FOLD = "data.context.fold"


def of_fold(config: TrainConfig, fold: int) -> TrainConfig:
    """The configuration of one fold; raises UsageError where its data have none."""
    if config.data.context is None:
        raise UsageError(f"{config.system} data have no folds: --fold is for data with a context section (tab)")
    found = parse_config(apply_overrides(config.model_dump(mode="json"), [f"{FOLD}={fold}"]))
    return found.model_copy(update={"data": found.data.allowing(config.data.allowed)})


def plan_folds(config: TrainConfig, folds: Sequence[int], split: str = "test") -> Plan:
    """One bundle per fold in `fold<k>`, and every metric of the task over them.

    Raises:
        UsageError: no folds were given, or the data have none.
    """
    if not folds:
        raise UsageError("no folds were given")
    jobs = [Job(f"fold {k}", PurePosixPath(f"fold{k}"), (), of_fold(config, k)) for k in folds]
    cells = [Cell(config.system, {FOLD: str(k)}, job.folder, None) for k, job in zip(folds, jobs, strict=True)]
    system = registry.get(config.system)
    metrics = [m for m in system.task(system.parse(config.model)).family.metrics if m.whole]
    table = TableSpec(split=split, columns={m.title: (m.name,) for m in metrics}, over=(FOLD,))
    return Plan(f"{config.title or config.system}, {len(folds)} folds", "", table, [jobs], cells)
