"""Layers in the form that trains fastest on a CPU: answers, gradients and random numbers of the plain ones."""

from __future__ import annotations

import copy

import pytest
import torch
from small_training import SMALL, small
from torch import Tensor, nn

from mer_export.layers.recurrent import BidirectionalRNN
from mer_export.layers.steps import real_steps
from train.forms import FORMS, train_fast, train_plainly


@pytest.mark.parametrize("kind", ["gru", "lstm"])
@pytest.mark.parametrize("lengths", [[4, 9, 1, 4], [9, 9, 9, 9]])
def test_a_recurrent_layer_has_the_states_and_gradients_of_the_plain_one(kind: str, lengths: list[int]) -> None:
    torch.manual_seed(0)
    layer = BidirectionalRNN(kind, 5, 7, layers=2, dropout=0.3).double()  # type: ignore[arg-type]
    fast = nn.ModuleList([copy.deepcopy(layer)])
    train_fast(fast)
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


@pytest.mark.parametrize("rate", [0.0, 0.15, 0.4, 0.999999, 1.0])
def test_dropout_has_the_random_numbers_of_pytorchs(rate: float) -> None:
    fast = nn.ModuleList([nn.Dropout(rate)])
    train_fast(fast)
    x = torch.randn(7, 50, 90)
    for like in (x, x[:, :9], x.transpose(0, 2), x[0, 0, :1], x.double()):
        wanted, found = (_seeded(layer, like) for layer in (nn.Dropout(rate), fast[0]))
        assert all(map(torch.equal, found, wanted))
    assert torch.equal(fast[0].eval()(x), x)


def _seeded(layer: nn.Module, x: Tensor) -> list[Tensor]:
    torch.manual_seed(3)
    return [layer(x), torch.get_rng_state()]


def test_networks_in_training_have_these_forms_and_give_them_back() -> None:
    found = set()
    for system in SMALL:
        model = small(system).model
        before = [type(m) for m in model.modules()]
        train_fast(model)
        found |= {type(m) for m in model.modules()}
        train_plainly(model)
        assert [type(m) for m in model.modules()] == before
    assert set(FORMS.values()) <= found
