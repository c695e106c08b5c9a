"""One small class per backend, all of this shape; nothing here knows parity, benchmark or command line."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, ClassVar, Literal, Self

import numpy as np

from mer_export.bundle import Bundle, Variant
from mer_export.contract import BATCH, Contract, Lengths, TensorSpec
from mer_export.errors import BundleError, UsageError

Lowered = Literal["bf16", "int8"]


@dataclass(frozen=True)
class SessionOptions:
    """How a backend runs. `threads` None leaves its default; `lowered` is what an fp32 variant is computed in
    by a backend that can (`Backend.lowers`), None leaves it as it is; `batch` is how many items most calls will bring,
    for a backend that prepares for that.

    `extra` may hold `cuda_graph` (capture runs on a GPU) and, for ONNX Runtime, `tf32`.
    """

    device: Literal["cpu", "cuda"] = "cpu"
    threads: int | None = None
    lowered: Lowered | None = None
    batch: int = 1
    extra: dict[str, Any] = field(default_factory=dict)

    @property
    def cuda_graph(self) -> bool:
        return bool(self.extra.get("cuda_graph"))


class Session(ABC):
    """A loaded model: arrays in, arrays out, by contract name. Used as a context manager."""

    backend: ClassVar[str]
    concurrent: ClassVar[bool] = False
    """Whether several threads may call `run` at once."""

    def __init__(self, model: Path, contract: Contract, lengths: Lengths | None, batch: int, options: SessionOptions):
        """Loads `model`. `lengths` None and `batch` 0 mean any.

        Raises:
            NotAvailableError: package, provider or device missing; never falls back to another one.
        """
        self.contract = contract
        self.lengths = lengths
        self.batch = batch
        self.options = options
        self.info: dict[str, Any] = {"backend": self.backend, "device": options.device, "threads": options.threads}
        """What really runs: provider, versions, threads, precision."""

    @classmethod
    def open(cls, bundle: Bundle, variant: Variant | None, options: SessionOptions) -> Self:
        """Loads a variant of a bundle after its checksums were verified."""
        if variant is None:
            raise UsageError(f"runtime {cls.backend} needs an exported variant: run mer export first")
        return cls(bundle.variant_files(variant), bundle.manifest.contract, variant.lengths, variant.batch, options)

    @classmethod
    def problem(cls, options: SessionOptions) -> str | None:
        """Why this backend cannot run here with these options; None where it can."""
        return None

    @abstractmethod
    def run(self, inputs: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        """One forward pass on arrays that `Contract.check` accepts."""

    def warm_up(self, batch: int = 1, lengths: Lengths | None = None) -> None:
        """Runs once on zeros, so that the first real call pays no set-up."""
        shape = lengths or self.lengths or self.contract.buckets[0]
        arrays = {s.name: np.zeros(s.shape(self.batch or batch, shape), dtype=s.dtype) for s in self.contract.inputs}
        for spec in self.contract.inputs:
            if spec.counts:
                arrays[spec.name][:] = shape[spec.counts]
        self.run(arrays)

    def close(self) -> None:  # noqa: B027 (most backends hold nothing to free)
        """Frees what the backend holds."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self.close()


@dataclass(frozen=True)
class Port:
    """An input or output as a model file declares it: numpy dtype name, and dims with None where any size goes."""

    dtype: str
    dims: tuple[int | None, ...]


def check_ports(
    model: Path,
    specs: Sequence[TensorSpec],
    found: Mapping[str, Port],
    lengths: Lengths | None,
    batch: int,
) -> None:
    """Holds what a model file declares against the contract.

    Raises:
        BundleError: names, dtypes or sizes differ; names the first difference.
    """
    if list(found) != [s.name for s in specs]:
        raise BundleError(f"{model} has {list(found)}, the contract asks for {[s.name for s in specs]}: export again")
    for spec in specs:
        port = found[spec.name]
        if port.dtype != spec.dtype:
            raise BundleError(f"{model}: {spec.name} is {port.dtype}, the contract asks for {spec.dtype}: export again")
        wanted = [_size(d, lengths or {}, batch) for d in spec.dims]
        agrees = len(wanted) == len(port.dims) and all(
            w is None or p is None or w == p for w, p in zip(wanted, port.dims, strict=True)
        )
        if not agrees:
            raise BundleError(
                f"{model}: {spec.name} has dims {list(port.dims)}, the contract asks for {wanted}: export again"
            )


def _size(dim: int | str, lengths: Mapping[str, int], batch: int) -> int | None:
    if isinstance(dim, int):
        return dim
    return (batch or None) if dim == BATCH else lengths.get(dim)
