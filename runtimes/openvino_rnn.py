"""Recurrent layers with real lengths, in the form that OpenVINO's CPU plugin computes right and fast.

The plugin runs a bidirectional sequence operator as if every item were as long as the tensor, so that the backward
direction starts in the padding. Here padding becomes a step that changes nothing: one more input feature, 1 at padding,
drives the gates so far that the state is kept to the last bit. Backward, the state is then still zero when the real
steps begin; forward, the last state is that of the last real step.
"""

from __future__ import annotations

from typing import Any

import numpy as np

HOLD = {"GRUSequence": (1, 0, 0), "LSTMSequence": (1, -1, 0, 0)}
"""Which gates keep the state, opened (1) or shut (-1): update of z r h, forget and input of f i c o."""
FAR = 1e4
"""A sigmoid of this is exactly 1 (or 0), in float32 and bfloat16, whatever a real feature adds to it."""


def hold_at_padding(model: Any) -> int:
    """Rewrites every bidirectional GRUSequence and LSTMSequence of an `openvino.Model` in place; returns how many."""
    from openvino.utils import replace_node

    found = [
        n
        for n in model.get_ordered_ops()
        if n.get_type_name() in HOLD and n.get_attributes()["direction"] == "bidirectional"
    ]
    for node in found:
        replace_node(node, _holding(node))
    return len(found)


def _holding(node: Any) -> Any:
    from openvino import opset13 as ops

    inputs = [node.input_value(i) for i in range(node.get_input_size())]
    x, states, lengths, (weight, recurrent, bias) = inputs[0], inputs[1:-4], inputs[-4], inputs[-3:]
    attributes = node.get_attributes()
    hidden, steps = attributes["hidden_size"], x.get_partial_shape()[1].get_length()
    past = ops.greater_equal(np.arange(steps, dtype=np.int32)[None], ops.unsqueeze(lengths, np.int64(1)))
    padding = ops.unsqueeze(ops.convert(past, x.get_element_type()), np.int64(2))
    gates = np.repeat(np.array(HOLD[node.get_type_name()], dtype=np.float32) * FAR, hidden)
    column = np.broadcast_to(gates[None, :, None], (2, len(gates), 1))
    # Derived from a shape alone, which is how the plugin knows that every item has the whole length.
    whole = ops.broadcast(np.int32(steps), ops.shape_of(lengths, "i32"))
    extra = {"linear_before_reset": attributes["linear_before_reset"]} if len(states) == 1 else {}
    make = ops.gru_sequence if len(states) == 1 else ops.lstm_sequence
    return make(
        ops.concat([x, padding], 2),
        *states,
        whole,
        ops.concat([weight, ops.constant(np.ascontiguousarray(column))], 2),
        recurrent,
        bias,
        hidden,
        "bidirectional",
        **extra,
    )
