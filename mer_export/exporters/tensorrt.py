"""TensorRT and TensorRT-RTX engines through one code path, with the ONNX file that they are built from beside them.

Networks are strongly typed: an engine's precision is that of its ONNX graph. An engine runs with the library version
that built it, and unless it is portable on that kind of GPU only; `EngineKey` is what has to agree.

Both generations of regular TensorRT (10 and 11) and TensorRT-RTX are called: `tests/test_tensorrt_api.py` holds every
call against the signatures of each.
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections import Counter
from contextlib import nullcontext
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict

from mer_export.bucket import Bucket
from mer_export.bundle import sha256
from mer_export.contract import Contract
from mer_export.cuda import Device, Gpu, find_gpu
from mer_export.errors import BundleError, MerError, NotAvailableError, UsageError
from mer_export.exporters import onnx as onnx_exporter
from mer_export.exporters.export_job import Exported, ExportJob
from mer_export.exporters.format import NATIVE, ExportFormat
from mer_export.exporters.precision import precisions_of
from mer_export.install import install_hint, not_installed
from mer_export.kept import Kept

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
FLOATS = {
    "bfloat16": "bf16",
    "bf16": "bf16",
    "half": "fp16",
    "fp16": "fp16",
    "fp8": "fp8",
    "float": "fp32",
    "fp32": "fp32",
}
"""How an engine's own account names what a layer reads, and our word; the first that occurs holds."""


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

    @property
    def file(self) -> str:
        """Under which name an engine of this key is kept."""
        return f"{_digest(self.model_dump_json())}.engine"

    @property
    def timings(self) -> str:
        """Under which name is kept how long each kernel took: these are the same for all engines of a GPU."""
        return f"{_digest(json.dumps([self.flavour, self.version, self.gpu, self.capability]))}.timings"


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


def key_here(onnx_file: Path, batch: int, bucket: Bucket, number: int = 0) -> EngineKey:
    """The key of an engine built from this file on this machine, for the GPU of that number."""
    library, flavour = find_library()
    gpu = find_gpu(number) if flavour == "tensorrt" else None
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
    key = key_here(onnx_file, job.batch, job.lengths)
    with Device() if find_gpu() else nullcontext():
        plan = build_engine(onnx_file, job.contract, key, job.kept)
        layers = _layers_here(library, plan, path) if find_gpu() else {}
    path.write_bytes(plan)
    options = {"engine_key": key.model_dump(), "onnx": written.options, "layers": layers}
    return Exported(exporter=f"{flavour} {library.__version__} from {written.exporter}", options=options)


def _layers_here(library: Any, plan: bytes, path: Path) -> dict[str, int]:
    """What `layer_precisions` says; {} for an engine that is for other machines than this one."""
    try:
        runtime, engine, _ = load_engine(library, plan, path)
    except MerError as error:
        log.info("%s was not looked into: %s", path.name, error)
        return {}
    found = layer_precisions(library, engine)
    # An engine is freed before the runtime that it came from.
    del engine, runtime
    return found


def build_engine(onnx_file: Path, contract: Contract, key: EngineKey | None = None, kept: Kept | None = None) -> bytes:
    """The serialized engine of an ONNX file whose dims are all fixed, for the GPU that is current in this thread.

    With a key, regular TensorRT takes the times of kernels that are known from `kept` and leaves there what it learnt.

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
    # Only such an engine says in what its layers compute.
    config.profiling_verbosity = library.ProfilingVerbosity.DETAILED
    # TensorRT-RTX chooses its kernels on the user's machine and keeps no times.
    timings = (kept, key.timings) if flavour == "tensorrt" and kept and key else None
    if timings:
        _give_timings(config, timings[0].read(timings[1]))
    engine = builder.build_serialized_network(network, config)
    if engine is None:
        reason = " ".join((reports.last or "no reason given").split())
        raise UsageError(f"{flavour} cannot build an engine from {onnx_file.name}: {reason}")
    if timings:
        timings[0].write(timings[1], bytes(config.get_timing_cache().serialize()))
    return bytes(engine)


def _give_timings(config: Any, known: bytes | None) -> None:
    """Gives a build the times that are known; none where the library does not take them."""
    cache = config.create_timing_cache(known or b"")
    if cache is None or not config.set_timing_cache(cache, False):
        config.set_timing_cache(config.create_timing_cache(b""), False)


def load_engine(library: Any, plan: bytes, path: Path) -> tuple[Any, Any, Reports]:
    """The library's runtime, the engine of a plan in it, and what the library reports of both from now on.

    Raises:
        NotAvailableError: the engine is of another kind of machine, as far as the library can say.
        BundleError: it does not load.
    """
    reports = Reports(library)
    runtime = library.Runtime(reports.logger)
    # Loading a wrong engine says little; regular TensorRT has nothing to ask.
    ask = getattr(runtime, "get_engine_validity", None)
    if ask is not None:
        verdict, diagnostics = ask(plan)
        if verdict == library.EngineValidity.INVALID:
            raise NotAvailableError(f"{path} does not run on this machine: TensorRT says {diagnostics}")
    engine = runtime.deserialize_cuda_engine(plan)
    if engine is None:
        raise BundleError(f"runtime tensorrt cannot load {path}: {reports.last}: export it again on this machine")
    return runtime, engine, reports


def layer_precisions(library: Any, engine: Any) -> dict[str, int]:
    """How many layers of an engine read their data in which precision, as the engine itself says; {} where it does not.

    Layers without floating-point inputs (sources, indices) count by what they write, or not at all.
    """
    said = engine.create_engine_inspector().get_engine_information(library.LayerInformationFormat.JSON)
    try:
        layers = json.loads(said)["Layers"]
        found = [_float([*layer["Inputs"], *layer["Outputs"]]) for layer in layers]
    except (ValueError, KeyError, TypeError):
        # Names alone, of an engine that was built to say no more.
        return {}
    return dict(sorted(Counter(f for f in found if f).items()))


def _float(tensors: list[dict[str, Any]]) -> str | None:
    """The precision of the first tensor of floating-point numbers."""
    for tensor in tensors:
        form = tensor["Format/Datatype"].lower()
        if found := next((ours for word, ours in FLOATS.items() if word in form), None):
            return found
    return None


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


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:32]
