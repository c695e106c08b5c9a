"""ONNX through PyTorch's graph-capturing exporter: one constant-folded file per bucket, run before it is kept."""

from __future__ import annotations

import contextlib
import logging
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mer_export.errors import NotAvailableError
from mer_export.exporters import precision
from mer_export.exporters.gate import open_file, run_file
from mer_export.exporters.job import Exported, ExportJob, prove
from mer_export.exporters.merge import merge_linears
from mer_export.exporters.share import share_initializers
from mer_export.exporters.torchscript import attention_as_written

LARGEST_FOLDED = 1 << 31
"""Constants up to this many bytes are folded, recurrent weights included; the exporter's own limit is smaller."""

LARGEST_FILE = 3 << 29
"""Bytes from which weights go into a file of their own."""
TALKERS = ("torch.onnx", "onnxscript", "onnx_ir")


def export(job: ExportJob, path: Path) -> Exported:
    """Writes one .onnx file, large weights beside it, in fp32 first and from there in the precision of the job."""
    for package in ("onnx", "onnxscript"):
        _need(package)
    import onnx
    import onnxscript
    import torch

    model = to_onnx(job)
    _save(model, path)
    onnx.checker.check_model(str(path), full_check=True)
    options: dict[str, Any] = {"nodes": len(model.graph.node), "ran_in": _run(job, path)}
    if job.precision != "fp32":
        fp32 = path.rename(path.with_suffix(".fp32"))
        options["rewrite"] = precision.write(job, fp32, path)
        fp32.unlink()
        weights_file(path).unlink(missing_ok=True)
    return Exported(exporter=f"torch {torch.__version__} onnx + onnxscript {onnxscript.__version__}", options=options)


def to_onnx(job: ExportJob) -> Any:
    """The model as a folded `onnx.ModelProto` with the contract's names."""
    import onnxscript.optimizer
    import torch

    from mer_export.exporters.lowering import lower

    inputs, outputs = job.contract.inputs, job.contract.outputs
    with torch.no_grad(), attention_as_written(), quiet():
        program = torch.onnx.export(
            lower(job.model),
            job.tensors(),
            input_names=[s.name for s in inputs],
            output_names=[s.name for s in outputs],
            opset_version=job.opset,
            dynamic_shapes=job.dynamic_shapes(),
            dynamo=True,
            verbose=False,
            optimize=True,
        )
        assert program is not None
        onnxscript.optimizer.optimize(
            program.model, input_size_limit=LARGEST_FOLDED, output_size_limit=LARGEST_FOLDED, num_iterations=4
        )
    model = program.model_proto
    merge_linears(model)
    share_initializers(model)
    return model


def weights_file(path: Path) -> Path:
    """Where the weights of a large ONNX file are."""
    return path.with_name(f"{path.name}.data")


def _save(model: Any, path: Path) -> None:
    """One file; weights stand beside it where it would come near the 2 GB that the format can hold."""
    import onnx

    if model.ByteSize() < LARGEST_FILE:
        onnx.save_model(model, path)
        return
    onnx.save_model(model, path, save_as_external_data=True, location=weights_file(path).name, size_threshold=128)


def _run(job: ExportJob, path: Path) -> str:
    """Runs the file on the example where ONNX Runtime is installed: a checked graph may still be refused there."""
    try:
        import onnxruntime
    except ImportError:
        return "nothing"
    found = run_file(open_file(path), job.contract, job.example, job.batch)
    prove(job, list(found.values()), "the ONNX file in ONNX Runtime")
    return f"onnxruntime {onnxruntime.__version__}"


def _need(package: str) -> None:
    from importlib.util import find_spec

    if find_spec(package) is None:
        raise NotAvailableError(f"{package} is not installed: pip install 'mer[export]'")


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Silences the exporter's notes on packages that no model of ours uses, and its deprecation warnings."""
    loggers = [logging.getLogger(name) for name in TALKERS]
    before = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, before, strict=True):
            logger.setLevel(level)
