"""PyTorch exported programs (.pt2), loaded without unpickling anything."""

from __future__ import annotations

import json
import zipfile
from pathlib import Path
from typing import Any

from mer_export.errors import BundleError
from runtimes.backends.backend import Backend
from runtimes.backends.eager import TorchSession
from runtimes.backends.session import Port, Ports

BACKEND = Backend(
    "exported_program",
    "PyTorch exported program",
    f"{__name__}:ExportedProgramSession",
    ("exported_program",),
    rank=30,
    colour="#8f6bb8",
    precisions=("fp32",),
)


class ExportedProgramSession(TorchSession):
    """An ahead-of-time captured graph at its bucket's lengths."""

    backend = "exported_program"
    unreadable = (RuntimeError, ValueError, AssertionError, zipfile.BadZipFile)

    def read(self, path: Path) -> tuple[Any, Ports]:
        refuse_pickles(path)
        program = self._torch.export.load(path)
        return program.module().to(self.options.device), Ports(_inputs(program))


def refuse_pickles(model: Path) -> None:
    """PyTorch unpickles some parts of an archive without limits; files of this toolkit have none of them.

    Raises:
        BundleError: it has pickled weights, constants, objects or example inputs.
        BadZipFile, ValueError: it is not an archive, or not one of an exported program.
    """
    with zipfile.ZipFile(model) as archive:
        for entry in archive.infolist():
            parts = entry.filename.split("/")
            if "sample_inputs" in parts and entry.file_size:
                raise BundleError(f"{model} holds pickled example inputs: export it again with mer export")
            if entry.filename.endswith("_config.json") and _has_pickle(json.loads(archive.read(entry))):
                raise BundleError(f"{model} holds pickled objects: export it again with mer export")


def _has_pickle(value: Any) -> bool:
    if isinstance(value, dict):
        return bool(value.get("use_pickle")) or any(_has_pickle(v) for v in value.values())
    return isinstance(value, list) and any(_has_pickle(v) for v in value)


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
