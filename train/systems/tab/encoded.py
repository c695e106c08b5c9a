"""The module that training and measuring call: frozen encoders run once for each item of a run."""

from __future__ import annotations

from collections.abc import MutableMapping
from hashlib import blake2b
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from mer_export.layers.bert.network import Bert, by_padding
from mer_export.models.tab.network import Attention, Logits, Tab

Known = MutableMapping[nn.Module, dict[bytes, Tensor]]
"""By encoder the vectors (hidden,) that it gave, by the digest of their tokens."""


def nothing_known() -> Known:
    """Forgets an encoder when nobody else has it."""
    return WeakKeyDictionary()


class EncodedOnce(nn.Module):
    """A network whose frozen encoders give the vectors of evaluation, in fp32, and remember them by the tokens.

    An encoder of which something is trained runs as usual. What an item gives depends on its batch in the last digits
    alone.
    """

    def __init__(self, model: Tab, known: Known):
        super().__init__()
        self.model, self.known = model, known
        self.frozen = {m for m, e in model.encoders.items() if not any(p.requires_grad for p in e.parameters())}

    def forward(self, **inputs: Tensor) -> Logits | tuple[Logits, Attention]:
        """As the network's own forward."""
        encode = {m: self._recalled if m in self.frozen else self.model.encode for m in self.model.encoders}
        vectors = {m: encode[m](m, inputs[f"{m}_tokens"]) for m in self.model.encoders}
        return self.model.join(vectors, inputs.get("tab_embedding"))

    def in_batch(self, **inputs: Tensor) -> Logits:
        """As the network's own."""
        found = self(**inputs)
        return found[0] if isinstance(found, tuple) else found

    @torch.compiler.disable
    @torch.no_grad()
    def _recalled(self, modality: str, tokens: Tensor) -> Tensor:
        encoder = self.model.encoders[modality]
        assert isinstance(encoder, Bert)
        known = self.known.setdefault(encoder, {})
        ids, lengths = (t.cpu().numpy() for t in by_padding(tokens, encoder.config))
        keys = [blake2b(row[:n].tobytes(), digest_size=16).digest() for row, n in zip(ids, lengths, strict=True)]
        if fresh := {key: row for row, key in enumerate(keys) if key not in known}:
            rows = list(fresh.values())
            training = encoder.training
            encoder.eval()
            with torch.autocast(tokens.device.type, enabled=False):
                found = self.model.encode(modality, tokens[rows, : int(lengths[rows].max())])
            encoder.train(training)
            known |= zip(fresh, found.float(), strict=True)
        return torch.stack([known[key] for key in keys])
