"""Recurrent layers in training on a CPU, on real steps alone: states and gradients of the plain ones."""

from __future__ import annotations

import copy

import pytest
import torch
from small_training import small
from torch import Tensor, nn

from mer_export.layers.recurrent import BidirectionalRNN
from mer_export.layers.steps import real_steps
from train.recurrent import PackedRNN, pack_steps, unpack_steps


@pytest.mark.parametrize("kind", ["gru", "lstm"])
@pytest.mark.parametrize("lengths", [[4, 9, 1, 4], [9, 9, 9, 9]])
def test_a_recurrent_layer_has_the_states_and_gradients_of_the_plain_one(kind: str, lengths: list[int]) -> None:
    torch.manual_seed(0)
    layer = BidirectionalRNN(kind, 5, 7, layers=2, dropout=0.3).double()  # type: ignore[arg-type]
    fast = nn.ModuleList([copy.deepcopy(layer)])
    pack_steps(fast)
    x, real = torch.randn(4, 9, 5).double(), real_steps(torch.tensor(lengths), 9)[..., None]
    found, wanted = (_states_and_gradients(each, x, torch.tensor(lengths), real) for each in (fast[0], layer))
    assert len(found) == 18
    for ours, theirs in zip(found, wanted, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-12)


def _states_and_gradients(layer: nn.Module, x: Tensor, lengths: Tensor, real: Tensor) -> list[Tensor]:
    """Of real steps, and of the input and the parameters by a fixed mixture of them."""
    x = x.clone().requires_grad_()
    torch.manual_seed(1)
    found = torch.where(real, layer(x, lengths), 0.0)
    (found * torch.linspace(-1, 1, found.numel()).reshape(found.shape)).sum().backward()
    return [found, *(p.grad for p in (x, *layer.parameters()) if p.grad is not None)]


def test_networks_in_training_have_this_form_and_give_it_back() -> None:
    model = small("cmerc").model
    before = [type(m) for m in model.modules()]
    pack_steps(model)
    assert PackedRNN in {type(m) for m in model.modules()}
    unpack_steps(model)
    assert [type(m) for m in model.modules()] == before
