"""What a file of a reduced precision must show before it is kept: the answers of fp32, as its precision allows."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from mer_export.agreement.answers import Compared
from mer_export.agreement.compare import Comparison, compare
from mer_export.agreement.policy import Policy
from mer_export.agreement.verdict import findings
from mer_export.contract import Contract
from mer_export.data.collate import collate
from mer_export.data.example_inputs import repeat
from mer_export.data.samples import Sample, readable
from mer_export.errors import NotAvailableError, ParityError
from mer_export.exporters.export_job import ExportJob
from mer_export.install import not_installed
from mer_export.task import Task

Arrays = dict[str, np.ndarray]

BATCH = 16
"""Samples per call where the batch is dynamic."""


def runtime() -> Any:
    """ONNX Runtime; raises NotAvailableError where that is missing."""
    try:
        import onnxruntime
    except ImportError:
        raise NotAvailableError(not_installed("onnxruntime, which checks a reduced precision,", "cpu", "gpu")) from None
    return onnxruntime


def open_file(path: Path) -> Any:
    """The file in ONNX Runtime on the CPU; raises NotAvailableError where that is missing."""
    options = runtime().SessionOptions()
    options.log_severity_level = 3
    # As in serving: its planner takes most of the time of opening an int8 file.
    options.enable_mem_reuse = False
    return runtime().InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


class Function:
    """A function of PyTorch's tensors that is asked as a file in ONNX Runtime is."""

    def __init__(self, function: Callable[..., Any]):
        self._function = function

    def run(self, names: Sequence[str], feed: Mapping[str, np.ndarray]) -> list[np.ndarray]:
        """Outputs of arrays in contract order."""
        import torch

        with torch.no_grad():
            # Outputs may lie in memory that the next call uses again.
            return [o.numpy().copy() for o in listed(self._function(*map(torch.from_numpy, feed.values())))]


def listed(found: Any) -> list[Any]:
    """What a module gives, of which one output stands alone."""
    return list(found) if isinstance(found, tuple | list) else [found]


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


def check(job: ExportJob, reference: Any, candidate: Any) -> dict[str, Any]:
    """Runs both sessions on example, probes and data, and returns what was measured.

    Raises:
        ParityError: the candidate is past a limit of its precision; says by how much.
    """
    task, policy = job.task, Policy()
    assert task is not None, "a reduced precision is judged by what its task decides"
    found = measure(job, task, reference, candidate)
    remarks = findings(found, job.precision, task, policy)
    for verdict, text in remarks:
        if verdict == "fail":
            raise ParityError(f"in {job.precision} {text}: the variant was not written")
    return _summary(found, task) | ({"remarks": [text for _, text in remarks]} if remarks else {})


def measure(job: ExportJob, task: Task, reference: Any, candidate: Any) -> Comparison:
    """Runs both sessions on example, probes and data, and compares their answers."""
    return compare(list(_answers(job, task, reference, candidate)), task, Policy(), job.precision)


def _summary(found: Comparison, task: Task) -> dict[str, Any]:
    """What a variant remembers."""
    report: dict[str, Any] = {}
    for error in found.outputs:
        report |= {f"{error.output} max_abs": float(f"{error.max_abs:.3g}")}
        report |= {f"{error.output} relative": float(f"{error.relative:.3g}")}
    if not found.units:
        return report
    report |= {"units": found.units, "flips": found.flips, "flips beyond noise": found.flips_beyond_noise}
    change = next((m.difference for m in found.metrics if m.metric == task.headline), None)
    return report if change is None else report | {f"{task.headline} change": round(change, 3)}


def _answers(job: ExportJob, task: Task, reference: Any, candidate: Any) -> Iterator[Compared]:
    for arrays, samples in _chunks(job):
        both = [run_file(s, job.contract, arrays, job.batch) for s in (reference, candidate)]
        for i in range(len(next(iter(both[0].values())))):
            a, b = (_rows(job, task, outputs, arrays, i) for outputs in both)
            # What fp32 itself does not answer, such as an item without any step, says nothing about the rewrite.
            if all(np.isfinite(v).all() for v in a.values()):
                yield Compared(samples[i] if samples else _made_up(len(a[task.output])), a, b, real=bool(samples))


def _made_up(units: int) -> Sample:
    return Sample("example", {}, tuple(map(str, range(units))))


def _chunks(job: ExportJob) -> Iterator[tuple[Arrays, Sequence[Sample]]]:
    """The example, the example without one modality at a time, and the data that fits the bucket."""
    yield job.example, ()
    emptied = {s.name: s.padding or 0 for s in job.contract.inputs if s.counts or s.padding is not None}
    for name, nothing in emptied.items() if len(emptied) > 1 else ():
        yield job.example | {name: np.full_like(job.example[name], nothing)}, ()
    fitting = [s for s in readable(job.samples, job.contract) if job.lengths.holds(s.lengths(job.contract))]
    for start in range(0, len(fitting), BATCH):
        part = fitting[start : start + BATCH]
        yield collate(part, job.contract, job.lengths), part


def _rows(job: ExportJob, task: Task, outputs: Arrays, arrays: Arrays, item: int) -> Arrays:
    """One item of every output without its padding, as rows (units, width)."""
    lengths = {s.counts: arrays[s.name] for s in job.contract.inputs if s.counts}
    unit_dim, rows = job.contract.unit_dim, {}
    for spec in job.contract.outputs:
        value = outputs[spec.name][item]
        if unit_dim in spec.dims:
            rows[spec.name] = value[: int(lengths[unit_dim][item])]
        else:
            # Past the labels there may be slots for more of them.
            rows[spec.name] = value[None, : task.width if spec.name == task.output else None]
    return rows
