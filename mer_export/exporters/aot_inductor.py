"""AOTInductor packages: the network compiled to machine code by PyTorch, which runs it without another engine.

A package runs on the kind of device that it was compiled for, and where that is a GPU on its compute capability. A C++
compiler is needed here alone.
"""

from __future__ import annotations

import copy
import errno
import io
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from threading import Thread
from typing import Any

import numpy as np

from mer_export import faults
from mer_export.errors import MerError, NotAvailableError, UnsupportedError, UsageError
from mer_export.exporters.export_job import Exported, ExportJob, prove
from mer_export.exporters.exported_program import capture
from mer_export.exporters.format import NATIVE, ExportFormat
from mer_export.exporters.precision_gate import Function, check, listed
from mer_export.launcher import module_command

FORMAT = ExportFormat(
    "aot_inductor",
    "AOTInductor package: machine code made by PyTorch",
    "model.aoti.pt2",
    f"{__name__}:export",
    rank=35,
    program=NATIVE,
    precisions=("fp32", "bf16"),
    devices=("cuda",),
)
COMPILERS = ("g++", "clang++", "c++")
MENDED = (errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EROFS)
"""Errors of the operating system that are no fault of the package: full, or not to be written."""
STAGE = "mer stage: "
"""What the process that compiles writes before each of its stages."""
FOUND = "found.npz"


@dataclass(frozen=True)
class Attempt:
    """What became of a process that compiled a package, loaded it, and ran it on the example.

    `stage` is the last one that it began, `said` what it wrote on standard error: where a signal ended it, the native
    stack of each thread too.
    """

    status: int
    stage: str
    said: tuple[str, ...]

    @property
    def reason(self) -> str:
        """Why there is no package, in one line."""
        if self.status < 0:
            return f"signal {-self.status} while it {self.stage}"
        return self.said[-1] if self.said else "no reason given"


def export(job: ExportJob, path: Path) -> Exported:
    """Compiles at the bucket's lengths for `job.device`, with a fixed or a dynamic batch dim.

    A process of its own compiles and then runs the package on the example: the compiler depends on what else was
    imported, and compiled code that is wrong may end a process. bf16 is autocast, compiled; it passes the gate of
    reduced precisions.

    Raises:
        NotAvailableError: no C++ compiler, or no such device.
        UnsupportedError: bf16 for a GPU.
        ParityError: bf16 that changes the answers too much.
        UsageError: the package does not compile, does not run, or does not give the model's answers.
    """
    import torch

    if not any(map(shutil.which, COMPILERS)):
        raise NotAvailableError(f"AOTInductor needs a C++ compiler, none of {list(COMPILERS)} is here: install one")
    if job.device == "cuda" and not torch.cuda.is_available():
        raise NotAvailableError("AOTInductor compiles for CUDA on a machine with a GPU alone: pass --device cpu")
    if job.device != "cpu" and job.precision != "fp32":
        raise UnsupportedError(
            f"AOTInductor packages for {job.device} are fp32, not {job.precision}: no GPU has run another one yet; run "
            f"--runtime torch --precision {job.precision}, which needs no export"
        )
    options: dict[str, Any] = {}
    # Beside the package: what a killed export leaves is staged there, and goes with the next change of the bundle.
    with tempfile.TemporaryDirectory(dir=path.parent) as folder:
        made = Path(folder) / "model.pt2"
        outputs = _compile(job, made, Path(folder))
        if job.precision == "fp32":
            prove(job, outputs, "the AOTInductor package")
        else:
            options["gate"] = _gate(job, made)
        made.replace(path)
    if job.device == "cuda":
        major, minor = torch.cuda.get_device_capability()
        options["capability"] = f"{major}.{minor}"
    return Exported(exporter=f"torch {torch.__version__} AOTInductor", options=options)


def _compile(job: ExportJob, package: Path, folder: Path) -> list[np.ndarray]:
    """Writes the package; returns its outputs for the example."""
    done = attempt(job, package, folder)
    if done.status == UsageError.exit_code and done.said:
        raise UsageError(done.reason)
    if done.status:
        error = UsageError(
            f"AOTInductor makes no package that runs: {done.reason}; it was not exported, use another format"
        )
        error.add_note("\n".join(done.said))
        raise error
    with np.load(folder / FOUND, allow_pickle=False) as made:
        return [made[name][: job.items] for name in sorted(made.files)]


def attempt(
    job: ExportJob,
    package: Path,
    folder: Path,
    settings: Mapping[str, Any] | None = None,
    environment: Mapping[str, str] | None = None,
) -> Attempt:
    """Compiles a package, loads and runs it in a process of its own, whose outputs are in `folder` afterwards.

    `settings` of PyTorch's compiler and variables of the environment are for finding out why one does not run.
    """
    import torch

    size = job.batch or job.items
    feeds = [job.feed(size, start) for start in range(0, job.items, size)]
    program, given = folder / "program.pt2", folder / "given.npz"
    content = io.BytesIO()
    torch.export.save(capture(_rounded(job)), content)
    program.write_bytes(content.getbuffer())
    arrays = {f"{i:06d} {k:03d}": a for i, feed in enumerate(feeds) for k, a in enumerate(feed.values())}
    with faults.at(given):
        np.savez(given, allow_pickle=False, **arrays)
    words = (*map(str, (program, package, given, folder / FOUND)), job.device, json.dumps(dict(settings or {})))
    lifeline = os.pipe()
    try:
        done = subprocess.run(
            module_command(__name__, *words),
            stdin=lifeline[0],
            capture_output=True,
            text=True,
            errors="replace",
            env=os.environ | dict(environment or {}),
        )
    finally:
        for end in lifeline:
            os.close(end)
    lines = done.stderr.strip().splitlines()
    stages = [line.removeprefix(STAGE) for line in lines if line.startswith(STAGE)]
    said = tuple(line for line in lines if not line.startswith(STAGE))
    return Attempt(done.returncode, stages[-1] if stages else "started", said)


def _rounded(job: ExportJob) -> ExportJob:
    """The job with a network that computes in its precision."""
    if job.precision == "fp32":
        return job
    from mer_export.layers.autocast import Autocast, store_products

    assert job.model is not None, "of a file nothing is compiled"
    model = copy.deepcopy(job.model)
    store_products(model, job.precision)
    return replace(job, model=Autocast(model, job.precision, job.device))


def _gate(job: ExportJob, package: Path) -> dict[str, Any]:
    """What the gate measured of a package that has run on the example already."""
    from torch._inductor import aoti_load_package

    return check(job, Function(job.module()), Function(aoti_load_package(str(package), run_single_threaded=True)))


def main() -> None:
    """Compiles a program and runs it on arrays: both files, what the package is given, where its outputs go, device,
    settings of the compiler.

    Ends with the process that started it, whose end of standard input closes then.
    """
    Thread(target=lambda: os._exit(1) if not os.read(0, 1) else None, daemon=True).start()
    try:
        _make(*sys.argv[1:])
    except Exception as error:
        said = _of_the_machine(error)
        if said is None:
            raise
        print(said, file=sys.stderr)
        sys.exit(said.exit_code)


def _of_the_machine(error: BaseException | None) -> MerError | None:
    """What a person can mend, if it stands behind what the compiler raises."""
    while error is not None:
        if isinstance(error, OSError) and error.errno in MENDED:
            return faults.explain(error)
        error = error.__cause__ or error.__context__
    return None


def _make(source: str, package: str, given: str, found: str, device: str, settings: str) -> None:
    import torch
    from torch._inductor import aoti_compile_and_package, aoti_load_package

    # Machine code that is wrong ends this process: where, its stack says.
    getattr(torch._C, "_set_print_stack_traces_on_fatal_signal", lambda on: None)(True)
    program = torch.export.load(source)
    if device == "cuda":
        from torch.export.passes import move_to_device_pass

        # With its number: the compiler holds devices of tensors against each other by name.
        program = move_to_device_pass(program, f"cuda:{torch.cuda.current_device()}")
    with torch.no_grad():
        _begin("was compiled")
        # PyTorch's own writer ends the process where the disk is full.
        content = io.BytesIO()
        aoti_compile_and_package(program, package_path=content, inductor_configs=json.loads(settings))
        Path(package).write_bytes(content.getbuffer())
        _begin("was loaded")
        run = aoti_load_package(package, run_single_threaded=True, device_index=0 if device == "cuda" else -1)
        parts: dict[str, list[Any]] = {}
        with np.load(given, allow_pickle=False) as arrays:
            for name in sorted(arrays.files):
                parts.setdefault(name.split()[0], []).append(torch.from_numpy(arrays[name]).to(device))
        _begin("ran")
        # Outputs may lie in memory that the next call uses again.
        made = [[o.cpu().numpy() for o in listed(run(*tensors))] for tensors in parts.values()]
    joined = [np.concatenate(outputs) for outputs in zip(*made, strict=True)]
    with faults.at(found):
        np.savez(found, allow_pickle=False, **{f"{k:03d}": array for k, array in enumerate(joined)})


def _begin(stage: str) -> None:
    print(f"{STAGE}{stage}", file=sys.stderr, flush=True)
