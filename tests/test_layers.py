"""Shared layers against PyTorch's own, on real steps."""

import inspect

import pytest
import torch
from torch import nn

from mer_export.contract import TensorSpec
from mer_export.layers.attention import Attention
from mer_export.layers.recurrent import BidirectionalRNN
from mer_export.layers.signature import by_position
from mer_export.layers.standardise import Standardise
from mer_export.layers.transformer import TransformerLayer


@pytest.mark.parametrize(("kind", "theirs"), [("gru", nn.GRU), ("lstm", nn.LSTM)])
def test_a_bidirectional_rnn_equals_a_packed_run(kind: str, theirs: type[nn.RNNBase]) -> None:
    torch.manual_seed(0)
    ours = BidirectionalRNN(kind, 5, 7, layers=2, dropout=0.0)  # type: ignore[arg-type]
    packed = theirs(5, 7, num_layers=2, bidirectional=True, batch_first=True)
    state = {}
    for layer in range(2):
        for suffix, rnn in (("", ours.ahead[layer]), ("_reverse", ours.back[layer])):
            state |= {name.replace("_l0", f"_l{layer}{suffix}"): value for name, value in rnn.state_dict().items()}
    packed.load_state_dict(state)
    lengths = torch.tensor([9, 4, 1])
    x = torch.randn(3, 9, 5)
    sequence = nn.utils.rnn.pack_padded_sequence(x, lengths, batch_first=True)
    wanted, _ = nn.utils.rnn.pad_packed_sequence(packed(sequence)[0], batch_first=True)
    found = ours(x, lengths)
    for row, length in enumerate(lengths):
        torch.testing.assert_close(found[row, :length], wanted[row, :length], atol=1e-6, rtol=0)


def test_a_transformer_layer_equals_pytorchs_and_survives_an_empty_row() -> None:
    torch.manual_seed(0)
    ours = TransformerLayer(8, heads=4).eval()
    theirs = nn.TransformerEncoderLayer(8, 4, batch_first=True).eval()
    names = {
        "qkv.weight": "self_attn.in_proj_weight",
        "qkv.bias": "self_attn.in_proj_bias",
        "out.weight": "self_attn.out_proj.weight",
        "out.bias": "self_attn.out_proj.bias",
    }
    theirs.load_state_dict({names.get(n, n): v for n, v in ours.state_dict().items()})
    x, inside = torch.randn(3, 6, 8), torch.arange(6) < torch.tensor([[6], [2], [0]])
    found = ours(x, inside)
    assert found.isfinite().all()
    wanted = theirs(x[:2], src_key_padding_mask=~inside[:2])
    torch.testing.assert_close(found[0], wanted[0], atol=1e-6, rtol=0)
    torch.testing.assert_close(found[1, :2], wanted[1, :2], atol=1e-6, rtol=0)


def test_attention_is_exact_and_finite_in_half_precision_and_a_query_without_keys_gets_zeros() -> None:
    torch.manual_seed(0)
    query, key, value = torch.randn(2, 3, 8), torch.randn(2, 5, 8), torch.randn(2, 5, 8)
    allowed = torch.arange(5) < torch.tensor([[3], [0]])
    ours = Attention(heads=2)
    found = ours(query, key, value, allowed[:, None, None])
    heads = [x[:1, :n].unflatten(-1, (2, 4)).transpose(1, 2) for x, n in ((query, 3), (key, 3), (value, 3))]
    wanted = nn.functional.scaled_dot_product_attention(*heads).transpose(1, 2).flatten(2)
    torch.testing.assert_close(found[:1], wanted, atol=1e-6, rtol=0)
    assert not found[1].any()
    torch.testing.assert_close(
        ours(query, key, value, allowed[:, None, None], zero_empty=False)[1], value.mean(1)[1:].expand(3, 8)
    )
    half = ours.half()(query.half(), key.half(), value.half(), allowed[:, None, None])
    torch.testing.assert_close(half.float(), found, atol=1e-2, rtol=0)


def test_a_network_by_position_has_the_names_and_the_answers_of_its_contract() -> None:
    class Network(nn.Module):
        def forward(self, **inputs: torch.Tensor) -> torch.Tensor:
            return inputs["text"] - inputs["audio"]

    specs = [TensorSpec(name=n, dtype="float32", dims=("batch", 2)) for n in ("audio", "text")]
    placed = by_position(Network().eval(), specs)
    audio, text = torch.randn(3, 2), torch.randn(3, 2)
    assert list(inspect.signature(placed.forward).parameters) == ["audio", "text"]
    assert torch.equal(placed(audio, text), text - audio)
    assert not placed.training
    with pytest.raises(ValueError, match="zip"):
        placed(audio)


def test_standardise_takes_a_missing_modality_for_the_training_mean() -> None:
    layer = Standardise(3)
    layer.mean.copy_(torch.tensor([1.0, 2.0, 3.0]))
    layer.std.fill_(2.0)
    rows = torch.tensor([[3.0, 2.0, 1.0], [0.0, 0.0, 0.0], [1.0, 2.0, 3.0]])
    assert torch.equal(layer(rows).abs(), torch.tensor([[1.0, 0.0, 1.0], [0.0, 0.0, 0.0], [0.0, 0.0, 0.0]]))
