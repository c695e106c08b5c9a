"""What a forward pass costs at any shape, from timing a few: the measure that bucket plans are made by."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import combinations, combinations_with_replacement

import numpy as np

from mer_export.bucket import Bucket
from mer_export.bundle import Bundle
from mer_export.data.example_inputs import random_inputs
from runtimes.backends.way import Way, eager, find_ways
from runtimes.predict.plan import Timing
from runtimes.speed.timing import interleave

BATCHES = (1, 4, 16, 64)
"""Batch sizes that are tried."""
QUANTILES = (0.0, 0.3, 0.6, 0.85, 1.0)
"""Where the shapes that are timed lie among the lengths of the data."""
ROUNDS = 3
LONGEST_CALL = 2.0
"""Seconds; a batch size whose call would take longer is not tried."""
ENOUGH = 3
"""Exported buckets from which they are timed instead of eager PyTorch."""

Shape = tuple[int, ...]


@dataclass(frozen=True)
class CostModel:
    """Seconds per call as a polynomial of degree two in the lengths, one for each batch size.

    Coefficients are not negative, so a longer bucket never costs less.
    """

    coefficients: dict[int, np.ndarray]

    def per_item(self, shapes: np.ndarray) -> np.ndarray:
        """Seconds per item, (shapes, batch sizes in ascending order), of shapes (shapes, dims)."""
        terms = _terms(shapes)
        return np.stack([terms @ c / batch for batch, c in sorted(self.coefficients.items())], axis=1)

    @property
    def batches(self) -> tuple[int, ...]:
        return tuple(sorted(self.coefficients))


def fit(shapes: Sequence[Shape], batches: Sequence[int], seconds: Sequence[float]) -> CostModel:
    """Least squares of the relative error over coefficients that are not negative."""
    points, found = np.array(shapes, dtype=float), {}
    sizes, times = np.array(batches), np.array(seconds)
    for batch in sorted(set(batches)):
        own = sizes == batch
        found[int(batch)] = _least_squares(_terms(points[own]) / times[own, None], np.ones(int(own.sum())))
    return CostModel(found)


def measured_ways(bundle: Bundle, format: str, precision: str, threads: int | None) -> list[Way]:
    """What a plan times: the exported buckets of this format and precision where there are enough, else eager.

    They differ by bucket alone, as one cost is fitted to their times.
    """
    groups: dict[Way, list[Way]] = {}
    for way in find_ways(bundle, threads):
        # Of what comes in stages the one that keeps its answers would be timed while it gives them again.
        keeps = way.stages and way.options.reuse
        fits = (way.format, way.precision, way.fixed) == (format, precision, 0)
        if fits and not (way.why_not or way.options.reduced or keeps):
            groups.setdefault(way.in_any_bucket, []).append(way)
    enough = (g for g in groups.values() if len({w.bucket for w in g}) >= ENOUGH)
    return next(enough, [eager(threads)])


def measure(
    bundle: Bundle,
    ways: Sequence[Way],
    shapes: Sequence[Bucket],
    batches: Sequence[int] = BATCHES,
    say: Callable[[str], None] | None = None,
) -> list[Timing]:
    """Times ways to run on random items: eager on `shapes`, exported ones each on its own bucket.

    The largest shape says which batch sizes take too long to be tried; the smallest of `batches` always is.
    """
    contract = bundle.manifest.contract
    with contextlib.ExitStack() as stack:
        sessions = [stack.enter_context(way.open(bundle)) for way in ways]
        runs = [(bucket, s) for s in sessions for bucket in (shapes if s.bucket is None else [s.bucket])]
        slowest = max(runs, key=lambda run: run[0])
        calls: dict[tuple[int, int], Callable[[], object]] = {}
        for batch in sorted(batches):
            arrays = random_inputs(contract, slowest[0], batch)
            (turns,) = interleave({"": partial(slowest[1].run, arrays)}, rounds=1).values()
            if batch > min(batches) and min(map(min, turns.wall)) > LONGEST_CALL:
                break
            for place, (bucket, session) in enumerate(runs):
                calls[place, batch] = partial(session.run, random_inputs(contract, bucket, batch))
        if say:
            say(f"timing {len(calls)} shapes with {ways[0].runtime} {ways[0].format}")
        turns_of = interleave({f"{p} {b}": call for (p, b), call in calls.items()}, ROUNDS)
    return [
        # The least disturbed call: a busy machine only ever adds.
        Timing(lengths=runs[p][0], batch=b, ms=1000 * min(map(min, turns_of[f"{p} {b}"].wall)))
        for p, b in calls
    ]


def representative(lengths: np.ndarray) -> list[Shape]:
    """Shapes worth timing for items of these lengths (items, dims): along all dims together, then each on its own."""
    along = np.quantile(lengths, QUANTILES, axis=0, method="higher").astype(int)
    shapes = [tuple(row) for row in along.tolist()]
    middle = along[len(along) // 2]
    for dim in range(lengths.shape[1] if lengths.shape[1] > 1 else 0):
        for end in (along[0], along[-1]):
            shape = middle.copy()
            shape[dim] = end[dim]
            shapes.append(tuple(shape.tolist()))
    return list(dict.fromkeys(shapes))


def _terms(shapes: np.ndarray) -> np.ndarray:
    """1, each length, each product of two."""
    points = np.asarray(shapes, dtype=float)
    dims = range(points.shape[1])
    products = [points[:, a] * points[:, b] for a, b in combinations_with_replacement(dims, 2)]
    return np.stack([np.ones(len(points)), *(points[:, d] for d in dims), *products], axis=1)


def _least_squares(matrix: np.ndarray, target: np.ndarray) -> np.ndarray:
    """Least squares under coefficients >= 0: the best of all choices of columns whose own solution keeps that.

    There are at most ten columns (three dims), and no more are taken than there are rows.
    """
    columns = matrix.shape[1]
    best, least = np.zeros(columns), np.inf
    for size in range(1, min(columns, len(matrix)) + 1):
        for chosen in map(list, combinations(range(columns), size)):
            solution, *_ = np.linalg.lstsq(matrix[:, chosen], target, rcond=None)
            error = float(np.square(matrix[:, chosen] @ solution - target).sum())
            # A column more must earn its place, or noise would shape the plan.
            if (solution >= 0).all() and error < 0.9 * least:
                best, least = np.zeros(columns), error
                best[chosen] = solution
    return best
