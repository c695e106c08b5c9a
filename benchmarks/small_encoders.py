"""Small random networks of every kind that encoders are taken of, saved by the `transformers` package itself."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

SIZES = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64}
TEXT = {"vocab_size": 120, "max_position_embeddings": 66, **SIZES}
SPEECH = {"conv_dim": (16,) * 7, "num_conv_pos_embeddings": 16, "num_conv_pos_embedding_groups": 4, **SIZES}
PICTURE = {"image_size": 32, "patch_size": 8, **SIZES}
WHISPER = {
    "vocab_size": 100,
    "d_model": 32,
    "encoder_layers": 2,
    "encoder_attention_heads": 4,
    "encoder_ffn_dim": 64,
    "decoder_layers": 1,
    "decoder_attention_heads": 4,
    "decoder_ffn_dim": 64,
    "max_source_positions": 100,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "decoder_start_token_id": 1,
}
TOKENS = {"pad_token_id": 0, "bos_token_id": 2, "eos_token_id": 3, "cls_token_id": 2, "sep_token_id": 3}
KINDS: dict[str, tuple[str, dict[str, Any]]] = {
    "bert": ("BertModel", TEXT),
    "roberta": ("RobertaModel", TEXT),
    "xlm-roberta": ("XLMRobertaModel", TEXT),
    "electra": ("ElectraModel", {"embedding_size": 32, **TEXT}),
    "distilbert": (
        "DistilBertModel",
        {"vocab_size": 120, "max_position_embeddings": 66, "dim": 32, "n_layers": 2, "n_heads": 4, "hidden_dim": 64},
    ),
    "mpnet": ("MPNetModel", TEXT),
    "deberta": ("DebertaModel", TEXT),
    "deberta-v2": (
        "DebertaV2Model",
        {"relative_attention": True, "pos_att_type": ["p2c", "c2p"], "position_buckets": 16, **TEXT},
    ),
    "modernbert": (
        "ModernBertModel",
        {"global_attn_every_n_layers": 2, "local_attention": 8, **TOKENS, **TEXT},
    ),
    "wav2vec2": ("Wav2Vec2Model", SPEECH),
    "wav2vec2-large": ("Wav2Vec2Model", {"feat_extract_norm": "layer", "do_stable_layer_norm": True, **SPEECH}),
    "hubert": ("HubertModel", SPEECH),
    "wavlm": ("WavLMModel", SPEECH),
    "whisper": ("WhisperModel", WHISPER),
    "vit": ("ViTModel", PICTURE),
    "dinov2": ("Dinov2Model", PICTURE),
    "clip": ("CLIPVisionModel", PICTURE),
    "siglip": ("SiglipVisionModel", PICTURE),
}
"""By name: the class, and its configuration."""
SOUNDS, PICTURES = ("wav2vec2", "wav2vec2-large", "hubert", "wavlm", "whisper"), ("vit", "dinov2", "clip", "siglip")
LETTERS = "abcdefghijklmnopqrstuvwxyz"
WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *LETTERS, *(f"##{letter}" for letter in LETTERS)]
SENTENCES = ["hello there you", "a", "the quick brown fox jumps over the lazy dog"]


def save_folder(kind: str, folder: Path, **changes: Any) -> Any:
    """Writes a folder as `save_pretrained` does, with a vocabulary or preprocessing; returns the network.

    `changes` are of its configuration.
    """
    import torch
    import transformers

    name, values = KINDS[kind]
    network: Any = getattr(transformers, name)
    torch.manual_seed(0)
    model = network(network.config_class(**values | changes)).eval()
    model.save_pretrained(folder)
    if kind not in (*SOUNDS, *PICTURES):
        (folder / "vocab.txt").write_text("\n".join(WORDS) + "\n")
    elif kind in SOUNDS and kind != "whisper":
        said = {"sampling_rate": 16000, "do_normalize": kind == "wav2vec2-large"}
        (folder / "preprocessor_config.json").write_text(json.dumps(said))
    return model


def raw_things(kind: str) -> list[Any]:
    """A few of what the kind reads, of different lengths."""
    draw = np.random.default_rng(0)
    if kind in SOUNDS:
        return [(0.1 * draw.standard_normal(n)).astype(np.float32) for n in (16000, 5000, 9000, 400)]
    if kind in PICTURES:
        return [draw.integers(0, 255, (40, 50, 3)).astype(np.uint8) for _ in range(3)]
    return list(SENTENCES)
