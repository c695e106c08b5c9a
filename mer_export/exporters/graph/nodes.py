"""The nodes of an ONNX graph, those inside loops and branches too."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any


def all_nodes(graph: Any) -> Iterator[Any]:
    """Every node of an `onnx.GraphProto`, and of the graphs that its nodes hold."""
    for node in graph.node:
        yield from within(node)


def within(node: Any) -> Iterator[Any]:
    """An `onnx.NodeProto`, and every node of the graphs that it holds."""
    yield node
    for attribute in node.attribute:
        if attribute.HasField("g"):
            yield from all_nodes(attribute.g)


def reads(node: Any) -> set[str]:
    """The names that a node reads, those that the graphs which it holds read from around it too."""
    nodes = [*within(node)]
    made = {name for inner in nodes[1:] for name in inner.output}
    return {name for inner in nodes for name in inner.input} - made
