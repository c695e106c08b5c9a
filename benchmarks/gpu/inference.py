"""Every way to run a network on the device: how fast from host arrays to host arrays, how right, how soon."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from benchmarks.gpu.device import free
from benchmarks.gpu.prepare import exports_of, work_of
from benchmarks.gpu.rows import ALL, Results, Row, SkippedError, reason
from benchmarks.gpu.timed import timed
from benchmarks.suite import NETWORKS, random_samples
from mer_export.bucket import Bucket
from mer_export.bundle import Bundle
from mer_export.data.example_inputs import random_inputs
from runtimes.backends.session import Session
from runtimes.backends.table import known_backends
from runtimes.backends.way import Way, find_ways
from runtimes.parity.report import CandidateReport
from runtimes.parity.run import run_parity
from runtimes.speed.start_up import cold_start

PROOFS = 6
"""Items that parity is shown on: eager PyTorch on the CPU takes each alone."""


def ways_on(bundle: Bundle, device: str, bucket: Bucket) -> list[Way]:
    """Every way on the device in a bucket, eager fp32 first; on a GPU those that can be captured twice."""
    found = []
    for way in find_ways(bundle):
        if way.options.kind != device or (way.variant and way.bucket != bucket):
            continue
        found.append(way)
        if device == "cuda" and known_backends()[way.backend].captures and not way.stages:
            found.append(way.having(cuda_graph=True))
    return found


def name_of(way: Way) -> str:
    """A way in any bucket: `torch cuda graph fp32`, `onnxruntime cuda onnx fp16`."""
    form = way.format if way.variant and way.format != way.backend else ""
    return " ".join(p for p in (way.runtime, form, way.precision if not way.options.reduced else "") if p)


def speed(results: Results, folder: Path, network: str, batches: Sequence[int], rounds: int) -> None:
    """Interleaved times of all ways in each bucket at each batch size; ratios are to eager PyTorch in fp32 there."""
    bundle = Bundle.open(folder / network, trust=True)
    for bucket in reversed(NETWORKS[network].buckets):
        about = {"part": "inference", "network": network, "bucket": bucket.name}
        for row in (r for r in exports_of(folder, network) if r["bucket"] == bucket.name):
            if row["status"] == "made":
                results.forget(**about, way=row["way"])
            else:
                said = {"status": row["status"], "reason": f"it was not exported: {row['reason']}"}
                results.add([said], **about, way=row["way"])
        if results.in_time and not all(results.has(**about, batch=b) for b in batches):
            _in_bucket(results, folder, bundle, bucket, about, batches, rounds)
        free()


def _in_bucket(
    results: Results,
    folder: Path,
    bundle: Bundle,
    bucket: Bucket,
    about: Row,
    batches: Sequence[int],
    rounds: int,
) -> None:
    with contextlib.ExitStack() as stack:
        sessions: dict[str, Session] = {}
        ways = ways_on(bundle, results.device, bucket)
        for way in ways:
            name = name_of(way)
            if way.why_not:
                results.add([{"way": name, "status": "skipped", "reason": way.why_not}], **about)
                continue
            try:
                sessions[name] = stack.enter_context(way.open(bundle))
            except Exception as error:
                # One way's failure must not cost the measurements of the others.
                results.add([{"way": name, "status": "failed", "reason": reason(error)}], **about)
                free()
        base, work = name_of(ways[0]), work_of(folder, about["network"], bucket)
        precisions = {name: session.info["precision"] for name, session in sessions.items()}
        for batch in batches:
            if results.in_time and not results.has(**about, batch=batch):
                with results.piece(**about, batch=batch, way=ALL):
                    arrays = random_inputs(bundle.manifest.contract, bucket, batch)
                    calls = {name: partial(session.run, arrays) for name, session in sessions.items()}
                    results.add(timed(calls, base, precisions, batch, rounds, work), **about, batch=batch)


def parity(results: Results, folder: Path, network: str) -> None:
    """Whether every way gives the answers of eager PyTorch on the CPU, by the limits of its precision."""
    record = NETWORKS[network]
    bundle = Bundle.open(folder / network, trust=True)
    for bucket in reversed(record.buckets):
        about = {"part": "parity", "network": network, "bucket": bucket.name}
        ways = [w for w in ways_on(bundle, results.device, bucket) if not w.is_eager]
        if results.has(**about) or not ways or not results.in_time:
            continue
        with results.piece(**about, way=ALL):
            lengths = {dim: (low, min(high, bucket[dim])) for dim, (low, high) in record.lengths.items()}
            samples = random_samples(bundle.manifest.contract, lengths, min(record.samples, PROOFS))
            report = run_parity(bundle, samples, candidates=ways)
            results.add(map(_agreement, ways, report.candidates), **about)
        free()


def _agreement(way: Way, found: CandidateReport) -> Row:
    worst = max(found.comparison.outputs, key=lambda o: o.used, default=None) if found.comparison else None
    about: Row = {"way": name_of(way), "reason": found.reasons[0] if found.reasons else ""}
    if found.verdict == "not run":
        return about | {"status": "skipped"}
    return about | {
        "verdict": found.verdict,
        "max_abs_difference": worst.max_abs if worst else None,
        "of_tolerance": worst.used if worst else None,
    }


def start(results: Results, folder: Path, network: str) -> None:
    """A fresh process per way that computes in what its file has: imports, loading, the first answer."""
    bundle = Bundle.open(folder / network, trust=True)
    about = {"part": "cold start", "network": network}
    for way in ways_on(bundle, results.device, NETWORKS[network].buckets[-1]):
        name = name_of(way)
        if way.options.reduced or not results.in_time or results.has(**about, way=name):
            continue
        with results.piece(**about, way=name):
            if way.why_not:
                raise SkippedError(way.why_not)
            found = cold_start(bundle.root, way, trust=True)
            if isinstance(found, str):
                raise RuntimeError(found)
            results.add([found.model_dump(exclude={"name"})], **about, way=name)
