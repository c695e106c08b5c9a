"""Weights of a `transformers` folder into an encoder: every tensor of its part of the file, and none left over."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from mer_export.checkpoints import State
from mer_export.encoders.transformers.kinds import KINDS
from mer_export.errors import UsageError

if TYPE_CHECKING:
    from mer_export.encoders.transformers.network import TransformersEncoder

OLD_NAMES = (
    (re.compile(r"LayerNorm\.gamma$"), "LayerNorm.weight"),
    (re.compile(r"LayerNorm\.beta$"), "LayerNorm.bias"),
    (re.compile(r"\.conv\.weight_g$"), ".conv.parametrizations.weight.original0"),
    (re.compile(r"\.conv\.weight_v$"), ".conv.parametrizations.weight.original1"),
    (re.compile(r"attention\.attention\.(q|k|v)(uery|ey|alue)\."), r"attention.\1_proj."),
    (re.compile(r"attention\.output\.dense\."), "attention.o_proj."),
    (re.compile(r"\.intermediate\.dense\."), ".mlp.fc1."),
    (re.compile(r"(layer\.\d+)\.output\.dense\."), r"\1.mlp.fc2."),
    (re.compile(r"^encoder\.layer\."), "layers."),
)
"""Names in files that the networks of today have others for, tried one after the other."""
UNREAD = re.compile(
    r"(^|\.)(pooler|head)\.|position_ids$|relative_position\w*index$|^lm_head\.|^cls\.|^masked_spec_embed$"
)
"""What a folder may hold beside the states: heads, places that follow from the sizes, a token of pre-training."""
LAYER = re.compile(r"(^|\.)layers?\.(\d+)\.")
POSITIONS = "embed_positions.weight"
"""Of Whisper: one row for each state of 30 s, of which a shorter window has the first."""


def load_folder(model: TransformersEncoder, state: State, where: str) -> None:
    """Loads the tensors of a folder in place, as float32.

    Raises:
        UsageError: a tensor is missing, of another shape, or left over; an encoder with random parts is worth nothing.
    """
    import torch

    config, own = model.config, model.network.state_dict()
    found = _part(state, set(own), KINDS[config.kind].prefixes)
    if config.record.form == "log_mel" and POSITIONS in found:
        found[POSITIONS] = found[POSITIONS][: len(own[POSITIONS])]
    problems = [f"missing {n}" for n in own if n not in found and not UNREAD.search(n)]
    problems += [f"unexpected {n}" for n in found if n not in own and not _unread(n, config.last, config.depth)]
    problems += [
        f"{n} is {tuple(found[n].shape)}, expected {tuple(t.shape)}"
        for n, t in own.items()
        if n in found and found[n].shape != t.shape
    ]
    if problems:
        raise UsageError(
            f"{where} does not hold the weights of the {config.kind} that its config.json describes "
            f"({len(problems)} of {len(own)} tensors): {problems[0]}"
        )
    model.network.load_state_dict(own | {n: found[n].to(torch.float32) for n in own if n in found})


def _part(state: State, own: set[str], prefixes: tuple[str, ...]) -> State:
    """The entries of the encoder, named as it names them: the part of the file that has most of them."""
    parts = [state, *({n.removeprefix(p): t for n, t in state.items() if n.startswith(p)} for p in prefixes)]
    named = [{_present(n, own): t for n, t in part.items()} for part in parts]
    return max(named, key=lambda part: len(own & part.keys()))


def _present(name: str, own: set[str]) -> str:
    found = name
    for old, new in OLD_NAMES:
        if found in own:
            return found
        found = old.sub(new, found)
    return found if found in own else name


def _unread(name: str, last: int, depth: int) -> bool:
    """Whether nothing reads an entry: a head, or one of the layers after the last one that is read."""
    layer = LAYER.search(name)
    return bool(UNREAD.search(name)) or (layer is not None and last <= int(layer[2]) < depth)
