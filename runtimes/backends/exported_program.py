"""PyTorch exported programs (.pt2), loaded after they were held against a table (see `admission`)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from runtimes.backends.backend import Backend
from runtimes.backends.eager import ON_GPU, TorchSession
from runtimes.backends.session import Port, Ports

BACKEND = Backend(
    "exported_program",
    "PyTorch exported program",
    f"{__name__}:ExportedProgramSession",
    ("exported_program",),
    rank=30,
    colour="#8f6bb8",
    precisions=("fp32",),
    reduces=ON_GPU,
    captures=True,
)


class ExportedProgramSession(TorchSession):
    """An ahead-of-time captured graph at its bucket's lengths."""

    backend = "exported_program"
    # Its reader is Python that a file makes stumble over anything.
    unreadable = (Exception,)

    def read(self, path: Path) -> tuple[Any, Ports]:
        program = self._torch.export.load(path)
        if self.options.device != "cpu":
            from torch.export.passes import move_to_device_pass

            # Its nodes name the device that it was exported on.
            program = move_to_device_pass(program, self.options.device)
        return program.module(), Ports(_inputs(program))


def _inputs(program: Any) -> dict[str, Port]:
    """What the program declares, in the order of its inputs."""
    values = {n.name: n.meta["val"] for n in program.graph.nodes if n.op == "placeholder"}
    return {
        name: Port(
            str(values[name].dtype).removeprefix("torch."),
            tuple(d if isinstance(d, int) else None for d in values[name].shape),
        )
        for name in program.graph_signature.user_inputs
    }
