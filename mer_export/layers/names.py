"""Parameter names of PyTorch's own recurrent and transformer modules, in terms of ours."""

from __future__ import annotations

RECURRENT = ("weight_ih", "weight_hh", "bias_ih", "bias_hh")
TRANSFORMER_LAYER = {
    "self_attn.in_proj_weight": "qkv.weight",
    "self_attn.in_proj_bias": "qkv.bias",
    "self_attn.out_proj.weight": "out.weight",
    "self_attn.out_proj.bias": "out.bias",
} | {f"{m}.{p}": f"{m}.{p}" for m in ("linear1", "linear2", "norm1", "norm2") for p in ("weight", "bias")}
"""`nn.TransformerEncoderLayer` to `layers.TransformerLayer`."""


def recurrent(theirs: str, ours: str, layers: int, bidirectional: bool = True) -> dict[str, str]:
    """`nn.LSTM` or `nn.GRU` to the one-directional modules `ahead` and `back`."""
    directions = {"": "ahead", "_reverse": "back"} if bidirectional else {"": "ahead"}
    return {
        f"{theirs}.{p}_l{layer}{suffix}": f"{ours}.{direction}.{layer}.{p}_l0"
        for layer in range(layers)
        for suffix, direction in directions.items()
        for p in RECURRENT
    }


def recurrent_shapes(
    name: str, kind: str, inputs: int, hidden: int, layers: int, bidirectional: bool = True
) -> dict[str, tuple[int, ...]]:
    """Shapes of the parameters of `nn.LSTM` or `nn.GRU` under `name`."""
    gates, directions = {"lstm": 4, "gru": 3}[kind] * hidden, ("", "_reverse") if bidirectional else ("",)
    shapes: dict[str, tuple[int, ...]] = {}
    for layer in range(layers):
        width = inputs if layer == 0 else len(directions) * hidden
        for suffix in directions:
            sizes = ((gates, width), (gates, hidden), (gates,), (gates,))
            shapes |= {f"{name}.{p}_l{layer}{suffix}": s for p, s in zip(RECURRENT, sizes, strict=True)}
    return shapes
