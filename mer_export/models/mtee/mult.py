"""MulT as mtee's baseline (sections 3.3 and 5.3): cross-modal attention between unaligned sequences.

Network: Tsai et al., "Multimodal Transformer for Unaligned Multimodal Language Sequences", ACL 2019. Every stream is
enriched by the other two; its last step is what is read. Streams are named by modality (text is `l` in checkpoints).
"""

from __future__ import annotations

import re
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from mer_export.layers.crossmodal import CrossModal, Dropouts, convolve, initialise
from mer_export.layers.steps import last_step
from mer_export.models.mtee.base import Inputs, Logits, Network
from mer_export.models.mtee.config import KERNELS, LONGEST, MteeConfig, MultConfig
from mer_export.models.utterance import others

LEAST_MEMORY_LAYERS = 3
EARLIER = {"qkv": "project", "fc1": "expand", "fc2": "contract", "norms.0": "attention_norm", "norms.1": "norm"}
"""Parts of a layer in bundles of release 0.1, and now."""
EARLIER_NAME = re.compile(r"(.*\.layers\.\d+\.)(qkv|fc1|fc2|norms\.[01])(\..*)")


class Mult(Network):
    """Three streams, six cross-modal encoders, three memory encoders, a residual head."""

    def __init__(self, config: MteeConfig):
        super().__init__(config)
        own = config.mult
        self.streams, self.used = config.streams, config.used
        self.shrinkage = {m: config.shrinkage(m) for m in self.used}
        self.text_dropout = nn.Dropout(own.embedding_dropout)
        self.projections = nn.ModuleDict(
            {m: nn.Conv1d(config.dims[m], own.width, KERNELS[m], bias=False) for m in self.used if self.shrinkage[m]}
        )
        self.cross = nn.ModuleDict(
            {
                f"{stream}_with_{other}": encoder(own, own.width, own.layers, attended=other)
                for stream in self.streams
                for other in others(stream, self.used)
            }
        )
        depth = max(own.layers, LEAST_MEMORY_LAYERS)
        # A modality alone is remembered as it is.
        inner = max(len(self.used) - 1, 1) * own.width
        self.memory = nn.ModuleDict({m: encoder(own, inner, depth, attended="text") for m in self.streams})
        width = inner * len(self.streams)
        self.hidden = nn.Linear(width, width)
        self.residual = nn.Linear(width, width)
        self.output_dropout = nn.Dropout(own.output_dropout)
        self.head = nn.Linear(width, len(config.labels))
        self.register_load_state_dict_pre_hook(_rename_earlier)

    def forward(self, **inputs: Tensor) -> Logits:
        states = self.states(inputs)
        z = torch.cat([states[m] for m in self.streams], dim=-1)
        return self.head(self.residual(self.output_dropout(torch.relu(self.hidden(z)))) + z)

    def states(self, inputs: Inputs) -> dict[str, Float[Tensor, "batch memory"]]:
        """The last step of each stream's memory encoder; zeros for a stream without steps."""
        features = self.features(inputs)
        if "text" in features:
            features["text"] = self.text_dropout(features["text"])
        x = {m: convolve(self.projections[m], v) if m in self.projections else v for m, v in features.items()}
        left = {m: (n - self.shrinkage[m]).clamp(min=0) for m, n in self.lengths(inputs).items()}
        found = {}
        for m in self.streams:
            enriched = [self.cross[f"{m}_with_{o}"](x[m], x[o], left[m], left[o]) for o in others(m, self.used)]
            remembered = self.memory[m](torch.cat(enriched, dim=-1) if enriched else x[m], lengths=left[m])
            # Zeroed before the step is taken: a product between gather and head crashes OpenVINO 2026.4 at batch 4.
            found[m] = last_step(remembered * (left[m] > 0).to(remembered.dtype)[:, None, None], left[m])
        return found


def encoder(own: MultConfig, width: int, layers: int, attended: str) -> CrossModal:
    """An encoder whose keys are of the modality `attended`."""
    attention = {str(m): rate for m, rate in own.attention_dropout.items()}[attended]
    dropouts = Dropouts(attention, own.relu_dropout, own.residual_dropout, own.embedding_dropout)
    return initialise(CrossModal(width, own.heads, layers, dropouts, causal=own.masked, positions=LONGEST))


def _rename_earlier(module: nn.Module, state: dict[str, Tensor], *_: Any) -> None:
    """Bundles of release 0.1 call the parts of an encoder's layers otherwise."""
    for name in list(state):
        if found := EARLIER_NAME.fullmatch(name):
            state[found[1] + EARLIER[found[2]] + found[3]] = state.pop(name)
