"""Names of a RoBERTa checkpoint as fairseq writes them, in all four generations, and ours.

The names of fairseq 0.10 are the table; `modern` brings the others to that form.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mer_export.errors import UnsupportedError, UsageError
from mer_export.layers.bert.config import BertConfig
from mer_export.layers.bert.weights import PARTS

if TYPE_CHECKING:
    from torch import Tensor

ENCODER = "encoder.sentence_encoder."
TABLES = {
    "embed_tokens.weight": "embeddings.word_embeddings.weight",
    "embed_positions.weight": "embeddings.position_embeddings.weight",
    "emb_layer_norm.weight": "embeddings.norm.weight",
    "emb_layer_norm.bias": "embeddings.norm.bias",
}
LAYER = {
    "self_attn.q_proj": "query",
    "self_attn.k_proj": "key",
    "self_attn.v_proj": "value",
    "self_attn.out_proj": "out",
    "self_attn_layer_norm": "attention_norm",
    "fc1": "expand",
    "fc2": "contract",
    "final_layer_norm": "norm",
}
KEY_BIAS = {"self_attn.k_proj.bias": "key_bias"}
OLD_PREFIX = re.compile(r"(^|\.)decoder\.(?=sentence_encoder\.|lm_head\.)")
"""Until 0.9 the encoder was called decoder."""
PACKED = re.compile(r"(.*\.self_attn\.)in_proj_(weight|bias)")
"""Until 0.8 query, key and value rows were one matrix, in this order."""
NEVER_READ = re.compile(
    r"(^|\.)(lm_head|classification_heads)\."
    r"|(^|\.)_float_tensor$|sentence_encoder\.version$"
    r"|\.layers\.\d+\.(in_proj|out_proj|fc1|fc2)_(weight|bias)$"
)
"""Heads of the pre-training, buffers that only mark a version, and the second copies that 0.12 keeps of each layer."""

ARGUMENTS = {
    "encoder_attention_heads": "heads",
    "encoder_layers": "layers",
    "encoder_embed_dim": "hidden",
    "encoder_ffn_embed_dim": "feed_forward",
}
ONLY: dict[str, Any] = {"activation_fn": "gelu", "encoder_normalize_before": False}
"""Arguments of which this network has one value alone."""


def check_arguments(config: BertConfig, arguments: Mapping[str, Any], path: Path, section: str) -> None:
    """Holds an encoder's configuration against the training arguments of a checkpoint, which may be none.

    Raises:
        UnsupportedError: an encoder that this network cannot be.
        UsageError: arguments that contradict the configuration; names both values.
    """
    model = arguments.get("model")
    arguments = model if isinstance(model, dict) else arguments
    for name, value in ONLY.items():
        if arguments.get(name, value) != value:
            raise UnsupportedError(f"{path} has {name} {arguments[name]!r}, this network has {value!r} alone")
    for theirs, ours in ARGUMENTS.items():
        if arguments.get(theirs, getattr(config, ours)) != getattr(config, ours):
            raise UsageError(
                f"{section}.{ours} is {getattr(config, ours)}, {path} says {arguments[theirs]}: "
                "set it to that, or give the encoder that the setting describes"
            )


def renames(config: BertConfig, theirs: str, ours: str) -> dict[str, str]:
    """Every entry that the encoder reads, under the prefixes `theirs` and `ours` (both end in a dot or are empty)."""
    theirs += ENCODER
    names = {f"{theirs}{a}": f"{ours}{o}" for a, o in TABLES.items()}
    for n in range(config.layers):
        layer = {f"{a}.{p}": f"{o}.{p}" for a, o in LAYER.items() for p in PARTS} | KEY_BIAS
        names |= {f"{theirs}layers.{n}.{a}": f"{ours}layers.{n}.{o}" for a, o in layer.items()}
    return names


def shapes(config: BertConfig, theirs: str) -> dict[str, tuple[int, ...]]:
    """Shape of every entry of `renames`."""
    import torch

    from mer_export.layers.bert.network import Bert

    with torch.device("meta"):
        own = Bert(config).state_dict()
    return {name: tuple(own[ours].shape) for name, ours in renames(config, theirs, "").items()}


def modern(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """A checkpoint of any generation under the names of 0.10, in float32, without what is never read."""
    found: dict[str, Tensor] = {}
    for name, tensor in state.items():
        if NEVER_READ.search(name):
            continue
        name = OLD_PREFIX.sub(r"\1encoder.", name).replace(".layernorm_embedding.", ".emb_layer_norm.")
        found |= _unpacked(name, tensor.float() if tensor.is_floating_point() else tensor)
    return found


def _unpacked(name: str, tensor: Tensor) -> Iterator[tuple[str, Tensor]]:
    packed = PACKED.fullmatch(name)
    if packed is None:
        yield name, tensor
        return
    for letter, part in zip("qkv", tensor.chunk(3), strict=True):
        yield f"{packed[1]}{letter}_proj.{packed[2]}", part
