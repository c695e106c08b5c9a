"""The settings that a variant on a runtime is tuned over, and which of those measured may turn out best."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from mer_export import machine
from runtimes.backends.way import Way
from runtimes.predict.machine_profile import Profile, Score, scores

GAIN = 1.1
"""Times as many items per second from which on larger batches are worth trying; less is what timing varies by."""
LONG_MS = 20.0
"""Milliseconds of a call with the least batch from which on that is asked. Shorter ones cost little to time, and on a
busy machine they end between two disturbances, which a larger batch does not."""


def parallel() -> list[tuple[int, int]]:
    """(threads of a session, sessions side by side): one thread, half and all cores, and one session per core."""
    cores = machine.cores()
    return [(n, 1) for n in sorted({1, max(1, cores // 2), cores})] + ([(1, cores)] if cores > 1 else [])


def settings_of(way: Way, batches: Sequence[int]) -> Iterator[Way]:
    """The way, in any bucket, on so many threads and workers, in every batch size; sessions one after the other."""
    for threads, workers in parallel():
        if way.options.on_gpu and (threads, workers) != (1, 1):
            continue
        for batch in [way.fixed] if way.fixed else sorted(batches):
            own = way.in_any_bucket.having(threads=threads, batch=batch)
            yield own.model_copy(update={"workers": workers})


def first_look(settings: Sequence[Way]) -> list[Way]:
    """One thread with the least and the largest batch, and all cores with the least."""
    single = [w for w in settings if w.workers == 1]
    most = max(w.options.threads or 0 for w in single)
    sizes = [w.options.batch for w in single]
    looked = {(1, min(sizes)), (1, max(sizes)), (most, min(sizes))}
    return [w for w in single if (w.options.threads, w.options.batch) in looked]


def worth_widening(profile: Profile, settings: Sequence[Way]) -> list[Way]:
    """All settings of a way, or those with the least batch where a first look found larger ones no faster an item."""
    looked = [s for s in scores(profile) if s.way in settings and s.way.workers == 1 and s.way.options.threads == 1]
    by_size = sorted(looked, key=lambda s: s.way.options.batch)
    least = by_size[0] if by_size else None
    if least is None or least.call_ms < LONG_MS or min(s.item_ms for s in by_size) < least.item_ms / GAIN:
        return list(settings)
    return [w for w in settings if w.options.batch == least.way.options.batch]


def crews(settings: Sequence[Way]) -> Iterator[list[Way]]:
    """Settings that the same sessions run: those of the same threads and workers."""
    alike: dict[tuple[Any, ...], list[Way]] = {}
    for way in settings:
        alike.setdefault((way.options.threads, way.workers), []).append(way)
    yield from alike.values()


def fastest(profile: Profile) -> set[Way]:
    """Of each precision the way, in any bucket, that answers one item soonest."""
    least = min((s.way.options.batch for s in scores(profile)), default=0)
    single = [s for s in scores(profile) if s.way.options.batch == least and s.way.workers == 1]
    return {s.way for s in {s.way.precision: s for s in sorted(single, key=lambda s: -s.call_ms)}.values()}


def near_best(profile: Profile, factor: float) -> set[Way]:
    """The ways, in any bucket, that may turn out best of their precision, for one item at a time or for many."""
    found: dict[str, list[Score]] = {}
    for score in scores(profile):
        found.setdefault(score.way.precision, []).append(score)
    return {way for own in found.values() for way in _near(own, factor)}


def _near(found: Sequence[Score], factor: float) -> set[Way]:
    least = min(s.way.options.batch for s in found)
    single = [s for s in found if s.way.options.batch == least and s.way.workers == 1]
    near = {s.way for s in single if s.call_ms <= factor * min(o.call_ms for o in single)}
    return near | {s.way for s in found if s.item_ms <= factor * min(o.item_ms for o in found)}
