"""TorchScript files in PyTorch."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from runtimes.backends.backend import Backend
from runtimes.backends.eager import ON_GPU, TorchSession
from runtimes.backends.session import Port, Ports

BACKEND = Backend(
    "torchscript",
    "TorchScript",
    f"{__name__}:TorchScriptSession",
    ("torchscript",),
    rank=20,
    colour="#d08c2f",
    precisions=("fp32",),
    reduces=ON_GPU,
    captures=True,
)


class TorchScriptSession(TorchSession):
    """A traced and frozen module at its bucket's lengths."""

    backend = "torchscript"
    unreadable = (RuntimeError,)

    def read(self, path: Path) -> tuple[Any, Ports]:
        from mer_export.exporters.torchscript import quiet

        with quiet():
            module = self._torch.jit.load(str(path), map_location=self.options.device)
        # A traced file keeps the names of its arguments, not their types.
        return module, Ports({a.name: Port() for a in module.forward.schema.arguments[1:]})
