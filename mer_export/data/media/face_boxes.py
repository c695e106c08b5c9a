"""What becomes of faces that a detector found: the largest, one person through a clip, and the square around a face.

A box is left, top, right, bottom in pixels and, where a detector gives it, how sure it is.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

import numpy as np

from mer_export.data.media.faces import resize
from mer_export.errors import InputError

SAME = 0.3
"""Overlap from which a face is that of the frame before."""
LOST = 10
"""Frames after which a face that was not found again is another one."""


def largest(boxes: np.ndarray) -> np.ndarray | None:
    """The largest of boxes (n, 4 or more); None where there is none."""
    return boxes[np.argmax(areas(boxes))] if len(boxes) else None


def areas(boxes: np.ndarray) -> np.ndarray:
    """Areas (n,) of boxes (n, 4 or more)."""
    return np.maximum(boxes[:, 2] - boxes[:, 0], 0) * np.maximum(boxes[:, 3] - boxes[:, 1], 0)


def overlap(box: np.ndarray, boxes: np.ndarray) -> np.ndarray:
    """Intersection over union (n,) of a box and others."""
    shared = np.concatenate(
        [np.maximum(box[None, :2], boxes[:, :2]), np.minimum(box[None, 2:4], boxes[:, 2:4])], axis=1
    )
    both = areas(shared)
    union = areas(box[None])[0] + areas(boxes) - both
    return np.divide(both, union, out=np.zeros_like(both), where=union > 0)


@dataclass
class _Face:
    """One person: boxes by frame."""

    boxes: dict[int, np.ndarray] = field(default_factory=dict)

    @property
    def last(self) -> int:
        return next(reversed(self.boxes))

    @property
    def shown(self) -> float:
        """Area over all frames."""
        return float(areas(np.stack(list(self.boxes.values()))).sum())


def main_face(frames: Iterable[np.ndarray]) -> list[np.ndarray | None]:
    """Of the boxes (n, 4 or more) of each frame, those of the person who takes most room over the clip.

    A face is who it overlaps most in the frame before, or in one shortly before where it was not found there.

    Returns:
        One box per frame, or None where that person was not found. All None where nobody was.
    """
    faces: list[_Face] = []
    count = 0
    for count, boxes in enumerate(frames, start=1):
        _continue(faces, count - 1, boxes)
    main = max(faces, key=lambda face: face.shown, default=_Face())
    return [main.boxes.get(frame) for frame in range(count)]


def _continue(faces: list[_Face], frame: int, boxes: np.ndarray) -> None:
    """Gives each box of a frame to a face, most overlap first; what is left begins faces."""
    recent = [f for f in faces if frame - f.last <= LOST]
    pairs = [(float(o), i, j) for i, f in enumerate(recent) for j, o in enumerate(overlap(f.boxes[f.last], boxes))]
    used_faces, used_boxes = set(), set()
    for shared, i, j in sorted(pairs, reverse=True):
        if shared >= SAME and i not in used_faces and j not in used_boxes:
            recent[i].boxes[frame] = boxes[j]
            used_faces.add(i)
            used_boxes.add(j)
    faces.extend(_Face({frame: box}) for j, box in enumerate(boxes) if j not in used_boxes)


def crop(picture: np.ndarray, box: np.ndarray, size: int, margin: float = 0.0) -> np.ndarray:
    """The square around a box, `size` pixels wide and high.

    Args:
        picture: (height, width, 3) uint8.
        box: its middle is that of the square, its longer side the square's.
        size: of the result.
        margin: by which part of itself the side grows; what lies outside the picture repeats its border.

    Raises:
        InputError: a box without area or far larger than the picture.
    """
    corners = np.asarray(box[:4], dtype=np.float64)
    side = float(np.max(corners[2:] - corners[:2])) * (1 + margin)
    if not (np.isfinite(corners).all() and 0 < side <= 4 * max(picture.shape[:2])):
        raise InputError(f"a face in the box {corners.tolist()} cannot be cut from a picture of {picture.shape[:2]}")
    pixels = max(1, round(side))
    left, top = np.rint((corners[:2] + corners[2:]) / 2 - pixels / 2).astype(int)
    rows, columns = (
        np.clip(first + np.arange(pixels), 0, most - 1)
        for first, most in ((top, picture.shape[0]), (left, picture.shape[1]))
    )
    cut = picture[rows[:, None], columns]
    return cut if pixels == size else resize(cut, size)
