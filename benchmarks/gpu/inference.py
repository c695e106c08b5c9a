"""Every way to run a network on the device: how fast from host arrays to host arrays, how right, how soon."""

from __future__ import annotations

import contextlib
import gc
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import numpy as np

from benchmarks.gpu.prepare import exports_of, work_of
from benchmarks.gpu.rows import Results, Row, reason
from benchmarks.suite import NETWORKS, random_samples
from mer_export.bucket import Bucket
from mer_export.bundle import Bundle
from mer_export.data.example_inputs import random_inputs
from runtimes.backends.session import Session
from runtimes.backends.table import known_backends
from runtimes.backends.way import Way, find_ways
from runtimes.parity.report import CandidateReport
from runtimes.parity.run import run_parity
from runtimes.speed.start_up import ColdStart, cold_start
from runtimes.speed.timing import interleave, ratio, warm_up

PAUSE = 0.002
WARM_SECONDS = 1.0
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
        for row in exports_of(folder, network):
            if row["status"] == "failed" and row["bucket"] == bucket.name:
                results.add([row | {"reason": f"it was not exported: {row['reason']}"}], **about)
        if results.in_time and not all(results.has(**about, batch=b) for b in batches):
            _in_bucket(results, folder, bundle, bucket, about, batches, rounds)
    _free()


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
        for way in ways_on(bundle, results.device, bucket):
            name = name_of(way)
            if way.why_not:
                results.add([{"way": name, "status": "skipped", "reason": way.why_not}], **about)
                continue
            try:
                sessions[name] = stack.enter_context(way.open(bundle))
            except Exception as error:
                # One way's failure must not cost the measurements of the others.
                results.add([{"way": name, "status": "failed", "reason": reason(error)}], **about)
        work = work_of(folder, about["network"], bucket)
        for batch in batches:
            if results.in_time and not results.has(**about, batch=batch):
                with results.piece(**about, batch=batch, way="all"):
                    arrays = random_inputs(bundle.manifest.contract, bucket, batch)
                    results.add(_timed(sessions, arrays, batch, rounds, work), **about, batch=batch)


def _timed(
    sessions: dict[str, Session], arrays: dict[str, np.ndarray], batch: int, rounds: int, work: float | None
) -> list[Row]:
    rows: list[Row] = []
    calls, first = {}, {}
    for name, session in sessions.items():
        call = partial(session.run, arrays)
        try:
            first[name] = warm_up(call, seconds=WARM_SECONDS).first_ms
            calls[name] = call
        except Exception as error:
            rows.append({"way": name, "status": "failed", "reason": reason(error)})
    turns = interleave(calls, rounds, PAUSE)
    base = next(iter(calls))
    for name in calls:
        latency = turns[name].latency()
        row = {
            "way": name,
            "p50_ms": latency.p50,
            "p90_ms": latency.p90,
            "first_ms": first[name],
            "items_per_s": 1000 * batch / latency.p50,
            "ratio": ratio(turns[base], turns[name]).model_dump(),
            "precision": sessions[name].info["precision"],
        }
        rows.append(row | ({"gflops": batch * work / (latency.p50 / 1000)} if work else {}))
    return rows


def parity(results: Results, folder: Path, network: str) -> None:
    """Whether every way gives the answers of eager PyTorch on the CPU, by the limits of its precision."""
    record = NETWORKS[network]
    bundle = Bundle.open(folder / network, trust=True)
    for bucket in reversed(record.buckets):
        about = {"part": "parity", "network": network, "bucket": bucket.name}
        ways = [w for w in ways_on(bundle, results.device, bucket) if not w.is_eager and not w.why_not]
        if results.has(**about) or not ways or not results.in_time:
            continue
        with results.piece(**about, way="all"):
            lengths = {dim: (low, min(high, bucket[dim])) for dim, (low, high) in record.lengths.items()}
            samples = random_samples(bundle.manifest.contract, lengths, min(record.samples, PROOFS))
            report = run_parity(bundle, samples, candidates=ways)
            results.add(map(_agreement, ways, report.candidates), **about)
    _free()


def _agreement(way: Way, found: CandidateReport) -> Row:
    worst = max(found.comparison.outputs, key=lambda o: o.used, default=None) if found.comparison else None
    return {
        "way": name_of(way),
        "verdict": found.verdict,
        "reason": found.reasons[0] if found.reasons else "",
        "max_abs_difference": worst.max_abs if worst else None,
        "of_tolerance": worst.used if worst else None,
    }


def start(results: Results, folder: Path, network: str) -> None:
    """A fresh process per way: imports, loading, the first answer."""
    bundle = Bundle.open(folder / network, trust=True)
    about = {"part": "cold start", "network": network}
    for way in ways_on(bundle, results.device, NETWORKS[network].buckets[-1]):
        if way.why_not or way.options.reduced or not results.in_time or results.has(**about, way=name_of(way)):
            continue
        with results.piece(**about, way=name_of(way)):
            found = cold_start(bundle.root, way, trust=True)
            if isinstance(found, ColdStart):
                results.add([found.model_dump(exclude={"name"})], **about, way=name_of(way))
            else:
                results.add([{"status": "failed", "reason": found}], **about, way=name_of(way))


def _free() -> None:
    """Memory of sessions that were closed goes back to the device."""
    import torch

    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
