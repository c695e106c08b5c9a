"""TorchScript: trace, freeze, save. The only module where its deprecation warnings are silenced."""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mer_export.errors import UsageError
from mer_export.exporters.export_job import Exported, ExportJob, prove
from mer_export.exporters.format import ExportFormat
from mer_export.exporters.precision_gate import Function, run_file

FORMAT = ExportFormat(
    "torchscript",
    "TorchScript: traced and frozen",
    "model.ts",
    f"{__name__}:export",
    rank=10,
    program="mer_export.untrusted.torchscript_archives:check",
)


def export(job: ExportJob, path: Path) -> Exported:
    """Traces at the bucket's lengths; the batch dim stays dynamic whatever `job.batch` is."""
    import torch

    with quiet(), torch.no_grad(), attention_as_written():
        traced = torch.jit.trace(job.module(), job.tensors(), check_trace=False)
        frozen = torch.jit.freeze(traced.eval())
        _prove(job, frozen)
        # PyTorch's own writer ends the process where the disk is full.
        with path.open("wb") as stream:
            torch.jit.save(frozen, stream)
    return Exported(exporter=f"torch {torch.__version__} jit.trace + freeze")


def _prove(job: ExportJob, module: Any) -> None:
    """Refuses what does not give the model's outputs for the example, at once or item by item: a trace may have the
    number of items that it was made with."""
    for size in (job.items, 1):
        try:
            found = run_file(Function(module), job.contract, job.example, size)
        except RuntimeError as error:
            reason = str(error).strip().splitlines()[-1]
            raise UsageError(f"the TorchScript module breaks on a batch of {size} ({reason}): not exported") from None
        prove(job, [*found.values()], "the TorchScript module")


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Silences what torch says about TorchScript: that it is deprecated, and that a trace fixes shapes."""
    import torch

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        warnings.simplefilter("ignore", torch.jit.TracerWarning)
        yield


@contextlib.contextmanager
def attention_as_written() -> Iterator[None]:
    """Turns the fused attention path off: it treats padding in its own way and a trace would bake it in."""
    import torch

    before = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(before)
