"""Runs an experiment: every bundle resumed where it was left, every cell measured, and the table over them."""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path, PurePosixPath

from mer_export import registry
from mer_export.bundle import Bundle
from mer_export.errors import UsageError
from mer_export.experiment import SPLIT, ExperimentResult, Failed, Trained, metric_of
from mer_export.faults import explain
from mer_export.progress import Progress
from mer_export.weights import load_from_bundle
from train.config import TrainConfig
from train.experiments.baselines.run import evaluation_of, fit_baseline
from train.experiments.experiment import Cell, Job, Plan
from train.experiments.workers import side_by_side
from train.fit import EVALUATION, fit
from train.model_metrics import evaluate_model
from train.prepared import prepare

Measured = dict[str, dict[str, float]]
"""Metrics by semantics."""
Known = dict[tuple[int, str], Measured | str]
"""By the place of a cell in the plan and the split, what was measured or why it was not."""


def run(
    planned: Plan,
    data: Path,
    out: Path,
    progress: Progress,
    jobs: int = 1,
    force: bool = False,
) -> ExperimentResult:
    """Trains what is not trained yet and measures every cell; the results so far are written after each bundle.

    A run that was killed goes on where it stopped, a bundle at its last committed epoch. A cell that fails leaves its
    reason in the results and does not end the others.

    Args:
        planned: see `plan`.
        data: data set.
        out: directory of the bundles and of `experiment.json`, `.md` and `.csv`.
        progress: shows every bundle as it is done.
        jobs: processes that train side by side; their threads share the processor.
        force: starts every bundle over.

    Returns:
        The results; `failed` names the cells that could not be measured.
    """
    out.mkdir(parents=True, exist_ok=True)
    failures: dict[PurePosixPath, str] = {}
    known: Known = {}
    result = _result(planned, known)
    total = sum(map(len, planned.rounds))
    with progress.over(planned.title, total, "bundle") as shown, side_by_side(jobs) as workers:
        for jobs_of_round in planned.rounds:
            lost = {j.folder: "an earlier step failed" for j in jobs_of_round if any(f in failures for f in j.needs)}
            ready = [j for j in jobs_of_round if j.folder not in lost]
            failures |= lost
            for job, reason in _trained(workers, ready, data, out, force):
                if reason:
                    failures[job.folder] = reason
                known |= {
                    (i, split): reason or _measured(cell, job, data, out, split)
                    for i, cell in enumerate(planned.cells)
                    for split in planned.table.splits
                    if cell.folder == job.folder
                }
                result = _result(planned, known)
                result.save(out)
                shown.end(f"{job.title}  {reason or _headline(result, job)}")
            known |= {
                (i, split): lost[c.folder]
                for i, c in enumerate(planned.cells)
                for split in planned.table.splits
                if c.folder in lost
            }
    result = _result(planned, known)
    result.save(out)
    return result


def _result(planned: Plan, known: Known) -> ExperimentResult:
    """What is known so far, in the order of the plan and not of the processes."""
    trained, failed = [], []
    splits = planned.table.splits
    for (index, cell), split in itertools.product(enumerate(planned.cells), splits):
        place = cell.place | ({SPLIT: split} if len(splits) > 1 else {})
        outcome = known.get((index, split))
        if isinstance(outcome, str):
            failed.append(Failed(model=cell.model, cell=place, reason=outcome))
        elif outcome is not None:
            metrics = {n: _number(outcome, n) for n in planned.table.metrics}
            trained.append(Trained(model=cell.model, cell=place, bundle=str(cell.folder), metrics=metrics))
    return ExperimentResult(
        title=planned.title, source=planned.source, table=planned.table, trained=trained, failed=failed
    )


def _number(measured: Measured, name: str) -> float | None:
    semantics, metric = metric_of(name)
    value = measured.get(semantics, {}).get(metric)
    return None if value is None or math.isnan(value) else value


def _headline(result: ExperimentResult, job: Job) -> str:
    """The first metric of the table where the bundle is measured."""
    name = result.table.metrics[0]
    found = dict.fromkeys(t.metrics[name] for t in result.trained if t.bundle == str(job.folder))
    return " ".join([name, *(f"{v}" for v in found if v is not None)]) if found else "trained"


def _trained(
    workers: ProcessPoolExecutor | None, jobs: Sequence[Job], data: Path, out: Path, force: bool
) -> Iterator[tuple[Job, str | None]]:
    """The jobs in the order in which they end, each with the reason of its failure."""
    if workers is None:
        for job in jobs:
            yield job, train(job, data, out, force)
        return
    waiting: dict[Future[str | None], Job] = {workers.submit(train, j, data, out, force): j for j in jobs}
    for future in as_completed(waiting):
        try:
            reason = future.result()
        except BrokenProcessPool:
            raise UsageError(
                "a process that trains was killed, perhaps for want of memory: run it again with fewer --jobs, it goes "
                "on where it stopped"
            ) from None
        yield waiting[future], reason


def train(job: Job, data: Path, out: Path, force: bool = False) -> str | None:
    """One bundle or baseline, trained or taken as it is; why it could not be."""
    try:
        if job.baseline is not None:
            fit_baseline(job.baseline, job.config, data, out / job.folder, force)
        else:
            fit(job.config, data, out / job.folder, force=force, quiet=True)
    except Exception as error:
        return _why(error)
    return None


def _why(error: Exception) -> str:
    """What an error says; raises it again where only a bug of ours explains it."""
    if (known := explain(error)) is None:
        raise error
    return str(known)


def _measured(cell: Cell, job: Job, data: Path, out: Path, split: str) -> Measured | str:
    folder = out / cell.folder
    try:
        if cell.config is not None:
            return {"single": measure_as(Bundle.open(folder), cell.config, data, split)}
        # By what it is now: the folder may have results of both from runs of before.
        if job.baseline is not None:
            found = evaluation_of(folder)
        else:
            found = json.loads(Bundle.open(folder).path(EVALUATION).read_text())
    except Exception as error:
        return _why(error)
    return found.get(split) or f"the split {split!r} was not measured, there are {list(found)}: see evaluate_splits"


def measure_as(bundle: Bundle, config: TrainConfig, data: Path, split: str) -> dict[str, float]:
    """Metrics of a bundle's weights under another configuration: other emotions, other data, the same network.

    Raises:
        UsageError: the data have no such split, or the network has other entries.
    """
    prepared = prepare(config, data, draws_weights=False)
    model = registry.get(config.system).build(prepared.model_config)
    load_from_bundle(model, bundle.root)
    if split not in prepared.measured:
        raise UsageError(f"the split {split!r} was not measured, there are {list(prepared.measured)}")
    return evaluate_model(model, prepared.measured[split], prepared.contract, prepared.task).metrics
