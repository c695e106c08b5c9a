"""GRU layers of an ONNX graph as loops with int8 products.

ONNX Runtime has an int8 LSTM and no int8 GRU: most of a network with GRUs would stay in fp32. Here a layer becomes one
product over all steps for each direction, which the quantiser rounds as any other, and one loop that advances all
directions and ends at the longest real length of the batch. States lie between -1 and 1, so they are rounded on one
fixed scale, and no item by what else is in the batch.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np

from mer_export.exporters.graph.names import module_of, node_name
from mer_export.exporters.graph.nodes import all_nodes

LEAST = 256
"""States of a layer from which on a loop is faster."""
LARGEST, MIDDLE = 127, 128
"""The largest int8, and what 0 is as an unsigned byte."""
DOMAIN = "com.microsoft"
PAST = -(2**31 - 1)
"""Where a slice ends that runs backwards to the first step."""


def gru_loops(model: Any, keep: Collection[str] = ()) -> int:
    """Rewrites the GRU layers of an `onnx.ModelProto` that are large enough, in place; returns how many.

    Layers that are named in `keep`, or not as our exports write them, stay what they are.
    """
    import onnx
    from onnx import numpy_helper

    graph = model.graph
    constants = {i.name: i for i in graph.initializer}
    nodes: list[Any] = []
    changed = 0
    steps = _first_dims(model)
    for number, node in enumerate(graph.node):
        wanted = node.op_type == "GRU" and node.name not in keep and node.input[0] in steps
        if not wanted or not _plain(node, constants):
            nodes.append(node)
            continue
        write = _Nodes(module_of(node.name), f"GRU_{number}")
        _layer(write, node, steps[node.input[0]], *(numpy_helper.to_array(constants[n]) for n in node.input[1:4]))
        nodes += write.nodes
        graph.initializer.extend(write.constants)
        changed += 1
    if changed:
        del graph.node[:]
        graph.node.extend(nodes)
        used = {name for node in all_nodes(graph) for name in node.input}
        kept = [i for i in graph.initializer if i.name in used]
        del graph.initializer[:]
        graph.initializer.extend(kept)
        if all(o.domain != DOMAIN for o in model.opset_import):
            model.opset_import.append(onnx.helper.make_opsetid(DOMAIN, 1))
    return changed


def _first_dims(model: Any) -> dict[str, int]:
    """The first dim of every value where it is fixed: the steps of what a recurrent layer reads."""
    import onnx

    graph = onnx.shape_inference.infer_shapes(model).graph
    dims = {v.name: v.type.tensor_type.shape.dim for v in (*graph.input, *graph.value_info)}
    return {name: own[0].dim_value for name, own in dims.items() if own and own[0].dim_value}


def _plain(node: Any, constants: dict[str, Any]) -> bool:
    """Whether a layer is large, and as our exports write it: constant weights, no first state, all steps are read."""
    attributes = {a.name: a for a in node.attribute}
    inputs = [*node.input, *[""] * 6]
    return (
        {"hidden_size", "linear_before_reset"}
        <= attributes.keys()
        <= {"hidden_size", "direction", "linear_before_reset"}
        and attributes["hidden_size"].i >= LEAST
        and attributes["linear_before_reset"].i == 1
        and ("direction" not in attributes or attributes["direction"].s in (b"forward", b"bidirectional"))
        and all(name in constants for name in inputs[1:4])
        and not inputs[5]
        and not any(node.output[1:])
    )


@dataclass
class _Nodes:
    """Nodes of a module that are being written, and constants, under names that begin with `prefix`."""

    module: str | None
    prefix: str
    nodes: list[Any] = field(default_factory=list)
    constants: list[Any] = field(default_factory=list)

    def constant(self, name: str, value: Any) -> str:
        from onnx import numpy_helper

        full = f"{self.prefix}.{name}"
        if all(c.name != full for c in self.constants):
            # Contiguous, and a number stays one.
            self.constants.append(numpy_helper.from_array(np.array(value, order="C"), full))
        return full

    def integers(self, *values: int) -> str:
        return self.constant(f"integers{'_'.join(map(str, values))}", np.array(values, np.int64))

    def all(self, operator: str, inputs: list[str], count: int = 1, domain: str = "", **attributes: Any) -> list[str]:
        """A node with so many outputs; their names."""
        from onnx import helper

        name = node_name(self.module, f"{self.prefix}_{operator}", len(self.nodes))
        outputs = [f"{name}.{i}" for i in range(count)]
        self.nodes.append(helper.make_node(operator, inputs, outputs, name=name, domain=domain, **attributes))
        return outputs

    def one(self, operator: str, *inputs: str, **attributes: Any) -> str:
        """A node with one output; its name."""
        return self.all(operator, [*inputs], **attributes)[0]

    def body(self) -> _Nodes:
        """Nodes of a loop, whose constants stand outside."""
        return _Nodes(self.module, f"{self.prefix}_step", constants=self.constants)


def _layer(write: _Nodes, node: Any, steps: int, weight: Any, recurrent: Any, bias: Any) -> None:
    """Y (steps, directions, batch, hidden), 0 at padding, from X (steps, batch, width)."""
    directions, _, hidden = recurrent.shape
    x, lengths = node.input[0], (node.input[4] if len(node.input) > 4 else "")
    masks: list[str] = []
    real = write.integers(steps)
    if lengths:
        # What lies behind the longest item is neither multiplied nor rounded.
        real = write.one("Cast", write.one("ReduceMax", lengths, keepdims=1), to=7)
        x = _first(write, x, real)
        time = _first(write, write.constant("time", np.arange(steps, dtype=np.int32)[:, None]), real)
        mask = write.one("Cast", write.one("Less", time, lengths), to=1)
        masks = [write.one("Unsqueeze", mask, write.integers(2))] * directions
    inputs = [_projected(write, x, d, weight[d], bias[d]) for d in range(directions)]
    items = write.one("Gather", write.one("Shape", x), write.integers(1))
    shape = write.one("Concat", write.integers(directions), items, write.integers(hidden), axis=0)
    start = write.one("Expand", write.constant("zero", np.zeros((1, 1, 1), np.float32)), shape)
    given = [_in_order(write, values) for values in (inputs, masks) if values]
    body = _body(write.body(), given, recurrent, bias)
    count = write.one("Squeeze", real)
    rows = write.all("Loop", [count, write.constant("true", np.array(True)), start], 2, body=body)[1]
    if directions > 1:
        ahead, back = write.all("Split", [rows], 2, axis=1, num_outputs=2)
        rows = write.one("Concat", ahead, _backwards(write, back), axis=1)
    if lengths:
        missing = write.one("Sub", write.integers(steps), real)
        pads = write.one("Concat", write.integers(0, 0, 0, 0), missing, write.integers(0, 0, 0), axis=0)
        write.one("Pad", rows, pads)
    elif directions == 1:
        write.one("Identity", rows)
    write.nodes[-1].output[0] = node.output[0]


def _projected(write: _Nodes, x: str, d: int, weight: Any, bias: Any) -> str:
    """What the input of all steps adds to the gates of one direction: (steps, batch, 3 x hidden)."""
    hidden = len(bias) // 6
    # Both biases of z and r; that of the new state which stands inside the reset gate goes with the recurrent product.
    added = bias[: 3 * hidden] + np.concatenate([bias[3 * hidden : 5 * hidden], np.zeros(hidden, bias.dtype)])
    product = write.one("MatMul", x, write.constant(f"weight{d}", weight.T))
    return write.one("Add", product, write.constant(f"bias{d}", added))


def _in_order(write: _Nodes, values: list[str]) -> str:
    """(steps, directions, batch, width): each direction in the order in which it reads its steps."""
    ordered = [values[0], *(_backwards(write, v) for v in values[1:])]
    apart = [write.one("Unsqueeze", v, write.integers(1)) for v in ordered]
    return write.one("Concat", *apart, axis=1) if len(apart) > 1 else apart[0]


def _first(write: _Nodes, value: str, count: str) -> str:
    """The first steps, so many."""
    return write.one("Slice", value, write.integers(0), count, write.integers(0))


def _backwards(write: _Nodes, value: str) -> str:
    """All steps, from the last to the first."""
    return write.one("Slice", value, write.integers(-1), write.integers(PAST), write.integers(0), write.integers(-1))


def _body(write: _Nodes, given: list[str], recurrent: Any, bias: Any) -> Any:
    """One step of all directions: a graph of the step's number and the states (directions, batch, hidden) before it."""
    from onnx import TensorProto, helper

    directions, _, hidden = recurrent.shape
    number, on, state = (f"{write.prefix}.{name}" for name in ("number", "on", "state"))
    x, *real = (write.one("Gather", value, number, axis=0) for value in given)
    gates = write.integers(2 * hidden, hidden)
    both_in, new_in = write.all("Split", [x, gates], 2, axis=2)
    both_back, new_back = write.all("Split", [_product(write, state, recurrent, bias), gates], 2, axis=2)
    opened = write.one("Sigmoid", write.one("Add", both_in, both_back))
    update, reset = write.all("Split", [opened], 2, axis=2, num_outputs=2)
    new = write.one("Tanh", write.one("Add", new_in, write.one("Mul", reset, new_back)))
    after = write.one("Add", new, write.one("Mul", update, write.one("Sub", state, new)))
    for mask in real:
        # Behind an item the state is 0: so the backward direction starts at its last real step with none.
        after = write.one("Mul", after, mask)
    still, row = write.one("Identity", on), write.one("Identity", after)
    value = partial(helper.make_tensor_value_info, elem_type=TensorProto.FLOAT, shape=(directions, None, hidden))
    return helper.make_graph(
        write.nodes,
        f"{write.prefix}.body",
        [
            helper.make_tensor_value_info(number, TensorProto.INT64, ()),
            helper.make_tensor_value_info(on, TensorProto.BOOL, ()),
            value(state),
        ],
        [helper.make_tensor_value_info(still, TensorProto.BOOL, ()), value(after), value(row)],
    )


def _product(write: _Nodes, state: str, recurrent: Any, bias: Any) -> str:
    """The recurrent products (directions, batch, 3 x hidden)."""
    directions, _, hidden = recurrent.shape
    unit, zero = write.constant("unit", np.float32(1 / LARGEST)), write.constant("middle", np.uint8(MIDDLE))
    rounded = write.one("QuantizeLinear", state, unit, zero)
    parts = write.all("Split", [rounded], directions, axis=0, num_outputs=directions) if directions > 1 else [rounded]
    products = []
    for d, part in enumerate(parts):
        scale = np.abs(recurrent[d]).max(axis=1) / LARGEST
        scale[scale == 0] = 1
        weight = write.constant(f"recurrent{d}", np.round(recurrent[d] / scale[:, None]).astype(np.int8).T)
        inner = np.concatenate([np.zeros(2 * hidden, np.float32), bias[d, 5 * hidden :]])
        scales = [unit, write.constant(f"scale{d}", scale), zero, "", write.constant(f"inner{d}", inner)]
        products.append(write.one("MatMulIntegerToFloat", part, weight, *scales, domain=DOMAIN))
    return write.one("Concat", *products, axis=0) if directions > 1 else products[0]
