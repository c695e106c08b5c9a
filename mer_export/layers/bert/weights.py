"""Names of a BERT or RoBERTa checkpoint as the `transformers` package writes them, and ours."""

from __future__ import annotations

from mer_export.layers.bert.config import BertConfig

EMBEDDINGS = {f"{t}_embeddings.weight": f"{t}_embeddings.weight" for t in ("word", "position", "token_type")}
LAYER = {
    "attention.self.query": "query",
    "attention.self.key": "key",
    "attention.self.value": "value",
    "attention.output.dense": "out",
    "attention.output.LayerNorm": "attention_norm",
    "intermediate.dense": "expand",
    "output.dense": "contract",
    "output.LayerNorm": "norm",
}
KEY_BIAS = {"attention.self.key.bias": "key_bias"}
PARTS = ("weight", "bias")


def renames(config: BertConfig, theirs: str, ours: str) -> dict[str, str]:
    """Every entry that the encoder reads, under the prefixes `theirs` and `ours` (both end in a dot or are empty)."""
    tables = {a: o for a, o in EMBEDDINGS.items() if config.segments or "token_type" not in o}
    names = {f"{theirs}embeddings.{a}": f"{ours}embeddings.{o}" for a, o in tables.items()}
    names |= {f"{theirs}embeddings.LayerNorm.{p}": f"{ours}embeddings.norm.{p}" for p in PARTS}
    for n in range(config.layers):
        layer = {f"{a}.{p}": f"{o}.{p}" for a, o in LAYER.items() for p in PARTS} | KEY_BIAS
        names |= {f"{theirs}encoder.layer.{n}.{a}": f"{ours}layers.{n}.{o}" for a, o in layer.items()}
    return names


def unused(config: BertConfig, theirs: str) -> dict[str, tuple[int, ...]]:
    """The pooler."""
    return {
        f"{theirs}pooler.dense.weight": (config.hidden, config.hidden),
        f"{theirs}pooler.dense.bias": (config.hidden,),
    }


def ignored(config: BertConfig, theirs: str) -> dict[str, tuple[int, ...]]:
    """The position index, which only versions of `transformers` up to 4.30 keep in a checkpoint."""
    return {f"{theirs}embeddings.position_ids": (1, config.positions)}
