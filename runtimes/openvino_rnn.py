"""Recurrent layers with real lengths, in the form that OpenVINO's CPU plugin computes right.

The plugin runs the lengths input of a bidirectional sequence operator as if every item were as long as the tensor,
so that the backward direction starts in the padding. Here each such operator becomes two forward ones; the backward
one reads its input, and writes its output, reversed by length.
"""

from __future__ import annotations

from typing import Any

import numpy as np


def reverse_by_length(model: Any) -> int:
    """Rewrites every bidirectional GRUSequence and LSTMSequence of an `openvino.Model` in place; returns how many."""
    from openvino.utils import replace_node

    found = [
        n
        for n in model.get_ordered_ops()
        if n.get_type_name() in _STATES and n.get_attributes()["direction"] == "bidirectional"
    ]
    for node in found:
        replace_node(node, _two_directions(node))
    return len(found)


_STATES = {"GRUSequence": 1, "LSTMSequence": 2}
"""How many initial states come between X and the lengths."""


def _two_directions(node: Any) -> list[Any]:
    """Outputs that take the place of the node's own, in its order: Y, then the last states."""
    from openvino import opset13 as ops

    states = _STATES[node.get_type_name()]
    inputs = [node.input_value(i) for i in range(node.get_input_size())]
    x, initial, lengths, weights = inputs[0], inputs[1 : 1 + states], inputs[1 + states], inputs[2 + states :]
    time = x.get_partial_shape()[1].get_length()
    # Derived from a shape alone, which is how the plugin knows that every item has the whole length.
    whole = ops.broadcast(np.int32(time), ops.shape_of(lengths, "i32"))
    results = []
    for direction in (0, 1):
        source = ops.reverse_sequence(x, lengths, 0, 1) if direction else x
        rnn = _one_direction(
            node, source, [_half(s, direction, 1) for s in initial], whole, [_half(w, direction, 0) for w in weights]
        )
        outputs = list(rnn.outputs())
        if direction:
            outputs[0] = ops.reverse_sequence(outputs[0], lengths, 0, 2).output(0)
        results.append(outputs)
    return [ops.concat(list(pair), 1).output(0) for pair in zip(*results, strict=True)]


def _one_direction(node: Any, x: Any, states: list[Any], lengths: Any, weights: list[Any]) -> Any:
    from openvino import opset13 as ops

    attributes = node.get_attributes()
    extra = {"linear_before_reset": attributes["linear_before_reset"]} if len(states) == 1 else {}
    make = ops.gru_sequence if len(states) == 1 else ops.lstm_sequence
    return make(x, *states, lengths, *weights, attributes["hidden_size"], "forward", **extra)


def _half(value: Any, index: int, axis: int) -> Any:
    """One direction of a tensor whose `axis` is the two directions, that axis kept at size 1."""
    from openvino import opset13 as ops

    return ops.slice(value, [index], [index + 1], [1], [axis])
