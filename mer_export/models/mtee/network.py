"""The networks of mtee by name, all of one shape: contract inputs in, logits (batch, labels) out."""

from __future__ import annotations

from mer_export.models.mtee import mult, recurrent, transformer
from mer_export.models.mtee.base import Network
from mer_export.models.mtee.config import MteeConfig

NETWORKS: dict[str, type[Network]] = {
    "eea": recurrent.Eea,
    "rnn_ef": recurrent.EarlyFusion,
    "rnn_lf": recurrent.LateFusion,
    "rnn_eflf": recurrent.BothFusions,
    "mult": mult.Mult,
    "transformer": transformer.Transformer,
}


def build(config: MteeConfig) -> Network:
    """A network with fresh weights."""
    return NETWORKS[config.variant](config)
