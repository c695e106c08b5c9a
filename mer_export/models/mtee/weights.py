"""Parameter names of the authors' checkpoints (section 4) and of these networks, and their loading rules."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from mer_export.errors import UnsupportedError
from mer_export.layers.parameter_names import TRANSFORMER_LAYER, crossmodal, recurrent, recurrent_shapes
from mer_export.models.mtee.config import KERNELS, MODALITIES, MteeConfig
from mer_export.models.mtee.emotions import TABLE
from mer_export.models.utterance import LETTERS
from mer_export.weights import WeightMap

if TYPE_CHECKING:
    from torch import Tensor

AFFINE = {"audio": "affineAudio", "vision": "affineVisual"}
MODALITY_WEIGHTS = "modality_weights.weight"
POSITIONS = 5000
HEADS = {"rnn_ef": "out", "rnn_lf": "out", "mult": "out_layer", "rnn_eflf": "out.3"}
"""Output layer of the networks that have one row per label."""


def renames(config: MteeConfig) -> dict[str, str]:
    """Authors' name to ours, for every entry that the forward reads.

    Raises:
        UnsupportedError: fewer modalities than a checkpoint of this network has.
    """
    if config.variant != "eea" and config.used != MODALITIES:
        raise UnsupportedError(
            f"published checkpoints of {config.variant} have all three modalities: leave modalities out"
        )
    return RENAMES[config.variant](config)


def _both(theirs: str, ours: str) -> dict[str, str]:
    return {f"{theirs}.{p}": f"{ours}.{p}" for p in ("weight", "bias")}


def _encoder(config: MteeConfig, theirs: str, ours: str) -> dict[str, str]:
    return recurrent(theirs, ours, config.layers, config.bidirectional)


def _encoders(config: MteeConfig, theirs: str, modalities: tuple[str, ...] = MODALITIES) -> dict[str, str]:
    names: dict[str, str] = {}
    for m in modalities:
        names |= _encoder(config, f"{theirs}.{MODALITIES.index(m)}", f"encoders.{m}")
    return names


def _eea(config: MteeConfig) -> dict[str, str]:
    names = _encoders(config, "RNNs", config.used)
    for m in config.used:
        names |= _both(AFFINE[m], f"affine.{m}") if m in AFFINE else {}
    return names | ({MODALITY_WEIGHTS: "modality_weight"} if len(config.used) > 1 else {})


def _early(config: MteeConfig) -> dict[str, str]:
    return _encoder(config, "RNN", "encoder") | _both("out", "head")


def _late(config: MteeConfig) -> dict[str, str]:
    return _encoders(config, "RNNs") | _both("out", "head")


def _early_and_late(config: MteeConfig) -> dict[str, str]:
    head = _both("out.0", "head.0") | _both("out.3", "head.3")
    return _encoder(config, "EF_RNN", "encoder") | _encoders(config, "LF_RNNs") | head


def _mult(config: MteeConfig) -> dict[str, str]:
    names = _both("proj1", "hidden") | _both("proj2", "residual") | _both("out_layer", "head")
    names |= {f"proj_{LETTERS[m]}.weight": f"projections.{m}.weight" for m in MODALITIES if config.shrinkage(m)}
    for theirs, (ours, depth, _) in _mult_encoders(config).items():
        names |= crossmodal(depth, theirs, ours) if ours else {}
    return names


def _mult_encoders(config: MteeConfig) -> dict[str, tuple[str | None, int, int]]:
    """Authors' name to our name (None where the stream is off), number of layers, width."""
    own = config.mult
    found: dict[str, tuple[str | None, int, int]] = {}
    for m in MODALITIES:
        on = m in own.streams
        for other in MODALITIES:
            if on and other != m:
                name = f"trans_{LETTERS[m]}_with_{LETTERS[other]}"
                found[name] = (f"cross.{m}_with_{other}", own.layers, own.width)
        # Memory encoders are built for every stream.
        found[f"trans_{LETTERS[m]}_mem"] = (f"memory.{m}" if on else None, max(own.layers, 3), 2 * own.width)
    return found


def _transformer(config: MteeConfig) -> dict[str, str]:
    names = _both("linear", "linear") | _both("transformer_encoder.norm", "norm")
    names |= _both("out.0", "head.0") | _both("out.3", "head.3")
    return names | {
        f"transformer_encoder.layers.{i}.{a}": f"layers.{i}.{o}"
        for i in range(config.transformer.layers)
        for a, o in TRANSFORMER_LAYER.items()
    }


RENAMES: dict[str, Callable[[MteeConfig], dict[str, str]]] = {
    "eea": _eea,
    "rnn_ef": _early,
    "rnn_lf": _late,
    "rnn_eflf": _early_and_late,
    "mult": _mult,
    "transformer": _transformer,
}


def unused(config: MteeConfig) -> dict[str, tuple[int, ...]]:
    """Entries of the authors' checkpoints that their forward never reads, or that are data here, with their shapes."""
    return UNUSED[config.variant](config) if config.variant in UNUSED else {}


def _eea_unused(config: MteeConfig) -> dict[str, tuple[int, ...]]:
    word = config.hidden_sizes[0]
    shapes: dict[str, tuple[int, ...]] = {TABLE: (len(config.labels), word)}
    for i, m in enumerate(MODALITIES):
        if m not in config.used:
            hidden = config.hidden[m]
            shapes |= recurrent_shapes(
                f"RNNs.{i}", config.cell, config.dims[m], hidden, config.layers, config.bidirectional
            )
            shapes |= {f"{AFFINE[m]}.weight": (hidden, word), f"{AFFINE[m]}.bias": (hidden,)} if m in AFFINE else {}
    return shapes | ({MODALITY_WEIGHTS: (1,)} if len(config.used) == 1 else {})


def _mult_unused(config: MteeConfig) -> dict[str, tuple[int, ...]]:
    shapes: dict[str, tuple[int, ...]] = {
        f"proj_{LETTERS[m]}.weight": (config.mult.width, config.dims[m], KERNELS[m])
        for m in MODALITIES
        if not config.shrinkage(m)
    }
    for name, (ours, depth, width) in _mult_encoders(config).items():
        shapes |= {f"{name}.version": (1,), f"{name}.embed_positions._float_tensor": (1,)}
        if ours is None:
            shapes |= {f"{name}.layer_norm.{p}": (width,) for p in ("weight", "bias")}
            for i in range(depth):
                shapes |= {f"{name}.layers.{i}.{n}": s for n, s in _cross_layer_shapes(width).items()}
    return shapes


def _cross_layer_shapes(width: int) -> dict[str, tuple[int, ...]]:
    return {
        "self_attn.in_proj_weight": (3 * width, width),
        "self_attn.in_proj_bias": (3 * width,),
        "self_attn.out_proj.weight": (width, width),
        "self_attn.out_proj.bias": (width,),
        "fc1.weight": (4 * width, width),
        "fc1.bias": (4 * width,),
        "fc2.weight": (width, 4 * width),
        "fc2.bias": (width,),
        **{f"layer_norms.{i}.{p}": (width,) for i in range(2) for p in ("weight", "bias")},
    }


def _transformer_unused(config: MteeConfig) -> dict[str, tuple[int, ...]]:
    return {"pos_encoder.pe": (POSITIONS, 1, config.transformer.width)}


UNUSED: dict[str, Callable[[MteeConfig], dict[str, tuple[int, ...]]]] = {
    "eea": _eea_unused,
    "mult": _mult_unused,
    "transformer": _transformer_unused,
}


def prepare(config: MteeConfig, state: dict[str, Tensor]) -> dict[str, Tensor]:
    """The loading rules of the authors' entry script, where they make sense.

    The emotion table of the file is left out: it is data, of the training labels, and need not fit this config.
    Modality weights of another number of modalities fall back to equal ones. A head that lacks the row of
    `config.unseen` gets one of zeros, the others keep their order. The original also throws away every other head of
    the baselines, and then evaluates a random one; that is not followed.
    """
    import torch

    state = dict(state)
    if config.model == "eea":
        table = state.get(TABLE)
        if table is not None and table.ndim == 2 and table.shape[1] == config.hidden_sizes[0]:
            del state[TABLE]
        weights = state.get(MODALITY_WEIGHTS)
        if weights is not None and weights.ndim == 1 and len(weights) != len(config.used):
            state[MODALITY_WEIGHTS] = torch.full((len(config.used),), 1.0 / len(config.used))
    elif config.unseen is not None:
        for name in (f"{HEADS[config.variant]}.{p}" for p in ("weight", "bias")):
            rows = state.get(name)
            if rows is not None and len(rows) == len(config.labels) - 1:
                k = config.unseen
                state[name] = torch.cat([rows[:k], torch.zeros_like(rows[:1]), rows[k:]])
    return state


WEIGHT_MAP = WeightMap(renames=renames, unused=unused, prepare=prepare)
