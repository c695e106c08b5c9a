"""TensorRT and TensorRT-RTX engines on a CUDA device. Needs no torch."""

from __future__ import annotations

import logging
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import ValidationError

from mer_export.cuda import Device, find_gpu, no_gpu
from mer_export.errors import MerError, NotAvailableError
from mer_export.exporters.tensorrt import (
    ANY,
    ONNX_FILE,
    EngineKey,
    build_engine,
    find_library,
    key_here,
    layer_precisions,
    load_engine,
    without_kernels,
)
from runtimes.backends.session import Port, Ports, Session, SessionOptions

log = logging.getLogger("mer")


class TensorRtSession(Session):
    """An engine with a fixed batch at its bucket's lengths; device buffers are made once."""

    backend = "tensorrt"
    # A variant that does not say what its engine depends on.
    unreadable = (ValidationError,)

    def load(self, path: Path) -> Ports:
        self._opened = ExitStack()
        library, flavour = find_library()
        # Whatever the library does from here on, it does on the device that is current in its thread.
        self._device = self._opened.enter_context(Device(self.options.number))
        self._opened.callback(self._free)
        gpu = find_gpu(self.options.number)
        self._runtime, self._engine, self._reports = load_engine(library, self._plan(path), path)
        self.info |= {
            flavour: str(library.__version__),
            "gpu": gpu.name if gpu else None,
            "capability": gpu.capability if gpu else None,
            "layers": layer_precisions(library, self._engine),
        }
        self._quiet = library.ProfilingVerbosity.NONE
        modes = library.TensorIOMode
        return Ports(self._declared(library, modes.INPUT), self._declared(library, modes.OUTPUT))

    def prepare(self) -> None:
        self._context: Any = self._engine.create_execution_context()
        # The engine was built to say much of itself, which would cost time in every call.
        self._context.nvtx_verbosity = self._quiet
        self._addresses: dict[str, int] = {}
        self._host: dict[str, np.ndarray] = {}
        for spec in (*self.contract.inputs, *self.contract.outputs):
            shape = spec.shape(self.batch, self.shape)
            self._host[spec.name] = self._device.pinned(shape, spec.dtype)
            self._addresses[spec.name] = self._device.allocate(self._host[spec.name].nbytes)
            self._context.set_tensor_address(spec.name, self._addresses[spec.name])

    @classmethod
    def problem(cls, options: SessionOptions) -> str | None:
        try:
            library, flavour = find_library()
        except NotAvailableError as error:
            return str(error)
        gpu = find_gpu(options.number)
        if gpu is None:
            return f"{flavour} {library.__version__} is installed, but {no_gpu(options.number)}"
        return without_kernels(library, flavour, gpu)

    def compute(self, inputs: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        # Any thread may call, and each has a current device of its own.
        self._device.bind()
        for spec in self.contract.inputs:
            np.copyto(self._host[spec.name], inputs[spec.name])
            self._device.upload(self._addresses[spec.name], self._host[spec.name])
        if not self._context.execute_async_v3(self._device.stream):
            raise MerError(f"the TensorRT engine failed: {self._reports.last or 'no reason given'}")
        names = [s.name for s in self.contract.outputs]
        for name in names:
            self._device.download(self._host[name], self._addresses[name])
        self._device.synchronise()
        return {name: self._host[name].copy() for name in names}

    def close(self) -> None:
        self._opened.close()

    def _free(self) -> None:
        self._device.bind()
        # In this order: each belongs to the one after it, the last to the device.
        self._context = None
        self._engine = None
        self._runtime = None
        self._host = {}

    def _plan(self, path: Path) -> bytes:
        """The engine, or where the stored one cannot run here one made of the ONNX file beside it, now or before."""
        onnx_file, kept = path.with_name(ONNX_FILE), self.artefact.kept
        key = EngineKey.model_validate(self.artefact.options.get("engine_key"))
        here = key_here(onnx_file, self.batch, key.lengths, self.options.number)
        differences = stale(key, here)
        if not differences:
            return path.read_bytes()
        if kept and (plan := kept.read(here.file)):
            log.info("%s was built for another environment: %s has one for this", path.parent.name, kept.folder)
            return plan
        log.warning(
            "%s was built for another environment (%s): building it again from %s",
            path.parent.name,
            "; ".join(differences),
            onnx_file.name,
        )
        plan = build_engine(onnx_file, self.contract, here, kept)
        if kept is None or not kept.write(here.file, plan):
            log.warning("the new engine of %s cannot be kept: export it again on this machine", path.parent.name)
        return plan

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
