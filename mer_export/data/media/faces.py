"""Face crops from image files, decoded when asked for, scaled and normalised as FacialMMT does (section 2.7)."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from mer_export.data.media.pictures import read_picture
from mer_export.errors import InputError

SUFFIXES = (".jpg", ".jpeg", ".png")
LONGEST = 1 << 14
"""Pixels of a side of an image that is scaled."""
CUBIC = -0.75
"""Of the cubic kernel, as OpenCV has it."""


class FaceImages:
    """Images (n, 3, size, size) float32 in -1..1, channels blue, green, red; an array that is decoded when it is read.

    `np.asarray` decodes. Shape and size in memory are known before.
    """

    ndim = 4
    dtype = np.dtype(np.float32)

    def __init__(self, paths: Sequence[Path | str], size: int):
        self.paths = tuple(paths)
        self.size = size

    @property
    def shape(self) -> tuple[int, int, int, int]:
        return (len(self.paths), 3, self.size, self.size)

    @property
    def nbytes(self) -> int:
        """When decoded."""
        return int(np.prod(self.shape)) * self.dtype.itemsize

    @property
    def fingerprint(self) -> np.ndarray:
        """What tells these images from others without decoding them: names and sizes of the files."""
        found = [f"{Path(p).name} {Path(p).stat().st_size if Path(p).is_file() else -1}" for p in self.paths]
        return np.frombuffer("\n".join([str(self.size), *found]).encode(), dtype=np.uint8)

    def __len__(self) -> int:
        return len(self.paths)

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        found = [normalise(read_picture(p)[:, :, ::-1], self.size) for p in self.paths]
        images = np.stack(found) if found else np.zeros(self.shape, dtype=self.dtype)
        return images if dtype is None else images.astype(dtype)


def image_files(folder: Path) -> list[Path]:
    """The image files of a folder in order of their names; raises InputError where there is none."""
    found = sorted(p for p in folder.iterdir() if p.suffix.lower() in SUFFIXES) if folder.is_dir() else []
    if not found:
        raise InputError(f"{folder} has no images: there must be files that end in {' or '.join(SUFFIXES)}")
    return found


def normalise(image: np.ndarray, size: int) -> np.ndarray:
    """An image (height, width, 3) uint8 as the network takes it: (3, size, size) float32.

    It is scaled where its height is another; one of the right height and another width is refused.
    """
    height, width = image.shape[:2]
    if height != size:
        image = resize(image, size)
    elif width != size:
        raise InputError(f"a face image is {height} x {width}: one of height {size} has to be square")
    return ((image.astype(np.float32) / 255 - 0.5) / 0.5).transpose(2, 0, 1)


def resize(image: np.ndarray, size: int) -> np.ndarray:
    """A square uint8 image: means over areas where the height shrinks, cubic interpolation where it grows.

    Raises InputError for a side of more than `LONGEST` pixels, whose weights would take far more than the image.
    """
    height, width = image.shape[:2]
    if max(height, width) > LONGEST:
        raise InputError(f"a face image of {width} x {height} is longer than {LONGEST} pixels: cut out the face")
    weights = _area if height > size else _cubic
    rows, columns = weights(height, size), weights(width, size)
    found = np.einsum("ih,hwc,jw->ijc", rows, image.astype(np.float64), columns, optimize=True)
    return np.clip(np.round(found), 0, 255).astype(np.uint8)


@lru_cache(maxsize=64)
def _area(old: int, new: int) -> np.ndarray:
    """Weights (new, old): each new place is the mean of the old ones that it covers."""
    if old < new:
        return _cubic(old, new)
    edges = np.arange(new + 1) * (old / new)
    place = np.arange(old)
    covered = np.minimum(edges[1:, None], place + 1) - np.maximum(edges[:-1, None], place)
    covered = np.clip(covered, 0, None)
    return covered / covered.sum(1, keepdims=True)


@lru_cache(maxsize=64)
def _cubic(old: int, new: int) -> np.ndarray:
    """Weights (new, old) of cubic interpolation; border values repeat."""
    centre = (np.arange(new) + 0.5) * (old / new) - 0.5
    left = np.floor(centre).astype(int)
    weights = np.zeros((new, old))
    for step in range(-1, 3):
        distance = np.abs(centre - (left + step))
        near = ((CUBIC + 2) * distance - (CUBIC + 3)) * distance**2 + 1
        far = CUBIC * (((distance - 5) * distance + 8) * distance - 4)
        np.add.at(
            weights,
            (np.arange(new), np.clip(left + step, 0, old - 1)),
            np.where(distance <= 1, near, np.where(distance < 2, far, 0.0)),
        )
    return weights
