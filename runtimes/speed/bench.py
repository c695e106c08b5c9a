"""How fast every variant is: all ways to run interleaved in one process, as ratios to eager PyTorch.

Absolute times belong to the machine and the hour; ratios within a round hold. Every way of a case gets the
same padded arrays; `eager unpadded` shows what PyTorch takes when it need not pad to the bucket.
"""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from typing import Any

from mer_export import machine
from mer_export.bucket import Bucket
from mer_export.bundle import Bundle
from mer_export.data.samples import Sample
from mer_export.errors import UsageError
from mer_export.markdown import some
from mer_export.progress import SILENT, Progress
from runtimes.backends.way import Way, eager, find_ways, grouped_reasons, in_memory, why_broken
from runtimes.predict.machine_profile import EncoderRow
from runtimes.speed import encoder_bench
from runtimes.speed.bench_report import BASE, UNPADDED, BenchReport, Case, Row
from runtimes.speed.cases import Arrays, call, case_inputs, fitting_samples, load, real_lengths, warm_all
from runtimes.speed.start_up import ColdStart, cold_start
from runtimes.speed.timing import interleave, ratio


def run_bench(
    bundle: Bundle,
    samples: Sequence[Sample] | None = None,
    batches: Sequence[int] = (1, 16),
    rounds: int = 15,
    threads: int | None = 1,
    ways: Sequence[Way] | None = None,
    cold: bool = True,
    progress: Progress = SILENT,
) -> BenchReport:
    """Times every way that this machine can run, encoders of the bundle apart. What breaks is named in `not_run`.

    Args:
        bundle: opened bundle.
        samples: real data to take inputs and lengths from; None for random values that fill half to all of a bucket.
        batches: batch sizes; a variant with another fixed batch is left out of a case.
        rounds: interleaved rounds per case.
        threads: threads of every runtime; None leaves their defaults.
        ways: what to time; None for everything in the bundle.
        cold: measure start-up and memory of each runtime in a process of its own.
        progress: shows each case and cold start as it runs.

    Raises:
        NotAvailableError: PyTorch is missing, there is nothing to compare with then.
        UsageError: no sample fits any bucket.
    """
    made_from = bundle.manifest.weights.sha256
    chosen = list(find_ways(bundle, threads) if ways is None else ways)
    able = [w for w in chosen if w.why_not is None and not w.is_eager]
    not_run = [(w.name, w.why_not) for w in chosen if w.why_not is not None]
    started = machine.describe()
    cases = []
    buckets = _buckets(bundle, able)
    cold_ways = _one_per_runtime([eager(threads), *able]) if cold else []
    encoders = encoder_bench.chosen(bundle)
    total = len(buckets) * len(batches) + len(encoders) + len(cold_ways)
    with progress.over("bench", total, "case") as shown:
        for bucket in buckets:
            fitting = fitting_samples(samples, bundle.manifest.contract, bucket, buckets) if samples else []
            here = [w for w in able if w.bucket in (None, bucket)]
            if samples and not fitting:
                not_run.append((bucket.name, "no sample is short enough for this bucket"))
            for batch in batches:
                shown.begin(f"{bucket.name}, batch {batch}: eager and {len(here)} ways to run")
                if fitting or not samples:
                    cases.append(_case(bundle, here, bucket, batch, fitting, rounds, threads, not_run))
        if not cases:
            raise UsageError("no sample fits a bucket of this bundle: export a longer one or leave --data out")
        encoded: list[EncoderRow] = []
        for name, encoder in encoders:
            shown.begin(f"{name}: {encoder.identity.name}")
            backends = {w.backend for w in chosen}
            encoded += encoder_bench.time_encoder(name, encoder, backends, batches, rounds, threads, not_run)
        starts = []
        for way in cold_ways:
            shown.begin(f"{way.name}: start-up")
            starts.append(cold_start(bundle.root, way, trust=bundle.trust))
    return BenchReport(
        system=bundle.manifest.system,
        weights_sha256=made_from,
        machine=started,
        load_average_end=machine.load_average(),
        threads=threads,
        rounds=rounds,
        inputs="real samples, spread over the lengths of each bucket"
        if samples
        else "random values, half to full bucket length",
        cases=cases,
        encoders=encoded,
        cold=[s for s in starts if isinstance(s, ColdStart)],
        not_run=list(dict.fromkeys(not_run)) + [("cold start", s) for s in starts if isinstance(s, str)],
    )


def preview(
    bundle: Bundle, samples: Sequence[Sample] | None, batches: Sequence[int], ways: Sequence[Way]
) -> dict[str, Any]:
    """What `run_bench` would do, without running anything."""
    able = [w for w in ways if w.why_not is None and not w.is_eager]
    buckets, cases = _buckets(bundle, able), {}
    for bucket in buckets:
        fitting = fitting_samples(samples, bundle.manifest.contract, bucket, buckets) if samples else []
        here = [w.name for w in able if w.bucket in (None, bucket)]
        inputs = "random values" if not samples else f"{len(fitting)} samples"
        cases[bucket.name] = {"inputs": inputs, "batches": list(batches), "ways": [eager().name, *here]}
    not_run = grouped_reasons([(w.name, w.why_not) for w in ways if w.why_not])
    encoders = [f"{name}: {encoder.identity.name}" for name, encoder in encoder_bench.chosen(bundle)]
    return {"cases": cases, "encoders": encoders, "not_run": {reason: some(names) for reason, names in not_run}}


def _case(
    bundle: Bundle,
    ways: Sequence[Way],
    bucket: Bucket,
    batch: int,
    samples: Sequence[Sample],
    rounds: int,
    threads: int | None,
    not_run: list[tuple[str, str]],
) -> Case:
    contract = bundle.manifest.contract
    padded, tight = case_inputs(contract, bucket, batch, samples)
    rows: list[Row] = []
    for group in in_memory(bundle, ways, beside=1):
        found = _interleaved(bundle, group, batch, padded, None if rows else tight, rounds, threads, not_run)
        rows += found[1:] if rows else found
    return Case(lengths=bucket, batch=batch, real_lengths=real_lengths(padded, contract), rows=rows)


def _interleaved(
    bundle: Bundle,
    ways: Sequence[Way],
    batch: int,
    padded: Arrays,
    tight: Arrays | None,
    rounds: int,
    threads: int | None,
    not_run: list[tuple[str, str]],
) -> list[Row]:
    """Rows of eager and some other ways to run, all loaded together and called in turns."""
    fitting = [way for way in [eager(threads), *ways] if way.fixed in (0, batch)]
    broken: dict[str, Exception] = {}
    with contextlib.ExitStack() as stack:
        entries = load(bundle, fitting, stack, padded, broken)
        if tight is not None and BASE in entries:
            entries[UNPADDED] = (*entries[BASE][:3], tight)
        calls = {name: call(session, arrays) for name, (_, session, _, arrays) in entries.items()}
        warmed = warm_all(calls, broken)
        turns = interleave({name: calls[name] for name in warmed}, rounds, broken=broken)
    if BASE in broken:
        raise broken[BASE]
    not_run += [(name, why_broken(error)) for name, error in broken.items()]
    rows = []
    for name in turns:
        way, session, load_s, _ = entries[name]
        latency = turns[name].latency()
        rows.append(
            Row(
                name=name,
                runtime="torch unpadded" if name == UNPADDED else way.runtime,
                variant=way.variant,
                format=way.format,
                precision=way.precision,
                info=session.info,
                load_s=round(load_s, 4),
                warm_up=warmed[name],
                latency=latency,
                items_per_s=1000 * batch / latency.p50,
                ratio=ratio(turns[BASE], turns[name]),
                cpu_ratio=ratio(turns[BASE], turns[name], cpu=True),
            )
        )
    return rows


def _buckets(bundle: Bundle, ways: Sequence[Way]) -> list[Bucket]:
    """The buckets of the variants that can run, or the contract's where there is none."""
    return sorted({w.bucket for w in ways if w.bucket is not None} or bundle.manifest.contract.buckets)


def _one_per_runtime(ways: Sequence[Way]) -> list[Way]:
    """The longest bucket of each runtime and format: start-up hardly depends on the bucket."""
    kept: dict[Way, Way] = {}
    for way in ways:
        held = kept.setdefault(way.in_any_bucket, way)
        if way.bucket is not None and held.bucket is not None and way.bucket > held.bucket:
            kept[way.in_any_bucket] = way
    return list(kept.values())
