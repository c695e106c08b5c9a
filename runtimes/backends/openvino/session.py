"""OpenVINO on the CPU, reading the .onnx file; fp32 by default, bf16 or int8 on request. Needs no torch."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from queue import SimpleQueue
from threading import Lock
from typing import Any

import numpy as np

from mer_export.errors import BundleError
from mer_export.install import not_installed
from runtimes.backends.openvino.compiled import CompiledModels
from runtimes.backends.openvino.int8 import GROUP, quantise_matrices
from runtimes.backends.openvino.rnn import unroll_by_length
from runtimes.backends.session import Port, Ports, Reduced, Session, SessionOptions

SETTINGS: dict[Reduced | None, dict[str, str]] = {
    None: {"INFERENCE_PRECISION_HINT": "f32"},
    "bf16": {"INFERENCE_PRECISION_HINT": "bf16"},
    "int8": {"INFERENCE_PRECISION_HINT": "f32", "DYNAMIC_QUANTIZATION_GROUP_SIZE": str(GROUP)},
}
DTYPES = {"f32": "float32", "i64": "int64", "f16": "float16", "bf16": "bfloat16"}

COMPILED = 4
"""How many batch sizes get a compiled model of their own."""
ANY_SIZE = 0


class OpenVinoSession(Session):
    """An .onnx file compiled for the CPU at its bucket's lengths.

    A file with a dynamic batch is compiled for single batch sizes, which run faster than one compiled for any. A size
    that comes for the first time is filled up to a larger one that is there, with copies of the last item, until that
    has cost as much time as compiling takes. Sizes past the `COMPILED`th share one compiled for any. What was compiled
    is kept (`CompiledModels`); `info["kept"]` says which sizes came from there.

    Calls that come side by side (`options.streams`) share one compiled model, a stream and a request for each.
    """

    backend = "openvino"
    unreadable = (RuntimeError,)

    def load(self, path: Path) -> Ports:
        import openvino

        self._core: Any = openvino.Core()
        self._graph: Any = self._core.read_model(str(path))
        self._batched = {s.name for s in self.contract.inputs if s.batched}
        self.info["openvino"] = openvino.__version__
        return Ports(_declared(self._graph.inputs), _declared(self._graph.outputs))

    def prepare(self) -> None:
        # Left alone OpenVINO takes bf16 by itself on processors that have it, and ties all sessions to the same cores.
        self._settings: dict[str, str] = {"PERFORMANCE_HINT": "LATENCY", "ENABLE_CPU_PINNING": "NO"}
        self._settings |= SETTINGS[self.options.reduced]
        self._compiled = CompiledModels(self._core, self.artefact, self._settings)
        streams = self.options.streams
        if self.options.threads:
            self._settings["INFERENCE_NUM_THREADS"] = str(self.options.threads * streams)
        if streams > 1:
            self._settings["NUM_STREAMS"] = str(streams)
        self._requests: dict[int, SimpleQueue[Any]] = {}
        """By batch size those that are free."""
        self._compiling = Lock()
        self.info["kept"] = []
        self._compile_s = 0.0
        self._wasted_s: dict[int, float] = defaultdict(float)
        with self._request(self.batch or self.options.batch) as (request, _):
            compiled = request.get_compiled_model()
            self.info |= {
                "inference_precision": str(compiled.get_property("INFERENCE_PRECISION_HINT").get_type_name()),
                # No more than there are cores, however many streams share them.
                "threads": max(1, int(compiled.get_property("INFERENCE_NUM_THREADS")) // streams),
            }

    @property
    def concurrent(self) -> bool:
        return self.options.streams > 1

    @classmethod
    def problem(cls, options: SessionOptions) -> str | None:
        from importlib.util import find_spec

        if find_spec("openvino") is None:
            return not_installed("openvino", "openvino")
        if options.device != "cpu":
            return f"runtime openvino runs on cpu, not on {options.device}"
        return None

    @staticmethod
    def cause(lines: Sequence[str]) -> str:
        return lines[-1]

    @contextmanager
    def _request(self, items: int) -> Iterator[tuple[Any, int]]:
        """A request that takes so many items or a few more, nobody else's inside the block, and its batch size."""
        with self._compiling:
            size = self._size(items)
            if size not in self._requests:
                began = time.perf_counter()
                self._requests[size] = self._compile(size)
                self._compile_s = time.perf_counter() - began
                self.info["batches"] = list(self._requests)
        free = self._requests[size]
        request = free.get()
        try:
            yield request, size
        finally:
            free.put(request)

    def _size(self, items: int) -> int:
        """The batch size in which to run so many items."""
        larger = [size for size in self._requests if size > items]
        if items in self._requests or self.batch:
            return items
        if larger and self._wasted_s[items] < self._compile_s:
            return min(larger)
        return items if len(self._requests) < COMPILED else ANY_SIZE

    def _compile(self, items: int) -> SimpleQueue[Any]:
        compiled = self._compiled.read(items, self._settings)
        if compiled is None:
            graph = self._rewritten(items)
            compiled = self._core.compile_model(graph, "CPU", self._settings)
            self._compiled.keep(items, graph, compiled)
        else:
            self.info["kept"].append(items)
        free: SimpleQueue[Any] = SimpleQueue()
        for _ in range(self.options.streams):
            free.put(compiled.create_infer_request())
        return free

    def _rewritten(self, items: int) -> Any:
        """The graph at a batch size, as the plugin computes it best."""
        # Rewriting changes a graph for good: the one that was checked serves the first size, others read the file.
        graph, self._graph = self._graph or self._read_again(), None
        if items != ANY_SIZE:
            ports = [p for p in graph.inputs if p.get_any_name() in self._batched]
            graph.reshape({p.get_any_name(): [items, *list(p.get_partial_shape())[1:]] for p in ports})
        unroll_by_length(graph)
        if self.options.reduced == "int8":
            self.info["int8_products"] = quantise_matrices(graph)
        return graph

    def _read_again(self) -> Any:
        """The graph of the file; raises BundleError where it is another one than when it was opened."""
        try:
            with self.artefact.again():
                return self._core.read_model(str(self.artefact.path))
        except (OSError, RuntimeError) as error:
            why = self.cause(str(error).strip().splitlines() or [type(error).__name__])
            raise BundleError(f"{self.artefact.path} was changed since it was opened: open it again ({why})") from None

    def compute(self, inputs: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        items = len(next(a for name, a in inputs.items() if name in self._batched))
        with self._request(items) as (request, size):
            began = time.perf_counter()
            if size > items:
                inputs = {n: _filled(a, size) if n in self._batched else a for n, a in inputs.items()}
            request.infer(inputs, share_inputs=True)
            if size > items:
                self._wasted_s[items] += (time.perf_counter() - began) * (1 - items / size)
            return {s.name: request.get_tensor(s.name).data[:items].copy() for s in self.contract.outputs}

    def close(self) -> None:
        self._requests = {}


def _declared(ports: Sequence[Any]) -> dict[str, Port]:
    found = {}
    for port in ports:
        dtype = port.get_element_type().get_type_name()
        dims = [None if d.is_dynamic else d.get_length() for d in port.get_partial_shape()]
        found[port.get_any_name()] = Port(DTYPES.get(dtype, dtype), dims)
    return found


def _filled(array: np.ndarray, size: int) -> np.ndarray:
    """An array of that many items, the last one repeated."""
    return np.concatenate([array, np.repeat(array[-1:], size - len(array), axis=0)])
