"""The three networks of MTCNN and the names of their published weights."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor, nn

from mer_export.weights import WeightMap

MIDDLE, SCALE = 127.5, 1 / 128
"""Of pixel values 0..255, as the networks were trained (section III-C, as the public code has it)."""


@dataclass(frozen=True)
class Shape:
    """One network of figure 2: convolutions (channels, kernel, pooling or 0), width of the dense layer or 0, points."""

    convolutions: tuple[tuple[int, int, int], ...]
    flat: int = 0
    dense: int = 0
    points: bool = False


SHAPES = {
    "pnet": Shape(((10, 3, 2), (16, 3, 0), (32, 3, 0))),
    "rnet": Shape(((28, 3, 3), (48, 3, 3), (64, 2, 0)), flat=576, dense=128),
    "onet": Shape(((32, 3, 3), (64, 3, 3), (64, 3, 2), (128, 2, 0)), flat=1152, dense=256, points=True),
}
"""By the name of the weight file."""


class Stage(nn.Module):
    """Pictures in; how sure it is of a face, and the corrections of its box. The first has one answer per place."""

    def __init__(self, shape: Shape):
        super().__init__()
        channels = [3, *(c for c, _, _ in shape.convolutions)]
        sizes = zip(channels, shape.convolutions, strict=False)
        self.convolutions = nn.ModuleList(nn.Conv2d(n, c, kernel) for n, (c, kernel, _) in sizes)
        self.slopes = nn.ModuleList(nn.PReLU(c) for c in channels[1:])
        self.pools = nn.ModuleList(
            nn.MaxPool2d(pool, 2, ceil_mode=True) if pool else nn.Identity() for *_, pool in shape.convolutions
        )
        self.dense = nn.Sequential(nn.Linear(shape.flat, shape.dense), nn.PReLU(shape.dense)) if shape.dense else None
        self.face, self.box = self._head(channels[-1], shape, 2), self._head(channels[-1], shape, 4)
        self.points = self._head(channels[-1], shape, 10) if shape.points else None

    @staticmethod
    def _head(channels: int, shape: Shape, outputs: int) -> nn.Module:
        return nn.Linear(shape.dense, outputs) if shape.dense else nn.Conv2d(channels, outputs, 1)

    def forward(self, pictures: Float[Tensor, "n 3 height width"]) -> tuple[Tensor, ...]:
        """Pixels 0..255 in red, green, blue.

        Returns:
            Probability of a face (n,), corrections (n, 4) of left, top, right, bottom in parts of the box, and the last
            network's five points (n, 10), in parts of the box too, all x before all y; for the first network
            (n, rows, columns) and (n, 4, rows, columns).
        """
        x = (pictures - MIDDLE) * SCALE
        for convolution, slope, pool in zip(self.convolutions, self.slopes, self.pools, strict=True):
            x = pool(slope(convolution(x)))
        if self.dense is not None:
            # The published weights were trained on width before height before channels.
            x = self.dense(x.permute(0, 3, 2, 1).flatten(1))
        face = torch.softmax(self.face(x), dim=1)[:, 1]
        return (face, self.box(x)) if self.points is None else (face, self.box(x), self.points(x))


def renames(shape: Shape) -> dict[str, str]:
    """The published names and ours."""
    count = len(shape.convolutions) + 1
    ours = {f"conv{i}": f"convolutions.{i - 1}" for i in range(1, count)}
    ours |= {f"prelu{i}": f"slopes.{i - 1}" for i in range(1, count)}
    last = f"conv{count}"
    if shape.dense:
        ours |= {f"dense{count}": "dense.0", f"prelu{count}": "dense.1"}
        last = f"dense{count + 1}"
    ours |= {f"{last}_1": "face", f"{last}_2": "box"} | ({f"{last}_3": "points"} if shape.points else {})
    bias = {theirs: own for theirs, own in ours.items() if not theirs.startswith("prelu")}
    return {f"{t}.weight": f"{o}.weight" for t, o in ours.items()} | {f"{t}.bias": f"{o}.bias" for t, o in bias.items()}


WEIGHT_MAP = WeightMap(renames=renames, unused=lambda shape: {})
