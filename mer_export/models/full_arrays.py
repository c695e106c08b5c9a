"""What the networks of MulT and TFR-Net share: inputs at their full array length, dropouts by modality, the output."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

from mer_export.layers.bert.network import Bert, tokens
from mer_export.layers.crossmodal import Dropouts
from mer_export.layers.standardise import Standardise
from mer_export.layers.steps import real_steps, up_to
from mer_export.models.padded_arrays import ArrayConfig


def dropouts(config: ArrayConfig, attended: str) -> Dropouts:
    """Those of layers that attend to the modality `attended`."""
    attention = config.attention_dropout_to(attended)
    return Dropouts(attention, config.relu_dropout, config.residual_dropout, config.embedding_dropout)


class FullArrays(nn.Module):
    """The inputs at the array lengths that the model was trained with, whatever the bucket.

    These models have no padding masks: how far an array was padded is part of their answer. Token ids get the padding
    token, frames zeros.
    """

    def __init__(self, config: ArrayConfig):
        super().__init__()
        self.config = config
        self.bert = Bert(config.bert) if config.bert else None
        dims = config.feature_dims
        self.standardise = nn.ModuleDict({m: Standardise(dims[m]) for m in config.standardise})

    def full_arrays(self, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """By modality its states (batch, array length, width), those of text BERT's where there is one, and lengths."""
        found: dict[str, Tensor] = {}
        for m in self.config.used:
            length = self.config.longest[f"{m}_len"]
            if m == "text" and self.bert is not None:
                ids, segments, own = tokens(inputs, self.bert.config)
                found[m], found[f"{m}_lengths"] = self.bert(up_to(ids, length), up_to(segments, length), own), own
            else:
                x, own = inputs[m], inputs[f"{m}_lengths"]
                x = torch.where(real_steps(own, x.shape[1])[..., None], x, 0.0)
                x = self.standardise[m](x) if m in self.standardise else x
                found[m], found[f"{m}_lengths"] = functional.pad(x, (0, 0, 0, length - x.shape[1])), own
        return found


def answer(x: Float[Tensor, "batch outputs"], config: ArrayConfig) -> Float[Tensor, "batch outputs"]:
    """The output of the last layer as the contract has it: log-probabilities of labels, or a score."""
    return functional.log_softmax(x, dim=-1) if config.labels else x
