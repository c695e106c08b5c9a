"""Finds faces without torch: the cascade of MTCNN around its three networks in ONNX Runtime."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from mer_export.encoders.onnx_session import open_session
from mer_export.errors import InputError

NETWORKS = ("pnet", "rnet", "onet")
SUFFIX = ".onnx"
WEIGHTS = tuple(f"{name}.pt" for name in NETWORKS)
"""Files of the published weights."""
CELL, STRIDE = 12, 2
"""Pixels that one place of the first network sees, and from one place to the next."""
REFINED = {"rnet": 24, "onet": 48}
"""Side of the pictures that the other two take."""
SHRINK = 0.709
"""From one picture of the pyramid to the next: half the area."""
SURE = {"pnet": 0.6, "rnet": 0.7, "onet": 0.7}
"""How sure a network has to be of a face."""
WITHIN, ACROSS = 0.5, 0.7
"""Overlap from which two boxes are one: within a picture of the pyramid, and across all of them."""
TOGETHER = 256
"""Cut-outs that a network sees at once."""


@dataclass(frozen=True)
class FaceDetector:
    """Finds faces at least `smallest` pixels wide and high."""

    sessions: dict[str, Any]
    smallest: int = 20

    @classmethod
    def load(cls, folder: Path | str, smallest: int = 20) -> FaceDetector:
        """Opens a folder with pnet.onnx, rnet.onnx and onet.onnx.

        Raises:
            InputError: no such folder, or a file of it is missing or damaged.
            NotAvailableError: ONNX Runtime is missing.
        """
        if smallest < CELL:
            raise InputError(f"the smallest face is {smallest} pixels: it cannot be less than {CELL}")
        return cls({n: open_session(Path(folder) / (n + SUFFIX), "finds faces") for n in NETWORKS}, smallest)

    def boxes(self, picture: np.ndarray) -> np.ndarray:
        """Faces of a picture (height, width, 3) uint8 in red, green, blue.

        Returns:
            (faces, 5) float32: left, top, right, bottom in pixels, and how sure it is, the surest first. A box may
            stick out of the picture. No face: no rows.
        """
        areas = Areas(picture)
        found = self._proposed(areas)
        for name in REFINED:
            found = self._refined(name, areas, found)
        return found[np.argsort(-found[:, 4], kind="stable")].astype(np.float32)

    def _proposed(self, areas: Areas) -> np.ndarray:
        """Boxes of the first network over the pyramid (section II-A, stage 1)."""
        found = [np.zeros((0, 9))]
        for scale in scales(areas.size, self.smallest):
            size = int(areas.size[1] * scale + 1), int(areas.size[0] * scale + 1)
            face, box = self._run("pnet", areas.means(np.array([[0, 0, *areas.size]]), size))
            rows, columns = np.nonzero(face[0] >= SURE["pnet"])
            place = np.stack([columns, rows], axis=1)
            corners = np.floor([(STRIDE * place + 1) / scale, (STRIDE * place + CELL) / scale])
            boxes = np.concatenate([*corners, face[0, rows, columns, None], box[0][:, rows, columns].T], axis=1)
            found.append(boxes[distinct(boxes, WITHIN)])
        boxes = np.concatenate(found)
        boxes = boxes[distinct(boxes, ACROSS)]
        sides = np.tile(boxes[:, 2:4] - boxes[:, :2], 2)
        return square(np.concatenate([boxes[:, :4] + boxes[:, 5:] * sides, boxes[:, 4:5]], axis=1))

    def _refined(self, name: str, areas: Areas, boxes: np.ndarray) -> np.ndarray:
        """Boxes that a further network takes for faces, corrected (section II-A, stages 2 and 3)."""
        inside = _inside(boxes, areas.size)
        real = (inside[:, 2] > inside[:, 0]) & (inside[:, 3] > inside[:, 1])
        boxes, inside = boxes[real], inside[real]
        if not len(boxes):
            return np.zeros((0, 5))
        groups = (inside[i : i + TOGETHER] for i in range(0, len(inside), TOGETHER))
        parts = [self._run(name, areas.means(group, (REFINED[name], REFINED[name])))[:2] for group in groups]
        face, move = (np.concatenate(p) for p in zip(*parts, strict=True))
        sure = face > SURE[name]
        boxes = np.concatenate([boxes[sure, :4], face[sure, None]], axis=1)
        sides = np.tile(boxes[:, 2:4] - boxes[:, :2] + 1, 2)
        moved = np.concatenate([boxes[:, :4] + move[sure] * sides, boxes[:, 4:]], axis=1)
        if name == NETWORKS[-1]:
            # A face within a larger one is the same face.
            return moved[distinct(moved, ACROSS, smaller=True)]
        return square(moved[distinct(boxes, ACROSS)])

    def _run(self, name: str, pictures: np.ndarray) -> list[np.ndarray]:
        return self.sessions[name].run(None, {"pictures": pictures})


def scales(size: tuple[int, int], smallest: int) -> Iterator[float]:
    """By how much a picture is shrunk so that faces from `smallest` to its own size are as large as a cell."""
    scale = CELL / smallest
    while min(size) * scale >= CELL:
        yield scale
        scale *= SHRINK


def distinct(boxes: np.ndarray, most: float, smaller: bool = False) -> np.ndarray:
    """Which boxes (n, 5 or more) stay where those that overlap with a surer one more than `most` go.

    Overlap is intersection over union, or over the smaller of the two.
    """
    left, top, right, bottom = (boxes[:, i] for i in range(4))
    # The public code counts pixels at both ends where it compares with the smaller.
    one = 1.0 if smaller else 0.0
    area = (right - left + one) * (bottom - top + one)
    order, kept = np.argsort(-boxes[:, 4], kind="stable"), []
    while len(order):
        best, rest = order[0], order[1:]
        kept.append(best)
        wide = np.minimum(right[best], right[rest]) - np.maximum(left[best], left[rest]) + one
        high = np.minimum(bottom[best], bottom[rest]) - np.maximum(top[best], top[rest]) + one
        shared = np.maximum(wide, 0) * np.maximum(high, 0)
        whole = np.minimum(area[best], area[rest]) if smaller else area[best] + area[rest] - shared
        order = rest[shared <= most * whole]
    return np.asarray(kept, dtype=int)


def square(boxes: np.ndarray) -> np.ndarray:
    """Boxes (n, 5) as squares of their longer side, around the same middle."""
    sides = boxes[:, 2:4] - boxes[:, :2]
    side = sides.max(axis=1, keepdims=True) if len(boxes) else sides[:, :1]
    corner = boxes[:, :2] + sides / 2 - side / 2
    return np.concatenate([corner, corner + side, boxes[:, 4:]], axis=1)


def _inside(boxes: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """The pixels (n, 4) of boxes that the picture has; corners count from one, as in the public code."""
    whole = np.trunc(boxes[:, :4]).astype(np.int64)
    return np.concatenate([np.maximum(whole[:, :2], 1) - 1, np.minimum(whole[:, 2:], size)], axis=1)


class Areas:
    """Means over areas of a picture, through the sums of all that lies above and left of each pixel."""

    def __init__(self, picture: np.ndarray):
        if picture.dtype != np.uint8 or picture.ndim != 3 or picture.shape[2] != 3 or not picture.size:
            raise InputError(f"a picture is (height, width, 3) uint8, not {picture.shape} {picture.dtype}")
        height, width, _ = picture.shape
        self.size = width, height
        # Sums over the whole may overflow; their differences, over less than 2^24 pixels, are right all the same.
        self._sums = np.zeros((height + 1, width + 1, 3), dtype=np.uint32)
        np.cumsum(picture.cumsum(0, dtype=np.uint32), 1, dtype=np.uint32, out=self._sums[1:, 1:])

    def means(self, cuts: np.ndarray, size: tuple[int, int]) -> np.ndarray:
        """Cuts (n, 4) of left, top, right, bottom as (n, 3, height, width) float32 of a size (height, width).

        A pixel is the mean of all old ones that it touches.
        """
        top, bottom = _edges(cuts[:, 1], cuts[:, 3], size[0])
        left, right = _edges(cuts[:, 0], cuts[:, 2], size[1])
        sums = self._sums[bottom[:, :, None], right[:, None]] - self._sums[top[:, :, None], right[:, None]]
        sums -= self._sums[bottom[:, :, None], left[:, None]] - self._sums[top[:, :, None], left[:, None]]
        counts = (bottom - top)[:, :, None] * (right - left)[:, None]
        return (sums / counts[..., None]).astype(np.float32).transpose(0, 3, 1, 2)


def _edges(first: np.ndarray, last: np.ndarray, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Beginnings and ends (n, count) of the parts that ranges of pixels are divided into."""
    length, place = (last - first)[:, None], np.arange(count)
    return first[:, None] + place * length // count, first[:, None] - (-(place + 1) * length // count)
