"""PyTorch eager: the reference that every other runtime is held against, and the base of the other torch backends."""

from __future__ import annotations

from abc import abstractmethod
from pathlib import Path
from typing import Any

import numpy as np

from mer_export.bundle import Bundle
from mer_export.install import not_installed
from runtimes.backends.backend import Backend
from runtimes.backends.cuda_graph import CudaGraphs
from runtimes.backends.session import Ports, Session, SessionOptions

BACKEND = Backend(
    "torch",
    "PyTorch eager, the reference",
    f"{__name__}:EagerSession",
    (),
    rank=10,
    colour="#8a94a3",
    captures=True,
)


class TorchSession(Session):
    """A callable of torch tensors in contract order; subclasses read it."""

    def load(self, path: Path) -> Ports:
        import torch

        torch.backends.mha.set_fastpath_enabled(False)
        # What TF32 gains on a GPU would cost the reference its meaning.
        torch.backends.cuda.matmul.allow_tf32 = False
        torch.backends.cudnn.allow_tf32 = False
        self._torch = torch
        self.module, ports = self.read(path)
        self._call = CudaGraphs(self.module) if self.options.cuda_graph else self.module
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
        if options.device == "cuda" and not torch.cuda.is_available():
            return f"torch {torch.__version__} finds no CUDA device: use --device cpu"
        return None

    @abstractmethod
    def read(self, path: Path) -> tuple[Any, Ports]:
        """The module on the device, and what its file declares."""

    def run(self, inputs: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        torch = self._torch
        # The thread count is torch's global: sessions with other counts may live in one process.
        if self.options.threads and torch.get_num_threads() != self.options.threads:
            torch.set_num_threads(self.options.threads)
        with torch.no_grad():
            tensors = [torch.from_numpy(inputs[s.name]) for s in self.contract.inputs]
            if self.options.device != "cpu":
                tensors = [t.to(self.options.device) for t in tensors]
            found = self._call(*tensors)
        values = found if isinstance(found, tuple) else (found,)
        return {s.name: v.cpu().numpy() for s, v in zip(self.contract.outputs, values, strict=True)}

    def close(self) -> None:
        self.module = self._call = None


class EagerSession(TorchSession):
    """The bundle's own module and weights; takes any batch and any length. Its file is the bundle's directory."""

    backend = "torch"

    def read(self, path: Path) -> tuple[Any, Ports]:
        from mer_export.layers.signature import by_position
        from mer_export.weights import bundle_model

        own = bundle_model(Bundle.open(path)).requires_grad_(False).to(self.options.device)
        return by_position(own, self.contract.inputs), Ports()
