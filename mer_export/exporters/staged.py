"""Exports the stages of a network apart: one file each, every one proven on what the stages before it give."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from mer_export.exporters.export_job import Exported, ExportJob, prove
from mer_export.reference import run_model
from mer_export.stages import Stage, count_name

EXAMPLES = 2
"""Steps of a stage that runs on steps, as its example."""
Arrays = dict[str, np.ndarray]


def export(
    job: ExportJob, stages: tuple[Stage, ...], exporter: Callable[[ExportJob, Path], Exported], paths: Sequence[Path]
) -> Exported:
    """Writes one file per stage.

    Args:
        job: of the whole network.
        stages: in the order in which they run.
        exporter: of the format.
        paths: the file of each stage.

    Raises:
        UsageError: a stage, or all of them in a row, that do not give the network's answers.
    """
    assert job.model is not None, "a file has no stages"
    modules = job.model.stages()  # type: ignore[operator]
    arrays: Arrays = dict(job.example)
    made: dict[str, Exported] = {}
    for stage, path in zip(stages, paths, strict=True):
        given, put = _given(job, stage, arrays)
        contract = stage.contract(job.contract)
        found = run_model(modules[stage.name], contract, given)
        example = {n: a[:EXAMPLES] for n, a in given.items()} if stage.per else given
        own = ExportJob(
            model=modules[stage.name],
            contract=contract,
            lengths=stage.bucket(job.lengths),
            batch=job.batch,
            opset=job.opset,
            device=job.device,
            example=example,
            reference={n: a[: len(next(iter(example.values())))] for n, a in found.items()},
        )
        made[stage.name] = exporter(own, path)
        arrays |= put(found)
    prove(job, [arrays[s.name] for s in job.contract.outputs], "the network in stages")
    options = {name: exported.options for name, exported in made.items()}
    return Exported(exporter=next(iter(made.values())).exporter, options={"stages": options})


def _given(job: ExportJob, stage: Stage, arrays: Arrays) -> tuple[Arrays, Callable[[Arrays], Arrays]]:
    """The inputs of a stage, and what puts its outputs among the others."""
    if stage.per:
        counts, most = arrays[count_name(job.contract, stage.per)], job.lengths[str(stage.per)]
        real = int(counts.sum())
        # Where no item of the example has a step, the stage is shown what stands in the place of the first ones.
        shown = counts if real else np.ones_like(counts)
        return (
            stage.take(arrays, shown),
            lambda found: stage.put({n: a[:real] for n, a in found.items()}, counts, most),
        )
    if not stage.grows:
        return stage.take(arrays, None), lambda found: found
    # The last step of each item, after all the others.
    last = np.maximum(arrays[count_name(job.contract, stage.grows)] - 1, 0)
    steps = np.arange(job.lengths[stage.grows])
    past = {
        own: np.where((steps < last[:, None])[..., None], arrays[n], np.float32(0)) for own, n in stage.past.items()
    }
    now = (steps == last[:, None])[..., None]
    return (
        stage.follow(job.contract, arrays | past, last),
        lambda found: {n: np.where(now, a, arrays[n]) for n, a in found.items()},
    )
