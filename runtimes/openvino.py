"""OpenVINO on the CPU, reading the .onnx file; fp32 by default, bf16 on request. Needs no torch."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from mer_export.contract import Contract, Lengths
from mer_export.errors import BundleError, NotAvailableError
from runtimes.openvino_rnn import reverse_by_length
from runtimes.session import Port, Session, SessionOptions, check_ports

HINTS = {"fp32": "f32", "bf16": "bf16"}
DTYPES = {"f32": "float32", "i64": "int64", "f16": "float16", "bf16": "bfloat16"}


class OpenVinoSession(Session):
    """An .onnx file compiled for the CPU at its bucket's lengths."""

    backend = "openvino"

    def __init__(self, model: Path, contract: Contract, lengths: Lengths | None, batch: int, options: SessionOptions):
        super().__init__(model, contract, lengths, batch, options)
        problem = self.problem(options)
        if problem:
            raise NotAvailableError(problem)
        import openvino

        # Left alone OpenVINO takes bf16 by itself on processors that have it.
        settings: dict[str, Any] = {"INFERENCE_PRECISION_HINT": HINTS[options.hint], "PERFORMANCE_HINT": "LATENCY"}
        if options.threads:
            settings["INFERENCE_NUM_THREADS"] = options.threads
        try:
            core = openvino.Core()
            graph = core.read_model(str(model))
            self._check(model, graph)
            reverse_by_length(graph)
            self._compiled: Any = core.compile_model(graph, "CPU", settings)
        except RuntimeError as error:
            raise BundleError(f"OpenVINO cannot load {model}: {str(error).splitlines()[-1]}") from None
        self._request: Any = self._compiled.create_infer_request()
        self.info |= {
            "openvino": openvino.__version__,
            "precision": str(self._compiled.get_property("INFERENCE_PRECISION_HINT").get_type_name()),
            "threads": int(self._compiled.get_property("INFERENCE_NUM_THREADS")),
        }

    @classmethod
    def problem(cls, options: SessionOptions) -> str | None:
        from importlib.util import find_spec

        if find_spec("openvino") is None:
            return "openvino is not installed: pip install 'mer[openvino]'"
        if options.device != "cpu":
            return f"runtime openvino runs on cpu, not on {options.device}"
        return None

    def _check(self, model: Path, graph: Any) -> None:
        for specs, found in ((self.contract.inputs, graph.inputs), (self.contract.outputs, graph.outputs)):
            ports = {
                p.get_any_name(): Port(
                    DTYPES.get(p.get_element_type().get_type_name(), p.get_element_type().get_type_name()),
                    tuple(None if d.is_dynamic else d.get_length() for d in p.get_partial_shape()),
                )
                for p in found
            }
            check_ports(model, specs, ports, self.lengths, self.batch)

    def run(self, inputs: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        self._request.infer(inputs, share_inputs=True)
        return {s.name: self._request.get_tensor(s.name).data.copy() for s in self.contract.outputs}

    def close(self) -> None:
        self._request = self._compiled = None
