"""One small class per backend, all of this shape; nothing here knows parity, benchmark or command line."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, ClassVar, Literal, Self

import numpy as np

from mer_export.contract import Contract, Lengths


@dataclass(frozen=True)
class SessionOptions:
    """How a backend runs. `threads` None leaves its default; `hint` bf16 lets OpenVINO compute in bfloat16."""

    device: Literal["cpu", "cuda"] = "cpu"
    threads: int | None = None
    hint: Literal["fp32", "bf16"] = "fp32"
    extra: dict[str, Any] = field(default_factory=dict)


class Session:
    """A loaded model: arrays in, arrays out, by contract name. Used as a context manager."""

    backend: ClassVar[str]

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

    def run(self, inputs: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        """One forward pass on arrays that `Contract.check` accepts."""
        raise NotImplementedError

    def warm_up(self, batch: int = 1, lengths: Lengths | None = None) -> None:
        """Runs once on zeros, so that the first real call pays no set-up."""
        shape = lengths or self.lengths or self.contract.buckets[0]
        arrays = {s.name: np.zeros(s.shape(self.batch or batch, shape), dtype=s.dtype) for s in self.contract.inputs}
        for spec in self.contract.inputs:
            if spec.counts:
                arrays[spec.name][:] = shape[spec.counts]
        self.run(arrays)

    def close(self) -> None:
        """Frees what the backend holds."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self.close()
