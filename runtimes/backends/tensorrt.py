"""TensorRT and TensorRT-RTX engines on a CUDA device. Needs no torch."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import ValidationError

from mer_export.cuda import Device, find_gpu
from mer_export.errors import BundleError, MerError, NotAvailableError
from mer_export.exporters.tensorrt import (
    ANY,
    ONNX_FILE,
    EngineKey,
    Reports,
    build_engine,
    find_library,
    key_here,
    without_kernels,
)
from runtimes.backends.backend import Backend
from runtimes.backends.session import Port, Ports, Session, SessionOptions

BACKEND = Backend(
    "tensorrt",
    "TensorRT or TensorRT-RTX",
    f"{__name__}:TensorRtSession",
    ("tensorrt",),
    rank=60,
    colour="#6a9a2b",
    offers=(SessionOptions(device="cuda"),),
    precisions=("fp32", "fp16", "bf16"),
)

log = logging.getLogger("mer")


class TensorRtSession(Session):
    """An engine with a fixed batch at its bucket's lengths; device buffers are made once."""

    backend = "tensorrt"
    # A variant that does not say what its engine depends on.
    unreadable = (ValidationError,)

    def load(self, path: Path) -> Ports:
        library, flavour = find_library()
        self._reports = Reports(library)
        self._runtime = library.Runtime(self._reports.logger)
        plan = self._plan(path)
        self._check_valid(library, plan, path)
        self._engine: Any = self._runtime.deserialize_cuda_engine(plan)
        if self._engine is None:
            raise BundleError(
                f"runtime tensorrt cannot load {path}: {self._reports.last}: export it again on this machine"
            )
        gpu = find_gpu()
        self.info |= {
            flavour: str(library.__version__),
            "gpu": gpu.name if gpu else None,
            "capability": gpu.capability if gpu else None,
        }
        modes = library.TensorIOMode
        return Ports(self._declared(library, modes.INPUT), self._declared(library, modes.OUTPUT))

    def _check_valid(self, library: Any, plan: bytes, path: Path) -> None:
        """Asks the library what it thinks of an engine, where it can say: loading a wrong one says little."""
        ask = getattr(self._runtime, "get_engine_validity", None)
        if ask is None:
            return
        verdict, diagnostics = ask(plan)
        if verdict == library.EngineValidity.INVALID:
            raise NotAvailableError(f"{path} does not run on this machine: TensorRT says {diagnostics}")

    def prepare(self) -> None:
        self._context: Any = self._engine.create_execution_context()
        self._device = Device()
        self._addresses: dict[str, int] = {}
        for spec in (*self.contract.inputs, *self.contract.outputs):
            size = int(np.prod(spec.shape(self.batch, self.shape))) * np.dtype(spec.dtype).itemsize
            self._addresses[spec.name] = self._device.allocate(size)
            self._context.set_tensor_address(spec.name, self._addresses[spec.name])

    @classmethod
    def problem(cls, options: SessionOptions) -> str | None:
        try:
            library, flavour = find_library()
        except NotAvailableError as error:
            return str(error)
        gpu = find_gpu()
        if gpu is None:
            return (
                f"{flavour} {library.__version__} is installed, but this machine has no CUDA device: "
                "run the engine on a machine with an NVIDIA GPU"
            )
        return without_kernels(library, flavour, gpu)

    def compute(self, inputs: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        self._device.bind()
        # Held until the stream is done: a copy made contiguous here would be freed while it is still read.
        sources = {s.name: np.ascontiguousarray(inputs[s.name]) for s in self.contract.inputs}
        for name, array in sources.items():
            self._device.upload(self._addresses[name], array)
        if not self._context.execute_async_v3(self._device.stream):
            raise MerError(f"the TensorRT engine failed: {self._reports.last or 'no reason given'}")
        outputs = {s.name: np.empty(s.shape(self.batch, self.shape), dtype=s.dtype) for s in self.contract.outputs}
        for name, array in outputs.items():
            self._device.download(array, self._addresses[name])
        self._device.synchronise()
        return outputs

    def close(self) -> None:
        self._context = self._engine = None
        self._device.close()

    def _plan(self, path: Path) -> bytes:
        """The engine, or one built now from the ONNX file beside it where the stored one cannot run here."""
        onnx_file = path.with_name(ONNX_FILE)
        key = EngineKey.model_validate(self.artefact.options.get("engine_key"))
        differences = stale(key, key_here(onnx_file, self.batch, key.lengths))
        if not differences:
            return path.read_bytes()
        log.warning(
            "%s was built for another environment (%s): building it again from %s, export it again to keep the result",
            path.parent.name,
            "; ".join(differences),
            onnx_file.name,
        )
        return build_engine(onnx_file, self.contract)

    def _declared(self, library: Any, mode: Any) -> dict[str, Port]:
        engine = self._engine
        names = [engine.get_tensor_name(i) for i in range(engine.num_io_tensors)]
        return {
            n: Port(
                np.dtype(library.nptype(engine.get_tensor_dtype(n))).name,
                [None if d < 0 else d for d in engine.get_tensor_shape(n)],
            )
            for n in names
            if engine.get_tensor_mode(n) == mode
        }


def stale(built: EngineKey, here: EngineKey) -> list[str]:
    """Which fields keep an engine from running here; a portable engine runs on any GPU."""
    if built.gpu == ANY:
        here = here.model_copy(update={"gpu": ANY, "capability": ANY})
    return built.differences(here)
