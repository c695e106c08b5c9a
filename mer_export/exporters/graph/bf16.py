"""bf16 as a rewrite of the fp32 ONNX graph: products in bfloat16, all else in fp32.

Only engines take such a graph, ONNX Runtime refuses it on the CPU. What is computed is well defined all the same, so a
twin of the graph that rounds in fp32 where the other computes in bf16 can run anywhere and stand before the gate.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

import numpy as np

PRODUCTS = ("MatMul", "Gemm")


def to_bf16(model: Any, emulate: bool = False, keep: Collection[str] = ()) -> Any:
    """Puts the products of an fp32 `onnx.ModelProto` in bf16, in place, but for the nodes of `keep`; with `emulate` it
    makes the twin.

    Weights that products alone read are stored in bf16.
    """
    graph = model.graph
    constants = {i.name: i for i in graph.initializer}
    outputs = {o.name for o in graph.output}
    rounded: dict[str, str] = {}
    nodes = []
    for node in list(graph.node):
        if node.op_type not in PRODUCTS or node.name in keep:
            nodes.append(node)
            continue
        for place, name in enumerate(node.input):
            if name and name not in rounded:
                rounded[name] = f"{name}.bf16"
                if name in constants:
                    graph.initializer.append(_constant(constants[name], rounded[name], emulate))
                else:
                    nodes += _round(name, rounded[name], emulate)
            node.input[place] = rounded.get(name, name)
        result = node.output[0]
        node.output[0] = f"{result}.product"
        nodes += [node, *_widen(node.output[0], result, emulate)]
    del graph.node[:]
    graph.node.extend(nodes)
    read = {name for n in nodes for name in n.input} | outputs
    for entry in [i for i in graph.initializer if i.name not in read]:
        graph.initializer.remove(entry)
    del graph.value_info[:]
    return model


def round_to_bf16(values: np.ndarray) -> np.ndarray:
    """The upper halves of fp32 values as uint16, rounded to nearest, ties to even; finite values stay finite."""
    bits = np.ascontiguousarray(values, dtype=np.float32).view(np.uint32)
    upper = (bits + 0x7FFF + ((bits >> 16) & 1)) >> 16
    overflown = np.isfinite(values) & ((upper & 0x7F80) == 0x7F80)
    return np.where(overflown, upper - 1, upper).astype(np.uint16)


def _constant(tensor: Any, name: str, emulate: bool) -> Any:
    from onnx import TensorProto, helper, numpy_helper

    upper = round_to_bf16(numpy_helper.to_array(tensor))
    if emulate:
        return numpy_helper.from_array((upper.astype(np.uint32) << 16).view(np.float32), name)
    return helper.make_tensor(name, TensorProto.BFLOAT16, tensor.dims, upper.tobytes(), raw=True)


def _round(source: str, target: str, emulate: bool) -> list[Any]:
    """From fp32 to bf16; the twin goes back at once."""
    from onnx import TensorProto, helper

    if not emulate:
        return [helper.make_node("Cast", [source], [target], name=f"{target}.cast", to=TensorProto.BFLOAT16)]
    narrow = f"{target}.narrow"
    return [
        helper.make_node("Cast", [source], [narrow], name=f"{target}.cast", to=TensorProto.BFLOAT16),
        helper.make_node("Cast", [narrow], [target], name=f"{target}.back", to=TensorProto.FLOAT),
    ]


def _widen(source: str, target: str, emulate: bool) -> list[Any]:
    """From a product's bf16 to fp32; the product of the twin is rounded here."""
    from onnx import TensorProto, helper

    if emulate:
        return _round(source, target, emulate)
    return [helper.make_node("Cast", [source], [target], name=f"{target}.wide", to=TensorProto.FLOAT)]
