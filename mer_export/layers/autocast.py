"""Products in 16 bits by PyTorch's own rules (autocast), with the weights of products kept in 16 bits too."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

AUTOCAST = {"bf16": torch.bfloat16, "fp16": torch.float16}


def store_products(model: nn.Module, precision: str) -> None:
    """Keeps the weights that autocast would turn into `precision` at every call in it: a third of the bytes to read."""
    for module in model.modules():
        if isinstance(module, (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)):
            module.to(dtype=AUTOCAST[precision])


class Autocast(nn.Module):
    """A network under autocast, in and out as before: its outputs are float32."""

    def __init__(self, model: nn.Module, precision: str, device: str):
        super().__init__()
        self.model, self.precision, self.device = model, precision, device
        self.training = model.training

    def forward(self, **inputs: Tensor) -> Any:
        """As the network's own."""
        with torch.autocast(self.device, AUTOCAST[self.precision]):
            found = self.model(**inputs)
        return tuple(map(_float, found)) if isinstance(found, tuple) else _float(found)


def _float(value: Tensor) -> Tensor:
    return value.float() if value.is_floating_point() else value
