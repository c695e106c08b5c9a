"""Shared layers against PyTorch's own, on real steps."""

import pytest
import torch
from torch import nn

from mer_export.layers.recurrent import BidirectionalRNN
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


def test_standardise_takes_a_missing_modality_for_the_training_mean() -> None:
    layer = Standardise(3)
    layer.mean.copy_(torch.tensor([1.0, 2.0, 3.0]))
    layer.std.fill_(2.0)
    rows = torch.tensor([[3.0, 2.0, 1.0], [0.0, 0.0, 0.0], [1.0, 2.0, 3.0]])
    assert torch.equal(layer(rows).abs(), torch.tensor([[1.0, 0.0, 1.0], [0.0, 0.0, 0.0], [0.0, 0.0, 0.0]]))
