"""TorchScript files in PyTorch."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from mer_export.errors import BundleError
from runtimes.backends.backend import Backend
from runtimes.backends.eager import TorchSession

BACKEND = Backend(
    "torchscript", "TorchScript", f"{__name__}:TorchScriptSession", ("torchscript",), rank=20, precisions=("fp32",)
)


class TorchScriptSession(TorchSession):
    """A traced and frozen module at its bucket's lengths."""

    backend = "torchscript"

    def load(self, model: Path) -> Any:
        from mer_export.exporters.torchscript import quiet

        try:
            with quiet():
                module = self._torch.jit.load(str(model), map_location=self.options.device)
        except RuntimeError as error:
            raise BundleError(f"{model} is no TorchScript file: {str(error).splitlines()[0]}") from None
        names = [a.name for a in module.forward.schema.arguments][1:]
        wanted = [s.name for s in self.contract.inputs]
        if names != wanted:
            raise BundleError(f"{model} takes {names}, the contract asks for {wanted}: export again")
        return module
