"""Values between the modules of a network: what they are called, who makes them, and how far two of them are apart."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple, Protocol

import numpy as np

from mer_export.agreement.error import FAR

Arrays = Mapping[str, np.ndarray]

HUGE = 1e6
"""From here on a number stands for infinity in a mask, and says nothing of the scale of its neighbours."""


class Value(NamedTuple):
    """A tensor that one module makes and others read, or that the network gives."""

    name: str
    module: str
    readers: frozenset[str]
    """Other modules that read it."""


HELD = 256 << 20
"""Bytes of values that a shelf has in memory, and that one run reads off or is given."""


class Shelf(Mapping[str, np.ndarray]):
    """Arrays by name: the first `HELD` bytes in memory, what comes after in files of a folder."""

    def __init__(self, folder: Path):
        folder.mkdir()
        self._folder, self._left = folder, HELD
        self._near: dict[str, np.ndarray] = {}
        self._far: dict[str, Path] = {}
        self.shapes: dict[str, tuple[int, ...]] = {}
        self.sizes: dict[str, int] = {}
        """Bytes."""

    def put(self, name: str, value: np.ndarray) -> None:
        """Keeps an array that nobody changes any more."""
        self.shapes[name], self.sizes[name] = value.shape, value.nbytes
        if value.nbytes <= self._left:
            self._near[name] = value
            self._left -= value.nbytes
        else:
            self._far[name] = self._folder / f"{len(self._far)}.npy"
            np.save(self._far[name], value, allow_pickle=False)

    def __getitem__(self, name: str) -> np.ndarray:
        return self._near[name] if name in self._near else np.load(self._far[name], allow_pickle=False)

    def __contains__(self, name: object) -> bool:
        return name in self.sizes

    def __iter__(self) -> Iterator[str]:
        return iter(self.sizes)

    def __len__(self) -> int:
        return len(self.sizes)


class Side(Protocol):
    """A graph whose values can be read, and replaced where modules read each other's."""

    @property
    def values(self) -> Sequence[Value]:
        """In the order of their making."""

    @property
    def loose(self) -> set[str]:
        """Modules that make values for others which have no name in the reference, and so cannot be given."""

    def run(self, inputs: Arrays, wanted: Sequence[str] = (), given: Arrays | None = None) -> dict[str, np.ndarray]:
        """The outputs, and the values of these names.

        Args:
            inputs: as the contract has them.
            wanted: names of values.
            given: what other modules than its maker read in place of a value.
        """


def distance(reference: np.ndarray, found: np.ndarray) -> float:
    """The largest error of an element over the largest number of the reference, as `FAR` where one is not finite.

    Elements that are the same infinity agree; those of masks are held against themselves.
    """
    a, b = (np.asarray(x, dtype=np.float64).reshape(-1) for x in (reference, found))
    there = np.isfinite(a)
    if not a.size or (a[~there] != b[~there])[~np.isnan(a[~there])].any():
        return 0.0 if not a.size else FAR
    a, b = a[there], b[there]
    if not np.isfinite(b).all():
        return FAR
    size = np.abs(a)
    scale = np.where(size < HUGE, size, 0).max(initial=0.0) or 1.0
    return float((np.abs(a - b) / np.where(size < HUGE, scale, size)).max(initial=0.0))
