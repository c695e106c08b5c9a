"""Faults planted in a copy of an exported ONNX file, each in one module of the network."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from mer_export.bundle import Bundle
from mer_export.exporters.graph.names import module_of

Fault = Callable[[Any, str], bool]
"""Changes the nodes of a module of a graph; whether it found what it changes."""


def planted(bundle: Bundle, root: Path, name: str, fault: Fault, module: str) -> Bundle:
    """A copy of a bundle whose variant has a fault in a module."""
    copied = Bundle.open(shutil.copytree(bundle.root, root))
    variant = copied.find(name)
    model = onnx.load_model(copied.variant_files(variant))
    assert fault(model.graph, module), f"nothing to change in {module}"
    with copied.commit() as change:
        onnx.save_model(model, change.file(variant.model))
    return copied


def nodes(graph: Any, module: str, *operators: str) -> list[Any]:
    return [n for n in graph.node if module_of(n.name) == module and (not operators or n.op_type in operators)]


def changed_weight(graph: Any, module: str) -> bool:
    """One column of a weight is another one."""
    return _reweigh(
        graph, module, ("MatMul", "Gemm", "GRU", "LSTM", "Conv"), lambda w: w + (np.arange(w.shape[-1]) == 0)
    )


def transposed_weight(graph: Any, module: str) -> bool:
    """The axes of a square weight are swapped."""
    return _reweigh(graph, module, ("MatMul", "Gemm"), np.transpose, square=True)


def swapped_gates(graph: Any, module: str) -> bool:
    """The gates of a recurrent layer are in another order."""
    return _reweigh(graph, module, ("GRU", "LSTM"), lambda w: np.roll(w, w.shape[1] // 4 + 1, axis=1))


def dropped_shift(graph: Any, module: str) -> bool:
    """What is added to a product is 0."""
    return _reweigh(graph, module, ("Add",), np.zeros_like)


def another_activation(graph: Any, module: str) -> bool:
    """A sigmoid stands for another function."""
    found = nodes(graph, module, "Relu", "LeakyRelu", "Tanh", "Gelu", "Erf")
    for node in found[:1]:
        node.op_type = "Sigmoid"
        del node.attribute[:]
    return bool(found)


def swapped_axis(graph: Any, module: str) -> bool:
    """A softmax or a norm goes along another axis."""
    found = nodes(graph, module, "Softmax", "LogSoftmax")
    for node in found[:1]:
        del node.attribute[:]
        node.attribute.append(helper.make_attribute("axis", 1))
    return bool(found)


def dropped_mask(graph: Any, module: str) -> bool:
    """A choice by a mask takes all."""
    for node in nodes(graph, module, "Where"):
        return _instead(
            graph, node, 0, helper.make_node("Or", [node.input[0], "yes"], ["planted"]), np.array(True), "yes"
        )
    return False


def large_epsilon(graph: Any, module: str) -> bool:
    """A norm has another epsilon."""
    found = nodes(graph, module, "LayerNormalization")
    for node in found[:1]:
        kept = [a for a in node.attribute if a.name != "epsilon"]
        del node.attribute[:]
        node.attribute.extend([*kept, helper.make_attribute("epsilon", 1.0)])
    return bool(found)


def fp16_overflow(graph: Any, module: str) -> bool:
    """What a product gives passes through fp16 at a scale that has no room there, as casts that a tool put in."""
    for node in nodes(graph, module, "MatMul", "Gemm", "GRU", "LSTM", "Mul"):
        result = node.output[0]
        node.output[0] = "exact"
        place = list(graph.node).index(node) + 1
        steps = [
            helper.make_node("Mul", ["exact", "scale"], ["large"]),
            helper.make_node("Cast", ["large"], ["half"], to=TensorProto.FLOAT16),
            helper.make_node("Cast", ["half"], ["full"], to=TensorProto.FLOAT),
            helper.make_node("Div", ["full", "scale"], [result]),
        ]
        graph.initializer.append(numpy_helper.from_array(np.array(1e6, np.float32), "scale"))
        for step in reversed(steps):
            graph.node.insert(place, step)
        return True
    return False


FAULTS: dict[str, Fault] = {
    f.__name__: f
    for f in (
        changed_weight,
        transposed_weight,
        swapped_gates,
        dropped_shift,
        another_activation,
        swapped_axis,
        dropped_mask,
        large_epsilon,
        fp16_overflow,
    )
}


def _reweigh(
    graph: Any,
    module: str,
    operators: tuple[str, ...],
    change: Callable[[np.ndarray], np.ndarray],
    square: bool = False,
) -> bool:
    """Gives the first node of these operators a changed copy of its constant, which others may read too."""
    constants = {i.name: i for i in graph.initializer}
    for node in nodes(graph, module, *operators):
        for place, name in enumerate(node.input):
            values = numpy_helper.to_array(constants[name]) if name in constants else np.zeros(0)
            if values.dtype != np.float32 or values.size < 2 or (square and len({*values.shape}) != 1):
                continue
            graph.initializer.append(
                numpy_helper.from_array(np.ascontiguousarray(change(values), np.float32), "planted")
            )
            node.input[place] = "planted"
            return True
    return False


def _instead(graph: Any, node: Any, place: int, made: Any, constant: np.ndarray, name: str) -> bool:
    graph.initializer.append(numpy_helper.from_array(constant, name))
    node.input[place] = made.output[0]
    graph.node.insert(list(graph.node).index(node), made)
    return True
