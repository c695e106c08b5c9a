"""One encoder package serves BERT and RoBERTa."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from mer_export.layers.bert import fairseq
from mer_export.layers.bert.config import BertConfig, roberta
from mer_export.layers.bert.folder import read_config
from mer_export.layers.bert.network import Bert
from mer_export.layers.bert.pretrained import load_pretrained
from mer_export.layers.bert.weights import renames

SHAPE = {"vocabulary": 30, "hidden": 16, "layers": 2, "heads": 2, "feed_forward": 24, "positions": 14}
SMALL = roberta(**SHAPE)
IDS = torch.tensor([[0, 5, 9, 7, 2], [0, 8, 2, 1, 1]])
LENGTHS = torch.tensor([5, 3])


def encoder(config: BertConfig = SMALL) -> Bert:
    torch.manual_seed(3)
    bert = Bert(config).eval()
    for tensor in bert.state_dict().values():
        tensor.copy_(torch.randn(tensor.shape) * 0.3)
    return bert


@pytest.mark.parametrize("config", [SMALL, roberta(**SHAPE, segments=0), BertConfig(**{**SHAPE, "vocabulary": 110})])
def test_the_first_row_alone_is_the_first_row_of_all(config: BertConfig) -> None:
    bert = encoder(config)
    whole = bert(IDS, None, LENGTHS)
    torch.testing.assert_close(bert.first(IDS, None, LENGTHS), whole[:, 0], atol=1e-6, rtol=0)
    torch.testing.assert_close(bert(IDS, torch.zeros_like(IDS), LENGTHS), whole)


def test_positions_count_from_two_whatever_stands_behind_the_text() -> None:
    bert = encoder()
    alone = bert(IDS[1:, :3], None, LENGTHS[1:])
    more = bert(torch.cat([IDS, torch.full((2, 4), 17)], dim=1), None, LENGTHS)
    torch.testing.assert_close(more[1:, :3], alone, atol=1e-6, rtol=0)
    before = bert(IDS, None, LENGTHS)
    with torch.no_grad():
        bert.embeddings.position_embeddings.weight[:2] += 5.0
    assert torch.equal(bert(IDS, None, LENGTHS), before)
    assert SMALL.longest == 12


def test_every_generation_of_fairseq_leads_to_the_same_names() -> None:
    config = roberta(**SHAPE, segments=0)
    names = fairseq.renames(config, "b1.model.", "")
    own = encoder(config).state_dict()
    assert set(names.values()) == set(own)
    state = {theirs: own[ours] for theirs, ours in names.items()}
    old: dict[str, torch.Tensor] = {"b1.model.decoder.lm_head.bias": torch.zeros(30), "b1._float_tensor": torch.ones(1)}
    for name, tensor in state.items():
        name = name.replace("model.encoder.", "model.decoder.")
        if "q_proj" in name:
            part = name.rsplit(".", 1)[1]
            rows = torch.cat([state[_theirs(name, letter)] for letter in "qkv"])
            old[name.replace(f"q_proj.{part}", f"in_proj_{part}")] = rows.half()
        elif "k_proj" not in name and "v_proj" not in name:
            old[name.replace("emb_layer_norm", "layernorm_embedding")] = tensor
    again = fairseq.modern(old)
    assert set(again) == set(state)
    assert all(torch.allclose(again[n], t, atol=1e-3) and again[n].dtype == torch.float32 for n, t in state.items())


def _theirs(name: str, letter: str) -> str:
    return name.replace("model.decoder.", "model.encoder.").replace("q_proj", f"{letter}_proj")


def test_a_pretrained_roberta_is_loaded_from_its_folder(tmp_path: Path) -> None:
    shape = {"vocab_size": 30, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
    shape |= {"intermediate_size": 24, "max_position_embeddings": 14, "type_vocab_size": 1, "layer_norm_eps": 1e-5}
    (tmp_path / "config.json").write_text(json.dumps(shape | {"model_type": "roberta", "pad_token_id": 1}))
    config = read_config(tmp_path)
    assert config == SMALL
    source, target = encoder(), Bert(config)
    state = {f"roberta.{a}": source.state_dict()[o] for a, o in renames(config, "", "").items()}
    save_file({**state, "lm_head.bias": torch.zeros(30)}, tmp_path / "model.safetensors")
    load_pretrained(target, tmp_path)
    assert all(
        torch.equal(a, b) for a, b in zip(source.state_dict().values(), target.state_dict().values(), strict=True)
    )
    plain = Bert(roberta(**SHAPE, segments=0)).eval()
    load_pretrained(plain, tmp_path)
    torch.testing.assert_close(plain(IDS, None, LENGTHS), source(IDS, None, LENGTHS), atol=1e-5, rtol=0)
