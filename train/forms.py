"""Layers in the form that trains fastest on a CPU: of the same parameters, with the same answers but for rounding."""

from __future__ import annotations

from torch import nn

from mer_export.layers.recurrent import BidirectionalRNN
from train.dropout import SameDropout
from train.recurrent import PackedRNN

FORMS: dict[type[nn.Module], type[nn.Module]] = {BidirectionalRNN: PackedRNN, nn.Dropout: SameDropout}


def train_fast(model: nn.Module) -> None:
    """Gives the layers of a network on the CPU that form."""
    _change(model, FORMS)


def train_plainly(model: nn.Module) -> None:
    """Takes it back."""
    _change(model, {form: plain for plain, form in FORMS.items()})


def _change(model: nn.Module, forms: dict[type[nn.Module], type[nn.Module]]) -> None:
    for module in model.modules():
        module.__class__ = forms.get(type(module), type(module))
