"""A network in stages that are exported apart, so that a runtime need not run each of them for every item.

Needs no torch. A system with stages gives their list; its network gives a module for each, under the same name.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from mer_export.bucket import Bucket
from mer_export.contract import BATCH, Contract, TensorSpec

PAST = "past_"


@dataclass(frozen=True)
class Stage:
    """One part of a network.

    Its inputs are inputs of the network or outputs of stages before it. With `per` it runs on the real steps of that
    sequence dim as items of their own; its specs are those of one step. `repeats` says that the same inputs often come
    again, in the next item or the next call, so that their outputs are kept.

    A stage that `grows` goes on along that sequence dim by one step, in place of the whole before it: it gives the same
    outputs for the one step, so that the dim is 1 in them and in the inputs that it shares. Its inputs `past_NAME` are
    those outputs of all steps ahead, which the count counts.
    """

    name: str
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    per: str | None = None
    repeats: bool = False
    grows: str | None = None

    @property
    def past(self) -> dict[str, str]:
        """The inputs of a stage that grows that are outputs of the steps ahead, and which."""
        return {s.name: s.name.removeprefix(PAST) for s in self.inputs if s.name.startswith(PAST)}

    def contract(self, whole: Contract) -> Contract:
        """The stage's own contract."""
        dims = {d for s in (*self.inputs, *self.outputs) for d in s.dims if isinstance(d, str) and d != BATCH}
        return Contract(
            inputs=self.inputs,
            outputs=self.outputs,
            buckets=tuple(b.only(dims) for b in whole.buckets),
            longest={d: n for d, n in whole.longest.items() if d in dims},
        )

    def bucket(self, whole: Bucket) -> Bucket:
        """The stage's part of a bucket."""
        return whole.only(d for s in self.inputs for d in s.dims if isinstance(d, str))

    def take(self, arrays: Mapping[str, np.ndarray], counts: np.ndarray | None) -> dict[str, np.ndarray]:
        """The stage's inputs; with `per` the first `counts` (items) steps of each item, as items."""
        found = {s.name: arrays[s.name] for s in self.inputs}
        if counts is None:
            return found
        real = np.arange(next(iter(found.values())).shape[1]) < counts[:, None]
        return {n: np.ascontiguousarray(a[real]) for n, a in found.items()}

    def follow(self, whole: Contract, arrays: Mapping[str, np.ndarray], at: np.ndarray) -> dict[str, np.ndarray]:
        """The inputs of a stage that grows for step `at` of each item; `arrays` have those `past` already."""
        found = {}
        for spec in self.inputs:
            if spec.counts:
                found[spec.name] = at
            elif spec.name in self.past:
                found[spec.name] = arrays[spec.name]
            else:
                axis = axis_of(next(s for s in whole.inputs if s.name == spec.name), str(self.grows))
                rows = zip(arrays[spec.name], at, strict=True)
                found[spec.name] = np.stack([row.take([step], axis - 1) for row, step in rows])
        return found

    def put(self, outputs: Mapping[str, np.ndarray], counts: np.ndarray, steps: int) -> dict[str, np.ndarray]:
        """Outputs of steps back in their places (items, steps, ...), zeros elsewhere."""
        real = np.arange(steps) < counts[:, None]
        found = {}
        for name, values in outputs.items():
            found[name] = np.zeros((*real.shape, *values.shape[1:]), dtype=values.dtype)
            found[name][real] = values
        return found


def axis_of(spec: TensorSpec, dim: str) -> int:
    """Where a tensor has a sequence dim."""
    return spec.dims.index(dim)


def count_name(contract: Contract, dim: str) -> str:
    """The input that counts the real steps of a sequence dim."""
    return next(s.name for s in contract.inputs if s.counts == dim)
