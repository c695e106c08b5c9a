"""Weights of a BERT or RoBERTa folder as the `transformers` package stores it: config.json and weights in any form."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from mer_export.checkpoints import FILES, fitting_state, read_checkpoint
from mer_export.errors import InputError, UsageError
from mer_export.layers.bert.config import ROBERTA, BertConfig
from mer_export.layers.bert.network import Bert
from mer_export.layers.bert.weights import ignored, renames, unused
from mer_export.untrusted.json_files import read_json_object

if TYPE_CHECKING:
    from torch import Tensor

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
    content = read_json_object(path)
    family = FAMILIES.get(content.get("model_type", "bert"))
    if family is None or content.get("hidden_act", "gelu") != "gelu":
        kind = f"{content.get('model_type')!r} with {content.get('hidden_act', 'gelu')}"
        raise InputError(f"{path} describes {kind}, only {list(FAMILIES)} with gelu are known")
    return BertConfig.model_validate(family | {o: content[t] for t, o in SETTINGS.items() if t in content})


def load_pretrained(bert: Bert, folder: Path | str) -> None:
    """Loads a folder's weights in place, in one file or parts; the heads of its pre-training are left out.

    Raises:
        InputError: no weight file, or one that cannot be read.
        UsageError: weights of another shape, or missing ones.
    """
    if not Path(folder).is_dir():
        raise InputError(f"{folder} is not a folder, it holds none of {list(FILES)}: give the folder of a BERT encoder")
    own = bert.state_dict()
    checkpoint = read_checkpoint(Path(folder))
    try:
        found = fitting_state([checkpoint], lambda state: _misfits(own, _encoder(bert.config, state), bert.config))
    except UsageError as error:
        raise UsageError(f"{folder} does not fit model.bert: {error}") from None
    state = _encoder(bert.config, found)
    bert.load_state_dict(own | {ours: state[n] for n, ours in renames(bert.config, "", "").items()})


def _encoder(config: BertConfig, found: dict[str, Tensor]) -> dict[str, Tensor]:
    """A folder's weights under the names of the encoder alone."""
    state = {_plain(n): t for n, t in found.items() if not n.startswith(HEADS)}
    types = None if config.segments else state.pop(TYPES, None)
    if types is not None and POSITIONS in state:
        # An encoder without token types adds what type 0 adds to every token.
        state[POSITIONS] = state[POSITIONS] + types[0]
    return state


def _misfits(own: dict[str, Tensor], state: dict[str, Tensor], config: BertConfig) -> list[str]:
    names = renames(config, "", "")
    known = {*names, *unused(config, ""), *ignored(config, "")}
    problems = [f"missing {n}" for n in names if n not in state]
    problems += [f"unexpected {n}" for n in state if n not in known]
    problems += [
        f"{n} is {tuple(state[n].shape)}, expected {tuple(own[ours].shape)}"
        for n, ours in names.items()
        if n in state and state[n].shape != own[ours].shape
    ]
    return problems


def _plain(name: str) -> str:
    for prefix in PREFIXES:
        name = name.removeprefix(prefix)
    for old, new in OLD_NAMES.items():
        name = name.replace(old, new)
    return name
