"""Weights of a BERT or RoBERTa folder as the `transformers` package stores it: config.json and one weight file."""

from __future__ import annotations

import json
from pathlib import Path

from mer_export.errors import InputError, UsageError
from mer_export.layers.bert.config import ROBERTA, BertConfig
from mer_export.layers.bert.network import Bert
from mer_export.layers.bert.weights import ignored, renames, unused
from mer_export.weights import load_checkpoint

FILES = ("model.safetensors", "pytorch_model.bin")
SETTINGS = {
    "vocab_size": "vocabulary",
    "hidden_size": "hidden",
    "num_hidden_layers": "layers",
    "num_attention_heads": "heads",
    "intermediate_size": "feed_forward",
    "max_position_embeddings": "positions",
    "type_vocab_size": "segments",
    "layer_norm_eps": "epsilon",
}
FAMILIES: dict[str, dict[str, int | float]] = {"bert": {}, "roberta": ROBERTA}
"""Settings that follow from the kind of model, by its name in config.json."""
TYPES, POSITIONS = (f"embeddings.{t}_embeddings.weight" for t in ("token_type", "position"))
PREFIXES = ("bert.", "roberta.")
HEADS = ("cls.", "lm_head.", "classifier.")
OLD_NAMES = {"LayerNorm.gamma": "LayerNorm.weight", "LayerNorm.beta": "LayerNorm.bias"}


def read_config(folder: Path | str) -> BertConfig:
    """The shape that config.json of a folder describes.

    Raises:
        InputError: no such file, or another kind of model than BERT.
    """
    path = Path(folder) / "config.json"
    try:
        content = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise InputError(f"{path} cannot be read: {error}") from None
    family = FAMILIES.get(content.get("model_type", "bert"))
    if family is None or content.get("hidden_act", "gelu") != "gelu":
        kind = f"{content.get('model_type')!r} with {content.get('hidden_act', 'gelu')}"
        raise InputError(f"{path} describes {kind}, only {list(FAMILIES)} with gelu are known")
    return BertConfig.model_validate(family | {o: content[t] for t, o in SETTINGS.items() if t in content})


def load_pretrained(bert: Bert, folder: Path | str) -> None:
    """Loads a folder's weights in place; the heads of its pre-training are left out.

    Raises:
        InputError: no weight file.
        UsageError: weights of another shape, or missing ones.
    """
    folder = Path(folder)
    file = next((folder / name for name in FILES if (folder / name).is_file()), None)
    if file is None:
        raise InputError(f"{folder} holds none of {list(FILES)}: give the folder of a BERT encoder")
    state = {_plain(n): t for n, t in load_checkpoint(file).items() if not n.startswith(HEADS)}
    types = None if bert.config.segments else state.pop(TYPES, None)
    if types is not None and POSITIONS in state:
        # An encoder without token types adds what type 0 adds to every token.
        state[POSITIONS] = state[POSITIONS] + types[0]
    names = renames(bert.config, "", "")
    own = bert.state_dict()
    known = {*names, *unused(bert.config, ""), *ignored(bert.config, "")}
    problems = [f"missing {n}" for n in names if n not in state]
    problems += [f"unexpected {n}" for n in state if n not in known]
    problems += [
        f"{n} is {tuple(state[n].shape)}, expected {tuple(own[ours].shape)}"
        for n, ours in names.items()
        if n in state and state[n].shape != own[ours].shape
    ]
    if problems:
        raise UsageError(f"{file} does not fit model.bert ({len(problems)} problems): " + "; ".join(problems[:10]))
    bert.load_state_dict(own | {ours: state[n] for n, ours in names.items()})


def _plain(name: str) -> str:
    for prefix in PREFIXES:
        name = name.removeprefix(prefix)
    for old, new in OLD_NAMES.items():
        name = name.replace(old, new)
    return name
