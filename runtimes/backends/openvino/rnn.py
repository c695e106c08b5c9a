"""Recurrent layers with real lengths, in a form that OpenVINO's CPU plugin computes right and fast.

The plugin runs a bidirectional sequence operator as if every item were as long as the tensor, so that the backward
direction starts in the padding; and its one-directional operator is a reference implementation. Here each operator
becomes two input projections over all steps at once and one loop that advances both directions, of which the backward
one reads its input, and writes its output, reversed by length.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from mer_export.errors import UnsupportedError


class _Direction(NamedTuple):
    """One direction: weights as constants, bias of the projection, and what is added to the recurrent product."""

    weight: np.ndarray
    recurrent: np.ndarray
    bias: np.ndarray
    inner_bias: np.ndarray


def unroll_by_length(model: Any) -> int:
    """Rewrites every bidirectional GRUSequence and LSTMSequence of an `openvino.Model` in place; returns how many."""
    from openvino.passes import ConstantFolding, Manager
    from openvino.utils import replace_node

    found = [
        n
        for n in model.get_ordered_ops()
        if n.get_type_name() in CELLS and n.get_attributes()["direction"] == "bidirectional"
    ]
    if found:
        # The importer leaves biases as sums and concatenations of constants.
        folding = Manager()
        folding.register_pass(ConstantFolding())
        folding.run_passes(model)
    for node in found:
        replace_node(node, _rewrite(node))
    return len(found)


def _rewrite(node: Any) -> list[Any]:
    """Outputs in place of the node's own: Y (batch, 2, time, hidden), then the last states (batch, 2, hidden).

    The last states are those at the end of the tensor, padding included, so a graph that reads them is refused.
    """
    if any(output.get_target_inputs() for output in node.outputs()[1:]):
        raise UnsupportedError("this graph reads the last state of a bidirectional layer: take its last real step")
    cell = CELLS[node.get_type_name()]
    inputs = [node.input_value(i) for i in range(node.get_input_size())]
    x, initial, lengths = inputs[0], inputs[1 : 1 + cell.states], inputs[1 + cell.states]
    directions = [cell.direction(*(w.get_node().data[d] for w in inputs[2 + cell.states :])) for d in (0, 1)]
    index = _reversal(lengths, x.get_partial_shape()[1].get_length())
    projected = [_projected(x, directions[0]), _reverse(_projected(x, directions[1]), index)]
    loop, written, states = _loop(cell, directions, projected, initial)
    ahead, back = (loop.get_concatenated_slices(rows, 0, 1, 1, -1, 1) for rows in written)
    last = [loop.get_iter_value(s, -1) for s in states]
    return [_stack([ahead, _reverse(back, index)])] + [
        _stack([last[s], last[cell.states + s]]) for s in range(cell.states)
    ]


def _loop(cell: Cell, directions: list[_Direction], projected: list[Any], initial: list[Any]) -> tuple[Any, Any, Any]:
    """The operator, and which outputs of its body are the hidden states to keep and the states to carry on."""
    import openvino
    from openvino import opset13 as ops

    gates, hidden = directions[0].recurrent.shape
    slices = [ops.parameter([-1, 1, gates], np.float32) for _ in directions]
    before = [[ops.parameter([-1, hidden], np.float32) for _ in range(cell.states)] for _ in directions]
    after = [
        cell.step(ops.squeeze(s, np.int64(1)), _product(b[0], d), b, hidden)
        for s, b, d in zip(slices, before, directions, strict=True)
    ]
    written = [ops.unsqueeze(states[0], np.int64(1)).output(0) for states in after]
    flat_before = [parameter for states in before for parameter in states]
    flat_after = [state.output(0) for states in after for state in states]
    loop = ops.tensor_iterator()
    loop.set_body(openvino.Model([*flat_after, *written], [*slices, *flat_before]))
    for parameter, value in zip(slices, projected, strict=True):
        loop.set_sliced_input(parameter, value, 0, 1, 1, -1, 1)
    starts = [_one(state, d) for d in range(len(directions)) for state in initial]
    for parameter, start, value in zip(flat_before, starts, flat_after, strict=True):
        loop.set_merged_input(parameter, start, value)
    return loop, written, flat_after


def _product(state: Any, direction: _Direction) -> Any:
    """The recurrent product of one step: (batch, gates x hidden)."""
    from openvino import opset13 as ops

    # ops.constant copies the array as a whole; a bare array would go through a list of Python numbers.
    product = ops.matmul(state, ops.constant(direction.recurrent), False, True)
    return ops.add(product, ops.constant(direction.inner_bias[None]))


def _projected(x: Any, direction: _Direction) -> Any:
    from openvino import opset13 as ops

    product = ops.matmul(x, ops.constant(direction.weight), False, True)
    return ops.add(product, ops.constant(direction.bias[None, None])).output(0)


def _gru_step(projected: Any, product: Any, states: list[Any], hidden: int) -> list[Any]:
    """Gates z, r, h; the reset gate acts after the recurrent product."""
    from openvino import opset13 as ops

    sizes = np.array([2 * hidden, hidden], np.int64)
    gates_in, new_in = ops.variadic_split(projected, np.int64(1), sizes).outputs()
    gates_back, new_back = ops.variadic_split(product, np.int64(1), sizes).outputs()
    update, reset = ops.split(ops.sigmoid(ops.add(gates_in, gates_back)), np.int64(1), 2).outputs()
    new = ops.tanh(ops.add(new_in, ops.multiply(reset, new_back)))
    return [ops.add(new, ops.multiply(update, ops.subtract(states[0], new)))]


def _lstm_step(projected: Any, product: Any, states: list[Any], hidden: int) -> list[Any]:
    """Gates f, i, c, o."""
    from openvino import opset13 as ops

    forget, enter, new, show = ops.split(ops.add(projected, product), np.int64(1), 4).outputs()
    kept = ops.multiply(ops.sigmoid(forget), states[1])
    cell = ops.add(kept, ops.multiply(ops.sigmoid(enter), ops.tanh(new)))
    return [ops.multiply(ops.sigmoid(show), ops.tanh(cell)), cell]


def _gru_direction(weight: np.ndarray, recurrent: np.ndarray, bias: np.ndarray) -> _Direction:
    """`bias` holds z and r summed, then h of the input and h of the recurrence."""
    hidden = recurrent.shape[1]
    inner = np.concatenate([np.zeros(2 * hidden, np.float32), bias[3 * hidden :]])
    return _Direction(weight, recurrent, bias[: 3 * hidden], inner)


def _lstm_direction(weight: np.ndarray, recurrent: np.ndarray, bias: np.ndarray) -> _Direction:
    return _Direction(weight, recurrent, bias, np.zeros_like(bias))


class Cell(NamedTuple):
    """How many states a sequence operator carries, how its weights are read, and one step of one direction."""

    states: int
    direction: Callable[[np.ndarray, np.ndarray, np.ndarray], _Direction]
    step: Callable[[Any, Any, list[Any], int], list[Any]]


CELLS = {"GRUSequence": Cell(1, _gru_direction, _gru_step), "LSTMSequence": Cell(2, _lstm_direction, _lstm_step)}


def _reversal(lengths: Any, time: int) -> Any:
    """For every row of (batch x time) the row to take: the real part of each item reversed, padding in place."""
    from openvino import opset13 as ops

    steps = np.arange(time, dtype=np.int32)[None]
    last = ops.unsqueeze(ops.subtract(ops.convert(lengths, "i32"), np.int32(1)), np.int64(1))
    index = ops.select(ops.less_equal(steps, last), ops.subtract(last, steps), steps)
    items = ops.squeeze(ops.shape_of(lengths, "i32"), np.int64(0))
    first = ops.multiply(ops.range(np.int32(0), items, np.int32(1), "i32"), np.int32(time))
    return ops.reshape(ops.add(index, ops.unsqueeze(first, np.int64(1))), np.array([-1], np.int64), False)


def _reverse(x: Any, index: Any) -> Any:
    """Rows of x (batch, time, width) in the order of the index.

    A flat gather copies whole rows. The plugin's Gather with a batch dim reads past its input where rows are short,
    and ReverseSequence is four times slower.
    """
    from openvino import opset13 as ops

    _, time, width = (d.get_length() if d.is_static else -1 for d in x.get_partial_shape())
    rows = ops.gather(ops.reshape(x, np.array([-1, width], np.int64), False), index, np.int64(0))
    return ops.reshape(rows, np.array([-1, time, width], np.int64), False).output(0)


def _one(value: Any, direction: int) -> Any:
    """One direction of (batch, 2, hidden)."""
    from openvino import opset13 as ops

    return ops.squeeze(ops.split(value, np.int64(1), 2).output(direction), np.int64(1)).output(0)


def _stack(pair: list[Any]) -> Any:
    """Two directions side by side on a new dim 1."""
    from openvino import opset13 as ops

    return ops.concat([ops.unsqueeze(v, np.int64(1)) for v in pair], 1).output(0)
