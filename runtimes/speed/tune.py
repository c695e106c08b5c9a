"""Times every way to answer on this machine: variants, runtimes, threads, sessions side by side, batch sizes."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np

from mer_export import machine
from mer_export.bucket import Bucket, bucket_for
from mer_export.bundle import Bundle
from mer_export.contract import Contract
from mer_export.data.samples import Sample, readable
from mer_export.errors import UnsupportedError, UsageError
from mer_export.progress import SILENT, Progress
from runtimes.backends.session import Session
from runtimes.backends.session_pool import Crew
from runtimes.backends.table import known_backends
from runtimes.backends.way import Way, find_ways, in_memory, why_broken
from runtimes.predict.machine_profile import Entry, Profile, machine_class, scores
from runtimes.speed import encoder_bench
from runtimes.speed.cases import Arrays, case_inputs, fitting_samples
from runtimes.speed.products import products, slower
from runtimes.speed.timing import Call, interleave

BATCHES = (1, 4, 16)
PASSES, ROUNDS = 3, 3
"""Everything is timed in the first pass, what may turn out best in the others too, some time later each: what disturbs
the machine for a while shall not decide."""
NEAR = 2.2
"""Times the best up to which a way may turn out best: two threads that got one core in a whole pass are within."""
LONGEST_CALL = 2.0
"""Seconds; larger batches of a way whose call takes longer are left out."""

Shares = Mapping[tuple[Way, Bucket], float]
"""The part of the data that goes to a bucket, of what answers it together and is not spread over threads yet."""


@dataclass
class Timed:
    """A way to run, where its share of the data stands, and the milliseconds of its calls in each pass."""

    way: Way
    place: tuple[Way, Bucket]
    ms: list[np.ndarray] = field(default_factory=list)


def run_tune(
    bundle: Bundle,
    samples: Sequence[Sample] | None = None,
    source: str = "random values, all buckets alike",
    batches: Sequence[int] = BATCHES,
    precisions: Sequence[str] | None = None,
    progress: Progress = SILENT,
) -> Profile:
    """Times all exported variants and gives the profile of this machine. What breaks is named in its `not_run`.

    Args:
        bundle: opened bundle.
        samples: data whose lengths say how much each bucket counts; None counts all alike, on random values.
        source: what the data is called in the profile.
        batches: sizes to try where a variant takes any.
        precisions: only answers in these.
        progress: shows each bucket in each pass as it is timed.

    Raises:
        UsageError: nothing exported that runs here, or no sample fits.
        UnsupportedError: everything that was exported breaks.
    """
    measured, contract = products(), bundle.manifest.contract
    ways, left_out = _worth(_ways(bundle, precisions), measured if precisions is None else {})
    shares, buckets = _shares(ways, contract, samples), _buckets(ways)
    timed: dict[Way, Timed] = {}
    broken: dict[Way, Exception] = {}
    profile = _profile(bundle, source, [], shares, broken)
    with progress.over("tune", PASSES * len(buckets), "bucket") as shown:
        for number in range(PASSES):
            wanted = _near(profile) if number else None
            for bucket in buckets:
                here = [w for w in ways if w.bucket == bucket]
                shown.begin(f"{bucket.name}: {len(here)} ways to run, pass {number + 1} of {PASSES}")
                fitting = fitting_samples(samples, contract, bucket, buckets) if samples else []
                if samples and not fitting:
                    continue
                inputs = partial(_arrays, contract, bucket, fitting)
                for group in in_memory(bundle, here, sessions=sum(workers for _, workers in _parallel())):
                    for plain, way, seconds in _time(bundle, group, inputs, batches, wanted, broken):
                        timed.setdefault(way, Timed(way, (plain.in_any_bucket, bucket))).ms.append(1000 * seconds)
            sound = [t for way, t in timed.items() if way not in broken]
            if broken and not sound:
                way, error = next(iter(broken.items()))
                raise UnsupportedError(f"nothing that was exported runs here: {way.name}: {why_broken(error)}")
            # What a broken variant would have answered goes to the next bucket.
            places = {t.place for t in sound}
            shares = _shares([w for w in ways if (w.in_any_bucket, w.bucket) in places], contract, samples)
            profile = _profile(bundle, source, sound, shares, broken)
    for name, encoder in encoder_bench.chosen(bundle):
        rows = encoder_bench.time_encoder(name, encoder, known_backends(), batches, ROUNDS, None, profile.not_run)
        profile.encoders += rows
    return profile.model_copy(update={"products": measured, "not_run": [*left_out, *profile.not_run]})


def preview(
    bundle: Bundle, samples: Sequence[Sample] | None, batches: Sequence[int], precisions: Sequence[str] | None
) -> dict[str, Any]:
    """What `run_tune` would do, without running anything; raises as it does."""
    ways, contract = _ways(bundle, precisions), bundle.manifest.contract
    shares, buckets = _shares(ways, contract, samples), {}
    for bucket in _buckets(ways):
        here = [w for w in ways if w.bucket == bucket]
        settings = [w for way in here for t, n in _parallel() for w in _spread(way, batches, t, n)]
        part = max(shares[w.in_any_bucket, bucket] for w in here)
        names = [w.name for w in here]
        buckets[bucket.name] = {"part of the data": f"{part:.0%}", "ways": names, "settings": len(settings)}
    spread = [f"{threads} threads, {workers} sessions" for threads, workers in _parallel()]
    found = {"passes": PASSES, "rounds": ROUNDS, "spread": spread, "batches": list(batches)}
    return {"machine": machine_class(), **found, "buckets": buckets}


def _profile(
    bundle: Bundle, source: str, timed: Iterable[Timed], shares: Shares, broken: Mapping[Way, Exception]
) -> Profile:
    return Profile(
        machine=machine_class(),
        weights_sha256=bundle.manifest.weights.sha256,
        source=source,
        entries=[_entry(bundle, t, shares) for t in timed],
        load_average=machine.load_average(),
        not_run=[
            *((f"{way.variant}: {way.description}", why_broken(error)) for way, error in broken.items()),
        ],
    )


def _near(profile: Profile) -> set[Way]:
    """The ways, in any bucket, that may turn out best, for one item at a time or for many."""
    found = scores(profile)
    least = min((s.way.options.batch for s in found), default=0)
    single = [s for s in found if s.way.options.batch == least and s.way.workers == 1]
    near = {s.way for s in single if s.call_ms <= NEAR * min(o.call_ms for o in single)}
    return near | {s.way for s in found if s.item_ms <= NEAR * min(o.item_ms for o in found)}


def _time(
    bundle: Bundle,
    ways: Sequence[Way],
    inputs: Callable[[int], Arrays],
    batches: Sequence[int],
    wanted: set[Way] | None,
    broken: dict[Way, Exception],
) -> list[tuple[Way, Way, np.ndarray]]:
    """(way, the same spread over threads, seconds of its calls) of ways for one bucket, interleaved.

    Only what is `wanted`, in any bucket, where that is given. What breaks goes into `broken`.
    """
    calls: dict[str, Call] = {}
    found: dict[str, tuple[Way, Way]] = {}
    failed: dict[str, Exception] = {}
    with contextlib.ExitStack() as stack:
        for way in ways:
            for threads, workers in _parallel():
                spread = list(_spread(way, batches, threads, workers))
                spread = [w for w in spread if w not in broken and (wanted is None or w.in_any_bucket in wanted)]
                if not spread:
                    continue
                # The same arrays come again and again: what stages keep would be all of the answer.
                opened = way.having(threads=threads, reuse=False)
                try:
                    crew = stack.enter_context(Crew(partial(opened.open, bundle), workers))
                except Exception as error:
                    broken |= dict.fromkeys(spread, error)
                    continue
                for own in spread:
                    name = f"{own.name} {own.description}"
                    call = partial(_all, crew, inputs(own.options.batch), workers)
                    first = interleave({name: call}, rounds=1, pause=0, broken=failed)
                    found[name] = (way, own)
                    if name in failed:
                        continue
                    calls[name] = call
                    if min(map(min, first[name].wall)) > LONGEST_CALL:
                        break
        turns = interleave(calls, ROUNDS, broken=failed)
    broken |= {found[name][1]: error for name, error in failed.items()}
    return [(*found[name], np.concatenate(own.wall)) for name, own in turns.items()]


def _entry(bundle: Bundle, timed: Timed, shares: Shares) -> Entry:
    ms = np.concatenate(timed.ms)
    return Entry(
        way=timed.way,
        sha256=bundle.manifest.files[bundle.find(str(timed.way.variant)).model].sha256,
        ms=float(np.quantile(ms, 0.25)),
        p90=float(np.quantile(ms, 0.9)),
        share=shares[timed.place],
        rounds=ROUNDS * len(timed.ms),
    )


def _all(crew: Crew, arrays: Arrays, workers: int) -> None:
    """One call of every worker at once."""
    for _ in crew.map(_run, [arrays] * workers):
        pass


def _run(session: Session, arrays: Arrays) -> object:
    return session.run(arrays)


def _arrays(contract: Contract, bucket: Bucket, samples: Sequence[Sample], batch: int) -> Arrays:
    return case_inputs(contract, bucket, batch, samples)[0]


def _spread(way: Way, batches: Sequence[int], threads: int, workers: int) -> Iterator[Way]:
    """The way on so many threads and workers, in every batch size."""
    if way.options.on_gpu and (threads, workers) != (1, 1):
        return
    for batch in [way.fixed] if way.fixed else sorted(batches):
        yield way.having(threads=threads, batch=batch).model_copy(update={"workers": workers})


def _parallel() -> list[tuple[int, int]]:
    """(threads of a session, sessions side by side): one thread, half and all cores, and one session per core."""
    cores = int(machine.describe()["cores"])
    return [(n, 1) for n in sorted({1, max(1, cores // 2), cores})] + ([(1, cores)] if cores > 1 else [])


def _ways(bundle: Bundle, precisions: Sequence[str] | None) -> list[Way]:
    found = [w for w in find_ways(bundle) if w.why_not is None and w.variant and w.options.reuse]
    chosen = [w for w in found if precisions is None or w.precision in precisions]
    if not chosen:
        there = sorted({w.precision for w in found})
        wanted = f" in {', '.join(precisions)}, there is {there}" if precisions and there else ""
        raise UsageError(f"{bundle.root} has no exported variant that runs here{wanted}: run mer export first")
    return chosen


def _worth(ways: Sequence[Way], measured: dict[str, float]) -> tuple[list[Way], list[tuple[str, str]]]:
    """The ways without those in a precision that the processor does not multiply faster in, and (way, reason) of these.

    Where nothing else is there, all.
    """
    reasons = {way: reason for way in ways if (reason := slower(measured, way.options.reduced))}
    kept = [way for way in ways if way not in reasons]
    return (kept, [(way.name, reason) for way, reason in reasons.items()]) if kept else (list(ways), [])


def _buckets(ways: Sequence[Way]) -> list[Bucket]:
    return sorted({w.bucket for w in ways if w.bucket is not None})


def _shares(ways: Sequence[Way], contract: Contract, samples: Sequence[Sample] | None) -> Shares:
    """The part of the items that goes to each bucket of what answers together; without data each bucket is one item.

    Items that fit no bucket at all count for none; of ways that lack a long bucket the parts do not add up.
    """
    buckets = _buckets(ways)
    real = readable(samples or (), contract)
    items: list[Mapping[str, int]] = [s.lengths(contract) for s in real] if samples else [*buckets]
    items = [n for n in items if bucket_for(n, buckets) is not None]
    if not items:
        raise UsageError("no sample fits a bucket of this bundle: export a longer one or leave --data out")
    shares: dict[tuple[Way, Bucket], float] = {}
    for together in dict.fromkeys(w.in_any_bucket for w in ways):
        own = _buckets([w for w in ways if w.in_any_bucket == together])
        shares |= {(together, b): 0.0 for b in own}
        for bucket in (bucket_for(n, own) for n in items):
            if bucket is not None:
                shares[together, bucket] += 1 / len(items)
    return shares
