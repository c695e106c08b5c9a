"""int8 products for OpenVINO's CPU plugin: weights rounded when a file is loaded, activations on every call.

Each output of a matrix has a scale, and each row of activations one for `GROUP` neighbours, so that no row is rounded
by what else is in the batch, or by padding. Products with a constant matrix are int8, those that `openvino_rnn` wrote
as loops included; everything else stays in fp32. On a processor without 8-bit dot products (AVX-512 VNNI, AVX-VNNI)
the plugin multiplies in fp32.
"""

from __future__ import annotations

from typing import Any

import numpy as np

GROUP = 128
"""Activations that share a scale. 32 costs a quarter of the speed; 256 gains 4 % and is a little less exact."""
LARGEST = 127
TOGETHER = 16
"""Rows as they lie in memory that are rounded at a time: they stay in the processor's cache, turned or not."""


def quantise_matrices(model: Any) -> int:
    """Gives every product of an `openvino.Model` with a constant matrix int8 weights, in place; returns how many."""
    from openvino import opset13 as ops
    from openvino.utils import replace_node

    changed = 0
    for node in model.get_ordered_ops():
        if node.get_type_name() == "TensorIterator":
            changed += quantise_matrices(node.get_function())
        weight = _matrix(node)
        if weight is None:
            continue
        attributes = node.get_attributes()
        rounded, scale = _rounded(weight if attributes["transpose_b"] else weight.T)
        small = ops.convert(ops.constant(rounded, shared_memory=True), np.float32)
        product = ops.matmul(
            node.input_value(0), ops.multiply(small, ops.constant(scale)), attributes["transpose_a"], True
        )
        product.set_friendly_name(node.get_friendly_name())
        replace_node(node, [product.output(0)])
        changed += 1
    return changed


def _rounded(rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Weights in int8 as [rows, columns], and the scale [rows, 1] of each row."""
    scale = np.maximum(rows.max(axis=1, keepdims=True), -rows.min(axis=1, keepdims=True)) / LARGEST
    scale[scale == 0] = 1
    rounded = np.empty(rows.shape, np.int8)
    lies, to, by = rows, rounded, np.broadcast_to(scale, rows.shape)
    if not rows.flags.c_contiguous:
        lies, to, by = rows.T, rounded.T, by.T
    for start in range(0, len(lies), TOGETHER):
        block = lies[start : start + TOGETHER] / by[start : start + TOGETHER]
        to[start : start + TOGETHER] = np.rint(block, out=block).astype(np.int8)
    return rounded, scale


def _matrix(node: Any) -> np.ndarray | None:
    """The constant right side of a product, unless it is a vector, whose scale would be the number itself."""
    if node.get_type_name() != "MatMul" or node.input_value(1).get_node().get_type_name() != "Constant":
        return None
    values: np.ndarray = node.input_value(1).get_node().data
    return values if values.ndim == 2 and 1 not in values.shape else None
