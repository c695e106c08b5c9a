"""PyTorch eager: the reference that every other runtime is held against, and the base of the other torch backends."""

from __future__ import annotations

from abc import abstractmethod
from pathlib import Path
from typing import Any, Self

import numpy as np

from mer_export.bundle import Bundle, Variant
from mer_export.contract import Contract, Lengths
from mer_export.errors import NotAvailableError, UsageError
from runtimes.backends.backend import Backend
from runtimes.backends.cuda_graph import CudaGraphs
from runtimes.backends.session import Session, SessionOptions

BACKEND = Backend("torch", "PyTorch eager, the reference", f"{__name__}:EagerSession", (), rank=10, captures=True)


class TorchSession(Session):
    """A callable of torch tensors in contract order; subclasses load it."""

    def __init__(self, model: Path, contract: Contract, lengths: Lengths | None, batch: int, options: SessionOptions):
        super().__init__(model, contract, lengths, batch, options)
        problem = self.problem(options)
        if problem:
            raise NotAvailableError(problem)
        import torch

        torch.backends.mha.set_fastpath_enabled(False)
        # What TF32 gains on a GPU would cost the reference its meaning.
        torch.backends.cuda.matmul.allow_tf32 = False
        torch.backends.cudnn.allow_tf32 = False
        self._torch = torch
        self.module: Any = self.load(model)
        self._call = CudaGraphs(self.module) if options.cuda_graph else self.module
        self.info |= {
            "torch": torch.__version__,
            "precision": "fp32",
            "threads": options.threads or torch.get_num_threads(),
            "cuda_graph": options.cuda_graph,
        }

    @classmethod
    def problem(cls, options: SessionOptions) -> str | None:
        try:
            import torch
        except ImportError:
            return "torch is not installed: pip install 'mer[export]'"
        if options.device == "cuda" and not torch.cuda.is_available():
            return f"torch {torch.__version__} finds no CUDA device: use --device cpu"
        return None

    @abstractmethod
    def load(self, model: Path) -> Any:
        """The module on the device."""

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
    """The bundle's own module and weights; takes any batch and any length. `model` is the bundle's directory."""

    backend = "torch"

    @classmethod
    def open(cls, bundle: Bundle, variant: Variant | None, options: SessionOptions) -> Self:
        if variant is not None:
            raise UsageError(f"runtime torch runs the weights of the bundle, not variant {variant.name}")
        return cls(bundle.root, bundle.manifest.contract, None, 0, options)

    def load(self, model: Path) -> Any:
        from mer_export.layers.signature import by_position
        from mer_export.weights import bundle_model

        own = bundle_model(Bundle.open(model)).requires_grad_(False).to(self.options.device)
        return by_position(own, self.contract.inputs)
