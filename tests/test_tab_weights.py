"""Checkpoints of tab: sizes, names, unused encoders, and what stands around a state dict."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import pytest
import torch
from small_tab import VARIANTS, speech_network, values

from mer_export import registry
from mer_export.checkpoints import read_checkpoint
from mer_export.encoders.config import Provenance
from mer_export.encoders.vq_wav2vec.config import VqConfig, encoder_config, from_arguments
from mer_export.encoders.vq_wav2vec.network import WEIGHT_MAP as VQ_MAP
from mer_export.errors import UnsupportedError, UsageError
from mer_export.layers.bert.network import Bert
from mer_export.models.tab.weights import load_encoder, load_lhs_encoders
from mer_export.weights import export_weights, import_weights
from train.config import load_preset

SYSTEM = registry.get("tab")
TABLE = registry.resolve(SYSTEM.weights)


def count(module: torch.nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


def test_the_preset_has_the_published_number_of_parameters() -> None:
    config = SYSTEM.parse(load_preset("tab/iemocap").model)
    with torch.device("meta"):
        model: Any = registry.resolve(SYSTEM.network)(config)
    # Key biases, which no answer depends on, are kept as buffers.
    sizes = [count(e) + e.config.layers * e.config.hidden for e in model.encoders.values()]
    assert sizes == [354_309_120, 104_811_264]
    assert (count(model.context), count(model.hidden), count(model.out)) == (53_632, 270_464, 512)
    assert SYSTEM.contract(config).buckets[-1] == {"text_len": 512, "audio_len": 2048}


@pytest.mark.parametrize("variant", VARIANTS)
def test_weights_survive_the_way_to_the_authors_names_and_back(variant: str) -> None:
    config = SYSTEM.parse(values(variant))
    model, again = SYSTEM.build(config), SYSTEM.build(config)
    state = export_weights(model, TABLE, config)
    # The authors' module owns both encoders, whatever it reads.
    assert {n.split(".")[0] for n in state} >= {"b1", "b2", "layer_cat", "layer_out"}
    for tensor in again.state_dict().values():
        tensor.zero_()
    import_weights(again, state, TABLE, config)
    assert all(torch.equal(a, b) for a, b in zip(model.state_dict().values(), again.state_dict().values(), strict=True))
    del state["layer_cat.bias"]
    state["b9.weight"] = torch.zeros(2)
    with pytest.raises(UsageError, match=r"missing layer_cat\.bias.*unexpected b9\.weight"):
        import_weights(again, state, TABLE, config)


def test_encoders_come_from_files_of_their_pretraining_or_from_a_fine_tuned_pair(tmp_path: Path) -> None:
    config = SYSTEM.parse(values("lhs"))
    source: Any = SYSTEM.build(config)
    state = export_weights(source, TABLE, config)
    own = {n.removeprefix("b1.model."): t.half() for n, t in state.items() if n.startswith("b1.")}
    file = tmp_path / "roberta.pt"
    torch.save({"args": argparse.Namespace(arch="roberta_large"), "model": own, "epoch": 3}, file)
    arguments = read_checkpoint(file).arguments
    assert arguments == {"arch": "roberta_large"}
    encoder = Bert(config.text)
    load_encoder(encoder, file)
    wanted = source.encoders["text"].state_dict()
    assert all(torch.allclose(t, wanted[n], atol=1e-3) for n, t in encoder.state_dict().items())
    torch.save(state, tmp_path / "lhs.pth")
    fusion: Any = SYSTEM.build(SYSTEM.parse(values("fusion")))
    load_lhs_encoders(fusion, tmp_path / "lhs.pth")
    loaded = fusion.encoders.state_dict()
    assert all(torch.equal(t, loaded[n]) for n, t in source.encoders.state_dict().items())
    with pytest.raises(UsageError, match=r"roberta\.pt: checkpoint does not fit"):
        load_encoder(Bert(config.audio), file)


def test_a_tokenizer_says_its_shape_in_its_arguments() -> None:
    model = speech_network()
    config = encoder_config(model.config, 16_000, 1.0, Provenance(name="tiny"))
    state = export_weights(model, VQ_MAP, config)
    assert {n.split(".")[0] for n in state} == {"feature_extractor", "vector_quantizer"}
    given = {"conv_feature_layers": str(list(model.config.layers)), "activation": "gelu", "vq_vars": 6}
    assert from_arguments(given | {"combine_groups": True, "lr": 0.1}) == model.config
    silent = from_arguments({})
    assert (silent.activation, silent.shared, len(silent.layers)) == ("relu", False, 5)
    assert VqConfig().shortest == 465
    assert [VqConfig().frames(n) for n in (464, 10_000, 163_825, 327_665)] == [0, 60, 1022, 2046]
    with pytest.raises(UnsupportedError, match="gumbel"):
        from_arguments({"vq_type": "gumbel"})
    with pytest.raises(UsageError, match="do not describe a tokenizer"):
        from_arguments({"conv_feature_layers": "[(512, 10"})
