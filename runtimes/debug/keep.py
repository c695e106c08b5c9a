"""Which modules to leave in fp32, and what each of them costs."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from statistics import median

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
CALLS = 15
"""Calls whose median is the time of a file."""


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
    """Modules to keep in fp32, until what remains is half of the tolerance; each entry is tried with those before it.

    An entry without which the file is as good is left out, such as a module without any product.
    """
    assert job.graph is not None, "a reduced precision is made from an fp32 file"
    size, ms, used = _measured(artefact, way, inputs, score)
    kept: list[KeptModule] = []
    for module in ranked(rows):
        if used <= 0.5 or len(kept) == LONGEST:
            break
        path = folder / f"keep{len(kept)}" / "model.onnx"
        path.parent.mkdir(exist_ok=True)
        trial = replace(job, keep_fp32=[*job.keep_fp32, *(k.module for k in kept), module])
        try:
            precision.write(trial, job.graph.path, path, gated=False)
            found = _measured(replace(artefact, path=path), way, inputs, score)
        except MerError:
            # A module that the file does not name, or the last that could be reduced.
            continue
        if found[2] < used:
            kept.append(KeptModule(module=module, more_bytes=found[0] - size, more_ms=found[1] - ms, used=found[2]))
            size, ms, used = found
    return kept


def call_ms(call: Callable[[], object]) -> float:
    """Milliseconds of a call: the median of some, after one to warm up."""
    call()
    seconds = []
    for _ in range(CALLS):
        start = time.perf_counter()
        call()
        seconds.append(time.perf_counter() - start)
    return 1e3 * median(seconds)


def _measured(
    artefact: Artefact, way: Way, inputs: Arrays, score: Callable[[Arrays], float]
) -> tuple[int, float, float]:
    """Bytes of a file, milliseconds of a call, and the part of the tolerance that its outputs take."""
    kind: type[Session] = resolve(find_backend(way.backend).session)
    size = sum(p.stat().st_size for p in {artefact.path, *artefact.path.parent.glob("*.weights")})
    with kind(artefact, way.options) as session:
        feed = dict(inputs)
        return size, call_ms(lambda: session.run(feed)), score(session.run(feed))
