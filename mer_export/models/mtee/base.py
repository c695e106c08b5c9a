"""What all networks of mtee share."""

from __future__ import annotations

from collections.abc import Mapping

from jaxtyping import Float, Int
from torch import Tensor, nn

from mer_export.layers.recurrent import Standardise
from mer_export.models.mtee.config import MteeConfig

Features = Float[Tensor, "batch time feature"]
Lengths = Int[Tensor, " batch"]
Logits = Float[Tensor, "batch labels"]


class Network(nn.Module):
    """Keeps its configuration, and standardises the inputs that it names."""

    def __init__(self, config: MteeConfig):
        super().__init__()
        self.config = config
        self.standardise = nn.ModuleDict(
            {m: Standardise(config.dims[m]) for m in config.standardise if m in config.used}
        )

    def standardised(self, inputs: Mapping[str, Features]) -> dict[str, Features]:
        """`inputs` by modality, standardised where the configuration says so."""
        return {m: self.standardise[m](x) if m in self.standardise else x for m, x in inputs.items()}
