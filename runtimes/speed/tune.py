"""Times every way to answer on this machine: variants, runtimes, threads, sessions side by side, batch sizes."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial

import numpy as np

from mer_export import machine
from mer_export.bundle import WEIGHTS, Bundle
from mer_export.contract import Contract, Lengths, lengths_name
from mer_export.data.samples import Sample
from mer_export.errors import UsageError
from runtimes.backends.candidate import Candidate, find_candidates, in_memory
from runtimes.backends.session import Session
from runtimes.backends.session_pool import Crew
from runtimes.predict.machine_profile import Entry, Profile, Setting, machine_class, scores
from runtimes.speed.bench import Arrays, case_inputs, fitting_samples
from runtimes.speed.timing import Call, interleave

BATCHES = (1, 4, 16)
PASSES, ROUNDS = 3, 3
"""Everything is timed in the first pass, what may turn out best in the others too, some time later each: what disturbs
the machine for a while shall not decide."""
NEAR = 2.2
"""Times the best up to which a setting may turn out best: two threads that got one core in a whole pass are within."""
LONGEST_CALL = 2.0
"""Seconds; larger batches of a setting whose call takes longer are left out."""

Family = tuple[str, str, str, str, int]
Shares = Mapping[tuple[Family, str], float]
"""The part of the data that goes to a bucket, by family and `repr` of the bucket."""


@dataclass
class Timed:
    """A setting on a candidate, with the milliseconds of its calls in each pass."""

    setting: Setting
    candidate: Candidate
    ms: list[np.ndarray] = field(default_factory=list)


def run_tune(
    bundle: Bundle,
    samples: Sequence[Sample] | None = None,
    source: str = "random values, all buckets alike",
    batches: Sequence[int] = BATCHES,
    precisions: Sequence[str] | None = None,
    say: Callable[[str], None] | None = None,
) -> Profile:
    """Times all exported variants and gives the profile of this machine.

    Args:
        bundle: opened bundle.
        samples: data whose lengths say how much each bucket counts; None counts all alike, on random values.
        source: what the data is called in the profile.
        batches: sizes to try where a variant takes any.
        precisions: only answers in these.
        say: receives progress.

    Raises:
        UsageError: nothing exported that runs here, or no sample fits.
    """
    candidates, contract = _candidates(bundle, precisions), bundle.manifest.contract
    shares, buckets = _shares(candidates, contract, samples), _buckets(candidates)
    timed: dict[tuple[Setting, str], Timed] = {}
    profile = _profile(bundle, source, [], shares)
    for number in range(PASSES):
        wanted = _near(profile) if number else None
        for lengths in buckets:
            here = [c for c in candidates if c.variant and c.variant.lengths == lengths]
            fitting = fitting_samples(samples, contract, lengths, buckets) if samples else []
            if samples and not fitting:
                continue
            inputs = partial(_arrays, contract, lengths, fitting)
            for group in in_memory(bundle, here, sessions=sum(workers for _, workers in _parallel())):
                for setting, candidate, seconds in _time(bundle, group, inputs, batches, wanted, say):
                    timed.setdefault((setting, candidate.name), Timed(setting, candidate)).ms.append(1000 * seconds)
        profile = _profile(bundle, source, timed.values(), shares)
    return profile


def _profile(bundle: Bundle, source: str, timed: Iterable[Timed], shares: Shares) -> Profile:
    return Profile(
        machine=machine_class(),
        weights_sha256=bundle.manifest.files[WEIGHTS].sha256,
        source=source,
        entries=[_entry(bundle, t, shares) for t in timed],
        load_average=machine.load_average(),
    )


def _near(profile: Profile) -> set[Setting]:
    """The settings that may turn out best, for one item at a time or for many."""
    found = scores(profile)
    least = min((s.setting.batch for s in found), default=0)
    single = [s for s in found if s.setting.batch == least and s.setting.workers == 1]
    near = {s.setting for s in single if s.call_ms <= NEAR * min(o.call_ms for o in single)}
    return near | {s.setting for s in found if s.item_ms <= NEAR * min(o.item_ms for o in found)}


def _time(
    bundle: Bundle,
    candidates: Sequence[Candidate],
    inputs: Callable[[int], Arrays],
    batches: Sequence[int],
    wanted: set[Setting] | None,
    say: Callable[[str], None] | None,
) -> list[tuple[Setting, Candidate, np.ndarray]]:
    """Seconds of every call of every setting of candidates for one bucket, interleaved; only the `wanted` ones."""
    calls: dict[str, Call] = {}
    found: dict[str, tuple[Setting, Candidate]] = {}
    with contextlib.ExitStack() as stack:
        for candidate in candidates:
            for threads, workers in _parallel():
                settings = list(_settings(candidate, batches, threads, workers))
                settings = [s for s in settings if wanted is None or s in wanted]
                if not settings:
                    continue
                crew = stack.enter_context(Crew(partial(_with_threads(candidate, threads).open, bundle), workers))
                for setting in settings:
                    name, call = f"{candidate.name} {setting.name}", partial(_all, crew, inputs(setting.batch), workers)
                    (first,) = interleave({"": call}, rounds=1, pause=0).values()
                    calls[name], found[name] = call, (setting, candidate)
                    if min(map(min, first.wall)) > LONGEST_CALL:
                        break
        if say and candidates and candidates[0].variant:
            say(f"{lengths_name(candidates[0].variant.lengths)}: {len(calls)} settings, {ROUNDS} rounds")
        turns = interleave(calls, ROUNDS)
    return [(setting, c, np.concatenate(turns[name].wall)) for name, (setting, c) in found.items()]


def _entry(bundle: Bundle, timed: Timed, shares: Shares) -> Entry:
    variant, ms = timed.candidate.variant, np.concatenate(timed.ms)
    assert variant is not None
    return Entry(
        setting=timed.setting,
        lengths=variant.lengths,
        variant=variant.name,
        sha256=bundle.manifest.files[variant.model].sha256,
        ms=float(np.quantile(ms, 0.25)),
        p90=float(np.quantile(ms, 0.9)),
        share=shares[_family(timed.candidate), repr(variant.lengths)],
        rounds=ROUNDS * len(timed.ms),
    )


def _all(crew: Crew, arrays: Arrays, workers: int) -> None:
    """One call of every worker at once."""
    for _ in crew.map(_run, [arrays] * workers):
        pass


def _run(session: Session, arrays: Arrays) -> object:
    return session.run(arrays)


def _arrays(contract: Contract, lengths: Lengths, samples: Sequence[Sample], batch: int) -> Arrays:
    return case_inputs(contract, lengths, batch, samples)[0]


def _settings(candidate: Candidate, batches: Sequence[int], threads: int, workers: int) -> Iterator[Setting]:
    variant = candidate.variant
    assert variant is not None
    if candidate.options.device == "cuda" and (threads, workers) != (1, 1):
        return
    for batch in [variant.batch] if variant.batch else sorted(batches):
        yield Setting(
            backend=candidate.backend,
            format=variant.format,
            precision=candidate.precision,
            device=candidate.options.device,
            fixed=variant.batch,
            threads=threads,
            workers=workers,
            batch=batch,
        )


def _parallel() -> list[tuple[int, int]]:
    """(threads of a session, sessions side by side): one thread, half and all cores, and one session per core."""
    cores = int(machine.describe()["cores"])
    return [(n, 1) for n in sorted({1, max(1, cores // 2), cores})] + ([(1, cores)] if cores > 1 else [])


def _with_threads(candidate: Candidate, threads: int) -> Candidate:
    return replace(candidate, options=replace(candidate.options, threads=threads))


def _candidates(bundle: Bundle, precisions: Sequence[str] | None) -> list[Candidate]:
    found = [c for c in find_candidates(bundle) if c.reason is None and c.variant is not None]
    chosen = [c for c in found if precisions is None or c.precision in precisions]
    if not chosen:
        there = sorted({c.precision for c in found})
        wanted = f" in {', '.join(precisions)}, there is {there}" if precisions and there else ""
        raise UsageError(f"{bundle.root} has no exported variant that runs here{wanted}: run mer export first")
    return chosen


def _buckets(candidates: Sequence[Candidate]) -> list[Lengths]:
    found = {repr(c.variant.lengths): c.variant.lengths for c in candidates if c.variant}
    return sorted(found.values(), key=lambda b: tuple(b.values()))


def _family(candidate: Candidate) -> Family:
    """What answers a data set together: one variant per bucket."""
    variant, options = candidate.variant, candidate.options
    assert variant is not None
    return (candidate.backend, variant.format, candidate.precision, options.device, variant.batch)


def _shares(candidates: Sequence[Candidate], contract: Contract, samples: Sequence[Sample] | None) -> Shares:
    """The part of the items that goes to each bucket of each family; each bucket counts as one item without data.

    Items that fit no bucket of any family count for none; of a family that lacks a long bucket the parts do not add up.
    """
    buckets = _buckets(candidates)
    items = [s.lengths(contract) for s in samples] if samples else buckets
    items = [n for n in items if contract.bucket_for(n, buckets)]
    if not items:
        raise UsageError("no sample fits a bucket of this bundle: export a longer one or leave --data out")
    shares: dict[tuple[Family, str], float] = {}
    for family in dict.fromkeys(map(_family, candidates)):
        own = [c.variant.lengths for c in candidates if c.variant and _family(c) == family]
        shares |= {(family, repr(b)): 0.0 for b in own}
        for bucket in (contract.bucket_for(n, own) for n in items):
            if bucket:
                shares[family, repr(bucket)] += 1 / len(items)
    return shares
