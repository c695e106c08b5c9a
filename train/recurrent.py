"""Bidirectional GRUs in training on a CPU: real steps alone, and the weights' gradient in one product.

PyTorch's own multiplies at padded steps too, and at every step of the backward pass it writes out a matrix as large as
the recurrent weights, to add it to that of the step before. Here the rows of a step stand together, as in a packed run,
and the gradients of all steps meet in one product.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate
from typing import Any, NamedTuple, cast

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional

from mer_export.layers.recurrent import BidirectionalRNN

Rows = Float[Tensor, "directions rows width"]


class Steps(NamedTuple):
    """The real steps of a padded batch, as rows in the order of time, those of one time together."""

    rows: tuple[Int[Tensor, " rows"], Int[Tensor, " rows"]]
    """Where each row stands in the flattened batch: read from the first step on, and from the last one back."""
    sizes: list[int]
    """Rows of each time; never more than of the time before."""


def real_rows(lengths: Int[Tensor, " batch"], steps: int) -> Steps:
    """Of items of these lengths, padded to `steps`."""
    longest, order = lengths.sort(descending=True, stable=True)
    time = torch.arange(steps)[:, None]
    real = time < longest
    ahead, back = order * steps + time, order * steps + (longest - 1 - time)
    return Steps((ahead[real], back[real]), [n for n in real.sum(1).tolist() if n])


class PackedRNN(BidirectionalRNN):
    """As `BidirectionalRNN`; outputs of GRUs at padding are 0."""

    def forward(
        self, x: Float[Tensor, "batch time feature"], lengths: Int[Tensor, " batch"]
    ) -> Float[Tensor, "batch time feature"]:
        """Outputs of both directions side by side."""
        # oneDNN has all steps of an LSTM in one call; and without padding this is no faster.
        if not isinstance(self.ahead[0], nn.GRU) or bool((lengths == x.shape[1]).all()):
            return super().forward(x, lengths)
        steps = real_rows(lengths, x.shape[1])
        for layer, cells in enumerate(zip(self.ahead, self.back, strict=True)):
            if layer:
                x = self.dropout(x)
            x = _layer(x, [cast(nn.GRU, cell) for cell in cells], steps)
        return x


def pack_steps(model: nn.Module) -> None:
    """Gives the bidirectional layers of a network on the CPU this form; parameters stay as they are."""
    _change(model, BidirectionalRNN, PackedRNN)


def unpack_steps(model: nn.Module) -> None:
    """Takes it back."""
    _change(model, PackedRNN, BidirectionalRNN)


def _change(model: nn.Module, old: type[nn.Module], new: type[nn.Module]) -> None:
    for module in model.modules():
        if type(module) is old:
            module.__class__ = new


def _layer(x: Tensor, cells: Sequence[nn.GRU], steps: Steps) -> Tensor:
    flat = x.flatten(0, 1)
    names = ("weight_ih", "bias_ih", "weight_hh", "bias_hh")
    of_input, input_bias, weight, bias = ([cast(Tensor, getattr(cell, f"{n}_l0")) for cell in cells] for n in names)
    inputs = [flat.index_select(0, rows) for rows in steps.rows]
    gates = torch.stack(list(map(functional.linear, inputs, of_input, input_bias)))
    states = _Recurrence.apply(gates, torch.stack(weight), torch.stack(bias)[:, None], steps.sizes)
    padded = [
        flat.new_zeros(len(flat), own.shape[1]).index_copy(0, rows, own)
        for rows, own in zip(steps.rows, states.unbind(0), strict=True)
    ]
    return torch.cat(padded, dim=-1).unflatten(0, x.shape[:2])


class _Recurrence(torch.autograd.Function):
    """The recurrent half of a GRU: from the products of the inputs to the states, rows as in `Steps`."""

    @staticmethod
    def forward(ctx: Any, gates: Rows, weight: Tensor, bias: Tensor, sizes: list[int]) -> Rows:
        """`gates` are of the reset, the update and the new state, `weight` (directions, gates, hidden)."""
        directions, rows, hidden = len(gates), gates.shape[1], weight.shape[2]
        across = weight.transpose(1, 2)
        states = gates.new_empty(directions, rows, hidden)
        active, inner = torch.empty_like(gates), gates.new_empty(directions, rows, hidden)
        before = gates.new_zeros(directions, sizes[0], hidden)
        end = 0
        for size in sizes:
            start, end = end, end + size
            before = before[:, :size]
            product = gates.new_empty(directions, size, 3 * hidden).copy_(bias)
            # The first state is zero. One direction at a time: a product of both would be slower.
            for direction in range(directions) if start else ():
                product[direction].addmm_(before[direction], across[direction])
            given, own = gates[:, start:end], active[:, start:end]
            torch.add(given[..., : 2 * hidden], product[..., : 2 * hidden], out=own[..., : 2 * hidden]).sigmoid_()
            reset, update, new = own.split(hidden, dim=-1)
            last = inner[:, start:end].copy_(product[..., 2 * hidden :])
            torch.addcmul(given[..., 2 * hidden :], reset, last, out=new).tanh_()
            before = torch.lerp(new, before, update, out=states[:, start:end])
        ctx.save_for_backward(states, active, inner, weight)
        ctx.sizes = sizes
        return states

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Rows) -> tuple[Tensor, Tensor, Tensor, None]:  # type: ignore[override]
        states, active, inner, weight = ctx.saved_tensors
        sizes: list[int] = ctx.sizes
        reset, update, new = active.split(weight.shape[2], dim=-1)
        before = _states_before(states, sizes)
        slope = (1 - update) * (1 - new * new)
        factors = torch.stack(
            [slope * inner * reset * (1 - reset), (before - new) * update * (1 - update), slope * reset], dim=2
        )
        total, inward = grad.clone(), torch.empty_like(factors)
        ends = list(accumulate(sizes))
        for step in reversed(range(len(sizes))):
            start, end = ends[step] - sizes[step], ends[step]
            own, here = total[:, start:end], inward[:, start:end]
            torch.mul(own[:, :, None], factors[:, start:end], out=here)
            if step:
                first = start - sizes[step - 1]
                earlier = total[:, first : first + sizes[step]]
                earlier.addcmul_(own, update[:, start:end])
                for direction, products in enumerate(weight):
                    earlier[direction].addmm_(here[direction].flatten(1), products)
        later = slice(sizes[0], None)
        of_weight = inward[:, later].flatten(2).transpose(1, 2) @ before[:, later]
        of_bias = inward.flatten(2).sum(1, keepdim=True)
        inward[:, :, 2] = total * slope
        return inward.flatten(2), of_weight, of_bias, None


def _states_before(states: Rows, sizes: list[int]) -> Rows:
    """The state that each row went on from; zeros at the first step."""
    skipped = torch.tensor([sizes[0], *sizes[:-1]]).repeat_interleave(torch.tensor(sizes))
    rows = torch.arange(states.shape[1]) + sizes[0] - skipped
    return functional.pad(states, (0, 0, sizes[0], 0)).index_select(1, rows)
