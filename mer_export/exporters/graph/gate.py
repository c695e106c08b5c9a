"""What a rewritten ONNX file must show before it is kept: the answers of the fp32 file, within a bound."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from mer_export.contract import Contract
from mer_export.data.collate import collate
from mer_export.data.example_inputs import repeat
from mer_export.data.samples import Sample
from mer_export.errors import NotAvailableError, ParityError
from mer_export.exporters.export_job import ExportJob
from mer_export.metrics.measure import measure
from mer_export.task import Task

Arrays = dict[str, np.ndarray]
Labels = np.ndarray | None

BATCH = 16
"""Samples per call where the batch is dynamic."""
UNITS_WORTH = 200.0
"""A metric in percent moves by up to about this over the number of units when one label changes."""


@dataclass(frozen=True)
class Bound:
    """Limits against the fp32 file.

    An element agrees when |a - b| <= atol + rtol * |a|. `relative` bounds |a - b| / |a| over a whole output, which also
    holds for outputs much smaller than `atol`. With data, `flip_share` is the part of labels that may change (one may
    always), `metric_drop` how many points the task's metric may lose.
    """

    atol: float
    rtol: float
    relative: float
    flip_share: float
    metric_drop: float


@dataclass
class Measured:
    """Both files' rows of each output, and of labelled data the task's rows with their labels."""

    reference: dict[str, list[np.ndarray]] = field(default_factory=dict)
    candidate: dict[str, list[np.ndarray]] = field(default_factory=dict)
    real: list[tuple[np.ndarray, np.ndarray, Labels]] = field(default_factory=list)


def open_file(path: Path) -> Any:
    """The file in ONNX Runtime on the CPU; raises NotAvailableError where that is missing."""
    try:
        import onnxruntime
    except ImportError:
        raise NotAvailableError("a reduced precision needs onnxruntime: pip install 'mer[export,cpu]'") from None
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


def run_file(session: Any, contract: Contract, arrays: Arrays, batch: int) -> Arrays:
    """Outputs of any number of items; a fixed `batch` is filled up by repeating."""
    items = len(arrays[contract.features[0].name])
    size = batch or items
    names = [s.name for s in contract.outputs]
    parts = []
    for start in range(0, items, size):
        feed = {
            s.name: repeat(arrays[s.name][start : start + size], size) if s.batched else arrays[s.name]
            for s in contract.inputs
        }
        parts.append(session.run(names, feed))
    return {n: np.concatenate(p)[:items] for n, p in zip(names, zip(*parts, strict=True), strict=True)}


def check(job: ExportJob, bound: Bound, reference: Any, candidate: Any) -> dict[str, Any]:
    """Runs both sessions on example, probes and data, and returns what was measured.

    Raises:
        ParityError: the candidate is outside the bound; says by how much.
    """
    found = _measure(job, reference, candidate)
    report: dict[str, Any] = {}
    for spec in job.contract.outputs:
        a, b = (np.concatenate(side[spec.name]).astype(np.float64) for side in (found.reference, found.candidate))
        report |= _check_output(spec.name, a, b, bound, job.precision)
    return report | (_check_labels(job, job.task, found, bound) if job.task and found.real else {})


def _check_output(name: str, a: np.ndarray, b: np.ndarray, bound: Bound, precision: str) -> dict[str, Any]:
    broken = int((~np.isfinite(b)).sum())
    if broken:
        raise _refused(precision, f"{name} holds {broken} values that are NaN or infinite")
    error = np.abs(a - b)
    relative = float(np.linalg.norm(error) / max(np.linalg.norm(a), np.finfo(np.float32).tiny))
    if (error > bound.atol + bound.rtol * np.abs(a)).any():
        limit = f"{bound.atol:g} + {bound.rtol:g} x |fp32|"
        raise _refused(precision, f"{name} is off by up to {error.max():.1e}, allowed are {limit}")
    if relative > bound.relative:
        raise _refused(precision, f"{name} is off by {relative:.1%} of its size, allowed are {bound.relative:.0%}")
    return {f"{name} max_abs": float(f"{error.max(initial=0):.3g}"), f"{name} relative": float(f"{relative:.3g}")}


def _check_labels(job: ExportJob, task: Task, found: Measured, bound: Bound) -> dict[str, Any]:
    a, b = (np.concatenate([rows[side] for rows in found.real]) for side in (0, 1))
    flips, units = int((task.decide(a) != task.decide(b)).sum()), len(a)
    allowed = max(1, int(bound.flip_share * units))
    if flips > allowed:
        raise _refused(job.precision, f"{flips} of {units} labels change, allowed are {allowed}")
    report: dict[str, Any] = {"units": units, "flips": flips}
    labelled = [rows for rows in found.real if rows[2] is not None]
    if not labelled:
        return report
    labels = np.concatenate([rows[2] for rows in labelled if rows[2] is not None])
    metric = task.headline
    before, after = (
        measure(task, labels, np.concatenate([rows[side] for rows in labelled])).get(metric, np.nan) for side in (0, 1)
    )
    drop, limit = before - after, max(bound.metric_drop, UNITS_WORTH / units)
    if drop > limit:
        raise _refused(job.precision, f"{metric} falls by {drop:.2f} points, allowed are {limit:.2f}")
    return report if np.isnan(drop) else report | {f"{metric} change": round(-drop, 3)}


def _refused(precision: str, what: str) -> ParityError:
    return ParityError(f"in {precision} {what}: the variant was not written")


def _measure(job: ExportJob, reference: Any, candidate: Any) -> Measured:
    found = Measured()
    for arrays, samples in _chunks(job):
        a, b = (run_file(s, job.contract, arrays, job.batch) for s in (reference, candidate))
        # What fp32 itself does not answer, such as an item without any step, says nothing about the rewrite.
        answered = [
            i for i in range(len(next(iter(a.values())))) if all(np.isfinite(v).all() for v in _rows(job, a, arrays, i))
        ]
        for i in answered:
            before, after = _rows(job, a, arrays, i), _rows(job, b, arrays, i)
            for spec, x, y in zip(job.contract.outputs, before, after, strict=True):
                found.reference.setdefault(spec.name, []).append(x.reshape(-1))
                found.candidate.setdefault(spec.name, []).append(y.reshape(-1))
                if samples and job.task and spec.name == job.task.output:
                    found.real.append((x, y, samples[i].labels))
    return found


def _chunks(job: ExportJob) -> Iterator[tuple[Arrays, Sequence[Sample]]]:
    """The example, the example without one modality at a time, and the data that fits the bucket."""
    yield job.example, ()
    emptied = {s.name: s.padding or 0 for s in job.contract.inputs if s.counts or s.padding is not None}
    for name, nothing in emptied.items() if len(emptied) > 1 else ():
        yield job.example | {name: np.full_like(job.example[name], nothing)}, ()
    fitting = [s for s in job.samples if job.lengths.holds(s.lengths(job.contract))]
    for start in range(0, len(fitting), BATCH):
        part = fitting[start : start + BATCH]
        yield collate(part, job.contract, job.lengths), part


def _rows(job: ExportJob, outputs: Arrays, arrays: Arrays, item: int) -> list[np.ndarray]:
    """One item of every output without its padding, as rows (units, width)."""
    lengths = {s.counts: arrays[s.name] for s in job.contract.inputs if s.counts}
    unit_dim, rows = job.contract.unit_dim, []
    for spec in job.contract.outputs:
        value = outputs[spec.name][item]
        if unit_dim in spec.dims:
            rows.append(value[: int(lengths[unit_dim][item])])
        else:
            # Past the labels there may be slots for more of them.
            width = job.task.width if job.task and spec.name == job.task.output else None
            rows.append(value[None, :width])
    return rows
