"""The fixed lengths that a model file is made for."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from functools import total_ordering
from math import prod
from typing import Any, Self

from pydantic import GetCoreSchemaHandler
from pydantic_core import CoreSchema, core_schema


@total_ordering
class Bucket(Mapping[str, int]):
    """A fixed length for every sequence dim in the order of the contract, e.g. `Bucket(utterances=32)`.

    Immutable and hashable; in JSON an object such as `{"utterances": 32}`. Buckets of one contract are ordered by
    volume, the product of their lengths, and then by the lengths.
    """

    __slots__ = ("_hash", "_lengths", "_order")

    def __init__(self, lengths: Mapping[str, int] | None = None, /, **named: int):
        self._lengths = {**(lengths or {}), **named}
        sizes = tuple(self._lengths.values())
        self._order = (prod(sizes), sizes)
        self._hash = hash(frozenset(self._lengths.items()))

    @property
    def name(self) -> str:
        """As part of a file name: `utterances32`, `text50-audio375`; `fixed` without sequence dims."""
        return "-".join(f"{d.removesuffix('_len')}{n}" for d, n in self._lengths.items()) or "fixed"

    def holds(self, lengths: Mapping[str, int]) -> bool:
        """Whether an item of these real lengths fits."""
        return all(n <= self._lengths[d] for d, n in lengths.items())

    def only(self, dims: Iterable[str]) -> Self:
        """The bucket without the dims that are not among these."""
        kept = set(dims)
        return type(self)({d: n for d, n in self._lengths.items() if d in kept})

    def __getitem__(self, dim: str) -> int:
        return self._lengths[dim]

    def __iter__(self) -> Iterator[str]:
        return iter(self._lengths)

    def __len__(self) -> int:
        return len(self._lengths)

    def __eq__(self, other: object) -> bool:
        return self._lengths == (other._lengths if isinstance(other, Bucket) else other)

    def __hash__(self) -> int:
        return self._hash

    def __lt__(self, other: Bucket) -> bool:
        return self._order < other._order

    def __repr__(self) -> str:
        return f"Bucket({', '.join(f'{d}={n}' for d, n in self._lengths.items())})"

    def __reduce__(self) -> tuple[type[Bucket], tuple[dict[str, int]]]:
        # Made anew: another process hashes strings differently.
        return type(self), (self._lengths,)

    @classmethod
    def __get_pydantic_core_schema__(cls, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        lengths = core_schema.dict_schema(core_schema.str_schema(), core_schema.int_schema(ge=1))
        return core_schema.no_info_after_validator_function(
            cls, lengths, serialization=core_schema.plain_serializer_function_ser_schema(dict, return_schema=lengths)
        )


def bucket_for(lengths: Mapping[str, int], buckets: Iterable[Bucket]) -> Bucket | None:
    """The least of the buckets that hold `lengths`, or None when every bucket is shorter."""
    return min((b for b in buckets if b.holds(lengths)), default=None)
