"""Parameter names of EMT-DLFR checkpoints (section 4.1) and of this network.

A shared module of the original stands in its file under every place where it is used; all of those names lead to one
tensor here.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from mer_export.layers.bert import weights as bert
from mer_export.layers.parameter_names import RECURRENT
from mer_export.models.emt.config import POSITIONS, EmtConfig
from mer_export.models.utterance import MODALITIES, published_bert
from mer_export.weights import WeightMap

if TYPE_CHECKING:
    from torch import Tensor

AUTHORS = {"text": "text", "audio": "audio", "vision": "video", "context": "gmc_tokens"}
BERT = "Model.text_model.model."
BOTH = ("weight", "bias")
STATISTICS = ("running_mean", "running_var", "num_batches_tracked")
UNIT = {
    "0.norm": ("cross_norm", BOTH),
    "0.norm_context": ("context_norm", BOTH),
    "0.fn.to_q": ("cross.query", ("weight",)),
    "0.fn.to_kv": ("cross.key_value", ("weight",)),
    "0.fn.to_out": ("cross.out", BOTH),
    "1.norm": ("self_norm", BOTH),
    "1.fn.to_q": ("itself.query", ("weight",)),
    "1.fn.to_kv": ("itself.key_value", ("weight",)),
    "1.fn.to_out": ("itself.out", BOTH),
    "2.norm": ("norm", BOTH),
    "2.fn.net.0": ("expand", BOTH),
    "2.fn.net.2": ("contract", BOTH),
}
PROJECTOR = {"net.0": ("linear", BOTH), "net.1": ("norm", STATISTICS)}
PREDICTOR = {"net.0": ("linear", ("weight",)), "net.1": ("norm", BOTH + STATISTICS), "net.3": ("out", BOTH)}
Entries = dict[str, tuple[str, tuple[str, ...]]]
"""Authors' part of a name to ours, and the parameters that it has."""


def renames(config: EmtConfig) -> dict[str, str]:
    """Authors' name to ours, for every entry that inference or training reads."""
    names = bert.renames(published_bert(config), BERT, "bert.")
    for m, hidden in (("audio", config.audio_hidden), ("vision", config.vision_hidden)):
        theirs, ours = f"Model.{AUTHORS[m]}_model", f"encoders.{m}"
        names |= {f"{theirs}.rnn.{p}_l0": f"{ours}.rnn.{p}_l0" for p in RECURRENT}
        if hidden != config.utterance_dims[m]:
            names |= _entries({"linear_1": ("linear", BOTH)}, theirs, ours)
    for m in MODALITIES:
        if config.utterance_dims[m] != config.width:
            names[f"Model.proj_{AUTHORS[m]}.weight"] = f"projections.{m}.weight"
        names |= _entries({f"recon_{AUTHORS[m]}": (m, BOTH)}, "Model", "restoration.reconstructors")
    for n, theirs in AUTHORS.items():
        names |= _entries(PROJECTOR, f"Model.{theirs}_projector", f"restoration.projectors.{n}")
        names |= _entries(PREDICTOR, f"Model.{theirs}_predictor", f"restoration.predictors.{n}")
    for layer, ours in enumerate(("hidden1", "hidden2", "out"), start=1):
        names |= _entries({f"post_fusion_layer_{layer}": (ours, BOTH)}, "Model", "head")
    return names | _fusion(config)


def _fusion(config: EmtConfig) -> dict[str, str]:
    names = {}
    if config.learnable_positions:
        names["Model.fusion.pos_embed.pe"] = "fusion.positions"
    for layer in range(config.depth):
        for m in range(len(MODALITIES)):
            for d in range(2):
                theirs = f"Model.fusion.mpus.{layer}.{m}.{d}.layers.0"
                names |= _entries(UNIT, theirs, f"fusion.units.{config.unit(layer, m, d)}")
        pool = f"fusion.pools.{0 if config.share_layers else layer}"
        attention: Entries = {"attention.0": ("hidden", BOTH), "attention.2": ("score", BOTH)}
        names |= _entries(attention, f"Model.fusion.attn_pools.{layer}", pool)
    return names


def _entries(table: Entries, theirs: str, ours: str) -> dict[str, str]:
    return {f"{theirs}.{a}.{p}": f"{ours}.{o}.{p}" for a, (o, parts) in table.items() for p in parts}


def unused(config: EmtConfig) -> dict[str, tuple[int, ...]]:
    """BERT's pooler."""
    return bert.unused(config.bert, BERT) if config.bert else {}


def ignored(config: EmtConfig) -> dict[str, tuple[int, ...]]:
    """BERT's position index of old files."""
    return bert.ignored(config.bert, BERT) if config.bert else {}


def constants(config: EmtConfig) -> dict[str, Tensor]:
    """The table of positions where it is not learnt."""
    from mer_export.layers.positions import alternating_sinusoid

    if config.learnable_positions:
        return {}
    return {"Model.fusion.pos_embed.pe": alternating_sinusoid(POSITIONS, config.width)[None]}


WEIGHT_MAP = WeightMap(renames=renames, unused=unused, ignored=ignored, constants=constants)
