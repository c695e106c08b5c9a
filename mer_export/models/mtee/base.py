"""What all networks of mtee share."""

from __future__ import annotations

from collections.abc import Mapping

from jaxtyping import Float, Int
from torch import Tensor, nn

from mer_export.layers.standardise import Standardise
from mer_export.models.mtee.config import MteeConfig

Features = Float[Tensor, "batch time feature"]
Lengths = Int[Tensor, " batch"]
Logits = Float[Tensor, "batch labels"]
Inputs = Mapping[str, Tensor]
"""Tensors by the names of the contract."""


class Network(nn.Module):
    """Keeps its configuration, and standardises the inputs that it names."""

    def __init__(self, config: MteeConfig):
        super().__init__()
        self.config = config
        self.standardise = nn.ModuleDict(
            {m: Standardise(config.dims[m]) for m in config.standardise if m in config.used}
        )

    def features(self, inputs: Inputs) -> dict[str, Features]:
        """The features by modality, standardised where the configuration says so."""
        return {m: self.standardise[m](inputs[m]) if m in self.standardise else inputs[m] for m in self.config.used}

    def lengths(self, inputs: Inputs) -> dict[str, Lengths]:
        """The real lengths by modality, of networks that do not concatenate modalities step by step."""
        return {m: inputs[f"{m}_lengths"] for m in self.config.used}
