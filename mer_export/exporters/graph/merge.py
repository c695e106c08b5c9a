"""Two linear layers in a row as one, where that is less work: what the layers compute together is itself linear."""

from __future__ import annotations

from typing import Any

import numpy as np


def merge_linears(model: Any) -> int:
    """Rewrites `MatMul, Add ..., MatMul` with constant operands of an `onnx.ModelProto` in place.

    A pair becomes one MatMul and one Add when its single weight has fewer entries than the two, and when nothing else
    reads what lies between. Products are taken in float64.

    Returns:
        How many pairs were merged.
    """
    merged = 0
    while pair := _find(model.graph):
        _merge(model.graph, *pair)
        merged += 1
    return merged


def _find(graph: Any) -> tuple[Any, list[Any], Any] | None:
    """The first (MatMul, Adds, MatMul) worth merging."""
    constants = {i.name: i for i in graph.initializer}
    makers = {o: n for n in graph.node for o in n.output}
    readers: dict[str, int] = {o.name: 1 for o in graph.output}
    for node in graph.node:
        for name in node.input:
            readers[name] = readers.get(name, 0) + 1
    for second in graph.node:
        if not _is_linear(second, constants):
            continue
        adds = []
        maker = makers.get(second.input[0])
        while maker is not None and _is_shift(maker, constants) and readers[maker.output[0]] == 1:
            adds.append(maker)
            maker = makers.get(maker.input[0])
        if maker is None or not _is_linear(maker, constants) or readers[maker.output[0]] != 1:
            continue
        (width, middle), (_, out) = constants[maker.input[1]].dims, constants[second.input[1]].dims
        if width * out < width * middle + middle * out:
            return maker, adds, second
    return None


def _is_linear(node: Any, constants: dict[str, Any]) -> bool:
    return node.op_type == "MatMul" and node.input[1] in constants and len(constants[node.input[1]].dims) == 2


def _is_shift(node: Any, constants: dict[str, Any]) -> bool:
    return node.op_type == "Add" and node.input[1] in constants and len(constants[node.input[1]].dims) == 1


def _merge(graph: Any, first: Any, adds: list[Any], second: Any) -> None:
    from onnx import helper, numpy_helper

    def value(name: str) -> np.ndarray:
        found = next(i for i in graph.initializer if i.name == name)
        return np.asarray(numpy_helper.to_array(found), dtype=np.float64)

    weight = value(first.input[1]) @ value(second.input[1])
    shift = sum((np.broadcast_to(value(a.input[1]), value(second.input[1]).shape[:1]) for a in adds), np.zeros(1))
    shift = np.broadcast_to(shift, value(second.input[1]).shape[:1]) @ value(second.input[1])
    stem = f"{second.output[0]}.merged"
    graph.initializer.extend(
        numpy_helper.from_array(a.astype(np.float32), f"{stem}.{n}") for n, a in (("weight", weight), ("bias", shift))
    )
    place = list(graph.node).index(second)
    product = helper.make_node("MatMul", [first.input[0], f"{stem}.weight"], [stem], name=f"{second.name}.merged")
    shifted = helper.make_node("Add", [stem, f"{stem}.bias"], list(second.output), name=f"{second.name}.shifted")
    graph.node.insert(place, shifted)
    graph.node.insert(place, product)
    for node in (first, *adds, second):
        graph.node.remove(node)
    _drop_unread(graph)


def _drop_unread(graph: Any) -> None:
    read = {name for n in graph.node for name in n.input} | {o.name for o in graph.output}
    for entry in [i for i in graph.initializer if i.name not in read]:
        graph.initializer.remove(entry)
    for entry in [v for v in graph.value_info if v.name not in read]:
        graph.value_info.remove(entry)
