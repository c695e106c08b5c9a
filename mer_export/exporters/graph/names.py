"""Nodes of an ONNX graph called after the module of the network that they come from.

`text_encoder.layers.0.linear1/MatMul_12` stands in the file, so that a profile of a runtime, the layers of an engine
and a viewer of graphs show the names of the network. What lies before the slash is the module.
"""

from __future__ import annotations

import ast
from collections.abc import Iterable, Sequence
from typing import Any

from mer_export.errors import UsageError

TOP = "forward"
"""Stands for what the network does itself, between its modules."""
WRAPPER = "model"
"""Where the network lies in the module that exporters take."""
NOWHERE = "_empty_nn_module_stack_from_metadata_hook"
"""PyTorch's word for a constant that it moved out of its module."""
SCOPES = "pkg.torch.onnx.name_scopes"
"""The exporter's note of the modules that a node lies in, from the outermost to the node itself."""


def path_of(scope: str) -> str:
    """A module's path as the exporter has it, by the network's own names."""
    # A module that is called again has the number of the call at its end.
    path = scope.partition("@")[0].removeprefix(WRAPPER).removeprefix(".")
    return TOP if path in ("", NOWHERE) else path


def name_nodes(model: Any) -> None:
    """Names every node of an `onnx.ModelProto` after its module, in place, from the notes of PyTorch's exporter."""
    for number, node in enumerate(model.graph.node):
        notes = {note.key: note.value for note in node.metadata_props}
        scopes = ast.literal_eval(notes[SCOPES]) if SCOPES in notes else []
        node.name = node_name(path_of(scopes[-2]) if len(scopes) > 1 else None, node.op_type, number)


def node_name(module: str | None, operator: str, number: int) -> str:
    """The name of a node."""
    return f"{module}/{operator}_{number}" if module else f"{operator}_{number}"


def module_of(name: str) -> str | None:
    """The module of a node by its name, None where the name does not say."""
    return name.rpartition("/")[0] or None


def inside(module: str | None, outer: str) -> bool:
    """Whether a module is `outer` or a part of it."""
    return module is not None and (module == outer or module.startswith(f"{outer}."))


def nodes_of(graph: Any, modules: Sequence[str]) -> list[str]:
    """Names of the nodes of these modules and of their parts.

    Raises:
        UsageError: the graph has none of a module.
    """
    own = {node.name: module_of(node.name) for node in graph.node}
    for module in modules:
        if not any(inside(m, module) for m in own.values()):
            raise UsageError(f"keep_fp32 {module}: no node of the graph is of that module, {_there(own.values())}")
    return [name for name, m in own.items() if any(inside(m, module) for module in modules)]


def _there(modules: Iterable[str | None]) -> str:
    known = list(dict.fromkeys(m for m in modules if m))
    if not known:
        return "its nodes do not say their modules: export fp32 again with --force"
    return f"there are {', '.join(known[:12])}{' and more' if len(known) > 12 else ''}"
