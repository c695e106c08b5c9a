"""Degraded views of CMERC (section 6.2): what a frozen model says with one kind of evidence taken away."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from jaxtyping import Float, Int
from torch import Tensor

from mer_export.contract import Semantics
from mer_export.models.cmerc.graph import Context
from mer_export.models.cmerc.network import Cmerc, Encoded

VIEWS: dict[str, tuple[str | None, Context]] = {
    "text": ("text", "full"),
    "audio": ("audio", "full"),
    "vision": ("vision", "full"),
    "intra": (None, "intra"),
    "inter": (None, "inter"),
}
"""View: the modality that is replaced by its mean over time, and the context that the frequency branch keeps."""


def time_mean(
    x: Float[Tensor, "batch *vectors utterances width"], lengths: Int[Tensor, " batch"], semantics: Semantics
) -> Tensor:
    """Every step replaced by the mean over time; padding holds zeros.

    CMERC divides by the padded length and fills the padding too (`batch`); `single` divides by the real length.
    """
    count = torch.full_like(lengths, x.shape[-2]) if semantics == "batch" else lengths
    count = count.to(x.dtype).reshape(-1, *[1] * (x.ndim - 1))
    return (x.sum(-2, keepdim=True) / count).expand_as(x)


@torch.no_grad()
def degraded(
    frozen: Cmerc, inputs: Mapping[str, Tensor], semantics: Semantics
) -> dict[str, Float[Tensor, "batch utterances classes"]]:
    """Log-probabilities of the views from a model in evaluation mode: five, less those of modalities it has not.

    A modality is encoded as it is and as its mean, in one batch; each view takes what it needs of both.
    """
    speaker, lengths = inputs["speaker"], inputs["lengths"]
    mask = frozen.mask(lengths, speaker.shape[1])
    both = {m: torch.cat([inputs[m], time_mean(inputs[m], lengths, semantics)]) for m in frozen.used}
    who, long, inside = (torch.cat([x, x]) for x in (speaker, lengths, mask))
    encoded = frozen.encode(both, who, long, inside, semantics)
    whole, mean = (_items(encoded, half) for half in (slice(len(mask)), slice(len(mask), None)))
    answers = {}
    for name, (modality, context) in VIEWS.items():
        if modality and modality not in both:
            continue
        seen = whole | {modality: mean[modality]} if modality else whole
        answers[name] = frozen.classify(frozen.relate(seen, speaker, lengths, mask, semantics, context), lengths)
    return answers


def _items(encoded: Mapping[str, Encoded], items: slice) -> dict[str, Encoded]:
    """Those of a batch."""
    return {m: Encoded(x.states[items], x.node[items], [y[items] for y in x.layers]) for m, x in encoded.items()}
