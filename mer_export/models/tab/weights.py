"""The authors' parameter names of tab, and ours; encoders may be of any generation of fairseq."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from mer_export.checkpoints import fitting_state, read_checkpoint
from mer_export.errors import UsageError
from mer_export.layers.bert import fairseq
from mer_export.layers.bert.config import BertConfig
from mer_export.models.tab.config import TabConfig
from mer_export.weights import WeightMap, import_weights, load_checkpoint, misfits

if TYPE_CHECKING:
    from torch import Tensor

    from mer_export.layers.bert.network import Bert
    from mer_export.models.tab.network import Tab

PREFIXES = {"text": "b1.model.", "audio": "b2.model."}
CONTEXT = {
    "layer_bert.weight": "project.weight",
    "layer_bert.bias": "project.bias",
    "bert_atten.ws1.weight": "inner.weight",
    "bert_atten.ws2.weight": "score.weight",
}
HEAD = {"layer_cat.weight": "hidden.weight", "layer_cat.bias": "hidden.bias", "layer_out.weight": "out.weight"}


def renames(config: TabConfig) -> dict[str, str]:
    """Every entry that the variant reads."""
    names: dict[str, str] = {}
    for m, encoder in config.encoders.items():
        if m in config.branches:
            names |= fairseq.renames(encoder, PREFIXES[m], f"encoders.{m}.")
    if "tab" in config.branches:
        names |= {f"b3.{a}": f"context.{o}" for a, o in CONTEXT.items()}
    return names | HEAD


def unused(config: TabConfig) -> dict[str, tuple[int, ...]]:
    """Encoders that the authors' module owns without reading them."""
    others = [m for m in PREFIXES if m not in config.branches]
    return {n: s for m in others for n, s in fairseq.shapes(config.encoders[m], PREFIXES[m]).items()}


def prepare(config: TabConfig, state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Names of fairseq 0.10, without the heads of the encoders' pre-training."""
    return fairseq.modern(state)


WEIGHT_MAP = WeightMap(renames=renames, unused=unused, prepare=prepare)


def load_encoder(encoder: Bert, path: Path | str, section: str = "model.text") -> None:
    """Loads an encoder in place from the checkpoint of its pre-training (fairseq, any generation).

    Args:
        encoder: the network.
        path: the file.
        section: where the configuration describes the encoder, for messages.

    Raises:
        UnsupportedError: an encoder that this network cannot be.
        UsageError: no such checkpoint, or one of another shape.
    """
    own = encoder.state_dict()
    checkpoint = read_checkpoint(Path(path))
    fairseq.check_arguments(encoder.config, checkpoint.arguments, checkpoint.path, section)
    try:
        state = fitting_state([checkpoint], lambda found: misfits(own, found, ENCODER_MAP, encoder.config))
        import_weights(encoder, state, ENCODER_MAP, encoder.config)
    except UsageError as error:
        raise UsageError(f"{path}: {error}") from None


def load_lhs_encoders(model: Tab, path: Path) -> None:
    """Loads the encoders in place from the authors' state dict of any variant; its head and context are left out.

    Raises:
        UsageError: no such checkpoint, or one of another shape.
    """
    state = load_checkpoint(path)
    for modality, encoder in model.encoders.items():
        prefix = PREFIXES[modality]
        own = {n.removeprefix(prefix): t for n, t in state.items() if n.startswith(prefix)}
        try:
            import_weights(encoder, own, ENCODER_MAP, model.config.encoders[modality])
        except UsageError as error:
            raise UsageError(f"{path}: {error}") from None


def _encoder_renames(config: BertConfig) -> dict[str, str]:
    return fairseq.renames(config, "", "")


def _encoder_prepare(config: BertConfig, state: dict[str, Tensor]) -> dict[str, Tensor]:
    return fairseq.modern(state)


ENCODER_MAP = WeightMap(renames=_encoder_renames, unused=lambda config: {}, prepare=_encoder_prepare)
"""A checkpoint of one encoder alone."""
