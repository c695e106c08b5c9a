"""The module that training and measuring call: one run of the text encoder for equal texts of a batch."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from mer_export.layers.steps import real_steps
from mer_export.models.facialmmt.network import EndToEnd, MultimodalNetwork


class EncodedOnce(nn.Module):
    """A fusion network in which utterances of one dialogue share the encoded text."""

    def __init__(self, model: MultimodalNetwork):
        super().__init__()
        self.model = model

    def forward(self, input_ids: Tensor, text_lengths: Tensor, **rest: Tensor) -> Tensor:
        """As the network's own forward; finds out itself what of `rows_by_content` is not given."""
        if "text_rows" not in rest:
            rest = rest | text_rows(input_ids, text_lengths)
        first, place = rest.pop("text_rows"), rest.pop("text_place")
        hidden = self.model.bert(input_ids.index_select(0, first), None, text_lengths.index_select(0, first))[place]
        if isinstance(self.model, EndToEnd):
            faces = rest.pop("face_rows", None)
            rest["expression_logits"] = self.model.expressions(rest.pop("images"), rest["vision_lengths"], faces)
        return self.model.fuse(hidden, rest | {"text_lengths": text_lengths})


def rows_by_content(inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Which rows of a batch a step computes, as far as its content decides.

    Found on the host: a GPU would have to be waited for, as shapes depend on it.
    """
    found: dict[str, Tensor] = {}
    if "input_ids" in inputs:
        found |= text_rows(inputs["input_ids"], inputs["text_lengths"])
    if "images" in inputs and "vision_lengths" in inputs:
        real = real_steps(inputs["vision_lengths"], inputs["images"].shape[1])
        found["face_rows"] = real.flatten().nonzero().flatten()
    return found


def text_rows(input_ids: Tensor, text_lengths: Tensor) -> dict[str, Tensor]:
    """The first row of each distinct text, and for every row which of these it is."""
    texts, place = torch.unique(torch.cat([text_lengths[:, None], input_ids], dim=1), dim=0, return_inverse=True)
    rows = torch.arange(len(place), device=place.device)
    first = rows.new_full((len(texts),), len(place)).scatter_reduce(0, place, rows, "amin")
    return {"text_rows": first, "text_place": place}
