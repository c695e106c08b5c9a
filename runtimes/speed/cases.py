"""What is timed together: ways that are loaded side by side, and the padded arrays that all of them get."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Mapping, Sequence

import numpy as np

from mer_export.bucket import Bucket, bucket_for
from mer_export.bundle import Bundle
from mer_export.contract import Contract
from mer_export.data.collate import collate
from mer_export.data.example_inputs import random_inputs
from mer_export.data.samples import Sample, readable
from runtimes.backends.session import Session
from runtimes.backends.way import Way
from runtimes.speed.timing import Call, WarmUp, warm_up

Arrays = dict[str, np.ndarray]


def load(
    bundle: Bundle,
    ways: Sequence[Way],
    stack: contextlib.ExitStack,
    arrays: Arrays,
    broken: dict[str, Exception],
) -> dict[str, tuple[Way, Session, float, Arrays]]:
    """Sessions by the name of their way, with the seconds that loading took; what fails goes into `broken`."""
    entries: dict[str, tuple[Way, Session, float, Arrays]] = {}
    for way in ways:
        start = time.perf_counter()
        try:
            session = stack.enter_context(way.open(bundle))
        except Exception as error:
            broken[way.name] = error
        else:
            entries[way.name] = (way, session, time.perf_counter() - start, arrays)
    return entries


def warm_all(calls: Mapping[str, Call], broken: dict[str, Exception]) -> dict[str, WarmUp]:
    """Calls everything until it is warm; what fails goes into `broken`."""
    warmed: dict[str, WarmUp] = {}
    for name, call in calls.items():
        try:
            warmed[name] = warm_up(call)
        except Exception as error:
            broken[name] = error
    return warmed


def call(session: Session, arrays: Arrays) -> Callable[[], object]:
    """One call, to be timed."""
    return lambda: session.run(arrays)


def case_inputs(
    contract: Contract, bucket: Bucket, batch: int, samples: Sequence[Sample]
) -> tuple[Arrays, Arrays | None]:
    """The case's arrays padded to the bucket, and padded to the longest item only where that is shorter."""
    if not samples:
        arrays = random_inputs(contract, bucket, batch)
        return arrays, _tightened(arrays, contract, bucket)
    # Evenly over the lengths that occur, so that one item is the median one.
    places = np.linspace(0, len(samples) - 1, batch + 2)[1:-1].round().astype(int)
    picked = [samples[i] for i in places]
    arrays = collate(picked, contract, bucket)
    return arrays, _tightened(arrays, contract, bucket)


def real_lengths(arrays: Arrays, contract: Contract) -> dict[str, list[int]]:
    """The real length of each item along the dims that are counted, or whose padding tells."""
    found = {s.counts: arrays[s.name].tolist() for s in contract.inputs if s.counts}
    told = {
        str(s.dims[1]): (arrays[s.name] != s.padding).sum(1).tolist() for s in contract.inputs if s.padding is not None
    }
    return found | told


def _tightened(arrays: Arrays, contract: Contract, bucket: Bucket) -> Arrays | None:
    longest = {d: max(1, *real) for d, real in real_lengths(arrays, contract).items()}
    if all(longest.get(d, n) == n for d, n in bucket.items()):
        return None
    cut = {}
    for spec in contract.inputs:
        index = tuple(slice(longest.get(d)) if isinstance(d, str) else slice(None) for d in spec.dims)
        cut[spec.name] = np.ascontiguousarray(arrays[spec.name][index])
    return cut


def fitting_samples(
    samples: Sequence[Sample], contract: Contract, bucket: Bucket, buckets: Sequence[Bucket]
) -> list[Sample]:
    """Samples that are routed to this bucket, by length; those of shorter buckets where there is none."""
    real = sorted(
        ((s.lengths(contract), s) for s in readable(samples, contract)), key=lambda pair: tuple(pair[0].values())
    )
    held = [(own, s) for own, s in real if bucket.holds(own)]
    routed = [s for own, s in held if bucket_for(own, buckets) == bucket]
    return routed or [s for _, s in held]
