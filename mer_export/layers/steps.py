"""The real steps of padded sequences: which they are, and rows picked from them."""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor


def real_steps(lengths: Int[Tensor, " batch"], steps: int) -> Bool[Tensor, "batch time"]:
    """True at the real steps of each item."""
    return torch.arange(steps, device=lengths.device) < lengths[:, None]


def up_to(numbers: Int[Tensor, "batch time"], steps: int, value: int = 0) -> Int[Tensor, "batch steps"]:
    """Token numbers with `value` behind them, `steps` in all.

    Not with the padding operator: on integers ONNX Runtime has none for a GPU, and then captures no CUDA graph.
    """
    missing = steps - numbers.shape[1]
    if missing <= 0:
        return numbers if missing == 0 else numbers[:, :steps]
    return torch.cat([numbers, numbers.new_full((numbers.shape[0], missing), value)], dim=1)


def take_steps(x: Float[Tensor, "batch time feature"], index: Int[Tensor, "batch taken"]) -> Tensor:
    """Rows `x[b, index[b, t]]`, as one flat row gather, which runtimes do as block copies."""
    batch, time, width = x.shape
    start = torch.arange(batch, device=x.device)[:, None] * time
    taken = x.reshape(batch * time, width).index_select(0, (start + index).reshape(-1))
    return taken.reshape(batch, index.shape[1], width)


def last_step(x: Float[Tensor, "batch time feature"], lengths: Int[Tensor, " batch"]) -> Float[Tensor, "batch feature"]:
    """The last real step of each item; an item without any gives its first, which means nothing."""
    batch, time, width = x.shape
    row = torch.arange(batch, device=x.device) * time + (lengths - 1).clamp(min=0)
    return x.reshape(batch * time, width).index_select(0, row)
