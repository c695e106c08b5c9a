"""One small class per backend, all of this shape; nothing here knows parity, benchmark or command line."""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from threading import Lock
from types import TracebackType
from typing import Any, ClassVar, Literal, NamedTuple, Self

import numpy as np
from pydantic import ConfigDict

from mer_export.bucket import Bucket
from mer_export.contract import BATCH, Contract, TensorSpec
from mer_export.errors import BundleError, MerError, UnsupportedError, UsageError
from mer_export.kept import Kept

Reduced = Literal["tf32", "bf16", "fp16", "int8"]


@dataclass(frozen=True)
class SessionOptions:
    """How a backend runs. `threads` None leaves its default; `reduced` is what an fp32 variant is computed in by a
    backend that can (`Backend.reduces`), None leaves it as it is; `batch` is how many items most calls will bring, for
    a backend that prepares for that. `items` is how many there will be at most, None where no end is known: what is
    done once for the sake of many can be left out before a few.

    `cuda_graph` captures runs on a GPU. Without `reuse` a variant in stages keeps nothing from call to call. `streams`
    is how many calls will come side by side, each with `threads` of its own, to a backend that can compute them so.
    """

    __pydantic_config__ = ConfigDict(extra="forbid")

    device: str = "cpu"
    """`cpu`, `cuda`, or one of several GPUs: `cuda:1`."""
    threads: int | None = None
    reduced: Reduced | None = None
    batch: int = 1
    items: int | None = None
    cuda_graph: bool = False
    reuse: bool = True
    streams: int = 1

    @property
    def kind(self) -> str:
        """The kind of device: `cpu` or `cuda`."""
        return self.device.partition(":")[0]

    @property
    def on_gpu(self) -> bool:
        return self.kind == "cuda"

    @property
    def number(self) -> int:
        """Which of several devices of a kind."""
        return int(self.device.partition(":")[2] or 0)


@dataclass(frozen=True)
class Artefact:
    """What a session loads: a file and the contract that it keeps. `bucket` None and `batch` 0 mean any; `options` is
    what its exporter noted; `kept` is where a backend may leave what it made of the file; `digest` and `size` (bytes)
    are of that file and those that it reads. Who reads them once more later does so inside `again()`, which raises
    BundleError where they are others by then."""

    path: Path
    contract: Contract
    bucket: Bucket | None = None
    batch: int = 0
    precision: str = "fp32"
    options: Mapping[str, Any] = field(default_factory=dict)
    kept: Kept | None = None
    digest: str = ""
    size: int = 0
    again: Callable[[], AbstractContextManager[None]] = nullcontext


class Port(NamedTuple):
    """An input or output as a file declares it: numpy dtype name and dims, None where it says nothing of them, and None
    for a dim of any size."""

    dtype: str | None = None
    dims: Sequence[int | None] | None = None


class Ports(NamedTuple):
    """Inputs and outputs by name, in the file's order; None where it does not declare them."""

    inputs: Mapping[str, Port] | None = None
    outputs: Mapping[str, Port] | None = None


class Session(ABC):
    """A loaded model: arrays in, arrays out, by contract name. Used as a context manager.

    Any number of threads may call it. What an engine cannot compute side by side waits its turn: several sessions
    (`Crew`) are faster then. A forked child cannot use it, as the engine's threads stayed with the parent.

    A backend says what keeps it from running (`problem`), reads a file (`load`), computes and frees it; `open_session`
    and this class do the rest, in the same order for all of them.
    """

    backend: ClassVar[str]
    unreadable: ClassVar[tuple[type[Exception], ...]] = ()
    """What the engine raises for a file that it cannot read."""

    def __init__(self, artefact: Artefact, options: SessionOptions):
        """Loads a file whose checksum was verified, on a machine where `problem` finds none.

        Raises:
            BundleError: the engine cannot read the file, or its inputs and outputs are not those of the contract.
            NotAvailableError: the device does not work after all; never falls back to another one.
        """
        self.artefact = artefact
        self.contract = artefact.contract
        self.bucket = artefact.bucket
        self.batch = artefact.batch
        self.options = options
        self._process = os.getpid()
        self._turn: AbstractContextManager[Any] = nullcontext() if self.concurrent else Lock()
        self.info: dict[str, Any] = {
            "backend": self.backend,
            "device": options.device,
            "threads": options.threads,
            "precision": options.reduced or artefact.precision,
        }
        """What really runs: provider, versions, threads, precision."""
        try:
            self._open()
        except BaseException:
            self.close()
            raise

    def _open(self) -> None:
        try:
            check_ports(self.artefact, self.load(self.artefact.path))
            self.prepare()
        except MerError:
            raise
        except self.unreadable as error:
            lines = str(error).strip().splitlines() or [type(error).__name__]
            raise BundleError(f"runtime {self.backend} cannot load {self.artefact.path}: {self.cause(lines)}") from None

    @classmethod
    def problem(cls, options: SessionOptions) -> str | None:
        """Why this backend cannot run here with these options; None where it can."""
        return None

    @abstractmethod
    def load(self, path: Path) -> Ports:
        """Reads the file; returns what it declares."""

    def prepare(self) -> None:  # noqa: B027 (most backends are ready once they have read the file)
        """Makes ready what the file declares, which is that of the contract."""

    @property
    def concurrent(self) -> bool:
        """Whether the engine computes several calls of one session side by side."""
        return False

    def run(self, inputs: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        """One forward pass on arrays that `Contract.check` accepts, from any thread.

        Raises:
            UsageError: called in a forked child of the process that opened the session.
        """
        check_process(self._process)
        with self._turn:
            return self.compute(inputs)

    @abstractmethod
    def compute(self, inputs: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        """The forward pass itself; one call at a time unless `concurrent`."""

    def run_tensors(self, tensors: Mapping[str, Any]) -> dict[str, Any]:
        """As `run`, from PyTorch's tensors on the device of the session to tensors there: nothing passes the host.

        Raises:
            UnsupportedError: a runtime that takes arrays alone.
            UsageError: tensors on another device.
            InputError: other tensors than the contract asks for.
        """
        check_process(self._process)
        for name, tensor in tensors.items():
            if (tensor.device.type, tensor.device.index or 0) != (self.options.kind, self.options.number):
                raise UsageError(f"{name} is on {tensor.device}, the session on {self.options.device}: move it there")
        # Arrays without memory: what is checked are names, dtypes and shapes.
        kinds = {n: np.dtype(str(t.dtype).removeprefix("torch.")) for n, t in tensors.items()}
        self.contract.check({n: np.broadcast_to(np.zeros((), kinds[n]), tuple(t.shape)) for n, t in tensors.items()})
        with self._turn:
            return self.compute_tensors(tensors)

    def compute_tensors(self, tensors: Mapping[str, Any]) -> dict[str, Any]:
        """The forward pass of `run_tensors`, under the same rule as `compute`."""
        raise UnsupportedError(f"runtime {self.backend} takes arrays alone: call run, or use torch or onnxruntime")

    def close(self) -> None:  # noqa: B027 (most backends hold nothing to free)
        """Frees what the backend holds, also where `load` or `prepare` failed halfway."""

    @staticmethod
    def cause(lines: Sequence[str]) -> str:
        """The line of an engine's message that names the cause."""
        return lines[0]

    @property
    def shape(self) -> Bucket:
        """The bucket, or the least of the contract where the session takes any length."""
        return self.contract.buckets[0] if self.bucket is None else self.bucket

    def warm_up(self, batch: int = 1, bucket: Bucket | None = None) -> None:
        """Runs once on zeros, so that the first real call pays no set-up."""
        shape = bucket or self.shape
        arrays = {s.name: np.zeros(s.shape(self.batch or batch, shape), dtype=s.dtype) for s in self.contract.inputs}
        for spec in self.contract.inputs:
            if spec.counts:
                arrays[spec.name][:] = shape[spec.counts]
        self.run(arrays)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self.close()


def check_process(opened_in: int) -> None:
    """Raises UsageError in any other process than the one that opened a model: its threads and locks stayed there."""
    if os.getpid() != opened_in:
        raise UsageError(
            f"this model was opened in process {opened_in} and cannot run in process {os.getpid()}, forked from it: "
            "start workers with multiprocessing.get_context('spawn') and open it there"
        )


def check_ports(artefact: Artefact, found: Ports) -> None:
    """Holds what a file declares against the contract.

    Raises:
        BundleError: names, dtypes or sizes differ; names the first difference.
    """
    contract = artefact.contract
    for specs, ports in ((contract.inputs, found.inputs), (contract.outputs, found.outputs)):
        if ports is None:
            continue
        names = [s.name for s in specs]
        if list(ports) != names:
            raise BundleError(f"{artefact.path} has {list(ports)}, the contract asks for {names}: export again")
        for spec in specs:
            _check_port(artefact, spec, ports[spec.name])


def _check_port(artefact: Artefact, spec: TensorSpec, port: Port) -> None:
    if port.dtype not in (None, spec.dtype):
        raise BundleError(
            f"{artefact.path}: {spec.name} is {port.dtype}, the contract asks for {spec.dtype}: export again"
        )
    if port.dims is None:
        return
    wanted = [_size(d, artefact.bucket or {}, artefact.batch) for d in spec.dims]
    agrees = len(wanted) == len(port.dims) and all(
        w is None or p is None or w == p for w, p in zip(wanted, port.dims, strict=True)
    )
    if not agrees:
        raise BundleError(
            f"{artefact.path}: {spec.name} has dims {list(port.dims)}, the contract asks for {wanted}: export again"
        )


def _size(dim: int | str, lengths: Mapping[str, int], batch: int) -> int | None:
    if isinstance(dim, int):
        return dim
    return (batch or None) if dim == BATCH else lengths.get(dim)
