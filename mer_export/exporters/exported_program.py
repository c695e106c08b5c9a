"""PyTorch exported programs (.pt2), written so that they load without unpickling anything but plain tensors."""

from __future__ import annotations

import warnings
from pathlib import Path

from mer_export.exporters.export_job import Exported, ExportJob, prove
from mer_export.exporters.format import ExportFormat
from mer_export.exporters.torchscript import attention_as_written

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

    with torch.no_grad(), attention_as_written(), warnings.catch_warnings():
        # nn.GRU re-assigns its own weight list while it is captured.
        warnings.filterwarnings("ignore", message="The tensor attributes", category=UserWarning)
        program = torch.export.export(job.module(), job.tensors(), dynamic_shapes=job.dynamic_shapes())
        if job.batch == 0:
            found = program.module()(*(torch.from_numpy(job.example[s.name]) for s in job.contract.inputs))
            outputs = found if isinstance(found, tuple) else (found,)
            prove(job, [o.numpy() for o in outputs], "the exported program")
    # Example inputs would be pickled into the archive; the bundle keeps them as .npz.
    program.example_inputs = None
    torch.export.save(program, path)
    return Exported(exporter=f"torch {torch.__version__} export")
