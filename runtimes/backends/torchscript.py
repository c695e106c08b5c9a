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
            module = self._torch.jit.load(str(path), map_location="cpu")
        if self.options.device != "cpu":
            move(module.graph, self.options.device)
        # A traced file keeps the names of its arguments, not their types.
        return module, Ports({a.name: Port() for a in module.forward.schema.arguments[1:]})


def move(graph: Any, device: str) -> None:
    """Moves the constants of a graph that has not run yet: the weights of a frozen module, and devices by name.

    A trace writes down the device of every tensor that it makes, which `map_location` leaves as it is. Constants
    without dims stay on the CPU: sizes are computed from them, and products take them from there on any device.
    """
    import torch

    for node in graph.findAllNodes("prim::Constant"):
        old = node.output()
        value = old.toIValue() if old.type().kind() in ("DeviceObjType", "TensorType") else None
        if value is None or (isinstance(value, torch.Tensor) and not value.dim()):
            continue
        with graph.insert_point_guard(node):
            new = graph.insertConstant(value.to(device) if isinstance(value, torch.Tensor) else torch.device(device))
        old.replaceAllUsesWith(new)
        node.destroy()
