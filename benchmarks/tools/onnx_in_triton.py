"""A model of Triton that runs an .onnx file in its Python backend: for servers without the backend of ONNX Runtime.

`benchmarks.triton_server` copies it to `1/model.py` beside the file. It is given what Triton's own backend is given,
and runs the requests that Triton puts together in one call.
"""

import json
from pathlib import Path

import numpy as np
import onnxruntime
import triton_python_backend_utils as triton


class TritonPythonModel:
    def initialize(self, args):
        config = json.loads(args["model_config"])
        self.batched = config["max_batch_size"] > 0
        self.outputs = [o["name"] for o in config["output"]]
        settings = onnxruntime.SessionOptions()
        settings.intra_op_num_threads = settings.inter_op_num_threads = 1
        settings.add_session_config_entry("session.force_spinning_stop", "1")
        model = Path(args["model_repository"]) / args["model_version"] / "model.onnx"
        self.session = onnxruntime.InferenceSession(str(model), settings, providers=["CPUExecutionProvider"])

    def execute(self, requests):
        given = [{t.name(): t.as_numpy() for t in r.inputs()} for r in requests]
        if not self.batched:
            return [self.response(self.session.run(self.outputs, arrays)) for arrays in given]
        together = {name: np.concatenate([arrays[name] for arrays in given]) for name in given[0]}
        found = self.session.run(self.outputs, together)
        ends = np.cumsum([len(next(iter(arrays.values()))) for arrays in given])[:-1]
        return [self.response(parts) for parts in zip(*(np.split(f, ends) for f in found), strict=True)]

    def response(self, arrays):
        return triton.InferenceResponse(
            [triton.Tensor(n, np.ascontiguousarray(a)) for n, a in zip(self.outputs, arrays, strict=True)]
        )
