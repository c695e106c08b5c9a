"""TensorRT and TensorRT-RTX engines through one code path, with the ONNX file that they are built from beside them.

Networks are strongly typed: an engine's precision is that of its ONNX graph. An engine runs with the library version
that built it, and unless it is portable on that kind of GPU only; `EngineKey` is what has to agree.
"""

from __future__ import annotations

import logging
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict

from mer_export.bucket import Bucket
from mer_export.bundle import sha256
from mer_export.contract import Contract
from mer_export.cuda import Gpu, find_gpu
from mer_export.errors import BundleError, NotAvailableError, UsageError
from mer_export.exporters import onnx as onnx_exporter
from mer_export.exporters.export_job import Exported, ExportJob
from mer_export.exporters.format import NATIVE, ExportFormat
from mer_export.exporters.precision import precisions_of
from mer_export.install import install_hint, not_installed

FORMAT = ExportFormat(
    "tensorrt",
    "TensorRT or TensorRT-RTX engine, its ONNX beside it",
    "model.engine",
    f"{__name__}:export",
    rank=40,
    program=NATIVE,
    dynamic_batch=False,
    uses_opset=True,
    precisions=precisions_of("tensorrt"),
    advice={"int8": ": TensorRT reads no dynamic quantisation, export --format onnx"},
)

log = logging.getLogger("mer")

MODULES = {"tensorrt": "tensorrt", "tensorrt_rtx": "tensorrt-rtx", "tensorrt_rtx_bindings": "tensorrt-rtx"}
"""Import name to flavour, in order of preference."""
ANY = "any"
WORKSPACE = 1 << 32
ONNX_FILE = "model.onnx"


class EngineKey(BaseModel):
    """What an engine depends on. `gpu` and `capability` are "any" for a portable engine (TensorRT-RTX)."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    onnx: str
    batch: int
    lengths: Bucket
    flavour: str
    version: str
    gpu: str
    capability: str
    tf32: bool = False
    """TF32 is off: an engine called fp32 computes in fp32."""

    def differences(self, other: EngineKey) -> list[str]:
        """Fields that do not agree, as `field: mine, not other's`."""
        mine, others = self.model_dump(), other.model_dump()
        return [f"{k}: {mine[k]}, not {others[k]}" for k in mine if mine[k] != others[k]]


def find_library() -> tuple[Any, str]:
    """The TensorRT module of this environment and its flavour.

    Raises:
        NotAvailableError: none is installed.
    """
    for name, flavour in MODULES.items():
        if find_spec(name):
            try:
                return import_module(name), flavour
            except (ImportError, OSError) as error:
                raise NotAvailableError(f"{name} is installed but does not load: {error}") from None
    raise NotAvailableError(not_installed("TensorRT", "tensorrt", "tensorrt-rtx"))


def without_kernels(library: Any, flavour: str, gpu: Gpu) -> str | None:
    """Why a flavour runs nothing on a GPU, as its own list of compute capabilities says; None where it does not say."""
    listed = getattr(library, "ComputeCapability", None)
    known = [n.removeprefix("SM") for n in getattr(listed, "__members__", {}) if n.startswith("SM")]
    if not known or gpu.capability.replace(".", "") in known:
        return None
    offered = ", ".join(f"{n[:-1]}.{n[-1]}" for n in known)
    return (
        f"{flavour} {library.__version__} has no kernels for the compute capability {gpu.capability} of {gpu.name}, "
        f"only for {offered}: use regular TensorRT there, or --runtime onnxruntime --device cuda"
    )


def key_here(onnx_file: Path, batch: int, bucket: Bucket) -> EngineKey:
    """The key of an engine built from this file on this machine."""
    library, flavour = find_library()
    gpu = find_gpu() if flavour == "tensorrt" else None
    return EngineKey(
        onnx=sha256(onnx_file),
        batch=batch,
        lengths=bucket,
        flavour=flavour,
        version=str(library.__version__),
        gpu=gpu.name if gpu else ANY,
        capability=gpu.capability if gpu else ANY,
    )


def export(job: ExportJob, path: Path) -> Exported:
    """Writes the engine to `path` and the ONNX file beside it."""
    library, flavour = find_library()
    onnx_file = path.with_name(ONNX_FILE)
    written = onnx_exporter.export(job, onnx_file)
    path.write_bytes(build_engine(onnx_file, job.contract))
    key = key_here(onnx_file, job.batch, job.lengths)
    return Exported(
        exporter=f"{flavour} {library.__version__} from {written.exporter}",
        options={"engine_key": key.model_dump(), "onnx": written.options},
    )


def build_engine(onnx_file: Path, contract: Contract) -> bytes:
    """The serialized engine of an ONNX file whose dims are all fixed.

    Raises:
        NotAvailableError: no library, or regular TensorRT without a GPU.
        UsageError: TensorRT does not take the graph; says what it reported.
        BundleError: the network does not keep the contract.
    """
    library, flavour = find_library()
    if flavour == "tensorrt" and find_gpu() is None:
        raise NotAvailableError(f"tensorrt builds engines only on a machine with a GPU: {install_hint('tensorrt-rtx')}")
    reports = Reports(library)
    builder = library.Builder(reports.logger)
    flag = library.NetworkDefinitionCreationFlag.STRONGLY_TYPED
    network = builder.create_network(1 << int(flag))
    parser = library.OnnxParser(network, reports.logger)
    if not parser.parse_from_file(str(onnx_file)):
        reason = parser.get_error(0).desc() if parser.num_errors else reports.last
        raise UsageError(f"{flavour} cannot read {onnx_file.name}: {reason}")
    _check_network(network, contract)
    config = builder.create_builder_config()
    config.set_memory_pool_limit(library.MemoryPoolType.WORKSPACE, WORKSPACE)
    config.clear_flag(library.BuilderFlag.TF32)
    engine = builder.build_serialized_network(network, config)
    if engine is None:
        reason = " ".join((reports.last or "no reason given").split())
        raise UsageError(f"{flavour} cannot build an engine from {onnx_file.name}: {reason}")
    return bytes(engine)


class Reports:
    """Hands the library's messages to logging and keeps its last error for ours."""

    def __init__(self, library: Any):
        outer = self
        self.last = ""
        error = library.ILogger.Severity.ERROR

        class Logger(library.ILogger):
            def __init__(self) -> None:
                library.ILogger.__init__(self)

            def log(self, severity: Any, message: str) -> None:
                if int(severity) <= int(error):
                    outer.last = message
                log.debug("tensorrt: %s", message)

        self.logger = Logger()


def _check_network(network: Any, contract: Contract) -> None:
    found = [network.get_input(i).name for i in range(network.num_inputs)]
    found += [network.get_output(i).name for i in range(network.num_outputs)]
    wanted = [s.name for s in (*contract.inputs, *contract.outputs)]
    if found != wanted:
        raise BundleError(f"the engine has {found}, the contract asks for {wanted}: export the ONNX file again")
