"""AOTInductor packages: the network compiled to machine code by PyTorch, which runs it without another engine.

A package runs on the kind of device that it was compiled for, and where that is a GPU on its compute capability. A C++
compiler is needed here alone.
"""

from __future__ import annotations

import io
import shutil
import tempfile
from pathlib import Path

from mer_export.errors import NotAvailableError
from mer_export.exporters.export_job import Exported, ExportJob, prove
from mer_export.exporters.exported_program import capture
from mer_export.exporters.format import NATIVE, ExportFormat

FORMAT = ExportFormat(
    "aot_inductor",
    "AOTInductor package: machine code made by PyTorch",
    "model.aoti.pt2",
    f"{__name__}:export",
    rank=35,
    program=NATIVE,
    devices=("cuda",),
)
COMPILERS = ("g++", "clang++", "c++")


def export(job: ExportJob, path: Path) -> Exported:
    """Compiles at the bucket's lengths for `job.device`, with a fixed or a dynamic batch dim.

    Raises:
        NotAvailableError: no C++ compiler, or no such device.
        UsageError: the package does not give the model's answers.
    """
    import torch
    from torch._inductor import aoti_compile_and_package, aoti_load_package

    if not any(map(shutil.which, COMPILERS)):
        raise NotAvailableError(f"AOTInductor needs a C++ compiler, none of {list(COMPILERS)} is here: install one")
    if job.device == "cuda" and not torch.cuda.is_available():
        raise NotAvailableError("AOTInductor compiles for CUDA on a machine with a GPU alone: pass --device cpu")
    program = capture(job)
    if job.device != "cpu":
        from torch.export.passes import move_to_device_pass

        # With its number: the compiler holds devices of tensors against each other by name.
        program = move_to_device_pass(program, f"{job.device}:{torch.cuda.current_device()}")
    with tempfile.TemporaryDirectory() as folder:
        # PyTorch insists on the ending and writes where it likes: a full disk must not leave half a package here.
        made = aoti_compile_and_package(program, package_path=str(Path(folder) / "model.pt2"))
        content = io.BytesIO(Path(made).read_bytes())
    path.write_bytes(content.getbuffer())
    _prove(job, aoti_load_package(str(path)))
    options = {}
    if job.device == "cuda":
        major, minor = torch.cuda.get_device_capability()
        options["capability"] = f"{major}.{minor}"
    return Exported(exporter=f"torch {torch.__version__} AOTInductor", options=options)


def _prove(job: ExportJob, package: object) -> None:
    import torch

    assert callable(package)
    # A fixed batch takes no other; the example may have more items.
    tensors = [torch.from_numpy(job.example[s.name]).to(job.device) for s in job.contract.inputs]
    if job.batch:
        return
    found = package(*tensors)
    outputs = found if isinstance(found, tuple | list) else (found,)
    prove(job, [o.cpu().numpy() for o in outputs], "the AOTInductor package")
