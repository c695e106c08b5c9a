"""What the networks of MulT and TFR-Net share: inputs at their full array length, and dropouts by modality."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor
from torch.nn import functional

from mer_export.contract import Lengths
from mer_export.layers.bert.network import Bert, tokens
from mer_export.layers.crossmodal import Dropouts
from mer_export.layers.steps import real_steps, up_to
from mer_export.models.padded_arrays import ArrayConfig


def dropouts(config: ArrayConfig, attended: str) -> Dropouts:
    """Those of layers that attend to the modality `attended`."""
    attention = config.attention_dropout_to(attended)
    return Dropouts(attention, config.relu_dropout, config.residual_dropout, config.embedding_dropout)


def full_arrays(inputs: Mapping[str, Tensor], bert: Bert, lengths: Lengths) -> dict[str, Tensor]:
    """The inputs at the array lengths that the model was trained with, whatever the bucket.

    These models have no padding masks: how far an array was padded is part of their answer. Token ids get the padding
    token, frames zeros.

    Returns:
        `input_ids`, `token_type_ids`, `text_lengths`, `audio`, `audio_lengths`, `vision`, `vision_lengths`.
    """
    text = tokens(inputs, bert.config)
    full = text._asdict()
    for name in ("input_ids", "token_type_ids"):
        full[name] = up_to(full[name], lengths["text_len"])
    for m in ("audio", "vision"):
        x, own = inputs[m], inputs[f"{m}_lengths"]
        x = torch.where(real_steps(own, x.shape[1])[..., None], x, 0.0)
        full[m] = functional.pad(x, (0, 0, 0, lengths[f"{m}_len"] - x.shape[1]))
        full[f"{m}_lengths"] = own
    return full
