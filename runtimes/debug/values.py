"""Values between the modules of a network: what they are called, who makes them, and how far two of them are apart."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
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


class Side(Protocol):
    """A graph whose values can be read, and replaced where modules read each other's."""

    @property
    def values(self) -> Sequence[Value]:
        """In the order of their making."""

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
