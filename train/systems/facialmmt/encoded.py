"""The module that training and measuring call: one run of the text encoder for equal texts of a batch."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from mer_export.models.facialmmt.network import EndToEnd, MultimodalNetwork


class EncodedOnce(nn.Module):
    """A fusion network in which utterances of one dialogue share the encoded text."""

    def __init__(self, model: MultimodalNetwork):
        super().__init__()
        self.model = model

    def forward(self, input_ids: Tensor, text_lengths: Tensor, **rest: Tensor) -> Tensor:
        """As the network's own forward."""
        texts, place = torch.unique(torch.cat([text_lengths[:, None], input_ids], dim=1), dim=0, return_inverse=True)
        hidden = self.model.bert(texts[:, 1:], None, texts[:, 0])[place]
        if isinstance(self.model, EndToEnd):
            rest["expression_logits"] = self.model.expressions(rest.pop("images"), rest["vision_lengths"])
        return self.model.fuse(hidden, rest | {"text_lengths": text_lengths})
