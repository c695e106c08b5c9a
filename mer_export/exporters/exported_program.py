"""PyTorch exported programs (.pt2), written so that they load without unpickling anything but plain tensors."""

from __future__ import annotations

import io
import warnings
from pathlib import Path
from typing import TYPE_CHECKING

from mer_export.exporters.export_job import Exported, ExportJob, prove
from mer_export.exporters.format import ExportFormat
from mer_export.exporters.precision_gate import Function, run_file
from mer_export.exporters.torchscript import attention_as_written

if TYPE_CHECKING:
    import torch

FORMAT = ExportFormat(
    "exported_program",
    "PyTorch exported program (.pt2)",
    "model.pt2",
    f"{__name__}:export",
    rank=30,
    program="mer_export.untrusted.exported_programs:check",
)


def export(job: ExportJob, path: Path) -> Exported:
    """Exports the module at the bucket's lengths with a fixed or a dynamic batch dim."""
    import torch

    program = capture(job)
    with attention_as_written():
        found = run_file(Function(program.module()), job.contract, job.example, job.batch)
    prove(job, [*found.values()], "the exported program")
    # Example inputs would be pickled into the archive; the bundle keeps them as .npz.
    program.example_inputs = None
    # PyTorch's own writer ends the process where the disk is full.
    content = io.BytesIO()
    torch.export.save(program, content)
    path.write_bytes(content.getbuffer())
    return Exported(exporter=f"torch {torch.__version__} export")


def capture(job: ExportJob) -> torch.export.ExportedProgram:
    """The network at the bucket's lengths as PyTorch's own graph."""
    import torch

    with torch.no_grad(), attention_as_written(), warnings.catch_warnings():
        # nn.GRU re-assigns its own weight list while it is captured.
        warnings.filterwarnings("ignore", message="The tensor attributes", category=UserWarning)
        return torch.export.export(job.module(), job.tensors(), dynamic_shapes=job.dynamic_shapes())
