"""ONNX Runtime on CPU or CUDA, with the provider that was asked for or not at all. Needs no torch."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from mer_export.errors import NotAvailableError, UnsupportedError
from mer_export.install import DISTRIBUTION, install_hint, not_installed
from runtimes.backends.backend import Backend
from runtimes.backends.session import Port, Ports, Session, SessionOptions

BACKEND = Backend(
    "onnxruntime",
    "ONNX Runtime, CPU or CUDA",
    f"{__name__}:OnnxRuntimeSession",
    ("onnx",),
    rank=40,
    colour="#2f6fb5",
    captures=True,
    reduces={"cuda": ("tf32",)},
    offers=(SessionOptions(), SessionOptions(device="cuda"), SessionOptions(device="cuda", reduced="tf32")),
)

PROVIDERS = {"cpu": "CPUExecutionProvider", "cuda": "CUDAExecutionProvider"}
NO_GRAPH = "ONNX Runtime captures no CUDA graph of {}, as some of it runs on the CPU: {}leave --cuda-graph out"
OTHER_FORM = "run mer export --format onnx --device cuda for a form without operators that read lengths there, or "
DTYPES = {"tensor(float)": "float32", "tensor(int64)": "int64", "tensor(float16)": "float16"}


class OnnxRuntimeSession(Session):
    """An .onnx file in ONNX Runtime.

    On CUDA inputs and outputs are bound to device buffers, one set per batch size; with `cuda_graph` the run of each
    is captured as a CUDA graph of its own.
    """

    backend = "onnxruntime"
    # ONNX Runtime raises a dozen classes of its own, all straight from Exception.
    unreadable = (Exception,)

    def load(self, path: Path) -> Ports:
        import onnxruntime

        self._ort = onnxruntime
        provider = PROVIDERS[self.options.kind]
        self._session: Any = self._create(path, provider)
        active = self._session.get_providers()
        if active[0] != provider:
            raise NotAvailableError(
                f"ONNX Runtime started {active[0]} where {provider} was asked for: "
                "its libraries are incomplete, see mer doctor"
            )
        self._bound: dict[int, dict[str, Any]] = {}
        self.info |= {
            "onnxruntime": onnxruntime.__version__,
            "provider": provider,
            "providers": active,
            "cuda_graph": self.options.cuda_graph,
        }
        return Ports(_declared(self._session.get_inputs()), _declared(self._session.get_outputs()))

    @classmethod
    def problem(cls, options: SessionOptions) -> str | None:
        try:
            import onnxruntime
        except ImportError:
            return not_installed("onnxruntime", "gpu" if options.on_gpu else "cpu")
        offered = onnxruntime.get_available_providers()
        if PROVIDERS[options.kind] not in offered:
            return (
                f"ONNX Runtime {onnxruntime.__version__} here offers {offered}, not {PROVIDERS[options.kind]}: "
                f"{install_hint('gpu')} in an environment without {DISTRIBUTION}[cpu], or use --device cpu"
            )
        return None

    @property
    def concurrent(self) -> bool:
        # What a GPU session binds is one set of buffers.
        return not self.options.on_gpu

    def _create(self, path: Path, provider: str) -> Any:
        ort, options = self._ort, self.options
        settings = ort.SessionOptions()
        # What goes wrong is raised; with a graph asked for, a refusal would be printed too.
        settings.log_severity_level = 4 if options.cuda_graph else 3
        settings.inter_op_num_threads = 1
        # Idle workers would keep a core busy after each call, to the cost of whatever else this process runs.
        settings.add_session_config_entry("session.force_spinning_stop", "1")
        if options.threads:
            settings.intra_op_num_threads = options.threads
        arguments: dict[str, str] = {}
        if options.on_gpu:
            # It warns of devices that plug-ins might have.
            ort.set_default_logger_severity(3)
            if hasattr(ort, "preload_dlls"):
                ort.preload_dlls()
            arguments = {
                "device_id": str(options.number),
                "use_tf32": "1" if options.reduced == "tf32" else "0",
                "enable_cuda_graph": "1" if options.cuda_graph else "0",
            }
        try:
            return ort.InferenceSession(str(path), settings, providers=[(provider, arguments)])
        except Exception as error:
            if options.cuda_graph and "graph capture" in str(error):
                advice = OTHER_FORM if self.artefact.options.get("device") != "cuda" else ""
                raise UnsupportedError(NO_GRAPH.format(path.name, advice)) from None
            raise

    def compute(self, inputs: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        if self.options.on_gpu:
            return self._run_bound(inputs)
        names = [s.name for s in self.contract.outputs]
        return dict(zip(names, self._session.run(names, inputs), strict=True))

    def _run_bound(self, inputs: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Copies into device buffers kept per batch size, runs on them, copies the outputs back."""
        items = len(next(iter(inputs.values())))
        held = self._bound.get(items) or self._bind(items, inputs)
        for name, buffer in held["inputs"].items():
            buffer.update_inplace(np.ascontiguousarray(inputs[name]))
        self._session.run_with_iobinding(held["binding"], held["run"])
        return {name: buffer.numpy() for name, buffer in held["outputs"].items()}

    def _bind(self, items: int, inputs: dict[str, np.ndarray]) -> dict[str, Any]:
        values, binding = self._ort.OrtValue, self._session.io_binding()
        run = self._ort.RunOptions()
        if self.options.cuda_graph:
            # Another batch size has other buffers, which a captured graph would not know of.
            run.add_run_config_entry("gpu_graph_id", str(items))
        held: dict[str, Any] = {"binding": binding, "run": run, "inputs": {}, "outputs": {}}
        for name, array in inputs.items():
            held["inputs"][name] = values.ortvalue_from_numpy(np.ascontiguousarray(array), "cuda", self.options.number)
            binding.bind_ortvalue_input(name, held["inputs"][name])
        for spec in self.contract.outputs:
            shape = spec.shape(items, self.shape)
            buffer = values.ortvalue_from_shape_and_type(shape, np.dtype(spec.dtype), "cuda", self.options.number)
            held["outputs"][spec.name] = buffer
            binding.bind_ortvalue_output(spec.name, buffer)
        self._bound[items] = held
        return held

    def close(self) -> None:
        self._bound = {}
        self._session = None


def _declared(ports: Sequence[Any]) -> dict[str, Port]:
    return {
        p.name: Port(DTYPES.get(p.type, p.type), [d if isinstance(d, int) else None for d in p.shape]) for p in ports
    }
