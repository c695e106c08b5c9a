"""A network with the signature that exporters read: the inputs of a contract by name, in its order."""

from __future__ import annotations

from collections.abc import Iterable
from inspect import Parameter, Signature
from typing import Any

from torch import Tensor, nn

from mer_export.contract import TensorSpec


def by_position(model: nn.Module, inputs: Iterable[TensorSpec]) -> nn.Module:
    """`model`, which takes its inputs by keyword, as a module that takes them by position.

    A trace, `torch.export` and the ONNX exporter name inputs after the parameters of `forward`: this one has the names
    of `inputs`, so that no network needs to repeat its contract in code.
    """
    names = [spec.name for spec in inputs]

    class ByPosition(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model = model
            self.training = model.training

        def forward(self, *values: Tensor) -> Any:
            return self.model(**dict(zip(names, values, strict=True)))

    parameters = [Parameter(name, Parameter.POSITIONAL_OR_KEYWORD) for name in ("self", *names)]
    ByPosition.forward.__signature__ = Signature(parameters)  # type: ignore[attr-defined]
    return ByPosition()
