"""The content of an array where it lies in a file, read when it is asked for."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from mer_export.errors import InputError

Form = Literal["bytes", "latin1", "utf-8"]
"""How bytes are written: as they are, as a string of Python 2, or as a text of which latin1 makes them."""


@dataclass(slots=True, eq=False)
class Content:
    """Bytes in a file. Where it is `lazy`, so is the array that is made of it."""

    data: Any
    at: int
    size: int
    form: Form
    name: str
    lazy: bool = False

    def written(self) -> bytes:
        """What stands in the file."""
        return bytes(self.data[self.at : self.at + self.size])

    def raw(self) -> bytes:
        """The bytes; raises ValueError for a text that latin1 has no bytes for."""
        return self.text().encode("latin1") if self.form == "utf-8" else self.written()

    def text(self) -> str:
        """The text that they are written as."""
        return self.written().decode("utf-8" if self.form == "utf-8" else "latin1")

    def value(self) -> str | bytes:
        """What a pickle's state holds of it."""
        return self.text() if self.form == "latin1" else self.raw()

    def may_be(self, nbytes: int) -> bool:
        """Whether it can be so many bytes; a text takes up to two for each."""
        return nbytes <= self.size <= 2 * nbytes if self.form == "utf-8" else self.size == nbytes


@dataclass(slots=True, eq=False)
class Stored:
    """An array that is still in its file, of `nbytes` in memory; numpy reads it as it reads any array.

    Raises:
        InputError: when it is read, where the file is damaged there.
    """

    content: Content
    shape: tuple[int, ...]
    dtype: np.dtype
    nbytes: int
    build: Callable[[bytes], np.ndarray]

    @property
    def ndim(self) -> int:
        """The number of dims."""
        return len(self.shape)

    def __len__(self) -> int:
        return self.shape[0]

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        try:
            array = self.build(self.content.raw())
        except Exception as error:
            raise InputError(
                f"{self.content.name} is not a readable pickle ({type(error).__name__}): it is truncated or damaged"
            ) from None
        return array if dtype is None else array.astype(dtype, copy=False)
