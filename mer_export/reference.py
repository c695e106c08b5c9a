"""The PyTorch model as the reference of everything that is made from it: arrays in, arrays out."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from mer_export.contract import Contract

if TYPE_CHECKING:
    from torch import nn


def run_model(model: nn.Module, contract: Contract, arrays: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Outputs of the PyTorch model, by contract name."""
    import torch

    with torch.no_grad():
        found = model(**{s.name: torch.from_numpy(arrays[s.name]) for s in contract.inputs})
    values = found if isinstance(found, tuple) else (found,)
    return {s.name: v.numpy() for s, v in zip(contract.outputs, values, strict=True)}
