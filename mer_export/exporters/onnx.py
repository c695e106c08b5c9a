"""ONNX through PyTorch's graph-capturing exporter: one constant-folded file per bucket, run before it is kept."""

from __future__ import annotations

import contextlib
import logging
import tempfile
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mer_export.errors import NotAvailableError
from mer_export.exporters import precision
from mer_export.exporters.export_job import Exported, ExportJob, prove
from mer_export.exporters.format import ExportFormat
from mer_export.exporters.graph.external_data import save
from mer_export.exporters.graph.merge import merge_linears
from mer_export.exporters.graph.names import name_nodes
from mer_export.exporters.graph.share import share_initializers
from mer_export.exporters.precision_gate import open_file, run_file
from mer_export.exporters.torchscript import attention_as_written
from mer_export.install import not_installed

FORMAT = ExportFormat(
    "onnx",
    "ONNX: constant-folded",
    "model.onnx",
    f"{__name__}:export",
    rank=20,
    uses_opset=True,
    precisions=precision.precisions_of("onnx"),
    devices=("cpu", "cuda"),
    shares_weights=True,
    advice={
        "bf16": ": ONNX Runtime refuses bf16 graphs on the CPU, "
        "run fp32 variants with --runtime openvino --precision bf16, or export --format tensorrt"
    },
)

log = logging.getLogger("mer")

LARGEST_FOLDED = 1 << 31
"""Constants up to this many bytes are folded, recurrent weights included; the exporter's own limit is smaller."""

TALKERS = ("torch.onnx", "onnxscript", "onnx_ir")


def export(job: ExportJob, path: Path) -> Exported:
    """Writes one .onnx file: in fp32, and from there in the precision of the job where that is another."""
    for package in ("onnx", "onnxscript"):
        _need(package)
    import onnxscript
    import torch

    exporter = f"torch {torch.__version__} onnx + onnxscript {onnxscript.__version__}"
    if job.precision != "fp32" and job.graph and (job.model is None or job.graph.exporter == exporter):
        log.info("rewriting %s", job.graph.path)
        known = {k: job.graph.options[k] for k in ("nodes", "ran_in") if k in job.graph.options}
        return Exported(exporter, known | {"rewrite": precision.write(job, job.graph.path, path)})
    model = to_onnx(job)
    options: dict[str, Any] = {"nodes": len(model.graph.node)}
    if job.precision == "fp32":
        _save(model, path)
        return Exported(exporter, options | {"ran_in": _run(job, path)})
    with tempfile.TemporaryDirectory(dir=path.parent) as folder:
        fp32 = Path(folder) / path.name
        _save(model, fp32)
        options |= {"ran_in": _run(job, fp32), "rewrite": precision.write(job, fp32, path)}
    return Exported(exporter, options)


def _save(model: Any, path: Path) -> None:
    import onnx

    save(model, path)
    onnx.checker.check_model(str(path), full_check=True)


def to_onnx(job: ExportJob) -> Any:
    """The model as a folded `onnx.ModelProto` with the contract's names, its nodes called after their modules."""
    import onnxscript.optimizer

    program = captured(job)
    with quiet():
        onnxscript.optimizer.optimize(
            program.model, input_size_limit=LARGEST_FOLDED, output_size_limit=LARGEST_FOLDED, num_iterations=4
        )
    model = program.model_proto
    name_nodes(model)
    merge_linears(model)
    share_initializers(model)
    _strip(model)
    return model


def captured(job: ExportJob) -> Any:
    """The network as the exporter's own program: PyTorch's graph and, of the same value names, ONNX's unfolded one."""
    import torch

    from mer_export.exporters.graph.lowering import lower

    inputs, outputs = job.contract.inputs, job.contract.outputs
    with torch.no_grad(), attention_as_written(), quiet():
        program = torch.onnx.export(
            lower(job.module(), job.device),
            job.tensors(),
            input_names=[s.name for s in inputs],
            output_names=[s.name for s in outputs],
            opset_version=job.opset,
            dynamic_shapes=job.dynamic_shapes(),
            dynamo=True,
            verbose=False,
            # Optimised once, by who wants a file: the exporter would do it with a smaller limit first.
            optimize=False,
        )
    assert program is not None
    return program


def _strip(model: Any) -> None:
    """Takes out the exporter's notes on where in the source a node comes from: half of a small file, and paths."""
    graph = model.graph
    for entry in (model, graph, *graph.node, *graph.value_info, *graph.initializer, *graph.input, *graph.output):
        del entry.metadata_props[:]
        entry.ClearField("doc_string")


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
        raise NotAvailableError(not_installed(package, "export"))


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
