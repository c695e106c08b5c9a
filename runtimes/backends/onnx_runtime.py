"""ONNX Runtime on CPU or CUDA, with the provider that was asked for or not at all. Needs no torch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from mer_export import machine
from mer_export.cuda import Device
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

REARRANGED = 2048
"""Steps, of all inputs of all items, from which it pays that ONNX Runtime copies fp32 weights into the order in which
its products read them, on one thread; twice as many on more, as one thread copies and all multiply. TAB breaks even
at 2300 (one item a call) to 10 600 (four long ones), on two threads at 4300 to 23 000; more were not measured."""
LARGE = 256 << 20
"""Bytes of a file from which that is worth asking: the copy takes a second for each gigabyte or two, and their memory.
The last digits of answers depend on it."""
PROVIDERS = {"cpu": "CPUExecutionProvider", "cuda": "CUDAExecutionProvider"}
NO_GRAPH = "ONNX Runtime captures no CUDA graph of {}, as some of it runs on the CPU: {}leave --cuda-graph out"
OTHER_FORM = "run mer export --format onnx --device cuda for a form without operators that read lengths there, or "
DTYPES = {"tensor(float)": "float32", "tensor(int64)": "int64", "tensor(float16)": "float16"}


@dataclass(frozen=True)
class Bound:
    """What runs of one batch size use: page-locked memory and values on the device by name, bound together."""

    binding: Any
    run: Any
    host: dict[str, np.ndarray]
    values: dict[str, Any]


class OnnxRuntimeSession(Session):
    """An .onnx file in ONNX Runtime.

    On CUDA inputs and outputs are bound to device buffers, one set per batch size, which page-locked memory is copied
    to and from; with `cuda_graph` the run of each is captured as a CUDA graph of its own.
    """

    backend = "onnxruntime"
    # ONNX Runtime raises a dozen classes of its own, all straight from Exception.
    unreadable = (Exception,)

    def load(self, path: Path) -> Ports:
        import onnxruntime

        self._ort = onnxruntime
        self._bound: dict[int, Bound] = {}
        self._device: Device | None = None
        provider = PROVIDERS[self.options.kind]
        self._session: Any = self._create(path, provider)
        active = self._session.get_providers()
        if active[0] != provider:
            raise NotAvailableError(
                f"ONNX Runtime started {active[0]} where {provider} was asked for: "
                "its libraries are incomplete, see mer doctor"
            )
        self.info |= {
            "onnxruntime": onnxruntime.__version__,
            "provider": provider,
            "providers": active,
            "cuda_graph": self.options.cuda_graph,
            "weights": "in place" if self._in_place else "rearranged",
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

    @property
    def _in_place(self) -> bool:
        """Whether weights are read where they lie in the file, which other sessions of it share."""
        if self.options.items is None or self.options.on_gpu:
            return False
        pays = REARRANGED * min(2, self.options.threads or machine.cores())
        few = self.options.items * sum(self.shape.values()) < pays
        return few and self.artefact.size >= LARGE and self.artefact.precision == "fp32"

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
        # A tensor's room is found among all that are free by then, by their names of types and dims: most of the time
        # that it took to open an int8 file of a large network. Without it the arena finds room, in as much memory.
        settings.enable_mem_reuse = options.on_gpu
        if self._in_place:
            settings.add_session_config_entry("session.disable_prepacking", "1")
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
        items = len(inputs[self.contract.features[0].name])
        if self._device is None:
            self._device = Device(self.options.number)
        self._device.bind()
        held = self._bound.get(items) or self._bind(self._device, items, inputs)
        for spec in self.contract.inputs:
            np.copyto(held.host[spec.name], inputs[spec.name])
            self._device.upload(held.values[spec.name].data_ptr(), held.host[spec.name])
        # ONNX Runtime computes on a stream of its own, and ends a run when that is done.
        self._device.synchronise()
        self._session.run_with_iobinding(held.binding, held.run)
        names = [s.name for s in self.contract.outputs]
        for name in names:
            self._device.download(held.host[name], held.values[name].data_ptr())
        self._device.synchronise()
        return {name: held.host[name].copy() for name in names}

    def _bind(self, device: Device, items: int, inputs: dict[str, np.ndarray]) -> Bound:
        shapes = {s.name: s.shape(items, self.shape) for s in self.contract.outputs}
        shapes |= {name: array.shape for name, array in inputs.items()}
        binding, run = self._session.io_binding(), self._ort.RunOptions()
        if self.options.cuda_graph:
            # Another batch size has other buffers, which a captured graph would not know of.
            run.add_run_config_entry("gpu_graph_id", str(items))
        host, values = {}, {}
        for specs, bind in (
            (self.contract.inputs, binding.bind_ortvalue_input),
            (self.contract.outputs, binding.bind_ortvalue_output),
        ):
            for spec in specs:
                place = (np.dtype(spec.dtype), self.options.kind, self.options.number)
                values[spec.name] = self._ort.OrtValue.ortvalue_from_shape_and_type(shapes[spec.name], *place)
                host[spec.name] = device.pinned(shapes[spec.name], spec.dtype)
                bind(spec.name, values[spec.name])
        self._bound[items] = Bound(binding, run, host, values)
        return self._bound[items]

    def compute_tensors(self, tensors: Mapping[str, Any]) -> dict[str, Any]:
        """Binds the tensors' own memory."""
        import torch

        if self.options.cuda_graph:
            raise UnsupportedError("a captured graph reads from its own buffers: open the session without cuda_graph")
        binding, place = self._session.io_binding(), (self.options.kind, self.options.number)
        # Held until the run is over: a copy made contiguous here would be freed while it is still read.
        given = {s.name: tensors[s.name].contiguous() for s in self.contract.inputs}
        for spec in self.contract.inputs:
            tensor = given[spec.name]
            binding.bind_input(spec.name, *place, np.dtype(spec.dtype), tuple(tensor.shape), tensor.data_ptr())
        found = {}
        for spec in self.contract.outputs:
            shape = spec.shape(len(given[self.contract.features[0].name]), self.shape)
            made = torch.empty(shape, dtype=getattr(torch, spec.dtype), device=self.options.device)
            binding.bind_output(spec.name, *place, np.dtype(spec.dtype), shape, made.data_ptr())
            found[spec.name] = made
        if self.options.on_gpu:
            # What fills the tensors may still be running, on a stream that ONNX Runtime does not know.
            torch.cuda.current_stream(self.options.device).synchronize()
        self._session.run_with_iobinding(binding)
        return found

    def close(self) -> None:
        self._bound = {}
        self._session = None
        if self._device is not None:
            self._device.close()
            self._device = None


def _declared(ports: Sequence[Any]) -> dict[str, Port]:
    return {
        p.name: Port(DTYPES.get(p.type, p.type), [d if isinstance(d, int) else None for d in p.shape]) for p in ports
    }
