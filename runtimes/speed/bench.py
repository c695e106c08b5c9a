"""How fast every variant is: all candidates interleaved in one process, as ratios to eager PyTorch.

Absolute times belong to the machine and the hour; ratios within a round hold. Every candidate of a case gets the
same padded arrays; `eager unpadded` shows what PyTorch takes when it need not pad to the bucket.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Mapping, Sequence

import numpy as np

from mer_export import machine
from mer_export.bundle import WEIGHTS, Bundle
from mer_export.contract import Contract, Lengths, lengths_name
from mer_export.data.collate import collate
from mer_export.data.example_inputs import random_inputs
from mer_export.data.samples import Sample
from mer_export.errors import NotAvailableError, UsageError
from runtimes.backends.candidate import Candidate, eager, find_candidates, in_memory
from runtimes.backends.session import Session
from runtimes.speed.bench_report import BASE, UNPADDED, BenchReport, Case, Row
from runtimes.speed.start_up import ColdStart, cold_start
from runtimes.speed.timing import interleave, ratio, warm_up

Arrays = dict[str, np.ndarray]


def run_bench(
    bundle: Bundle,
    samples: Sequence[Sample] | None = None,
    batches: Sequence[int] = (1, 16),
    rounds: int = 15,
    threads: int | None = 1,
    candidates: Sequence[Candidate] | None = None,
    cold: bool = True,
    say: Callable[[str], None] | None = None,
) -> BenchReport:
    """Times every candidate that this machine can run.

    Args:
        bundle: opened bundle.
        samples: real data to take inputs and lengths from; None for random values that fill half to all of a bucket.
        batches: batch sizes; a variant with another fixed batch is left out of a case.
        rounds: interleaved rounds per case.
        threads: threads of every runtime; None leaves their defaults.
        candidates: what to time; None for everything in the bundle.
        cold: measure start-up and memory of each runtime in a process of its own.
        say: called before each case.

    Raises:
        NotAvailableError: PyTorch is missing, there is nothing to compare with then.
        UsageError: no sample fits any bucket.
    """
    chosen = list(find_candidates(bundle, threads) if candidates is None else candidates)
    able = [c for c in chosen if c.reason is None and not c.is_eager]
    not_run = [(c.name, c.reason) for c in chosen if c.reason is not None]
    started = machine.describe()
    cases = []
    buckets = _buckets(bundle, able)
    for lengths in buckets:
        fitting = fitting_samples(samples, bundle.manifest.contract, lengths, buckets) if samples else []
        if samples and not fitting:
            not_run.append((lengths_name(lengths), "no sample is short enough for this bucket"))
            continue
        here = [c for c in able if c.variant is None or c.variant.lengths == lengths]
        for batch in batches:
            if say:
                say(f"{lengths_name(lengths)}, batch {batch}: eager and {len(here)} candidates")
            cases.append(_case(bundle, here, lengths, batch, fitting, rounds, threads, not_run))
    if not cases:
        raise UsageError("no sample fits a bucket of this bundle: export a longer one or leave --data out")
    starts = [cold_start(bundle.root, c) for c in _one_per_runtime([eager(threads), *able])] if cold else []
    return BenchReport(
        system=bundle.manifest.system,
        weights_sha256=bundle.manifest.files[WEIGHTS].sha256,
        machine=started,
        load_average_end=machine.load_average(),
        threads=threads,
        rounds=rounds,
        inputs="real samples, spread over the lengths of each bucket"
        if samples
        else "random values, half to full bucket length",
        cases=cases,
        cold=[s for s in starts if isinstance(s, ColdStart)],
        not_run=list(dict.fromkeys(not_run)) + [("cold start", s) for s in starts if isinstance(s, str)],
    )


def _case(
    bundle: Bundle,
    candidates: Sequence[Candidate],
    lengths: Lengths,
    batch: int,
    samples: Sequence[Sample],
    rounds: int,
    threads: int | None,
    not_run: list[tuple[str, str]],
) -> Case:
    contract = bundle.manifest.contract
    padded, tight = case_inputs(contract, lengths, batch, samples)
    rows: list[Row] = []
    for group in in_memory(bundle, candidates, beside=1):
        found = _interleaved(bundle, group, batch, padded, None if rows else tight, rounds, threads, not_run)
        rows += found[1:] if rows else found
    return Case(lengths=lengths, batch=batch, real_lengths=_real_lengths(padded, contract), rows=rows)


def _interleaved(
    bundle: Bundle,
    candidates: Sequence[Candidate],
    batch: int,
    padded: Arrays,
    tight: Arrays | None,
    rounds: int,
    threads: int | None,
    not_run: list[tuple[str, str]],
) -> list[Row]:
    """Rows of eager and some candidates, all loaded together and called in turns."""
    reference = eager(threads)
    entries: dict[str, tuple[Candidate, Session, float, Arrays]] = {}
    with contextlib.ExitStack() as stack:
        for candidate in [reference, *candidates]:
            if candidate.variant and candidate.variant.batch not in (0, batch):
                continue
            start = time.perf_counter()
            try:
                session = stack.enter_context(candidate.open(bundle))
            except NotAvailableError as error:
                if candidate is reference:
                    raise
                not_run.append((candidate.name, str(error)))
                continue
            entries[candidate.name] = (candidate, session, time.perf_counter() - start, padded)
        if tight is not None:
            entries[UNPADDED] = (reference, entries[BASE][1], entries[BASE][2], tight)
        calls = {name: _call(session, arrays) for name, (_, session, _, arrays) in entries.items()}
        warmed = {name: warm_up(call) for name, call in calls.items()}
        turns = interleave(calls, rounds)
    rows = []
    for name, (candidate, session, load, _) in entries.items():
        latency = turns[name].latency()
        rows.append(
            Row(
                name=name,
                runtime="torch unpadded" if name == UNPADDED else candidate.runtime,
                variant=candidate.variant.name if candidate.variant else None,
                format=candidate.format,
                precision=candidate.precision,
                info=session.info,
                load_s=round(load, 4),
                warm_up=warmed[name],
                latency=latency,
                items_per_s=1000 * batch / latency.p50,
                ratio=ratio(turns[BASE], turns[name]),
                cpu_ratio=ratio(turns[BASE], turns[name], cpu=True),
            )
        )
    return rows


def _call(session: Session, arrays: Arrays) -> Callable[[], object]:
    return lambda: session.run(arrays)


def case_inputs(
    contract: Contract, lengths: Lengths, batch: int, samples: Sequence[Sample]
) -> tuple[Arrays, Arrays | None]:
    """The case's arrays padded to the bucket, and padded to the longest item only where that is shorter."""
    if not samples:
        arrays = random_inputs(contract, lengths, batch)
        return arrays, _tightened(arrays, contract, lengths)
    # Evenly over the lengths that occur, so that one item is the median one.
    places = np.linspace(0, len(samples) - 1, batch + 2)[1:-1].round().astype(int)
    picked = [samples[i] for i in places]
    arrays = collate(picked, contract, lengths)
    return arrays, _tightened(arrays, contract, lengths)


def _real_lengths(arrays: Arrays, contract: Contract) -> dict[str, list[int]]:
    """The real length of each item along the dims that are counted, or whose padding tells."""
    found = {s.counts: arrays[s.name].tolist() for s in contract.inputs if s.counts}
    told = {
        str(s.dims[1]): (arrays[s.name] != s.padding).sum(1).tolist() for s in contract.inputs if s.padding is not None
    }
    return found | told


def _tightened(arrays: Arrays, contract: Contract, lengths: Mapping[str, int]) -> Arrays | None:
    longest = {d: max(1, *real) for d, real in _real_lengths(arrays, contract).items()}
    if all(longest.get(d, n) == n for d, n in lengths.items()):
        return None
    cut = {}
    for spec in contract.inputs:
        index = tuple(slice(longest.get(d)) if isinstance(d, str) else slice(None) for d in spec.dims)
        cut[spec.name] = np.ascontiguousarray(arrays[spec.name][index])
    return cut


def fitting_samples(
    samples: Sequence[Sample], contract: Contract, lengths: Lengths, buckets: Sequence[Lengths]
) -> list[Sample]:
    """Samples that are routed to this bucket, by length; those of shorter buckets where there is none."""
    real = sorted(((s.lengths(contract), s) for s in samples), key=lambda pair: tuple(pair[0].values()))
    held = [(own, s) for own, s in real if all(own[d] <= n for d, n in lengths.items())]
    routed = [s for own, s in held if contract.bucket_for(own, buckets) == lengths]
    return routed or [s for _, s in held]


def _buckets(bundle: Bundle, candidates: Sequence[Candidate]) -> list[Lengths]:
    """The buckets of the variants that can run, or the contract's where there is none."""
    found = [c.variant.lengths for c in candidates if c.variant] or list(bundle.manifest.contract.buckets)
    return sorted({tuple(b.items()): b for b in found}.values(), key=lambda b: tuple(b.values()))


def _one_per_runtime(candidates: Sequence[Candidate]) -> list[Candidate]:
    """The longest bucket of each runtime and format: start-up hardly depends on the bucket."""
    kept: dict[tuple[str, ...], Candidate] = {}
    for candidate in candidates:
        held = kept.get(candidate.family)
        if held is None or _size(candidate) > _size(held):
            kept[candidate.family] = candidate
    return list(kept.values())


def _size(candidate: Candidate) -> tuple[int, ...]:
    return tuple(candidate.variant.lengths.values()) if candidate.variant else ()
