"""Weights of a folder of the `transformers` package, in any form, into the encoder that its config.json describes."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from mer_export.checkpoints import FILES, fitting_state, read_checkpoint
from mer_export.errors import InputError, UsageError
from mer_export.layers.bert.config import BertConfig
from mer_export.layers.bert.folder import PREFIXES, check_config, read_description
from mer_export.layers.bert.network import Bert
from mer_export.layers.bert.weights import ignored, renames, unused

if TYPE_CHECKING:
    from torch import Tensor

TYPES, POSITIONS = (f"embeddings.{t}_embeddings.weight" for t in ("token_type", "position"))
HEADS = (
    *("cls.", "lm_head.", "classifier.", "qa_outputs."),
    *("discriminator_predictions.", "generator_predictions.", "generator_lm_head."),
)
OLD_NAMES = {"LayerNorm.gamma": "LayerNorm.weight", "LayerNorm.beta": "LayerNorm.bias"}


def load_pretrained(bert: Bert, folder: Path | str, section: str = "model.bert") -> None:
    """Loads a folder's weights in place, in one file or parts; the heads of its pre-training are left out.

    Args:
        bert: the encoder.
        folder: config.json and weights.
        section: where the configuration describes the encoder, for messages.

    Raises:
        InputError: no config.json or weight file, or one that cannot be read.
        UnsupportedError: config.json describes what this network cannot be.
        UsageError: `bert` is configured otherwise than config.json says; weights of another shape, or missing ones.
    """
    if not Path(folder).is_dir():
        raise InputError(f"{folder} is not a folder, it holds none of {list(FILES)}: give the folder of a BERT encoder")
    check_config(bert.config, read_description(folder), section)
    own = bert.state_dict()
    checkpoint = read_checkpoint(Path(folder))
    try:
        found = fitting_state([checkpoint], lambda state: _misfits(own, _encoder(bert.config, state), bert.config))
    except UsageError as error:
        raise UsageError(f"{folder} does not fit {section}: {error}") from None
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
