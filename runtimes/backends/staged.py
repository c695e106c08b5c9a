"""A variant in stages on any backend: one session per stage, equal inputs answered once, steps as items."""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from hashlib import blake2b
from pathlib import Path
from typing import Any

import numpy as np

from mer_export.stages import Stage, count_name
from runtimes.backends.session import Artefact, Ports, Session, SessionOptions

KEPT_BYTES = 256 << 20
"""Outputs that each repeating stage keeps: of some dialogues, for utterances that come one at a time."""

Arrays = dict[str, np.ndarray]


class StagedSession(Session):
    """Runs the stages in a row, one call at a time, as calls share what is kept.

    `info["stages"]` says how often each ran, on how many rows, and for how long.
    """

    backend = "stages"

    def __init__(self, artefact: Artefact, options: SessionOptions, kind: type[Session], stages: Sequence[Stage]):
        self.kind, self.stages = kind, stages
        super().__init__(artefact, options)

    def load(self, path: Path) -> Ports:
        """Opens a session for each stage, which holds its own file against its own contract; `path` is the last one."""
        options = replace(self.options, streams=1)
        self.sessions: dict[str, Session] = {}
        for stage in self.stages:
            # One by one: of those that are open `close` knows when a later one fails.
            self.sessions[stage.name] = self.kind(self._part(stage, path), options)
        self.kept = {s.name: Kept(KEPT_BYTES) for s in self.stages if s.repeats and self.options.reuse}
        self.seconds: dict[str, Any] = {s.name: {"calls": 0, "rows": 0, "ms": 0.0} for s in self.stages}
        first = self.sessions[self.stages[0].name].info
        self.info |= first | {"stages": self.seconds, "reuse": self.options.reuse}
        return Ports()

    def _part(self, stage: Stage, path: Path) -> Artefact:
        return replace(
            self.artefact,
            path=path.parent.parent / stage.name / path.name,
            contract=stage.contract(self.contract),
            bucket=stage.bucket(self.shape),
        )

    def compute(self, inputs: Arrays) -> Arrays:
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
            found = self._answered(stage, given) if counts.any() else _nothing(stage)
            return stage.put(found, counts, steps)
        return self._answered(stage, stage.take(arrays, None))

    def _answered(self, stage: Stage, given: Arrays) -> Arrays:
        return self._distinct(stage, given) if stage.repeats else self._timed(stage, given)

    def _distinct(self, stage: Stage, given: Arrays) -> Arrays:
        """Outputs of all rows, each distinct one computed once, or taken from an earlier call."""
        rows = range(len(next(iter(given.values()))))
        keys = [_mark(a[i] for a in given.values()) for i in rows]
        kept = self.kept.get(stage.name)
        known = {key: own for key in keys if kept is not None and (own := kept.get(key)) is not None}
        fresh = {key: i for i, key in reversed(list(enumerate(keys))) if key not in known}
        if fresh:
            places = list(fresh.values())
            found = self._timed(stage, {n: np.ascontiguousarray(a[places]) for n, a in given.items()})
            for at, key in enumerate(fresh):
                known[key] = {n: a[at] for n, a in found.items()}
                if kept is not None:
                    # A copy: a row of an array would keep all of it.
                    kept.put(key, {n: a[at].copy() for n, a in found.items()})
        return {s.name: np.stack([known[key][s.name] for key in keys]) for s in stage.outputs}

    def _timed(self, stage: Stage, given: Arrays) -> Arrays:
        start = time.perf_counter()
        found = self.sessions[stage.name].run(given)
        spent = self.seconds[stage.name]
        spent["calls"] += 1
        spent["rows"] += len(next(iter(given.values())))
        spent["ms"] = round(spent["ms"] + 1000 * (time.perf_counter() - start), 3)
        return found


class Kept:
    """Outputs of rows by what came in, those that were not asked for longest leave first."""

    def __init__(self, most_bytes: int):
        self.most_bytes, self.nbytes = most_bytes, 0
        self._rows: OrderedDict[bytes, Arrays] = OrderedDict()

    def get(self, key: bytes) -> Arrays | None:
        """The outputs of a row; None where they are not kept."""
        if key in self._rows:
            self._rows.move_to_end(key)
        return self._rows.get(key)

    def put(self, key: bytes, outputs: Arrays) -> None:
        """Keeps the outputs of a row, in place of those that it had."""
        self.nbytes -= _bytes(self._rows.pop(key, {}))
        self._rows[key] = outputs
        self.nbytes += _bytes(outputs)
        while self.nbytes > self.most_bytes:
            self.nbytes -= _bytes(self._rows.popitem(last=False)[1])


def _bytes(outputs: Arrays) -> int:
    return sum(a.nbytes for a in outputs.values())


def _mark(row: Iterable[np.ndarray]) -> bytes:
    """What tells rows apart: the inputs themselves may be large, such as pictures."""
    mark = blake2b(digest_size=20)
    for array in row:
        mark.update(np.ascontiguousarray(array).data)
    return mark.digest()


def _nothing(stage: Stage) -> Arrays:
    """Outputs for no items."""
    return {s.name: np.zeros((0, *(d for d in s.dims[1:] if isinstance(d, int))), s.dtype) for s in stage.outputs}
