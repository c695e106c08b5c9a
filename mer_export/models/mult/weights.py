"""Parameter names of MulT checkpoints of the EMT-DLFR repository (section 4.3) and of this network."""

from __future__ import annotations

from typing import TYPE_CHECKING

from mer_export.layers.bert import weights as bert
from mer_export.layers.parameter_names import crossmodal
from mer_export.models.mult.config import MultConfig
from mer_export.models.utterance import LETTERS, MODALITIES, others, published_bert
from mer_export.weights import WeightMap

if TYPE_CHECKING:
    from torch import Tensor

BERT = "Model.text_model.model."
HEAD = {"proj1": "hidden1", "proj2": "hidden2", "out_layer": "out"}


def _encoders(config: MultConfig) -> dict[str, tuple[str, int]]:
    """Authors' encoder name to ours and its number of layers."""
    cross = {
        f"Model.trans_{LETTERS[m]}_with_{LETTERS[other]}": (f"cross.{m}_{other}", config.levels)
        for m in MODALITIES
        for other in others(m)
    }
    return cross | {f"Model.trans_{LETTERS[m]}_mem": (f"memory.{m}", max(config.levels, 3)) for m in MODALITIES}


def renames(config: MultConfig) -> dict[str, str]:
    """Authors' name to ours, for every entry that the forward reads."""
    names = bert.renames(published_bert(config), BERT, "bert.")
    for m, dim in config.feature_dims.items():
        if dim != config.width:
            names[f"Model.proj_{LETTERS[m]}.weight"] = f"projections.{m}.weight"
    for theirs, (ours, layers) in _encoders(config).items():
        names |= crossmodal(layers, theirs, ours)
    return names | {f"Model.{a}.{p}": f"{o}.{p}" for a, o in HEAD.items() for p in ("weight", "bias")}


def unused(config: MultConfig) -> dict[str, tuple[int, ...]]:
    """BERT's pooler, and projections of features that already have the width."""
    shapes = bert.unused(published_bert(config), BERT)
    kernels = config.kernels.model_dump()
    for m, dim in config.feature_dims.items():
        if dim == config.width:
            shapes[f"Model.proj_{LETTERS[m]}.weight"] = (config.width, dim, kernels[m])
    return shapes


def ignored(config: MultConfig) -> dict[str, tuple[int, ...]]:
    """BERT's position index of old files."""
    return bert.ignored(published_bert(config), BERT)


def constants(config: MultConfig) -> dict[str, Tensor]:
    """The version mark of each encoder."""
    import torch

    return {f"{theirs}.version": torch.tensor([2.0]) for theirs in _encoders(config)}


WEIGHT_MAP = WeightMap(renames=renames, unused=unused, ignored=ignored, constants=constants)
