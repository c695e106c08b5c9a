"""TensorRT and TensorRT-RTX engines on a CUDA device. Needs no torch."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any, Self

import numpy as np

from mer_export.bundle import Bundle, Variant
from mer_export.contract import Contract, Lengths
from mer_export.cuda import Device, find_gpu
from mer_export.errors import BundleError, MerError, NotAvailableError, UsageError
from mer_export.exporters.tensorrt import ANY, ONNX_FILE, EngineKey, Reports, build_engine, find_library, key_here
from runtimes.backends.backend import Backend
from runtimes.backends.session import Port, Session, SessionOptions, check_ports

BACKEND = Backend(
    "tensorrt",
    "TensorRT or TensorRT-RTX",
    f"{__name__}:TensorRtSession",
    ("tensorrt",),
    rank=60,
    offers=(SessionOptions(device="cuda"),),
    precisions=("fp32", "fp16", "bf16"),
)

log = logging.getLogger("mer")


class TensorRtSession(Session):
    """An engine with a fixed batch at its bucket's lengths; device buffers are made once."""

    backend = "tensorrt"

    def __init__(
        self,
        model: Path,
        contract: Contract,
        lengths: Lengths | None,
        batch: int,
        options: SessionOptions,
        key: EngineKey | None = None,
    ):
        super().__init__(model, contract, lengths, batch, options)
        problem = self.problem(options)
        if problem:
            raise NotAvailableError(problem)
        library, flavour = find_library()
        self._reports = Reports(library)
        self._runtime = library.Runtime(self._reports.logger)
        self._engine: Any = self._runtime.deserialize_cuda_engine(self._plan(model, key))
        if self._engine is None:
            raise BundleError(f"{flavour} does not load {model}: {self._reports.last}: export it again on this machine")
        self._check(library, model)
        self._context: Any = self._engine.create_execution_context()
        self._device = Device()
        self._allocate()
        gpu = find_gpu()
        self.info |= {
            "device": "cuda",
            flavour: str(library.__version__),
            "gpu": gpu.name if gpu else None,
            "capability": gpu.capability if gpu else None,
            "precision": "fp32",
        }

    @classmethod
    def open(cls, bundle: Bundle, variant: Variant | None, options: SessionOptions) -> Self:
        if variant is None:
            raise UsageError("runtime tensorrt needs an exported variant: run mer export --format tensorrt first")
        problem = cls.problem(options)
        if problem:
            raise NotAvailableError(problem)
        model = bundle.variant_files(variant)
        key = EngineKey.model_validate(variant.options.get("engine_key"))
        return cls(model, bundle.manifest.contract, variant.lengths, variant.batch, options, key)

    @classmethod
    def problem(cls, options: SessionOptions) -> str | None:
        try:
            library, flavour = find_library()
        except NotAvailableError as error:
            return str(error)
        if find_gpu() is None:
            return (
                f"{flavour} {library.__version__} is installed, but this machine has no CUDA device: "
                "run the engine on a machine with an NVIDIA GPU"
            )
        return None

    def run(self, inputs: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        # Held until the stream is done: a copy made contiguous here would be freed while it is still read.
        sources = {s.name: np.ascontiguousarray(inputs[s.name]) for s in self.contract.inputs}
        for name, array in sources.items():
            self._device.upload(self._addresses[name], array)
        if not self._context.execute_async_v3(self._device.stream):
            raise MerError(f"the TensorRT engine failed: {self._reports.last or 'no reason given'}")
        lengths = self.lengths or self.contract.buckets[0]
        outputs = {s.name: np.empty(s.shape(self.batch, lengths), dtype=s.dtype) for s in self.contract.outputs}
        for name, array in outputs.items():
            self._device.download(array, self._addresses[name])
        self._device.synchronise()
        return outputs

    def close(self) -> None:
        self._context = self._engine = None
        self._device.close()

    def _plan(self, model: Path, key: EngineKey | None) -> bytes:
        """The engine, or one built now from the ONNX file beside it where the stored one cannot run here."""
        onnx_file = model.with_name(ONNX_FILE)
        if key is None:
            return model.read_bytes()
        differences = stale(key, key_here(onnx_file, self.batch, key.lengths))
        if not differences:
            return model.read_bytes()
        log.warning(
            "%s was built for another environment (%s): building it again from %s, export it again to keep the result",
            model.parent.name,
            "; ".join(differences),
            onnx_file.name,
        )
        return build_engine(onnx_file, self.contract)

    def _check(self, library: Any, model: Path) -> None:
        for specs, mode in (
            (self.contract.inputs, library.TensorIOMode.INPUT),
            (self.contract.outputs, library.TensorIOMode.OUTPUT),
        ):
            names = [self._engine.get_tensor_name(i) for i in range(self._engine.num_io_tensors)]
            ports = {
                n: Port(
                    np.dtype(library.nptype(self._engine.get_tensor_dtype(n))).name,
                    tuple(None if d < 0 else d for d in self._engine.get_tensor_shape(n)),
                )
                for n in names
                if self._engine.get_tensor_mode(n) == mode
            }
            check_ports(model, specs, ports, self.lengths, self.batch)

    def _allocate(self) -> None:
        lengths = self.lengths or self.contract.buckets[0]
        self._addresses = {}
        for spec in (*self.contract.inputs, *self.contract.outputs):
            size = int(np.prod(spec.shape(self.batch, lengths))) * np.dtype(spec.dtype).itemsize
            self._addresses[spec.name] = self._device.allocate(size)
            self._context.set_tensor_address(spec.name, self._addresses[spec.name])


def stale(built: EngineKey, here: EngineKey) -> list[str]:
    """Which fields keep an engine from running here; a portable engine runs on any GPU."""
    if built.gpu == ANY:
        here = here.model_copy(update={"gpu": ANY, "capability": ANY})
    return built.differences(here)
