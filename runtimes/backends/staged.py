"""A variant in stages on any backend: one session per stage, equal inputs answered once, steps as items."""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from mer_export import registry
from mer_export.bundle import Bundle, Variant
from mer_export.stages import Stage, count_name
from runtimes.backends.session import Session, SessionOptions

KEPT = 64
"""Rows whose outputs a repeating stage keeps: a few dialogues, for utterances that come one at a time."""
REUSE = "reuse"
"""Entry of `SessionOptions.extra`; False answers every call anew, equal rows of one call once."""

Arrays = dict[str, np.ndarray]


class StagedSession(Session):
    """Runs the stages in a row. `info["stages"]` says how often each ran, on how many rows, and for how long."""

    backend = "stages"

    def __init__(self, bundle: Bundle, variant: Variant, kind: type[Session], options: SessionOptions):
        super().__init__(bundle.root, bundle.manifest.contract, variant.lengths, variant.batch, options)
        manifest = bundle.manifest
        system = registry.get(manifest.system)
        self.stages = system.stages_of(system.parse(manifest.config))
        bundle.variant_files(variant)
        folder = Path(variant.model).parent.parent
        file = Path(variant.model).name
        self.sessions = {
            s.name: kind(
                bundle.root / folder / s.name / file,
                s.contract(manifest.contract),
                s.lengths(variant.lengths),
                variant.batch,
                own_options(options),
            )
            for s in self.stages
        }
        self.kept: OrderedDict[tuple[bytes, ...], Arrays] = OrderedDict()
        self.seconds: dict[str, Any] = {s.name: {"calls": 0, "rows": 0, "ms": 0.0} for s in self.stages}
        first = self.sessions[self.stages[0].name].info
        self.info |= first | {"backend": kind.backend, "stages": self.seconds, REUSE: self.reuses}

    @property
    def reuses(self) -> bool:
        """Whether outputs are kept from call to call."""
        return bool(self.options.extra.get(REUSE, True))

    def run(self, inputs: Arrays) -> Arrays:
        arrays = dict(inputs)
        for stage in self.stages:
            arrays |= self._run(stage, arrays)
        return {s.name: arrays[s.name] for s in self.contract.outputs}

    def close(self) -> None:
        for session in self.sessions.values():
            session.close()

    def _run(self, stage: Stage, arrays: Mapping[str, np.ndarray]) -> Arrays:
        if stage.per:
            counts = arrays[count_name(self.contract, stage.per)]
            steps = arrays[stage.inputs[0].name].shape[1]
            given = stage.take(arrays, counts)
            found = self._timed(stage, given) if counts.any() else _nothing(stage)
            return stage.put(found, counts, steps)
        given = stage.take(arrays, None)
        return self._distinct(stage, given) if stage.repeats else self._timed(stage, given)

    def _distinct(self, stage: Stage, given: Arrays) -> Arrays:
        """Outputs of all rows, each distinct one computed once, or taken from an earlier call."""
        rows = range(len(next(iter(given.values()))))
        keys = [tuple(a[i].tobytes() for a in given.values()) for i in rows]
        known = self.kept if self.reuses else OrderedDict()
        fresh = {key: i for i, key in reversed(list(enumerate(keys))) if key not in known}
        if fresh:
            places = list(fresh.values())
            found = self._timed(stage, {n: np.ascontiguousarray(a[places]) for n, a in given.items()})
            for at, key in enumerate(fresh):
                known[key] = {n: a[at] for n, a in found.items()}
        outputs = {s.name: np.stack([known[key][s.name] for key in keys]) for s in stage.outputs}
        for key in keys:
            known.move_to_end(key)
        while len(known) > KEPT:
            known.popitem(last=False)
        return outputs

    def _timed(self, stage: Stage, given: Arrays) -> Arrays:
        start = time.perf_counter()
        found = self.sessions[stage.name].run(given)
        spent = self.seconds[stage.name]
        spent["calls"] += 1
        spent["rows"] += len(next(iter(given.values())))
        spent["ms"] = round(spent["ms"] + 1000 * (time.perf_counter() - start), 3)
        return found


def own_options(options: SessionOptions) -> SessionOptions:
    """Options of the backend's own sessions."""
    return replace(options, extra={k: v for k, v in options.extra.items() if k != REUSE})


def _nothing(stage: Stage) -> Arrays:
    """Outputs for no items."""
    return {s.name: np.zeros((0, *(d for d in s.dims[1:] if isinstance(d, int))), s.dtype) for s in stage.outputs}
