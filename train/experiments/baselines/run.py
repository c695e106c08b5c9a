"""One cell of a baseline: chosen on its split, fitted on the recipe's training splits, measured as a bundle is."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from mer_export.bundle import write_atomic
from mer_export.errors import InputError, UsageError
from mer_export.metrics import find
from mer_export.task import Task
from train.config import TrainConfig, first_difference, parse_config
from train.devices import computing
from train.experiments.baselines import linear, recurrent
from train.experiments.baselines.inputs import Items, Reader
from train.experiments.baselines.settings import Baseline, parse_baseline
from train.model_metrics import batch_metrics, unread_labels
from train.prepared import Prepared, labelled, prepare
from train.provenance import fingerprint

RESULT = "baseline.json"
"""What a cell writes: its settings, what was chosen, and its metrics."""
READS = ("system", "model", "data", "protocol", "train_splits", "evaluate_splits", "seed", "threads")
"""What a baseline takes of its recipe: everything else is the recipe's way of training."""

Fits = Callable[[Any, Task, Items, int], Iterator[tuple[Any, Callable[[Items], np.ndarray]]]]
KINDS: dict[str, Fits] = {"linear": linear.fits, "recurrent": recurrent.fits}
"""By kind, what yields every candidate with its fitted model."""


def fit_baseline(baseline: Baseline, config: TrainConfig, data: Path, folder: Path, force: bool = False) -> None:
    """Fits a baseline and writes `baseline.json`; one that is there already is taken as it is.

    Args:
        baseline: which one, and its candidates.
        config: the recipe whose data, inputs, splits, labels and seed it takes.
        data: data set.
        folder: of the cell.
        force: fits it anew.

    Raises:
        UsageError: the folder holds one of other settings or data, the split to choose on is missing, or the recipe has
            no vectors.
        InputError: data that the recipe cannot take.
        NotAvailableError: scikit-learn is missing.
    """
    prepared = prepare(config, data, draws_weights=False)
    made_of = {
        "baseline": baseline.model_dump(mode="json"),
        "recipe": _read_of(config),
        "data": fingerprint(prepared.source),
    }
    if (folder / RESULT).is_file() and not force:
        return _refuse_other(folder, made_of)
    with computing(config, prepared.accelerator.device):
        chosen, evaluation = _measured(baseline, prepared)
    folder.mkdir(parents=True, exist_ok=True)
    found = {"schema_version": 1, **made_of, "chosen": chosen, "evaluation": evaluation}
    write_atomic(folder / RESULT, json.dumps(found, indent=1).encode())
    return None


def evaluation_of(folder: Path) -> dict[str, dict[str, dict[str, float]]]:
    """Metrics of a cell by split and semantics, as `train/evaluation.json` of a bundle has them."""
    found: dict[str, dict[str, dict[str, float]]] = _kept(folder)["evaluation"]
    return found


def _read_of(config: TrainConfig) -> dict[str, Any]:
    """What a baseline takes of a recipe."""
    return {n: v for n, v in config.model_dump(mode="json").items() if n in READS}


def _kept(folder: Path) -> dict[str, Any]:
    """What a cell wrote; settings that came later have their defaults."""
    try:
        found = json.loads((folder / RESULT).read_text())
        baseline = parse_baseline(found["baseline"]).model_dump(mode="json")
        recipe = _read_of(parse_config(found["recipe"] | {"epochs": 1}, str(folder / RESULT)))
        return {"baseline": baseline, "recipe": recipe, "data": found["data"], "evaluation": found["evaluation"]}
    except (OSError, ValueError, KeyError, TypeError) as error:
        reason = " ".join(str(error).split())[:200]
        raise InputError(f"{folder / RESULT} cannot be read ({reason}): run again with --force") from None


def _refuse_other(folder: Path, made_of: dict[str, Any]) -> None:
    before = _kept(folder)
    changed = first_difference({n: before[n] for n in made_of}, json.loads(json.dumps(made_of)))
    if changed:
        raise UsageError(f"{folder} was made with another {changed}: pass --force to start over, or another --out")


def _measured(baseline: Baseline, prepared: Prepared) -> tuple[Any, dict[str, Any]]:
    """What was chosen, and the metrics of every evaluated split."""
    split, trained_on = baseline.choose_on, prepared.config.train_splits
    if split is None:
        return _best(baseline, prepared, trained_on, None)
    others = tuple(n for n in trained_on if n != split)
    if not others:
        raise UsageError(f"the baseline is to be chosen on {split!r}, which is all that is trained on")
    chosen, evaluation = _best(baseline, prepared, others, split)
    if split not in trained_on:
        return chosen, evaluation
    return _best(baseline.only(chosen), prepared, trained_on, None)


def _best(
    baseline: Baseline, prepared: Prepared, splits: Sequence[str], choose_on: str | None
) -> tuple[Any, dict[str, Any]]:
    """Of the candidates fitted to `splits` the one with the best headline metric on `choose_on`, and its metrics.

    With None the last candidate.
    """
    task, metric = prepared.task, find(prepared.task.headline)
    training = labelled(prepared.corpus, splits, task)
    reader = Reader(prepared.contract, task, training)
    names = [*prepared.measured, *([choose_on] if choose_on else [])]
    items = {n: reader.read(prepared.corpus.split(n)) for n in names}
    best: tuple[Any, dict[str, Any]] | None = None
    most = -math.inf
    for candidate, scores in KINDS[baseline.kind](baseline, task, reader.read(training), prepared.config.seed):
        if choose_on is not None:
            value = metric.sign * _metrics(prepared, choose_on, items[choose_on], scores)[metric.name]
            if best is not None and not value > most:
                continue
            most = value
        found = {n: {"single": _metrics(prepared, n, items[n], scores)} for n in prepared.measured}
        best = candidate, found
    assert best is not None
    return best


def _metrics(prepared: Prepared, split: str, items: Items, scores: Callable[[Items], np.ndarray]) -> dict[str, float]:
    """Metrics through the function that measures bundles."""
    task = prepared.task
    rows = torch.from_numpy(scores(items)[items.rows].astype(np.float32))
    unread = unread_labels(prepared.corpus.split(split), prepared.contract, task)
    return batch_metrics(task, [rows], [torch.from_numpy(items.labels)], None, unread=unread)
