"""What reading one file of a stranger may take: bytes and objects in proportion to the file, up to a fixed most.

Formats can say much with few bytes: a shape, a repetition, a compressed run of zeros. Every reader of this room takes
what it decodes from the budget of its file before it takes the memory, so that a small file ends in one sentence.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np

from mer_export.errors import InputError

MIB = 1 << 20
BYTES_PER_BYTE, SPARE_BYTES, MOST_BYTES = 32, 256 * MIB, 1 << 36
CONTAINERS, NUMBERS = (list, tuple, set, frozenset), frozenset((int, float, bool, type(None)))
OBJECTS_PER_BYTE, SPARE_OBJECTS, MOST_OBJECTS = 1, 1_000_000, 1 << 27


class Budget:
    """The bytes and objects that are left for decoding one file."""

    def __init__(self, name: Path | str, size: int, fix: str = "get it again from where you trust it"):
        self.name, self.size, self.fix = str(name), size, fix
        self.bytes = min(SPARE_BYTES + BYTES_PER_BYTE * size, MOST_BYTES)
        self.objects = min(SPARE_OBJECTS + OBJECTS_PER_BYTE * size, MOST_OBJECTS)

    @classmethod
    def of(cls, path: Path, *fix: str) -> Budget:
        """That of a file, with what to do where it is too little; raises InputError where it cannot be read."""
        try:
            return cls(path, path.stat().st_size, *fix)
        except OSError as error:
            raise InputError(f"{path} cannot be read: {error.strerror or error}") from None

    def take(self, nbytes: int = 0, objects: int = 0) -> None:
        """Spends; raises InputError where less is left."""
        self.bytes -= nbytes
        self.objects -= objects
        if self.bytes < 0 or self.objects < 0:
            raise InputError(
                f"{self.name} was not read: its {self.size} bytes unfold to far more data than a file of that size "
                f"holds, {self.fix}"
            )

    def take_array(self, shape: tuple[int, ...], dtype: np.dtype) -> int:
        """Spends an array that a file claims, and returns its bytes.

        Raises:
            InputError: more than is left, or items without any bytes, of which a file can claim any number.
        """
        count = math.prod(int(n) for n in shape)
        if count and not dtype.itemsize:
            raise InputError(f"{self.name} was not read: it holds an array of {dtype.str}, whose items have no bytes")
        claimed = count * dtype.itemsize
        self.take(claimed)
        return claimed

    def weigh(self, value: Any) -> None:
        """Spends all that hangs on a value; what hangs on it twice counts twice, as it does for whoever copies it."""
        waiting = [[value]]
        while waiting:
            found = waiting.pop()
            if isinstance(found, dict):
                parts: list[Any] = [*found, *found.values()]
            elif isinstance(found, CONTAINERS):
                parts = [v for v in found if type(v) not in NUMBERS]
            else:
                self.take(8 * len(found) if hasattr(found, "__len__") else 8, 1)
                continue
            self.take(8 * len(found), len(found))
            arrays = [v.nbytes or 8 for v in parts if hasattr(v, "nbytes")]
            self.take(sum(arrays), len(arrays))
            if len(arrays) < len(parts):
                waiting += [v for v in parts if not hasattr(v, "nbytes")] if arrays else parts
