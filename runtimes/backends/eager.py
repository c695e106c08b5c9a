"""PyTorch eager: the reference that every other runtime is held against, and the base of the other torch backends."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from threading import RLock
from typing import Any

import numpy as np

from mer_export.bundle import WEIGHTS, Bundle
from mer_export.cuda import tf32
from mer_export.errors import BundleError
from mer_export.install import not_installed
from runtimes.backends.backend import Backend
from runtimes.backends.cuda_graph import CudaGraphs
from runtimes.backends.session import Ports, Reduced, Session, SessionOptions
from runtimes.backends.staging import Staging

ON_GPU: Mapping[str, tuple[Reduced, ...]] = {"cuda": ("tf32", "bf16", "fp16")}
"""What PyTorch makes of fp32 weights on a GPU: products in TF32, or autocast."""

BACKEND = Backend(
    "torch",
    "PyTorch eager, the reference",
    f"{__name__}:EagerSession",
    (),
    rank=10,
    colour="#8a94a3",
    precisions=("fp32",),
    reduces=ON_GPU,
    captures=True,
    offers=(SessionOptions(), *(SessionOptions(device="cuda", reduced=p) for p in (None, *ON_GPU["cuda"]))),
)


_SWITCHES = RLock()
"""Threads of several sessions would put back each other's switches in the middle of a call."""


class TorchSession(Session):
    """A callable of torch tensors in contract order; subclasses read it."""

    def load(self, path: Path) -> Ports:
        import torch

        torch.backends.mha.set_fastpath_enabled(False)
        self._torch = torch
        self.module, ports = self.read(path)
        self._call = CudaGraphs(self.module) if self.options.cuda_graph else self.module
        self._staging = Staging(self.options.device) if self.options.on_gpu else None
        self.info |= {
            "torch": torch.__version__,
            "threads": self.options.threads or torch.get_num_threads(),
            "cuda_graph": self.options.cuda_graph,
        }
        return ports

    @classmethod
    def problem(cls, options: SessionOptions) -> str | None:
        try:
            import torch
        except ImportError:
            return not_installed("torch", "export")
        found = torch.cuda.device_count() if options.on_gpu else 1
        if found == 0:
            return f"torch {torch.__version__} finds no CUDA device: use --device cpu"
        if options.number >= found:
            return f"no device {options.device}, torch {torch.__version__} finds {found}: cuda:0 to cuda:{found - 1}"
        return None

    @abstractmethod
    def read(self, path: Path) -> tuple[Any, Ports]:
        """The module on the device, and what its file declares."""

    def compute(self, inputs: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        torch = self._torch
        # The thread count is torch's global: sessions with other counts may live in one process.
        if self.options.threads and torch.get_num_threads() != self.options.threads:
            torch.set_num_threads(self.options.threads)
        arrays = [inputs[s.name] for s in self.contract.inputs]
        with torch.no_grad(), computing_in(self.options):
            if self._staging is None:
                values = [v.numpy() for v in self._outputs([torch.from_numpy(a) for a in arrays])]
            else:
                values = self._staging.fetch(self._outputs(self._staging.send(arrays)))
        return {s.name: v for s, v in zip(self.contract.outputs, values, strict=True)}

    def compute_tensors(self, tensors: Mapping[str, Any]) -> dict[str, Any]:
        """Those of the module, floats as float32."""
        with self._torch.no_grad(), computing_in(self.options):
            given = [tensors[s.name] for s in self.contract.inputs]
            if self.options.cuda_graph:
                # A captured graph keeps the tensors that it reads from and writes to, and its next run fills them anew.
                kept = [v.clone() for v in self._outputs([t.clone() for t in given])]
            else:
                kept = list(self._outputs(given))
        outputs = zip(self.contract.outputs, kept, strict=True)
        return {s.name: v.float() if v.is_floating_point() else v for s, v in outputs}

    def _outputs(self, tensors: Sequence[Any]) -> Sequence[Any]:
        found = self._call(*tensors)
        return found if isinstance(found, tuple | list) else (found,)

    def close(self) -> None:
        self.module = self._call = self._staging = None


@contextmanager
def computing_in(options: SessionOptions) -> Iterator[None]:
    """On the device and in what `options.reduced` says, inside the block; without it fp32 means fp32, also on a GPU.

    Streams, graphs and compiled kernels are those of the device that is current, whichever one their tensors are on.

    The switches for TF32 are PyTorch's globals: sessions in several precisions may live in one process. Those on a CPU,
    of which the switches say nothing, leave them alone.
    """
    import torch

    from mer_export.layers.autocast import AUTOCAST

    with ExitStack() as inside:
        if options.on_gpu:
            inside.enter_context(_SWITCHES)
            inside.enter_context(torch.cuda.device(options.number))
            inside.enter_context(tf32(options.reduced == "tf32"))
        if options.reduced in AUTOCAST:
            inside.enter_context(torch.autocast(options.kind, AUTOCAST[options.reduced]))
        yield


class EagerSession(TorchSession):
    """The bundle's own module and weights; takes any batch and any length. Its file is the bundle's directory."""

    backend = "torch"

    def read(self, path: Path) -> tuple[Any, Ports]:
        from mer_export.layers.autocast import AUTOCAST, store_products
        from mer_export.layers.signature import by_position
        from mer_export.weights import bundle_model

        there = Bundle.open(path)
        if there.manifest.weights.sha256 != self.artefact.digest:
            raise BundleError(f"{path}: {WEIGHTS} was replaced since this bundle was opened: open it again")
        own = bundle_model(there).requires_grad_(False)
        if self.options.reduced in AUTOCAST:
            store_products(own, self.options.reduced)
        own = own.to(self.options.device)
        return by_position(own, self.contract.inputs), Ports()
