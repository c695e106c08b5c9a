"""A variant that grows on any backend: of a dialogue that goes on, only what is new is computed.

Its first stage takes whole items; the second one takes one step more, where all steps ahead were answered before. They
are told by what came in, so nothing has to say which dialogue goes on, and one that was corrected begins where it
differs.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from hashlib import blake2b
from pathlib import Path

import numpy as np

from mer_export.stages import axis_of, count_name
from runtimes.backends.session import Ports
from runtimes.backends.staged import KEPT_BYTES, Arrays, Kept, StagedSession


class GrowingSession(StagedSession):
    """Keeps the outputs of every step under all that was given up to it."""

    def load(self, path: Path) -> Ports:
        ports = super().load(path)
        self.forget()
        return ports

    def forget(self) -> None:
        """Knows of no dialogue any more."""
        self.steps = Kept(KEPT_BYTES if self.options.reuse else 0)

    def compute(self, inputs: Arrays) -> Arrays:
        counts = inputs[count_name(self.contract, self.dim)]
        marks = [list(self._marks(inputs, item, count)) for item, count in enumerate(counts.tolist())]
        rows = [self._known(own) for own in marks]
        missing = np.array([len(own) - len(found) for own, found in zip(marks, rows, strict=True)])
        self._begin(inputs, np.flatnonzero(missing > 1), marks, rows)
        self._go_on(inputs, np.flatnonzero(missing == 1), marks, rows)
        return {s.name: self._joined(s.name, rows, inputs) for s in self.contract.outputs}

    @property
    def dim(self) -> str:
        """The sequence dim that grows."""
        return str(self.stages[-1].grows)

    def _begin(self, inputs: Arrays, items: np.ndarray, marks: Sequence[list[bytes]], rows: list[list[Arrays]]) -> None:
        """Answers items as a whole."""
        if not len(items):
            return
        found = self._timed(self.stages[0], {n: a[items] for n, a in inputs.items()})
        for row, item in enumerate(items):
            rows[item] = [
                self._keep(mark, {n: a[row, step] for n, a in found.items()}) for step, mark in enumerate(marks[item])
            ]

    def _go_on(self, inputs: Arrays, items: np.ndarray, marks: Sequence[list[bytes]], rows: list[list[Arrays]]) -> None:
        """Answers the last step of items whose others are known."""
        if not len(items):
            return
        stage = self.stages[-1]
        bucket, specs = stage.bucket(self.shape), {s.name: s for s in stage.inputs}
        past = {own: np.zeros(specs[own].shape(len(items), bucket), specs[own].dtype) for own in stage.past}
        for own, output in stage.past.items():
            for row, item in enumerate(items):
                for step, known in enumerate(rows[item]):
                    past[own][row, step] = known[output]
        ahead = np.array([len(rows[item]) for item in items])
        found = self._timed(stage, stage.follow(self.contract, {n: a[items] for n, a in inputs.items()} | past, ahead))
        for row, item in enumerate(items):
            rows[item].append(self._keep(marks[item][-1], {n: a[row, 0] for n, a in found.items()}))

    def _known(self, marks: Sequence[bytes]) -> list[Arrays]:
        """What is kept of the first steps."""
        found: list[Arrays] = []
        for mark in marks:
            if (row := self.steps.get(mark)) is None:
                break
            found.append(row)
        return found

    def _keep(self, mark: bytes, outputs: Arrays) -> Arrays:
        # Copies: a row of an array would keep all of it.
        own = {n: a.copy() for n, a in outputs.items()}
        self.steps.put(mark, own)
        return own

    def _marks(self, inputs: Arrays, item: int, count: int) -> Iterator[bytes]:
        """What tells each step and all that were given before it from others."""
        given = [np.moveaxis(inputs[s.name][item], axis_of(s, self.dim) - 1, 0) for s in self.contract.features]
        mark = blake2b(digest_size=20)
        for step in range(count):
            for array in given:
                mark.update(np.ascontiguousarray(array[step]).data)
            yield mark.digest()

    def _joined(self, name: str, rows: Sequence[list[Arrays]], inputs: Arrays) -> np.ndarray:
        spec = next(s for s in self.contract.outputs if s.name == name)
        joined = np.zeros(spec.shape(len(rows), self.shape), spec.dtype)
        for item, own in enumerate(rows):
            for step, row in enumerate(own):
                joined[item, step] = row[name]
        return joined
