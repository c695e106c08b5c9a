"""Times every way to answer on this machine: variants, runtimes, threads, sessions side by side, batch sizes.

By successive halving: a first look at every variant on every runtime, then every setting of what came near the best of
its precision, then again and again what may still turn out best, until all passes are done or the time is over.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache, partial
from typing import Any, NamedTuple

import numpy as np

from mer_export import machine
from mer_export.bucket import Bucket
from mer_export.bundle import Bundle
from mer_export.contract import Contract
from mer_export.data.samples import Sample
from mer_export.errors import UnsupportedError, UsageError
from mer_export.progress import SILENT, Progress
from runtimes.backends.session import Session
from runtimes.backends.session_pool import Crew
from runtimes.backends.table import known_backends
from runtimes.backends.way import Way, find_ways, in_memory, why_broken
from runtimes.predict.machine_profile import Entry, Profile, machine_class, scores
from runtimes.speed import encoder_bench, settings
from runtimes.speed.cases import Arrays, case_inputs, fitting_samples
from runtimes.speed.encoder_bench import LATE
from runtimes.speed.products import products, slower
from runtimes.speed.settings import crews, fastest, first_look, near_best, settings_of, worth_widening
from runtimes.speed.shares import Shares, buckets_of, counted, shares_of
from runtimes.speed.timing import MACHINE, Call, Clock, Deadline, Turns, interleave, turn_seconds

BATCHES = (1, 4, 16)
MINUTES = 2.0
RANDOM = "random values, all buckets alike"
"""What a profile says of data where none was given."""


class Pass(NamedTuple):
    """How often settings are timed, and which: those near the best of their precision so far, and with `widen` every
    setting of a variant on a runtime of which one is near."""

    rounds: int
    near: float
    """Times the best."""
    widen: bool = False


PASSES = (Pass(1, float("inf")), Pass(2, 3.0, widen=True), Pass(3, 2.2), Pass(3, 1.6))
"""Some time lies between two passes, and sessions are loaded anew: what disturbs the machine for a while shall not
decide. Two threads that got one core in a whole pass are within 2.2."""
FIRST_LOOK = 0.6
"""Part of the time that the first look may take, shared out evenly to the buckets: what is best so far comes first."""
LONGEST_CALL = 2.0
"""Seconds that a call may be expected to take; larger batches of a way are left out."""
FUSION = 0.5
"""Part of the time that is for the bundle's own variants where it takes encoders along."""

FAR = "far from the best of its precision at a first look"
NO_GAIN = "larger batches took as long an item at a first look"
LONG = f"a call would take over {LONGEST_CALL:g} s"


@dataclass
class Timed:
    """A way to run, where its share of the data stands, and the milliseconds of its calls in each pass."""

    way: Way
    place: tuple[Way, Bucket]
    ms: list[np.ndarray] = field(default_factory=list)
    rounds: int = 0


def run_tune(
    bundle: Bundle,
    samples: Sequence[Sample] | None = None,
    source: str = RANDOM,
    batches: Sequence[int] = BATCHES,
    precisions: Sequence[str] | None = None,
    minutes: float = MINUTES,
    progress: Progress = SILENT,
    clock: Clock = MACHINE,
) -> Profile:
    """Times what was exported and gives the profile of this machine. What breaks or is left out is in its `not_run`.

    Args:
        bundle: opened bundle.
        samples: data whose lengths say how much each bucket counts; None counts all alike, on random values.
        source: what the data is called in the profile.
        batches: sizes to try where a variant takes any.
        precisions: only answers in these.
        minutes: how long it may take, with the opening of sessions. Past it ends the session that is being opened, and
            what is best has a first look in every bucket.
        progress: shows each bucket in each pass as it is timed, and the time left.
        clock: where the time that is left comes from.

    Raises:
        UsageError: nothing exported that runs here, or no sample fits.
        UnsupportedError: everything that was exported breaks.
    """
    encoders, whole = encoder_bench.chosen(bundle), Deadline(60 * minutes, clock)
    measured = products()
    ways, left_out = _worth(_ways(bundle, precisions), measured if precisions is None else {})
    own = Deadline(60 * minutes * FUSION, clock) if encoders else whole
    tuning = Tuning(bundle, samples, source, sorted(batches), ways, own)
    tuning.run(progress)
    profile = tuning.profile()
    for name, encoder in encoders:
        backends = known_backends()
        last = PASSES[-1].rounds
        rows = encoder_bench.time_encoder(name, encoder, backends, batches, last, None, profile.not_run, whole)
        profile.encoders += rows
    return profile.model_copy(update={"products": measured, "not_run": [*left_out, *profile.not_run]})


class Tuning:
    """What was timed so far, what broke, and why the rest was left out."""

    def __init__(
        self,
        bundle: Bundle,
        samples: Sequence[Sample] | None,
        source: str,
        batches: Sequence[int],
        ways: Sequence[Way],
        deadline: Deadline,
    ):
        self.bundle, self.samples, self.source, self.batches = bundle, samples, source, batches
        self.ways, self.deadline = ways, deadline
        self.contract = bundle.manifest.contract
        self.items = counted(self.contract, samples)
        self.shares, self.buckets = shares_of(ways, self.items), buckets_of(ways)
        self.fitting = cache(partial(fitting_samples, samples or (), self.contract, buckets=self.buckets))
        self.timed: dict[Way, Timed] = {}
        self.broken: dict[Way, Exception] = {}
        self.left_out: dict[Way, str] = {}
        self._broken_in: set[tuple[Way, Bucket]] = set()
        self._took: dict[Way, float] = {}
        self._say: Callable[[str], None] = SILENT.note

    def run(self, progress: Progress) -> None:
        """All passes, or as many as there is time for."""
        with progress.over("tune", len(PASSES) * len(self.buckets), "bucket") as shown:
            for number, step in enumerate(PASSES):
                wanted = self._wanted(number)
                for done, bucket in enumerate(self.buckets):
                    here = [w for w in self.ways if w.bucket == bucket]
                    if number and self.deadline.over:
                        wanted = {}
                    text = f"pass {number + 1} of {len(PASSES)}, {self.deadline.text}"
                    shown.begin(f"{bucket.name}: {_count(here, wanted)} settings, {text}")
                    self._say = partial(_note, shown, bucket, text)
                    if number == 0 or (step.widen and not self.deadline.over):
                        self._leave_out(here, wanted, first=number == 0)
                    if number == 0:
                        self._look(bucket, here, wanted, step.rounds, done)
                    else:
                        self._time_bucket(bucket, here, wanted, step.rounds, self.deadline, ())
                if self.broken and not self._sound():
                    way, error = next(iter(self.broken.items()))
                    raise UnsupportedError(f"nothing that was exported runs here: {way.name}: {why_broken(error)}")

    def _look(self, bucket: Bucket, ways: Sequence[Way], wanted: Wanted, rounds: int, done: int) -> None:
        """A first look at a bucket, `done` others were looked at before: what was best in those first, late or not."""
        until = self.deadline.part(FIRST_LOOK * (done + 1) / len(self.buckets))
        if not self._sound():
            order = {p: [w for w in ways if w.precision == p].index for p in {w.precision for w in ways}}
            by_turns = sorted(ways, key=lambda w: order[w.precision](w))
            return self._time_bucket(bucket, by_turns, wanted, rounds, until, None)
        profile = self.profile(self.buckets[:done])
        item_ms = {s.way: s.item_ms for s in scores(profile)}
        ordered = sorted(ways, key=lambda w: min(item_ms.get(own, np.inf) for own in wanted[w.in_any_bucket]))
        return self._time_bucket(bucket, ordered, wanted, rounds, until, fastest(profile))

    def profile(self, buckets: Sequence[Bucket] | None = None) -> Profile:
        """What was measured; of some buckets alone as if there were no others."""
        sound = self._sound()
        # What a broken variant would have answered goes to the next bucket.
        gone = self._broken_in - {t.place for t in sound}
        held = [w for w in self.ways if (w.in_any_bucket, w.bucket) not in gone]
        if buckets is not None:
            held = [w for w in held if w.bucket in buckets]
        shares = shares_of(held, self.items)
        left = {w: why for w, why in self.left_out.items() if w not in self.timed and w not in self.broken}
        return Profile(
            machine=machine_class(),
            weights_sha256=self.bundle.manifest.weights.sha256,
            source=self.source,
            entries=[_entry(self.bundle, t, shares) for t in sound if t.place in shares],
            load_average=machine.load_average(),
            not_run=[
                *((f"{way.variant}: {way.description}", why_broken(error)) for way, error in self.broken.items()),
                *((f"{way.variant}: {way.description}", why) for way, why in left.items()),
            ],
        )

    def _sound(self) -> list[Timed]:
        return [t for way, t in self.timed.items() if way not in self.broken]

    def _wanted(self, number: int) -> Wanted:
        """The settings of each way, in any bucket, that a pass times."""
        step = PASSES[number]
        every = {w.in_any_bucket: list(settings_of(w, self.batches)) for w in self.ways}
        if number == 0:
            return {plain: first_look(own) for plain, own in every.items()}
        profile = self.profile()
        near = near_best(profile, step.near)
        if step.widen:
            wide = {plain: own for plain, own in every.items() if near.intersection(own)}
            return {plain: worth_widening(profile, own) for plain, own in wide.items()}
        return {plain: [w for w in own if w in near] for plain, own in every.items()}

    def _time_bucket(
        self,
        bucket: Bucket,
        ways: Sequence[Way],
        wanted: Wanted,
        rounds: int,
        until: Deadline,
        needed: Collection[Way] | None,
    ) -> None:
        """Times the wanted settings of ways for a bucket, interleaved as far as memory goes and the time.

        The settings that are `needed` are timed past the deadline too; None needs one of each precision.
        """
        fitting = self.fitting(bucket) if self.samples else []
        if self.samples and not fitting:
            return
        some = [w for w in ways if wanted.get(w.in_any_bucket)]
        inputs = partial(_arrays, self.contract, bucket, fitting)
        for group in in_memory(self.bundle, some, sessions=sum(workers for _, workers in settings.parallel())):
            for plain, way, turns in self._time(group, inputs, wanted, rounds, until, needed):
                own = self.timed.setdefault(way, Timed(way, (plain.in_any_bucket, bucket)))
                own.ms.append(1000 * np.concatenate(turns.wall))
                own.rounds += len(turns.wall)

    def _time(
        self,
        ways: Sequence[Way],
        inputs: Callable[[int], Arrays],
        wanted: Wanted,
        rounds: int,
        until: Deadline,
        needed: Collection[Way] | None,
    ) -> list[tuple[Way, Way, Turns]]:
        """(way, one of its settings, its calls) of ways for one bucket, interleaved."""
        calls: dict[str, tuple[Call, float]] = {}
        looked: dict[str, float] = {}
        """Calls so long that a first look has no need of another."""
        found: dict[str, tuple[Way, Way]] = {}
        failed: dict[str, Exception] = {}
        with contextlib.ExitStack() as stack:
            numbered = [(n, way, own) for way in ways for n, own in enumerate(crews(wanted[way.in_any_bucket]))]
            # Every way once, before any of them on other threads.
            for _, way, together in sorted(numbered, key=lambda one: one[0]):
                spread = [own for own in (_in(way, w) for w in together) if own not in self.broken]
                # What is open already is yet to be timed; this one takes what it, or another one, took before.
                took = self._took.get(way, max(self._took.values(), default=0.0))
                turns_to_come = sum(turn_seconds(s) for name, (_, s) in calls.items() if name not in looked)
                if until.left <= turns_to_come + took:
                    spread = self._late(spread, needed, {found[name][1].precision for name in calls})
                if spread:
                    opened = self._open(way, spread, inputs, stack, found, failed)
                    calls |= opened
                    looked |= {n: s for n, (_, s) in opened.items() if rounds == 1 and s > LONGEST_CALL}
            yet = {name: call for name, (call, _) in calls.items() if name not in looked}
            ran = {name: seconds for name, (_, seconds) in calls.items()}
            turns = interleave(yet, rounds, clock=self.deadline.clock, broken=failed, until=until, ran=ran)
            turns |= {name: Turns([[seconds]]) for name, seconds in looked.items()}
        for name, error in failed.items():
            self._breaks(*found[name], error)
        return [(*found[name], own) for name, own in turns.items()]

    def _late(self, spread: list[Way], needed: Collection[Way] | None, opened: Collection[str]) -> list[Way]:
        """Those that are timed all the same, now that the time is over; notes why the others are not."""
        if needed is None:
            there = {*opened, *(t.way.precision for t in self._sound())}
            kept = [own for own in spread[:1] if own.precision not in there]
        else:
            kept = [own for own in spread if own.in_any_bucket in needed]
        self.left_out |= {own: LATE for own in spread if own not in kept}
        return kept

    def _open(
        self,
        way: Way,
        spread: Sequence[Way],
        inputs: Callable[[int], Arrays],
        stack: contextlib.ExitStack,
        found: dict[str, tuple[Way, Way]],
        failed: dict[str, Exception],
    ) -> dict[str, tuple[Call, float]]:
        """Calls of settings that differ in their batch alone and run in the same sessions, as far as they end in time.

        Each has run before it is given back, with the seconds that it took.
        """
        calls: dict[str, tuple[Call, float]] = {}
        workers = spread[0].workers
        self._say(spread[0].description)
        # The same arrays come again and again: what stages keep would be all of the answer.
        opened = spread[0].having(reuse=False)

        def open_one(streams: int) -> Session:
            return opened.having(streams=streams).open(self.bundle)

        began = self.deadline.clock.wall()
        try:
            crew = stack.enter_context(Crew(open_one, workers))
        except Exception as error:
            for own in spread:
                self._breaks(way, own, error)
            return {}
        item_s = 0.0
        for own in spread:
            batch = own.options.batch
            if item_s * batch > LONGEST_CALL:
                self.left_out[own] = LONG
                continue
            name = f"{own.name} {own.description}"
            call = partial(_all, crew, inputs(batch), workers)
            found[name] = (way, own)
            try:
                seconds = self.deadline.clock.time(call)[0]
                # A first call may set up or compile; of one that takes longer than that, it says enough.
                if seconds < LONGEST_CALL or own is not spread[0]:
                    seconds = min(seconds, self.deadline.clock.time(call)[0])
            except Exception as error:
                failed[name] = error
            else:
                calls[name], item_s = (call, seconds), seconds / batch
        to_come = sum(turn_seconds(seconds) for _, seconds in calls.values())
        self._took[way] = self.deadline.clock.wall() - began + to_come
        return calls

    def _breaks(self, way: Way, own: Way, error: Exception) -> None:
        self.broken[own] = error
        self._broken_in.add((way.in_any_bucket, _bucket(way)))

    def _leave_out(self, ways: Sequence[Way], wanted: Wanted, first: bool) -> None:
        """Notes why all but the wanted settings are not timed; the last reason counts where they never are."""
        for way in ways:
            kept = set(wanted.get(way.in_any_bucket, ()))
            why = LATE if first else NO_GAIN if kept else FAR
            self.left_out |= {_in(way, own): why for own in settings_of(way, self.batches) if own not in kept}


def _note(shown: Progress, bucket: Bucket, text: str, what: str) -> None:
    shown.note(f"{bucket.name}: {what}, {text}")


Wanted = Mapping[Way, Sequence[Way]]
"""By what answers together, its settings, both in any bucket."""


def preview(
    bundle: Bundle,
    samples: Sequence[Sample] | None,
    batches: Sequence[int],
    precisions: Sequence[str] | None,
    minutes: float = MINUTES,
) -> dict[str, Any]:
    """What `run_tune` would do, without running anything; raises as it does."""
    ways, contract = _ways(bundle, precisions), bundle.manifest.contract
    shares, buckets = shares_of(ways, counted(contract, samples)), {}
    for bucket in buckets_of(ways):
        here = [w for w in ways if w.bucket == bucket]
        count = sum(len(list(settings_of(way, batches))) for way in here)
        part = max(shares[w.in_any_bucket, bucket] for w in here)
        names = [w.name for w in here]
        buckets[bucket.name] = {"part of the data": f"{part:.0%}", "ways": names, "settings": count}
    spread = [f"{threads} threads, {workers} sessions" for threads, workers in settings.parallel()]
    rounds = [step.rounds for step in PASSES]
    found = {"minutes": minutes, "rounds": rounds, "spread": spread, "batches": list(batches)}
    return {"machine": machine_class(), **found, "buckets": buckets}


def _entry(bundle: Bundle, timed: Timed, shares: Shares) -> Entry:
    ms = np.concatenate(timed.ms)
    return Entry(
        way=timed.way,
        sha256=bundle.manifest.files[bundle.find(str(timed.way.variant)).model].sha256,
        ms=float(np.quantile(ms, 0.25)),
        p90=float(np.quantile(ms, 0.9)),
        share=shares[timed.place],
        rounds=timed.rounds,
    )


def _all(crew: Crew, arrays: Arrays, workers: int) -> None:
    """One call of every worker at once."""
    for _ in crew.map(_run, [arrays] * workers):
        pass


def _run(session: Session, arrays: Arrays) -> object:
    return session.run(arrays)


def _arrays(contract: Contract, bucket: Bucket, samples: Sequence[Sample], batch: int) -> Arrays:
    return case_inputs(contract, bucket, batch, samples)[0]


def _in(way: Way, setting: Way) -> Way:
    """A setting in the bucket of a way."""
    return setting.model_copy(update={"variant": way.variant, "bucket": way.bucket})


def _bucket(way: Way) -> Bucket:
    assert way.bucket is not None, "what is tuned was exported for a bucket"
    return way.bucket


def _count(ways: Sequence[Way], wanted: Wanted) -> int:
    return sum(len(wanted.get(w.in_any_bucket, ())) for w in ways)


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
