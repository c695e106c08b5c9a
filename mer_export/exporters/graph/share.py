"""Weights that a model uses in several places, once in the file: folding transposes gave each use a copy of its own."""

from __future__ import annotations

import hashlib
from typing import Any

from mer_export.exporters.graph.nodes import all_nodes

SMALLEST = 1024
"""Bytes from which sharing is worth a shared name."""


def share_initializers(model: Any) -> int:
    """Makes every reader of byte-identical initializers of an `onnx.ModelProto` read the first one, in place.

    Returns:
        How many copies were dropped.
    """
    first: dict[tuple[Any, ...], str] = {}
    copies: dict[str, str] = {}
    for entry in model.graph.initializer:
        content = _content(entry)
        if len(content) < SMALLEST:
            continue
        key = (entry.data_type, tuple(entry.dims), hashlib.sha256(content).digest())
        if key in first:
            copies[entry.name] = first[key]
        else:
            first[key] = entry.name
    outputs = {o.name for o in model.graph.output}
    copies = {name: kept for name, kept in copies.items() if name not in outputs}
    for node in all_nodes(model.graph):
        for index, name in enumerate(node.input):
            node.input[index] = copies.get(name, name)
    for entry in [i for i in model.graph.initializer if i.name in copies]:
        model.graph.initializer.remove(entry)
    for info in [v for v in model.graph.value_info if v.name in copies]:
        model.graph.value_info.remove(info)
    return len(copies)


def _content(entry: Any) -> bytes:
    from onnx import numpy_helper

    return entry.raw_data if entry.HasField("raw_data") else numpy_helper.to_array(entry).tobytes()
