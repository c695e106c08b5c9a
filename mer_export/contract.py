"""The tensor contract: names, dtypes and named dims that PyTorch, ONNX, engines and samples share."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property
from typing import Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, field_validator

from mer_export.bucket import Bucket
from mer_export.errors import InputError, UsageError

BATCH = "batch"
Dim = int | str
Lengths = dict[str, int]
"""Real lengths by sequence dim, e.g. `{"utterances": 9}`; those that a file is made for are a `Bucket`."""
Table = dict[str, tuple[float, ...]]
"""Named rows of a matrix, e.g. emotion to word vector."""


Semantics = Literal["single", "batch"]
"""`single`: every item as if alone, which is what is exported. `batch`: as the original's batched run, where neighbours
and padding have a say; for reproducing published training and evaluation."""


class TensorSpec(BaseModel):
    """One tensor at the border of a model.

    `dims` starts with `batch`; a string is a named sequence dim, an int a fixed width. An input without `batch` is
    shared by all items, its values stand in the contract's `shared`. `modality` names the modality that the tensor
    carries, `counts` the sequence dim whose real length (int64, one per item) it holds, `below` the number of
    categories of an index input. A count with a modality is 0 where an item lacks that modality.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    dtype: Literal["float32", "int64"]
    dims: tuple[Dim, ...]
    modality: str | None = None
    counts: str | None = None
    below: int | None = None
    padding: int | None = None
    """Where the model tells padding by its value instead of a count: that value."""
    description: str = ""

    @property
    def batched(self) -> bool:
        """Whether every item brings its own values."""
        return self.dims[0] == BATCH

    def shape(self, batch: int, lengths: Mapping[str, int]) -> tuple[int, ...]:
        """The concrete shape for `batch` items at these sequence lengths."""
        return tuple([batch if d == BATCH else d if isinstance(d, int) else lengths[d] for d in self.dims])


class Fill(BaseModel):
    """Zero steps that a shorter sequence gets as data, on one side, because a model was trained that way."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    length: int
    side: Literal["left", "right"]


class Contract(BaseModel):
    """Inputs and outputs of a model in order, and the buckets its sequence dims are fixed to at export."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    buckets: tuple[Bucket, ...]
    longest: Lengths
    """The longest real length that the network itself can take, whatever the bucket."""
    shortest: Lengths = {}
    """The shortest real length of a sequence dim where it is more than 1."""
    fill: dict[str, Fill] = {}
    """Sequence dims whose items are filled with zeros that count as real; padding elsewhere is not read."""
    whole: tuple[str, ...] = ()
    """Sequence dims that are never cut to fit, because another input holds places in them."""
    keeps_start: tuple[str, ...] = ()
    """Sequence dims that lose their end when an item is cut; others lose their beginning."""
    shared: dict[str, Table] = {}
    """Values of the inputs that all items share, by input name."""

    @field_validator("buckets")
    @classmethod
    def _ascending(cls, buckets: tuple[Bucket, ...]) -> tuple[Bucket, ...]:
        return tuple(sorted(buckets))

    @cached_property
    def sequence_dims(self) -> tuple[str, ...]:
        """Named dims other than `batch`, in order of appearance."""
        seen = dict.fromkeys(d for s in self.inputs for d in s.dims if isinstance(d, str) and d != BATCH)
        return tuple(seen)

    @cached_property
    def modalities(self) -> tuple[str, ...]:
        """Modalities in the order of the inputs."""
        return tuple(dict.fromkeys(s.modality for s in self.inputs if s.modality))

    @cached_property
    def features(self) -> tuple[TensorSpec, ...]:
        """The inputs that a sample brings itself; counts are derived from their shapes."""
        return tuple(s for s in self.inputs if s.counts is None and s.batched)

    @cached_property
    def inputs_of(self) -> tuple[tuple[str, frozenset[str]], ...]:
        """The names of the inputs of each modality that a sample brings, in the order of `modalities`."""
        names = {m: frozenset(s.name for s in self.features if s.modality == m) for m in self.modalities}
        return tuple(names.items())

    @cached_property
    def unit_dim(self) -> str | None:
        """The sequence dim along which the outputs have one row per unit; None where an item is one unit."""
        dims = self.outputs[0].dims
        return dims[1] if len(dims) > 2 and isinstance(dims[1], str) else None

    @cached_property
    def shared_arrays(self) -> dict[str, np.ndarray]:
        """The shared inputs that have values, as float32 matrices (rows, width)."""
        return {name: np.asarray(list(rows.values()), dtype=np.float32) for name, rows in self.shared.items() if rows}

    @cached_property
    def shared_lengths(self) -> Lengths:
        """How many rows each sequence dim has that a shared input gives."""
        return {
            str(s.dims[0]): len(self.shared[s.name]) for s in self.inputs if not s.batched and self.shared.get(s.name)
        }

    def with_shared(self, name: str, table: Table) -> Contract:
        """A copy with other values of a shared input; raises InputError where their width or number does not fit."""
        spec = next((s for s in self.inputs if s.name == name and not s.batched), None)
        if spec is None:
            raise UsageError(f"the model has no shared input {name!r}: its inputs are {[s.name for s in self.inputs]}")
        dim, width = str(spec.dims[0]), spec.dims[1]
        if not table or len(table) > self.longest[dim]:
            raise InputError(f"{len(table)} {dim} were given, the model takes 1..{self.longest[dim]}")
        for row, values in table.items():
            if len(values) != width:
                raise InputError(f"{name} {row!r} has {len(values)} values, the model was made for {width}")
            if not np.isfinite(values).all():
                raise InputError(f"{name} {row!r} holds a value that is not finite")
        return Contract.model_validate(self.model_dump() | {"shared": {**self.shared, name: table}})

    def check(self, arrays: Mapping[str, np.ndarray]) -> None:
        """Raises InputError unless `arrays` are exactly the inputs of this contract, batched.

        Checks names, dtypes, widths, and that dims of one name agree across tensors.
        """
        expected = [s.name for s in self.inputs]
        if set(arrays) != set(expected):
            raise InputError(f"inputs are {sorted(arrays)}, the contract asks for {sorted(expected)}")
        known: dict[str, int] = {}
        for spec in self.inputs:
            array = arrays[spec.name]
            if array.dtype != np.dtype(spec.dtype):
                raise InputError(f"{spec.name} is {array.dtype}, the contract asks for {spec.dtype}")
            if array.ndim != len(spec.dims):
                raise InputError(f"{spec.name} has {array.ndim} dims, the contract asks for {spec.dims}")
            for dim, size in zip(spec.dims, array.shape, strict=True):
                want = dim if isinstance(dim, int) else known.setdefault(dim, size)
                if size != want:
                    raise InputError(f"{spec.name} has shape {array.shape}, {dim} must be {want}, not {size}")

    def bucket(self, lengths: Mapping[str, int]) -> Bucket:
        """These lengths as a bucket.

        Raises:
            UsageError: a dim too many or too few, or a length that is too short or outside 1..`longest`.
        """
        if set(lengths) != set(self.sequence_dims):
            raise UsageError(f"lengths are {dict(lengths)}, the contract asks for {list(self.sequence_dims)}")
        for dim, size in lengths.items():
            if not self._least(dim) <= size <= self.longest[dim]:
                raise UsageError(f"{dim} must be {self._least(dim)}..{self.longest[dim]}, not {size}")
        return Bucket({d: lengths[d] for d in self.sequence_dims})

    def _least(self, dim: str) -> int:
        """The shortest length of a bucket: what the network needs, and room for the rows that are shared."""
        return max(self.shortest.get(dim, 1), self.shared_lengths.get(dim, 1))

    def parse_bucket(self, text: str) -> Bucket:
        """Reads `utterances=32` (or `text=50,audio=375` for `text_len`, `audio_len`); raises as `bucket` does."""
        lengths: Lengths = {}
        for part in text.split(","):
            name, _, value = part.partition("=")
            dim = name.strip() if name.strip() in self.sequence_dims else f"{name.strip()}_len"
            if dim not in self.sequence_dims:
                raise UsageError(f"--seq-len {text}: no sequence dim {name!r}, there are {list(self.sequence_dims)}")
            if not value.strip().isdecimal():
                raise UsageError(
                    f"--seq-len {text}: {dim} must be {self._least(dim)}..{self.longest[dim]}, not {value!r}"
                )
            lengths[dim] = int(value)
        try:
            return self.bucket(lengths)
        except UsageError as error:
            raise UsageError(f"--seq-len {text}: {error}") from None
