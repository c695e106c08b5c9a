"""AOTInductor packages: machine code that PyTorch compiled, loaded where somebody vouches for it (see `admission`)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from mer_export.errors import UsageError
from runtimes.backends.backend import Backend
from runtimes.backends.eager import TorchSession
from runtimes.backends.session import Ports

BACKEND = Backend(
    "aot_inductor",
    "AOTInductor package in PyTorch",
    f"{__name__}:AotInductorSession",
    ("aot_inductor",),
    rank=35,
    colour="#b5537a",
    precisions=("fp32", "bf16"),
    captures=True,
    bound=True,
)


class AotInductorSession(TorchSession):
    """A compiled network at its bucket's lengths."""

    backend = "aot_inductor"
    unreadable = (RuntimeError, OSError)

    def read(self, path: Path) -> tuple[Any, Ports]:
        from torch._inductor import aoti_load_package

        made_for = self.artefact.options.get("device", "cpu")
        if made_for != self.options.kind:
            raise UsageError(
                f"{path} was compiled for {made_for} and does not run on {self.options.kind}: "
                f"run mer export --format aot_inductor --device {self.options.kind}"
            )
        number = self.options.number if self.options.on_gpu else -1
        # Its own locks forbid a captured graph, and sessions take their calls one at a time.
        return aoti_load_package(str(path), run_single_threaded=True, device_index=number), Ports()
