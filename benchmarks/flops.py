"""Floating-point work of an ONNX file, counted from its nodes and the shapes that they see in a run.

PyTorch's counter sees neither recurrent layers nor fused attention; a folded graph shows both, and nothing that an
export has pruned away. A multiply-add is two operations. Norms, activations and other element-wise work are left out.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

Shape = tuple[int, ...]
SUFFIX = "::shape"


def gflop(path: Path, arrays: Mapping[str, np.ndarray]) -> float:
    """Operations in 1e9 of one run on `arrays`, every step of a recurrent layer and all padding included."""
    import onnx

    model = onnx.load(str(path), load_external_data=False)
    counted = [n for n in model.graph.node if n.op_type in COUNTS]
    known = {i.name: tuple(i.dims) for i in model.graph.initializer}
    asked = dict.fromkeys(n for node in counted for n in _tensors(node) if n not in known)
    for name in asked:
        model.graph.node.append(onnx.helper.make_node("Shape", [name], [name + SUFFIX]))
    del model.graph.output[:]
    model.graph.output.extend(
        onnx.helper.make_tensor_value_info(name + SUFFIX, onnx.TensorProto.INT64, None) for name in asked
    )
    known |= dict(zip(asked, _run(model, path, arrays), strict=True))
    return sum(COUNTS[node.op_type](node, [known[n] for n in _tensors(node)]) for node in counted) / 1e9


def _tensors(node: Any) -> list[str]:
    """The inputs that the counts need, and the first output that is there."""
    return [*node.input[:2], *node.input[2:3] * (node.op_type in RECURRENT), next(n for n in node.output if n)]


def _run(model: Any, path: Path, arrays: Mapping[str, np.ndarray]) -> list[Shape]:
    """Runs the changed graph beside the original file, where its external weights are found."""
    import onnx
    import onnxruntime

    beside = path.with_name(f"{path.stem}.shapes.onnx")
    try:
        onnx.save_model(model, str(beside))
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3
        # Nothing may be merged away: what the file says is what is counted.
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
        session = onnxruntime.InferenceSession(str(beside), options, providers=["CPUExecutionProvider"])
        return [tuple(int(n) for n in shape) for shape in session.run(None, dict(arrays))]
    finally:
        beside.unlink(missing_ok=True)


def _matmul(node: Any, shapes: list[Shape]) -> int:
    return 2 * int(np.prod(shapes[-1])) * shapes[0][-1]


def _gemm(node: Any, shapes: list[Shape]) -> int:
    transposed = any(a.name == "transA" and a.i for a in node.attribute)
    return 2 * int(np.prod(shapes[-1])) * shapes[0][0 if transposed else 1]


def _conv(node: Any, shapes: list[Shape]) -> int:
    """Each output element is a product over (channels of its group) x kernel."""
    return 2 * int(np.prod(shapes[-1])) * int(np.prod(shapes[1][1:]))


def _recurrent(node: Any, shapes: list[Shape]) -> int:
    """Input and recurrent products of every gate, step and direction."""
    (time, batch, _), (directions, rows, inputs), (_, _, hidden) = shapes[:3]
    return 2 * time * batch * directions * rows * (inputs + hidden)


RECURRENT = ("LSTM", "GRU")
COUNTS: dict[str, Callable[[Any, list[Shape]], int]] = {
    "MatMul": _matmul,
    "Gemm": _gemm,
    "Conv": _conv,
    **dict.fromkeys(RECURRENT, _recurrent),
}
