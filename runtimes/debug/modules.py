"""From two recordings of the values between modules to the module that makes the first error."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import TypeVar

import numpy as np

from mer_export.bundle import Strict
from runtimes.debug.values import HELD, Arrays, Shelf, Side, Value, distance

NOISE = {"fp32": 3e-5, "tf32": 3e-3, "fp16": 5e-3, "bf16": 3e-2, "int8": 1e-1}
"""Error over size that a module may add by itself, by precision: sums in another order, or its rounding."""
TRIED = 16
"""How many modules, those with the largest errors, are tried one by one."""
T = TypeVar("T")
SHARE = 0.1
"""Part of the whole error from which on a module is to blame for it."""


class ModuleRow(Strict):
    """One module, in the order of their first values. Errors are over the size of a value, the largest of all values
    of the module.

    `entering` is the error of what it reads, `error` that of what it gives, `growth` one over the other; `own` is the
    error of what it gives when all it reads is exact. `alone` is the part of the tolerance that the outputs take when
    that is the only error in an exact network, None where it was not tried.
    """

    module: str
    values: int
    entering: float
    error: float
    growth: float | None
    own: float
    alone: float | None = None


def compare_modules(
    side: Side, inputs: Arrays, reference: Shelf, exact: Shelf, score: Callable[[Arrays], float]
) -> tuple[list[ModuleRow], float]:
    """A row per module that makes values which `reference` knows; puts these, as made of exact ones, on `exact`.

    One run reads off, or is given, about as many bytes as a shelf holds.

    Returns:
        The rows, and the least score that outputs had while values were read off.
    """
    values = [v for v in side.values if v.name in reference]
    free: dict[str, float] = {}
    own: dict[str, float] = {}
    scores = []
    for part in _parts(values, lambda v: reference.sizes[v.name]):
        found = side.run(inputs, [v.name for v in part])
        free |= _errors(reference, found, [v.name for v in part])
        scores.append(score(found))
    modules = list(dict.fromkeys(v.module for v in values))
    sizes = {m: sum(reference.sizes[v.name] for v in values if m == v.module or m in v.readers) for m in modules}
    for some in _parts(modules, sizes.__getitem__):
        makers, readers = {*some}, {*some, *side.loose}
        names = [v.name for v in values if v.module in makers]
        made = side.run(inputs, names, {v.name: reference[v.name] for v in values if v.readers & readers})
        own |= (errors := _errors(reference, made, names))
        for name in errors:
            exact.put(name, _like(made[name], reference[name]))
    return [_row(module, values, free, own) for module in modules], min(scores, default=0.0)


def _parts(things: Sequence[T], size: Callable[[T], int]) -> Iterator[list[T]]:
    """All of them in order, as many at a time as take `HELD`, at least one."""
    part: list[T] = []
    taken = 0
    for thing in things:
        if part and taken + size(thing) > HELD:
            yield part
            part, taken = [], 0
        part.append(thing)
        taken += size(thing)
    if part:
        yield part


def _like(found: np.ndarray, reference: np.ndarray) -> np.ndarray:
    with np.errstate(invalid="ignore"):
        return np.asarray(found).reshape(reference.shape).astype(reference.dtype)


def _errors(reference: Arrays, found: Arrays, names: Sequence[str]) -> dict[str, float]:
    # A value of another size has its name from something else: runtimes fold what only changes shapes.
    return {n: distance(reference[n], found[n]) for n in names if np.size(reference[n]) == np.size(found[n])}


def _row(module: str, values: Sequence[Value], free: dict[str, float], own: dict[str, float]) -> ModuleRow:
    made = [v.name for v in values if v.module == module]
    entering = max((free.get(v.name, 0.0) for v in values if module in v.readers), default=0.0)
    error = max((free.get(name, 0.0) for name in made), default=0.0)
    return ModuleRow(
        module=module,
        values=len(made),
        entering=entering,
        error=error,
        growth=error / entering if entering else None,
        own=max((own.get(name, 0.0) for name in made), default=0.0),
    )


def blame(
    side: Side,
    exact: Side,
    inputs: Arrays,
    own: Arrays,
    rows: Sequence[ModuleRow],
    precision: str,
    score: Callable[[Arrays], float],
) -> ModuleRow | None:
    """The first module that makes more than noise and by that alone a part of the error that the outputs have.

    In a reduced precision, where every module rounds, and where none is beyond noise, it is the one that makes most of
    it. Notes in the rows what each makes alone.

    Args:
        side: the candidate.
        exact: the reference, into which the values of one module at a time are put.
        inputs: of the sample.
        own: values of the candidate as made of exact ones.
        rows: what is known of the modules.
        precision: what the candidate computes in.
        score: the part of the tolerance that outputs take.
    """
    tried = sorted((r for r in rows if r.own), key=lambda r: -r.own)[:TRIED]
    for row in tried:
        row.alone = score(
            exact.run(
                inputs, given={v.name: own[v.name] for v in side.values if v.module == row.module and v.name in own}
            )
        )
    most = max(tried, key=lambda r: r.alone or 0.0, default=None)
    if most is None or precision != "fp32":
        return most
    loud = [r for r in rows if r.own > NOISE[precision] and (r.alone or 0.0) > SHARE * (most.alone or 0.0)]
    return loud[0] if loud else most
