"""The content of an array where it lies in a file, read when it is asked for."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np

from mer_export.errors import InputError

Form = Literal["bytes", "latin1", "utf-8"]
"""How bytes are written: as they are, as a string of Python 2, or as a text of which latin1 makes them."""
Build = Callable[[Sequence[bytes]], np.ndarray]
"""Makes arrays of their bytes, one above the other."""


@dataclass(slots=True, eq=False)
class Contained:
    """The bytes of a file. Where they are `lazy`, so are the arrays that are made of them.

    `kinds` are those, `builds` is what makes arrays of one form, shape and dtype.
    """

    data: Any
    name: str
    lazy: bool = False
    kinds: dict[Any, Kind] = field(default_factory=dict)
    builds: dict[Any, Build] = field(default_factory=dict)

    def raw(self, at: int, size: int, form: Form) -> bytes:
        """The bytes that something is written as; raises ValueError for a text that latin1 has no bytes for."""
        written = bytes(self.data[at : at + size])
        return written.decode().encode("latin1") if form == "utf-8" else written


@dataclass(slots=True, eq=False)
class Content:
    """So many bytes in a file, written in a form."""

    file: Contained
    at: int
    size: int
    form: Form

    def raw(self) -> bytes:
        """The bytes; raises ValueError for a text that latin1 has no bytes for."""
        return self.file.raw(self.at, self.size, self.form)

    def text(self) -> str:
        """The text that they are written as."""
        return self.file.raw(self.at, self.size, "bytes").decode("utf-8" if self.form == "utf-8" else "latin1")

    def value(self) -> str | bytes:
        """What a pickle's state holds of it."""
        return self.text() if self.form == "latin1" else self.raw()

    def may_be(self, nbytes: int) -> bool:
        """Whether it can be so many bytes; a text takes up to two for each."""
        return nbytes <= self.size <= 2 * nbytes if self.form == "utf-8" else self.size == nbytes


class Later:
    """What the memo keeps of an array's content that nobody may ask for again: where it lies, and the state around."""

    __slots__ = ("content", "state")

    def __init__(self, content: Content, state: Sequence[Any]):
        self.content, self.state = content, state

    def value(self, place: int) -> Any:
        """The text, the arguments of its encoding, what the state holds of it, or the state."""
        if place < 2:
            text = self.content.text()
            return (text, "latin1") if place else text
        found = self.content.value()
        return found if place == 2 else (*self.state[:4], found)


@dataclass(slots=True, eq=False)
class Kind:
    """What arrays that are still in a file have in common: all but their place."""

    file: Contained
    size: int
    form: Form
    shape: tuple[int, ...]
    dtype: np.dtype
    nbytes: int
    build: Build


class Stored:
    """An array that is still in its file, at some place of it; numpy reads it as it reads any array.

    Raises:
        InputError: when it is read, where the file is damaged there.
    """

    __slots__ = ("at", "kind")

    def __init__(self, kind: Kind, at: int):
        self.kind, self.at = kind, at

    @property
    def shape(self) -> tuple[int, ...]:
        """Its dims."""
        return self.kind.shape

    @property
    def ndim(self) -> int:
        """The number of dims."""
        return len(self.kind.shape)

    @property
    def dtype(self) -> np.dtype:
        """The dtype of its content; what is read has the byte order of the machine."""
        return self.kind.dtype

    @property
    def nbytes(self) -> int:
        """Bytes that it takes in memory."""
        return self.kind.nbytes

    def __len__(self) -> int:
        return self.kind.shape[0]

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        array = stacked([self])[0]
        return array if dtype is None else array.astype(dtype, copy=False)


def together(values: Sequence[Any]) -> np.ndarray:
    """Arrays, which may still be in a file, or numbers as one array; raises ValueError where their shapes differ."""
    builds = {v.kind.build if type(v) is Stored else None for v in values}
    if len(builds) == 1 and None not in builds:
        return stacked(values)
    # One by one, numpy would ask each of them several times.
    return np.asarray([np.asarray(v) for v in values])


def stacked(arrays: Sequence[Stored]) -> np.ndarray:
    """Arrays of one build, one above the other; raises InputError where the file is damaged."""
    kind = arrays[0].kind
    file, data = kind.file, kind.file.data
    try:
        contents = [data[a.at : a.at + a.kind.size] for a in arrays]
        if kind.form == "utf-8":
            contents = [c.decode().encode("latin1") for c in contents]
        if {*map(len, contents)} != {kind.nbytes}:
            raise ValueError(f"arrays of {kind.nbytes} bytes have others")
        return kind.build(contents)
    except Exception as error:
        raise InputError(
            f"{file.name} is not a readable pickle ({type(error).__name__}): it is truncated or damaged"
        ) from None
