"""Checkpoints of EMT-DLFR, TFR-Net and MulT: names, shared modules, sizes."""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from small_emt import BERT, CONFIGS

from mer_export import registry
from mer_export.errors import InputError, UnsupportedError, UsageError
from mer_export.layers.bert.config import BertConfig
from mer_export.layers.bert.folder import read_config
from mer_export.layers.bert.network import Bert
from mer_export.layers.bert.pretrained import load_pretrained
from mer_export.layers.bert.weights import renames
from mer_export.weights import export_weights, import_weights
from train.config import load_preset

PUBLISHED = {
    # Parameters without the text encoder: all, those of inference, of the fusion; then the text encoder with pooler.
    "mosi": (2_322_779, 985_906, 478_337, 109_482_240),
    "mosei": (2_115_583, 767_874, 478_337, 109_482_240),
    "sims": (1_525_592, 453_730, 30_497, 102_267_648),
}
TOKENS = [n for n in CONFIGS if "vectors" not in n]


def build(name: str) -> tuple[Any, Any, Any]:
    system_name, values = CONFIGS[name]
    system = registry.get(system_name)
    config = system.parse(values)
    return system.build(config), registry.resolve(system.weights), config


def count(module: torch.nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


@pytest.mark.parametrize("dataset", PUBLISHED)
def test_presets_have_the_published_number_of_parameters(dataset: str) -> None:
    system = registry.get("emt")
    config = system.parse(load_preset(f"emt/{dataset}").model)
    with torch.device("meta"):
        model: Any = registry.resolve(system.network)(config)
    hidden = config.bert.hidden
    # Key biases are kept as buffers, the pooler not at all.
    encoder = count(model.bert) + config.bert.layers * hidden + hidden * hidden + hidden
    rest = count(model) - count(model.bert)
    assert (rest, rest - count(model.restoration), count(model.fusion), encoder) == PUBLISHED[dataset]


@pytest.mark.parametrize("name", TOKENS)
def test_weights_survive_the_way_to_the_authors_names_and_back(name: str) -> None:
    model, table, config = build(name)
    state = export_weights(model, table, config)
    again, *_ = build(name)
    for tensor in again.state_dict().values():
        tensor.zero_()
    import_weights(again, state, table, config)
    assert all(torch.equal(a, b) for a, b in zip(model.state_dict().values(), again.state_dict().values(), strict=True))


def test_every_alias_of_a_shared_unit_is_written_and_must_agree() -> None:
    model, table, config = build("emt")
    state = export_weights(model, table, config)
    aliases = [n for n in state if n.endswith("layers.0.2.fn.net.0.weight")]
    assert len(aliases) == 2 * 3 * 2
    state[aliases[-1]] = state[aliases[-1]] + 1
    with pytest.raises(UsageError, match=r"mpus\.1\.2\.1.* differs from .*mpus\.0\.0\.0.*shares"):
        import_weights(model, state, table, config)
    del state[aliases[-1]]
    with pytest.raises(UsageError, match=r"missing Model\.fusion\.mpus\.1\.2\.1"):
        import_weights(model, state, table, config)


def test_other_versions_of_a_checkpoint_are_accepted() -> None:
    model, table, config = build("emt")
    state = export_weights(model, table, config)
    state["Model.text_model.model.embeddings.position_ids"] = torch.arange(16)[None]
    del state["Model.text_model.model.pooler.dense.weight"]
    assert import_weights(model, state, table, config)["own"] == 0
    state["Model.fusion.pos_embed.pe"] = state["Model.fusion.pos_embed.pe"] + 0.1
    with pytest.raises(UsageError, match=r"pos_embed\.pe is not the fixed table"):
        import_weights(model, state, table, config)


def test_a_network_that_was_never_published_has_no_foreign_names() -> None:
    model, table, config = build("emt vectors")
    with pytest.raises(UnsupportedError, match="no published checkpoint has text vectors"):
        export_weights(model, table, config)


def test_a_pretrained_text_encoder_is_loaded_from_its_folder(tmp_path: Any) -> None:
    shape = {"vocab_size": 110, "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    shape |= {"intermediate_size": 24, "max_position_embeddings": 16, "model_type": "bert"}
    (tmp_path / "config.json").write_text(json.dumps(shape))
    assert read_config(tmp_path) == BertConfig(**BERT)
    source, target = Bert(BertConfig(**BERT)), Bert(BertConfig(**BERT))
    own = source.state_dict()
    state = {f"bert.{theirs}": own[ours].clone() for theirs, ours in renames(source.config, "", "").items()}
    old = {
        n.replace("LayerNorm.weight", "LayerNorm.gamma").replace("LayerNorm.bias", "LayerNorm.beta"): t
        for n, t in state.items()
    }
    save_file({**old, "cls.predictions.bias": torch.zeros(110)}, tmp_path / "model.safetensors")
    load_pretrained(target, tmp_path)
    assert all(torch.equal(a, b) for a, b in zip(own.values(), target.state_dict().values(), strict=True))
    with pytest.raises(UsageError, match=r"model\.bert\.layers is 3, .*config\.json says 1"):
        load_pretrained(Bert(BertConfig(**{**BERT, "layers": 3})), tmp_path)
    (tmp_path / "config.json").write_text(json.dumps(shape | {"num_hidden_layers": 3}))
    with pytest.raises(UsageError, match=r"does not fit model\.bert"):
        load_pretrained(Bert(BertConfig(**{**BERT, "layers": 3})), tmp_path)
    with pytest.raises(InputError, match="holds none of"):
        load_pretrained(target, tmp_path / "empty")
