"""Parameter names in checkpoints of PyTorch's own modules and of MulT's encoders, and ours. Needs no torch."""

from __future__ import annotations

RECURRENT = ("weight_ih", "weight_hh", "bias_ih", "bias_hh")
TRANSFORMER_LAYER = {
    "self_attn.in_proj_weight": "qkv.weight",
    "self_attn.in_proj_bias": "qkv.bias",
    "self_attn.out_proj.weight": "out.weight",
    "self_attn.out_proj.bias": "out.bias",
} | {f"{m}.{p}": f"{m}.{p}" for m in ("linear1", "linear2", "norm1", "norm2") for p in ("weight", "bias")}
"""`nn.TransformerEncoderLayer` to `transformer.TransformerLayer`."""


CROSSMODAL_LAYER = {
    "self_attn.in_proj_weight": "project.weight",
    "self_attn.in_proj_bias": "project.bias",
    **{
        f"{theirs}.{p}": f"{ours}.{p}"
        for theirs, ours in {
            "self_attn.out_proj": "out",
            "fc1": "expand",
            "fc2": "contract",
            "layer_norms.0": "attention_norm",
            "layer_norms.1": "norm",
        }.items()
        for p in ("weight", "bias")
    },
}
"""A layer of MulT's encoders in the authors' checkpoints to `crossmodal.CrossModalLayer`."""


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


def crossmodal(layers: int, theirs: str, ours: str) -> dict[str, str]:
    """An encoder of MulT under the prefix `theirs` to `crossmodal.CrossModal` under `ours`."""
    names = {
        f"{theirs}.layers.{n}.{a}": f"{ours}.layers.{n}.{o}" for n in range(layers) for a, o in CROSSMODAL_LAYER.items()
    }
    return names | {f"{theirs}.layer_norm.{p}": f"{ours}.norm.{p}" for p in ("weight", "bias")}
