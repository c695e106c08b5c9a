"""The nodes of an ONNX graph, those inside loops and branches too."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any


def all_nodes(graph: Any) -> Iterator[Any]:
    """Every node of an `onnx.GraphProto`, and of the graphs that its nodes hold."""
    for node in graph.node:
        yield node
        for attribute in node.attribute:
            if attribute.HasField("g"):
                yield from all_nodes(attribute.g)
