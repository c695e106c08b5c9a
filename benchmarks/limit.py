"""What this machine can do at most: one large float32 matrix product, by PyTorch and by ONNX Runtime.

The two differ where PyTorch's matrix library does not use the processor's widest vectors. A model's GFLOP/s beside
them says how much of the machine it uses, which a ratio to eager alone does not.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from runtimes.speed.timing import interleave, warm_up

SIZE = 1024


def measure(threads: int, rounds: int = 15) -> dict[str, float]:
    """GFLOP/s of a product of two 1024 x 1024 matrices, fastest call of interleaved rounds."""
    import torch

    torch.set_num_threads(threads)
    a, b = (np.random.default_rng(s).standard_normal((SIZE, SIZE), dtype=np.float32) for s in (0, 1))
    left, right = torch.from_numpy(a), torch.from_numpy(b)
    calls: dict[str, Any] = {"torch.mm": lambda: torch.mm(left, right)}
    if call := product(a, b, threads):
        calls["onnxruntime MatMul"] = call
    for call in calls.values():
        warm_up(call)
    turns = interleave(calls, rounds)
    return {name: 2 * SIZE**3 / (1e9 * float(np.concatenate(turns[name].wall).min())) for name in calls}


def product(left: np.ndarray, right: np.ndarray, threads: int) -> Callable[[], Any] | None:
    """Multiplies two matrices in ONNX Runtime; None where that or onnx is missing."""
    try:
        import onnx
        import onnxruntime
        from onnx import TensorProto, helper, numpy_helper
    except ImportError:
        return None
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["a", "b"], ["c"])],
        "product",
        [helper.make_tensor_value_info("a", TensorProto.FLOAT, right.shape)],
        [helper.make_tensor_value_info("c", TensorProto.FLOAT, right.shape)],
        [numpy_helper.from_array(right, "b")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=9)
    onnx.checker.check_model(model)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return lambda: session.run(None, {"a": left})
