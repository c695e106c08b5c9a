"""Parameter names of FacialMMT checkpoints (section 4) and of this network.

The authors keep the fusion model and the expression model in two files. Where both make one network, names of the
second file have `FACE` in front; a file is known by its names.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from mer_export.errors import UnsupportedError
from mer_export.layers.bert import weights as bert
from mer_export.layers.parameter_names import crossmodal
from mer_export.models.facialmmt.config import FacialMmtConfig
from mer_export.models.facialmmt.swin_config import SwinConfig
from mer_export.models.utterance import MODALITIES
from mer_export.weights import WeightMap

if TYPE_CHECKING:
    from torch import Tensor

FACE = "face/"
BOTH = ("weight", "bias")
STATISTICS = ("running_mean", "running_var", "num_batches_tracked")
LAYER = {
    "transformer_self_attention.selfatt.query": "query",
    "transformer_self_attention.selfatt.key": "key",
    "transformer_self_attention.selfatt.value": "value",
    "transformer_self_attention.dense_norm.dense": "out",
    "transformer_self_attention.dense_norm.LayerNorm": "attention_norm",
    "intermediate.dense": "expand",
    "output.dense": "contract",
    "output.LayerNorm": "norm",
}
POOLING = {"attention.P": "pool.keys", "attention.Q": "pool.query", "attention.value": "pool.score"}
CROSS = {"CrossModalTrans_TA": "text_audio", "CrossModalTrans_TA_V": "both_vision"}
HEAD = {"linear": "linear", "classifier": "classifier"}


def renames(config: FacialMmtConfig) -> dict[str, str]:
    """Authors' name to ours, for every entry that inference or training reads."""
    if config.standardise:
        raise UnsupportedError("no published FacialMMT checkpoint standardises its inputs: leave out model.standardise")
    if set(config.modalities) != set(MODALITIES):
        raise UnsupportedError("published FacialMMT checkpoints have all three modalities: leave out model.modalities")
    return RENAMES[config.variant](config)


def _fusion(config: FacialMmtConfig) -> dict[str, str]:
    names = bert.renames(config.bert, f"{config.encoder}.", "bert.")
    names |= _entries({f"{m}_linear": m for m in ("text", "audio", "vision")})
    for m, layers in (("audio", config.audio_layers), ("vision", config.vision_layers)):
        names |= _encoder(f"{m}_utt_transformer", f"{m}_encoder", layers)
    for (theirs, ours), layers in zip(CROSS.items(), (config.cross_layers, config.cross_vision_layers), strict=True):
        names |= crossmodal(layers, theirs, ours)
    return names | _pooling()


def _end_to_end(config: FacialMmtConfig) -> dict[str, str]:
    return _fusion(config) | {FACE + theirs: f"face.{ours}" for theirs, ours in _face(config).items()}


def _vision(config: FacialMmtConfig) -> dict[str, str]:
    names = _entries({"modality_linear": "vision"})
    return names | _encoder("utt_transformer", "vision_encoder", config.vision_layers) | _pooling()


def _face(config: FacialMmtConfig) -> dict[str, str]:
    names = {n: n for n in trunk(_swin(config))}
    names |= _entries({"swin.output_layer.0": "swin.norm", "swin.output_layer.2": "features"} | HEAD)
    return names | _entries({"swin.output_layer.3": "batch_norm"}, BOTH + STATISTICS)


RENAMES = {"fusion": _fusion, "end_to_end": _end_to_end, "vision": _vision, "face": _face}


def trunk(config: SwinConfig) -> list[str]:
    """Names of the transformer's parameters up to its last stage, the authors' and ours alike."""
    names = list(_entries({f"swin.patch_embed.{p}": "" for p in ("proj", "norm")}))
    for i, stage in enumerate(config.stages):
        for j in range(stage.depth):
            block = f"swin.layers.{i}.blocks.{j}"
            parts = ("norm1", "norm2", "attn.qkv", "attn.proj", "mlp.fc1", "mlp.fc2")
            names += [f"{block}.attn.relative_position_bias_table", *_entries({f"{block}.{p}": "" for p in parts})]
        if stage.merges:
            merging = f"swin.layers.{i}.downsample"
            names += [f"{merging}.reduction.weight", f"{merging}.norm.weight", f"{merging}.norm.bias"]
    return names


def unused(config: FacialMmtConfig) -> dict[str, tuple[int, ...]]:
    """The pooler of the text encoder."""
    return bert.unused(config.bert, f"{config.encoder}.") if _has_text(config) else {}


def ignored(config: FacialMmtConfig) -> dict[str, tuple[int, ...]]:
    """Buffers: the position index of old files, and marks of the cross-modal encoders."""
    if not _has_text(config):
        return {}
    marks = {f"{t}.{name}": (1,) for t in CROSS for name in ("version", "embed_positions._float_tensor")}
    return bert.ignored(config.bert, f"{config.encoder}.") | marks


def constants(config: FacialMmtConfig) -> dict[str, Tensor]:
    """The index and the mask of the expression model's windows."""
    from mer_export.models.facialmmt.swin import offset_index, shifted_mask

    if config.swin is None:
        return {}
    found: dict[str, Tensor] = {}
    front = "" if config.variant == "face" else FACE
    for i, stage in enumerate(config.swin.stages):
        for j in range(stage.depth):
            block = f"{front}swin.layers.{i}.blocks.{j}"
            found[f"{block}.attn.relative_position_index"] = offset_index(stage.window)
            if shift := stage.shift(j):
                found[f"{block}.attn_mask"] = shifted_mask(stage.size, stage.window, shift)
    return found


def part(state: dict[str, Tensor]) -> str:
    """What stands before the names of one of several files that make a network."""
    return FACE if any(n.startswith("swin.") for n in state) else ""


def fit(values: dict[str, Any], state: dict[str, Tensor]) -> dict[str, Any]:
    """A configuration with as many positions as a checkpoint's tables have, where it does not say how many.

    A length that is not set, or longer than its table, becomes that of the table.
    """
    found = dict(values)
    for m in ("audio", "vision"):
        names = (f"{m}_utt_transformer.position_embeddings.weight", "utt_transformer.position_embeddings.weight")
        table = next((state[n] for n in names[: 1 + (m == "vision")] if n in state), None)
        if table is None or found.get(f"{m}_positions"):
            continue
        own, usual = found.get(f"{m}_len"), FacialMmtConfig.model_fields[f"{m}_len"].default
        found[f"{m}_positions"] = len(table)
        found[f"{m}_len"] = len(table) if own in (None, usual) or own > len(table) else own
    return found


def _has_text(config: FacialMmtConfig) -> bool:
    return config.variant in ("fusion", "end_to_end")


def _swin(config: FacialMmtConfig) -> SwinConfig:
    assert config.swin is not None
    return config.swin


def _encoder(theirs: str, ours: str, layers: int) -> dict[str, str]:
    names = {f"{theirs}.position_embeddings.weight": f"{ours}.positions.weight"}
    for n in range(layers):
        entries = _entries(LAYER) | {"transformer_self_attention.selfatt.key.bias": "key_bias"}
        names |= {f"{theirs}.layer.{n}.{a}": f"{ours}.layers.{n}.{o}" for a, o in entries.items()}
    return names


def _pooling() -> dict[str, str]:
    return {"attention.query_vector": "pool.query_vector"} | _entries(POOLING | {"classifier": "classifier"})


def _entries(table: dict[str, str], parts: tuple[str, ...] = BOTH) -> dict[str, str]:
    return {f"{a}.{p}": f"{o}.{p}" for a, o in table.items() for p in parts}


WEIGHT_MAP = WeightMap(renames=renames, unused=unused, ignored=ignored, constants=constants, part=part, fit=fit)
