"""Parameter names of TFR-Net checkpoints of the EMT-DLFR repository (section 4.2) and of this network."""

from __future__ import annotations

from typing import TYPE_CHECKING

from mer_export.layers.bert import weights as bert
from mer_export.layers.parameter_names import RECURRENT, crossmodal, recurrent
from mer_export.models.tfr_net.config import TfrNetConfig
from mer_export.models.utterance import LETTERS, MODALITIES, others, published_bert
from mer_export.weights import WeightMap

if TYPE_CHECKING:
    from torch import Tensor

BERT = "Model.text_model.model."
ALIGN = "Model.align_subnet.Model"
FUSION = "Model.fusion_subnet.Model"
SHORT = {"text": "t", "audio": "a", "vision": "v"}
BOTH = ("weight", "bias")
STATISTICS = ("running_mean", "running_var", "num_batches_tracked")


def _encoders(config: TfrNetConfig) -> dict[str, tuple[str, int]]:
    """Authors' encoder name to ours and its number of layers; those with positions first."""
    deep = max(config.levels, 3)
    memory = {f"{ALIGN}.trans_{LETTERS[m]}_mem": (f"alignment.memory.{m}", deep) for m in MODALITIES}
    cross = {
        f"{ALIGN}.trans_{LETTERS[m]}_with_{LETTERS[o]}": (f"alignment.cross.{m}_{o}", config.levels)
        for m in MODALITIES
        for o in others(m)
    }
    final = {f"{ALIGN}.trans_{LETTERS[m]}_final": (f"reconstruction.final.{m}", deep) for m in MODALITIES}
    return memory | cross | final


def renames(config: TfrNetConfig) -> dict[str, str]:
    """Authors' name to ours, for every entry that inference or training reads."""
    names = bert.renames(published_bert(config), BERT, "bert.")
    for m, dim in config.feature_dims.items():
        if dim != config.width:
            names[f"{ALIGN}.proj_{LETTERS[m]}.weight"] = f"alignment.projections.{m}.weight"
        names |= GENERATORS[config.generator](f"Model.generator_{SHORT[m]}.Model", f"reconstruction.generators.{m}")
        names |= FUSIONS[config.fusion](m, f"fusion.encoders.{m}", config)
    for theirs, (ours, layers) in _encoders(config).items():
        names |= crossmodal(layers, theirs, ours)
    classifier = {"linear_trans_norm": "norm", "linear_trans_hidden": "hidden", "linear_trans_final": "out"}
    names |= {f"{FUSION}.classifier.{a}.{p}": f"fusion.{o}.{p}" for a, o in classifier.items() for p in BOTH}
    return names | {f"{FUSION}.classifier.linear_trans_norm.{p}": f"fusion.norm.{p}" for p in STATISTICS}


def _linear(theirs: str, ours: str) -> dict[str, str]:
    return {f"{theirs}.{p}": f"{ours}.{p}" for p in BOTH}


def _lstm_generator(theirs: str, ours: str) -> dict[str, str]:
    return {f"{theirs}.pred_output.{p}_l{k}": f"{ours}.rnn.{p}_l{k}" for k in range(2) for p in RECURRENT}


GENERATORS = {
    "linear": lambda theirs, ours: _linear(f"{theirs}.linear", f"{ours}.linear"),
    "ctc": _lstm_generator,
    "none": lambda theirs, ours: {},
}


def _c_gate(modality: str, ours: str, config: TfrNetConfig) -> dict[str, str]:
    theirs = f"{FUSION}.{modality}_encoder"
    names = recurrent(f"{theirs}.gru.gru", f"{ours}.recurrent.rnn", config.fusion_layers)
    return names | _linear(f"{theirs}.cnn", f"{ours}.gate") | _linear(f"{theirs}.fc", f"{ours}.linear")


def _recurrent(modality: str, ours: str, config: TfrNetConfig) -> dict[str, str]:
    names = recurrent(f"{FUSION}.{modality}_gru.gru", f"{ours}.recurrent.rnn", config.fusion_layers)
    return names | (_maximum(modality, ours, config) if config.fusion_linear else {})


def _maximum(modality: str, ours: str, config: TfrNetConfig) -> dict[str, str]:
    return _linear(f"{FUSION}.fusion_trans_{SHORT[modality]}", f"{ours}.linear")


FUSIONS = {"c_gate": _c_gate, "gru": _recurrent, "max": _maximum}


def unused(config: TfrNetConfig) -> dict[str, tuple[int, ...]]:
    """BERT's pooler, uninitialised buffers, and projections of features that already have the width."""
    shapes = bert.unused(published_bert(config), BERT)
    kernels = config.kernels.model_dump()
    for m, dim in config.feature_dims.items():
        if dim == config.width:
            shapes[f"{ALIGN}.proj_{LETTERS[m]}.weight"] = (config.width, dim, kernels[m])
    for theirs, (ours, _) in _encoders(config).items():
        if not ours.startswith("reconstruction"):
            shapes[f"{theirs}.embed_positions._float_tensor"] = (1,)
    return shapes


def ignored(config: TfrNetConfig) -> dict[str, tuple[int, ...]]:
    """BERT's position index of old files."""
    return bert.ignored(published_bert(config), BERT)


def constants(config: TfrNetConfig) -> dict[str, Tensor]:
    """The version mark of each encoder."""
    import torch

    return {f"{theirs}.version": torch.tensor([2.0]) for theirs in _encoders(config)}


WEIGHT_MAP = WeightMap(renames=renames, unused=unused, ignored=ignored, constants=constants)
