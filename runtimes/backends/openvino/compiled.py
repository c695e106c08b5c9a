"""Compiled models kept from one start to the next: rewriting, rounding and the plugin's own passes are done once.

A kept model is what the plugin writes (`export_model`): a graph and its weights, which it reads only in the version and
on the processor that wrote them. It is kept as engines are (`Kept`), so that one which another user laid there, or
which is damaged, is as good as absent.
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

from mer_export import machine
from runtimes.backends.session import Artefact

log = logging.getLogger("mer")

LARGEST = 256 << 20
"""Bytes of weights up to which a model is kept: reading and checking more takes as long as compiling them."""


class CompiledModels:
    """The compiled models of one file by batch size. Threads are no part of a kept model: they are set when it is read.

    `settings` are the plugin's others, which say what the file is computed in.
    """

    def __init__(self, core: Any, artefact: Artefact, settings: Mapping[str, str]):
        self._core, self._kept = core, artefact.kept if artefact.digest else None
        self._made_of = [artefact.digest, artefact.path.parent.name, artefact.path.name, *_made_by(), *settings.items()]

    def read(self, size: int, settings: Mapping[str, Any]) -> Any | None:
        """The model for a batch size; None where none is kept that loads."""
        name = self._name(size)
        content = self._kept.read(name) if self._kept else None
        if content is None:
            return None
        try:
            return self._core.import_model(content, "CPU", settings)
        except RuntimeError as error:
            log.info("%s is compiled anew, as it does not load: %s", name, (str(error).splitlines() or [""])[-1])
            return None

    def keep(self, size: int, graph: Any, compiled: Any) -> None:
        """Keeps what was compiled of a graph for a batch size, where that pays and can be."""
        if self._kept is None or _bytes(graph) > LARGEST:
            return
        content = compiled.export_model()
        self._kept.write(self._name(size), content if isinstance(content, bytes) else content.getvalue())

    def _name(self, size: int) -> str:
        said = json.dumps([*self._made_of, size])
        return f"openvino-{hashlib.sha256(said.encode()).hexdigest()[:32]}"


def _bytes(graph: Any) -> int:
    return sum(n.get_byte_size() for n in graph.get_ordered_ops() if n.get_type_name() == "Constant")


@cache
def _made_by() -> tuple[str, ...]:
    """What else a compiled model depends on: plugin, processor, and how files are rewritten here."""
    import openvino

    sources = sorted(Path(__file__).parent.glob("*.py"))
    ours = hashlib.sha256(b"".join(p.read_bytes() for p in sources)).hexdigest()
    return openvino.get_version(), machine.cpu_model(), ours
