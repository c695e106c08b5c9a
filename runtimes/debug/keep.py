"""Which modules to leave in fp32, and what each of them costs."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from statistics import median
from typing import NamedTuple

from mer_export.errors import MerError
from mer_export.exporters import precision
from mer_export.exporters.export_job import ExportJob
from mer_export.registry import resolve
from runtimes.backends.session import Artefact, Session
from runtimes.backends.table import find_backend
from runtimes.backends.way import Way
from runtimes.debug.modules import NOISE, ModuleRow
from runtimes.debug.report import KeptModule
from runtimes.debug.values import Arrays

LONGEST = 6
"""Entries of a block list at most."""
ENOUGH = 0.5
"""Part of the tolerance that a file may take, so that other samples have room."""
CALLS = 15
"""Calls whose median is the time of a file."""


class Measured(NamedTuple):
    """A file: its bytes, milliseconds of a call, and the part of the tolerance that its outputs take."""

    bytes: int
    ms: float
    used: float


def ranked(rows: Sequence[ModuleRow]) -> list[str]:
    """Modules that round, by what their own error makes of the outputs, most first."""
    costly = [r for r in rows if r.own > NOISE["fp32"]]
    return [r.module for r in sorted(costly, key=lambda r: (-(r.alone or 0.0), -r.own))]


def block_list(
    job: ExportJob,
    way: Way,
    artefact: Artefact,
    rows: Sequence[ModuleRow],
    inputs: Arrays,
    score: Callable[[Arrays], float],
    folder: Path,
) -> list[KeptModule]:
    """Modules to keep in fp32 so that half of the tolerance is left, or as much as the costliest ones give.

    They come in, the costliest first, until that is so; then each goes again without which the file is as good: a
    module without any product, or one that cost only by what another made. Nothing where no list helps.
    """
    assert job.graph is not None, "a reduced precision is made from an fp32 file"
    reference, tried = job.graph.path, dict[tuple[str, ...], Measured | None]()

    def measured(*modules: str) -> Measured | None:
        """What a file is that keeps these; None for modules that the file does not name, or the last reduced ones."""
        if modules not in tried:
            path = folder / f"keep{len(tried)}" / "model.onnx"
            path.parent.mkdir()
            try:
                precision.write(replace(job, keep_fp32=[*job.keep_fp32, *modules]), reference, path, gated=False)
                tried[modules] = _measured(replace(artefact, path=path), way, inputs, score)
            except MerError:
                tried[modules] = None
            shutil.rmtree(path.parent)
        return tried[modules]

    began = best = _measured(artefact, way, inputs, score)
    kept: tuple[str, ...] = ()
    for module in ranked(rows):
        if best.used <= ENOUGH or len(kept) == LONGEST:
            break
        if found := measured(*kept, module):
            kept, best = (*kept, module), found
    for module in kept[-2::-1]:
        fewer = tuple(m for m in kept if m != module)
        if (found := measured(*fewer)) and found.used <= max(ENOUGH, best.used):
            kept, best = fewer, found
    if best.used >= began.used:
        return []
    made = [began, *(m for k in range(len(kept)) if (m := measured(*kept[: k + 1])))]
    return [
        KeptModule(module=module, more_bytes=b.bytes - a.bytes, more_ms=b.ms - a.ms, used=b.used)
        for module, (a, b) in zip(kept, pairwise(made), strict=True)
    ]


def call_ms(call: Callable[[], object]) -> float:
    """Milliseconds of a call: the median of some, after one to warm up."""
    call()
    seconds = []
    for _ in range(CALLS):
        start = time.perf_counter()
        call()
        seconds.append(time.perf_counter() - start)
    return 1e3 * median(seconds)


def file_bytes(path: Path) -> int:
    """Bytes of an ONNX file with the weights beside it."""
    return sum(p.stat().st_size for p in {path, *path.parent.glob("*.weights")})


def _measured(artefact: Artefact, way: Way, inputs: Arrays, score: Callable[[Arrays], float]) -> Measured:
    kind: type[Session] = resolve(find_backend(way.backend).session)
    with kind(artefact, way.options) as session:
        feed = dict(inputs)
        return Measured(file_bytes(artefact.path), call_ms(lambda: session.run(feed)), score(session.run(feed)))
