"""Parameter names of M3NET and CMERC checkpoints (section 4) and of this network."""

from __future__ import annotations

from mer_export.errors import UnsupportedError
from mer_export.layers.parameter_names import TRANSFORMER_LAYER, recurrent
from mer_export.models.cmerc.config import CmercConfig
from mer_export.models.utterance import MODALITIES
from mer_export.weights import WeightMap

NORMS = {
    "BN": ("normBN", ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")),
    "LN": ("normLN", ("weight", "bias")),
}
ENCODER = {"gru": "gru", "lstm": "lstm", "transformer": "trans"}
FIXED = {
    "linear_a": "audio_linear",
    "linear_v": "vision_linear",
    "graph_model.fc1": "node_projection",
    "smax_fc": "classifier",
}


def renames(config: CmercConfig) -> dict[str, str]:
    """Authors' name to ours, for every entry that the forward reads."""
    if config.used != MODALITIES:
        raise UnsupportedError("published checkpoints have all three modalities: leave modalities out")
    if config.causal:
        raise UnsupportedError("published checkpoints read dialogues both ways: leave causal out")
    names = {f"{a}.{p}": f"{o}.{p}" for a, o in FIXED.items() for p in ("weight", "bias")}
    if config.text_linear:
        names |= {f"linear_l.{p}": f"text_linear.{p}" for p in ("weight", "bias")}
    if config.norm in NORMS:
        prefix, entries = NORMS[config.norm]
        names |= {
            f"{prefix}{'abcd'[k]}.{e}": f"text_norm.norms.{k}.{e}" for k in range(config.text_vectors) for e in entries
        }
    names |= _encoder(config, "l", "text_encoder")
    if config.encode_audio_vision:
        names |= _encoder(config, "a", "audio_encoder") | _encoder(config, "v", "vision_encoder")
    names["graph_model.hyperedge_weight"] = "hypergraph.hyperedge_weight"
    names["graph_model.EW_weight"] = "hypergraph.node_weight"
    if config.speaker_embedding:
        names["graph_model.speaker_embeddings.weight"] = "speaker_embedding.weight"
    if config.modal_embedding:
        names["graph_model.modal_embeddings.weight"] = "modal_embedding.weight"
    for i in range(config.hypergraph_layers):
        names[f"graph_model.hyperconv{i + 1}.bias"] = f"hypergraph.bias.{i}"
    for i in range(config.frequency_layers):
        names |= {f"graph_model.conv{i + 1}.gate.{p}": f"frequency.gates.{i}.{p}" for p in ("weight", "bias")}
    return names


def _encoder(config: CmercConfig, letter: str, ours: str) -> dict[str, str]:
    theirs = f"{ENCODER[config.base_model]}_{letter}"
    if config.base_model == "transformer":
        return {f"{theirs}.{a}": f"{ours}.layers.{o}" for a, o in TRANSFORMER_LAYER.items()}
    return recurrent(theirs, f"{ours}.layers", layers=2)


def unused(config: CmercConfig) -> dict[str, tuple[int, ...]]:
    """Entries of the authors' checkpoints that their forward never reads, with their shapes."""
    hidden, width, classes = config.hidden, config.width, len(config.labels)
    shapes: dict[str, tuple[int, ...]] = {
        "graph_model.hyperedge_attr1": (hidden,),
        "graph_model.hyperedge_attr2": (hidden,),
        "hidfc.weight": (classes, hidden),
        "hidfc.bias": (classes,),
    }
    if not config.text_linear:
        shapes |= {"linear_l.weight": (width, config.text_dim), "linear_l.bias": (width,)}
    for kind, (prefix, entries) in NORMS.items():
        if kind != config.norm:
            for k in "abcd":
                shapes |= {f"{prefix}{k}.{e}": () if "num" in e else (config.text_dim,) for e in entries}
    if not config.speaker_embedding:
        shapes["graph_model.speaker_embeddings.weight"] = (config.speakers, width)
    if not config.modal_embedding:
        shapes["graph_model.modal_embeddings.weight"] = (3, width)
    if config.base_model == "transformer" and not config.encode_audio_vision:
        layer = {
            "self_attn.in_proj_weight": (3 * width, width),
            "self_attn.in_proj_bias": (3 * width,),
            "self_attn.out_proj.weight": (width, width),
            "self_attn.out_proj.bias": (width,),
            "linear1.weight": (2048, width),
            "linear1.bias": (2048,),
            "linear2.weight": (width, 2048),
            "linear2.bias": (width,),
            "norm1.weight": (width,),
            "norm1.bias": (width,),
            "norm2.weight": (width,),
            "norm2.bias": (width,),
        }
        shapes |= {f"trans_{m}.{n}": s for m in "av" for n, s in layer.items()}
    for i in range(1, config.hypergraph_layers + 1):
        shapes |= {
            f"graph_model.hyperconv{i}.weight": (hidden, hidden),
            f"graph_model.hyperconv{i}.edgeweight": (hidden, hidden),
            f"graph_model.hyperconv{i}.edgefc.weight": (hidden, hidden),
            f"graph_model.hyperconv{i}.edgefc.bias": (hidden,),
        }
    return shapes


WEIGHT_MAP = WeightMap(renames=renames, unused=unused)
