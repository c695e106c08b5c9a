"""The facial expression model: a Swin transformer whose windows are fixed when it is built.

Shifting, cutting into windows and merging patches are each one gather by a constant index, and the mask of shifted
windows is a constant, so nothing in the graph depends on the input's size. Paper of the transformer: Liu et al., "Swin
Transformer: Hierarchical Vision Transformer using Shifted Windows", ICCV 2021; head: FacialMMT, section 3.4.
"""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional

from mer_export.models.facialmmt.swin_config import StageShape, SwinConfig

Tokens = Float[Tensor, "batch tokens width"]
FEATURES, HIDDEN = 512, 64
"""Widths of the head."""
OUTSIDE = -100.0
"""Added to scores between tokens that stand in one shifted window but are not neighbours."""


class FaceExpression(nn.Module):
    """Face crops in, logits of the expressions out."""

    def __init__(self, config: SwinConfig, expressions: int):
        super().__init__()
        self.swin = Swin(config)
        self.features = nn.Linear(config.flat, FEATURES)
        for layer in (m for m in (*self.swin.modules(), self.features) if isinstance(m, nn.Linear)):
            nn.init.trunc_normal_(layer.weight, std=0.02)
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)
        self.batch_norm = nn.BatchNorm1d(FEATURES)
        self.linear = nn.Linear(FEATURES, HIDDEN)
        self.classifier = nn.Linear(HIDDEN, expressions)

    def forward(self, images: Float[Tensor, "batch channels size size"]) -> Float[Tensor, "batch expressions"]:
        if self.training and len(images) == 1:
            # Batch norm needs two; the original repeats a single image too.
            return self.forward(images.repeat(2, 1, 1, 1))[:1]
        return self.classifier(torch.relu(self.linear(self.describe(images))))

    def describe(self, images: Float[Tensor, "batch channels size size"]) -> Float[Tensor, "batch features"]:
        """What is known of a face, before its expression is judged: that by which FaceX-Zoo tells persons apart."""
        return self.batch_norm(self.features(self.swin(images).flatten(1)))


class Swin(nn.Module):
    """Patches, stages of windowed attention, and a norm."""

    def __init__(self, config: SwinConfig):
        super().__init__()
        self.patch_embed = PatchEmbed(config)
        blocks = sum(config.depths)
        rates = [config.drop_path * i / max(1, blocks - 1) for i in range(blocks)]
        stages = []
        for shape in config.stages:
            stages.append(SwinStage(shape, config, rates[: shape.depth]))
            rates = rates[shape.depth :]
        self.layers = nn.ModuleList(stages)
        self.dropout = nn.Dropout(config.dropout)
        self.norm = nn.LayerNorm(config.stages[-1].width)

    def forward(self, images: Float[Tensor, "batch channels size size"]) -> Tokens:
        x = self.dropout(self.patch_embed(images))
        for stage in self.layers:
            x = stage(x)
        return self.norm(x)


class PatchEmbed(nn.Module):
    def __init__(self, config: SwinConfig):
        super().__init__()
        self.proj = nn.Conv2d(config.channels, config.width, config.patch, config.patch)
        self.norm = nn.LayerNorm(config.width)

    def forward(self, images: Float[Tensor, "batch channels size size"]) -> Tokens:
        return self.norm(self.proj(images).flatten(2).transpose(1, 2))


class SwinStage(nn.Module):
    """Blocks, then the merging of patches where another stage follows."""

    def __init__(self, shape: StageShape, config: SwinConfig, rates: list[float]):
        super().__init__()
        self.blocks = nn.ModuleList(Block(shape, shape.shift(i), config, rate) for i, rate in enumerate(rates))
        self.downsample = PatchMerging(shape) if shape.merges else None

    def forward(self, x: Tokens) -> Tokens:
        for block in self.blocks:
            x = block(x)
        return x if self.downsample is None else self.downsample(x)


class Block(nn.Module):
    """Attention within windows and feed-forward, both pre-norm and residual."""

    def __init__(self, shape: StageShape, shift: int, config: SwinConfig, drop_path: float):
        super().__init__()
        self.area = shape.window**2
        self.norm1, self.norm2 = nn.LayerNorm(shape.width), nn.LayerNorm(shape.width)
        self.attn = WindowAttention(shape, shift, config.dropout)
        hidden = int(shape.width * config.expansion)
        self.mlp = nn.ModuleDict({"fc1": nn.Linear(shape.width, hidden), "fc2": nn.Linear(hidden, shape.width)})
        self.dropout = nn.Dropout(config.dropout)
        self.drop_path = DropPath(drop_path)
        self.into: Tensor
        self.back: Tensor
        into = window_index(shape.size, shape.window, shift)
        self.register_buffer("into", into, persistent=False)
        self.register_buffer("back", torch.argsort(into), persistent=False)

    def forward(self, x: Tokens) -> Tokens:
        _batch, tokens, width = x.shape
        windows = self.norm1(x).index_select(1, self.into).reshape(-1, tokens // self.area, self.area, width)
        attended = self.attn(windows).reshape(-1, tokens, width).index_select(1, self.back)
        x = x + self.drop_path(attended)
        hidden = self.dropout(functional.gelu(self.mlp["fc1"](self.norm2(x))))
        return x + self.drop_path(self.dropout(self.mlp["fc2"](hidden)))


class WindowAttention(nn.Module):
    """Multi-head attention of every window with a learnt bias per offset of two tokens.

    Not `layers.attention`: windows are a dim of their own, nothing is padding, and scores are shifted, not masked.
    """

    def __init__(self, shape: StageShape, shift: int, dropout: float):
        super().__init__()
        self.heads = shape.heads
        self.qkv = nn.Linear(shape.width, 3 * shape.width)
        self.proj = nn.Linear(shape.width, shape.width)
        self.dropout = nn.Dropout(dropout)
        self.relative_position_bias_table = nn.Parameter(torch.zeros((2 * shape.window - 1) ** 2, shape.heads))
        nn.init.trunc_normal_(self.relative_position_bias_table, std=0.02)
        self.offsets: Tensor
        self.outside: Tensor | None
        self.register_buffer("offsets", offset_index(shape.window).flatten(), persistent=False)
        mask = shifted_mask(shape.size, shape.window, shift)[:, None] if shift else None
        self.register_buffer("outside", mask, persistent=False)

    def forward(self, x: Float[Tensor, "batch windows area width"]) -> Float[Tensor, "batch windows area width"]:
        _batch, windows, area, width = x.shape
        parts = self.qkv(x).reshape(-1, windows, area, 3, self.heads, width // self.heads)
        q, k, v = parts.permute(3, 0, 1, 4, 2, 5).unbind(0)
        bias = self.relative_position_bias_table.index_select(0, self.offsets)
        bias = bias.reshape(area, area, self.heads).permute(2, 0, 1)
        if self.outside is not None:
            bias = bias + self.outside
        weight = torch.softmax((q * q.shape[-1] ** -0.5) @ k.transpose(-1, -2) + bias, dim=-1)
        attended = (self.dropout(weight) @ v).transpose(2, 3).reshape(-1, windows, area, width)
        return self.dropout(self.proj(attended))


class PatchMerging(nn.Module):
    """Four neighbours become one token of twice the width."""

    def __init__(self, shape: StageShape):
        super().__init__()
        self.norm = nn.LayerNorm(4 * shape.width)
        self.reduction = nn.Linear(4 * shape.width, 2 * shape.width, bias=False)
        self.groups: Tensor
        self.register_buffer("groups", merge_index(shape.size), persistent=False)

    def forward(self, x: Tokens) -> Tokens:
        _batch, tokens, width = x.shape
        return self.reduction(self.norm(x.index_select(1, self.groups).reshape(-1, tokens // 4, 4 * width)))


class DropPath(nn.Module):
    """Leaves out a residual branch of an item, in training only."""

    def __init__(self, rate: float):
        super().__init__()
        self.rate = rate

    def forward(self, x: Tokens) -> Tokens:
        if not self.training or not self.rate:
            return x
        kept = (torch.rand(len(x), 1, 1, device=x.device) >= self.rate).to(x.dtype)
        return x * kept / (1 - self.rate)


def window_index(size: int, window: int, shift: int) -> Int[Tensor, " tokens"]:
    """Tokens of a grid, rolled by `shift` towards the origin, window by window."""
    grid = torch.arange(size * size).reshape(size, size).roll((-shift, -shift), (0, 1))
    return _windows(grid, window).flatten()


def offset_index(window: int) -> Int[Tensor, "area area"]:
    """Row of the bias table for every pair of tokens of a window."""
    place = torch.arange(window)
    rows, columns = place.repeat_interleave(window), place.repeat(window)
    down = rows[:, None] - rows[None] + window - 1
    along = columns[:, None] - columns[None] + window - 1
    return down * (2 * window - 1) + along


def shifted_mask(size: int, window: int, shift: int) -> Float[Tensor, "windows area area"]:
    """0 where two tokens of a shifted window come from one region of the grid, `OUTSIDE` elsewhere."""
    place = torch.arange(size)
    part = (place >= size - window).long() + (place >= size - shift).long()
    region = _windows(3 * part[:, None] + part[None], window)
    return torch.where(region[:, :, None] == region[:, None], 0.0, OUTSIDE)


def merge_index(size: int) -> Int[Tensor, " tokens"]:
    """The four tokens of each 2 x 2 square in turn: down first, then along."""
    grid = torch.arange(size * size).reshape(size // 2, 2, size // 2, 2)
    return grid.permute(0, 2, 3, 1).flatten()


def _windows(grid: Tensor, window: int) -> Tensor:
    count = len(grid) // window
    return grid.reshape(count, window, count, window).transpose(1, 2).reshape(count * count, window * window)
