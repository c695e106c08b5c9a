"""Names of the expression model's transformer in other projects: timm, the `transformers` package, FaceX-Zoo.

Only the transformer has counterparts there; the head on top of it (features, linear, classifier) is FacialMMT's own.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from mer_export.errors import UsageError
from mer_export.models.facialmmt.swin_config import SwinConfig
from mer_export.models.facialmmt.weights import trunk

if TYPE_CHECKING:
    from torch import Tensor

    from mer_export.models.facialmmt.swin import FaceExpression

RECOGNITION = "backbone."
"""Prefix in the face recognition files of FaceX-Zoo, whose other entries are its classifier."""
NORM = ("norm.weight", "norm.bias")
HUGGING = {
    "patch_embed.proj": "embeddings.patch_embeddings.projection",
    "patch_embed.norm": "embeddings.norm",
    "norm1": "layernorm_before",
    "norm2": "layernorm_after",
    "attn.proj": "attention.o_proj",
    "attn.relative_position_bias_table": "attention.relative_position_bias.relative_position_bias_table",
    "norm": "layernorm",
}
PARTS = ("q", "k", "v")


def timm_names(config: SwinConfig) -> dict[str, str]:
    """Our names of the transformer's parameters to those of timm's `SwinTransformer` (1.0, without a head).

    There merging stands before a stage, here after the one before it.
    """
    names = {}
    for name in _own(config):
        parts = name.split(".")
        if "downsample" in parts:
            parts[1] = str(int(parts[1]) + 1)
        names[name] = ".".join(parts)
    return names


def to_timm(state: dict[str, Tensor], config: SwinConfig) -> dict[str, Tensor]:
    """State of our `Swin` as timm's."""
    return {theirs: state[ours] for ours, theirs in timm_names(config).items()}


def from_timm(state: dict[str, Tensor], config: SwinConfig) -> dict[str, Tensor]:
    """State of timm's transformer as that of our `Swin`; raises UsageError naming what is missing."""
    return {ours: _get(state, theirs) for ours, theirs in timm_names(config).items()}


def to_transformers(state: dict[str, Tensor], config: SwinConfig) -> dict[str, Tensor]:
    """State of our `Swin` as that of `SwinModel` (version 5 names): query, key and value apart."""
    found: dict[str, Tensor] = {}
    for ours in _own(config):
        if ".attn.qkv." in ours:
            for part, value in zip(PARTS, state[ours].chunk(3), strict=True):
                found[_hugging(ours.replace("attn.qkv", f"attention.{part}_proj"))] = value
        else:
            found[_hugging(ours)] = state[ours]
    return found


def from_transformers(state: dict[str, Tensor], config: SwinConfig) -> dict[str, Tensor]:
    """State of `SwinModel` (version 5 names) as that of our `Swin`; raises UsageError naming what is missing."""
    import torch

    found: dict[str, Tensor] = {}
    for ours in _own(config):
        if ".attn.qkv." in ours:
            names = [_hugging(ours.replace("attn.qkv", f"attention.{part}_proj")) for part in PARTS]
            found[ours] = torch.cat([_get(state, n) for n in names])
        else:
            found[ours] = _get(state, _hugging(ours))
    return found


def load_face_recognition(model: FaceExpression, path: Path | str) -> None:
    """Starts the transformer and the first layers of the head from a face recognition file of FaceX-Zoo, in place.

    The original means to do this, but tests for names that such a file does not have, and copies nothing.

    Raises:
        UsageError: no such entries, or of another shape.
    """
    from mer_export.weights import load_checkpoint

    found = load_checkpoint(Path(path))
    renames = {"output_layer.0.": "swin.norm.", "output_layer.2.": "features.", "output_layer.3.": "batch_norm."}
    own = model.state_dict()
    state = {}
    for name, value in found.items():
        if not name.startswith(RECOGNITION):
            continue
        plain = name.removeprefix(RECOGNITION)
        ours = next((o + plain.removeprefix(t) for t, o in renames.items() if plain.startswith(t)), f"swin.{plain}")
        if ours not in own:
            continue  # index and mask of the windows, which are constants here
        if own[ours].shape != value.shape:
            raise UsageError(f"{path}: {name} is {tuple(value.shape)}, expected {tuple(own[ours].shape)}")
        state[ours] = value
    missing = [n for n in own if n.startswith("swin.") and n not in state]
    if missing:
        raise UsageError(f"{path} lacks {RECOGNITION}* for {missing[0]}: give a face recognition Swin of this shape")
    model.load_state_dict(own | state)


def _own(config: SwinConfig) -> list[str]:
    return [n.removeprefix("swin.") for n in trunk(config)] + list(NORM)


def _hugging(name: str) -> str:
    stem, _, kind = name.rpartition(".")
    if kind == "relative_position_bias_table":
        stem, kind = name, ""
    head = ""
    if stem.startswith("layers."):
        _, stage, kind_of, *rest = stem.split(".")
        if kind_of == "downsample":
            return f"encoder.{name}"
        head, stem = f"encoder.layers.{stage}.blocks.{rest[0]}.", ".".join(rest[1:])
    return head + HUGGING.get(stem, stem) + (f".{kind}" if kind else "")


def _get(state: dict[str, Tensor], name: str) -> Tensor:
    if name not in state:
        raise UsageError(f"the state has no {name}: it is no Swin transformer of this shape")
    return state[name]
