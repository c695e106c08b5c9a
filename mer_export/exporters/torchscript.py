"""TorchScript: trace, freeze, save. The only module where its deprecation warnings are silenced."""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Iterator
from pathlib import Path

from mer_export.exporters.export_job import Exported, ExportJob, prove
from mer_export.exporters.format import ExportFormat

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
        found = frozen(*(torch.from_numpy(job.example[s.name]) for s in job.contract.inputs))
        outputs = found if isinstance(found, tuple) else (found,)
        prove(job, [o.numpy() for o in outputs], "the TorchScript module")
        torch.jit.save(frozen, str(path))
    return Exported(exporter=f"torch {torch.__version__} jit.trace + freeze")


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
