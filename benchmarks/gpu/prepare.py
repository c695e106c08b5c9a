"""Bundles of the networks at published sizes and their exports, made before a GPU is there, or beside other work.

Random weights come from a seed, so that a machine that cannot be sent large files makes the same ones itself.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from queue import Queue
from typing import Any

from benchmarks import output
from benchmarks.flops import gflop
from benchmarks.gpu.rows import reason
from benchmarks.suite import NETWORKS, random_bundle
from mer_export.bucket import Bucket
from mer_export.bundle import Bundle
from mer_export.data.example_inputs import random_inputs
from mer_export.errors import NotAvailableError, UnsupportedError
from mer_export.exporters import export_formats, export_variant
from mer_export.machine import available_bytes

WORK = "work.json"
"""GFLOP of one item by bucket, beside the bundle."""
EXPORTS = "exports.json"
"""What was exported and what failed, with the last words of whatever failed, beside the bundle."""
ENDED = "prepare ended before it was made"
LINES = 80
"""Last words that are kept of an export."""
PRECISIONS = ("fp32", "fp16", "bf16")


def prepare(folder: Path, networks: Sequence[str], device: str, jobs: int, without: Sequence[str] = ()) -> None:
    """Makes what is missing for a device, each network in a process of its own; formats `without` are left out."""
    folder.mkdir(parents=True, exist_ok=True)
    free: Queue[set[int]] = Queue()
    for cores in _shares(jobs):
        free.put(cores)

    def make(network: str) -> None:
        cores = free.get()
        try:
            output.say(f"{network}: {_in_a_process(folder, network, device, without, cores)}")
        finally:
            free.put(cores)

    with ThreadPoolExecutor(jobs) as pool:
        list(pool.map(make, networks))
    for line in carried(folder, networks):
        output.say(line)


def carried(folder: Path, networks: Sequence[str]) -> Iterator[str]:
    """What was prepared, a line for each network and one for all: size, exports, and which of them failed."""
    total = 0.0
    for network in networks:
        mib = sum(f.stat().st_size for f in (folder / network).rglob("*") if f.is_file()) / 2**20
        rows, total = exports_of(folder, network), total + mib
        made = dict.fromkeys(r["way"] for r in rows if r["status"] == "made")
        failed = dict.fromkeys(r["way"] for r in rows if r["status"] != "made")
        yield f"{network}: {mib:.0f} MiB: " + ", ".join([*made, *(f"no {way}" for way in failed)])
    yield f"{folder} holds {total:.0f} MiB for {len(networks)} networks"


def _shares(jobs: int) -> list[set[int]]:
    """Cores of each job: runtimes start a thread per core that they see, and would disturb each other."""
    cores = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else []
    each = max(1, len(cores) // jobs)
    return [set(cores[i * each : (i + 1) * each]) or set(cores) for i in range(jobs)]


def _in_a_process(folder: Path, network: str, device: str, without: Sequence[str], cores: set[int]) -> str:
    command = [sys.executable, "-m", "benchmarks.gpu", "prepare", str(folder.absolute()), "--here"]
    command += ["--network", network, "--device", device]
    command += [word for format in without for word in ("--without", format)]
    root = Path(__file__).parents[2]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, cwd=root) as done:
        if cores:
            os.sched_setaffinity(done.pid, cores)
        assert done.stderr is not None
        said = done.stderr.read()
    lines = said.strip().splitlines()
    ended = [f"ended with exit status {done.returncode}: {lines[-1] if lines else 'it said nothing'}"]
    return "; ".join([*(n for n in lines if n.startswith("export")), *(ended if done.returncode else [])])


def prepare_here(folder: Path, network: str, device: str, without: Sequence[str] = ()) -> None:
    """One network in this process: bundle, exports in each of its buckets, and how much work one item is."""
    record = NETWORKS[network]
    root = folder / network
    bundle = Bundle.open(root) if (root / "bundle.json").is_file() else random_bundle(root, record)
    rows = {(r["way"], r["bucket"]): r for r in exports_of(folder, network)}
    wanted = [
        (bucket, format, precision)
        for bucket in record.buckets
        for format, about in export_formats().items()
        for precision in PRECISIONS
        if format not in without and precision in about.precisions
    ]
    for bucket, format, precision in wanted:
        row = {"way": f"{format} {precision}", "bucket": bucket.name}
        rows.setdefault((row["way"], bucket.name), row | {"status": "failed", "reason": ENDED, "said": []})
    for bucket, format, precision in wanted:
        row = {"way": f"{format} {precision}", "bucket": bucket.name}
        # As an export may end this process.
        (folder / f"{network}-{EXPORTS}").write_text(json.dumps(list(rows.values()), indent=1))
        try:
            form = device if device in export_formats()[format].devices else "cpu"
            export_variant(bundle, format, bucket, precision=precision, device=form)
            rows[row["way"], bucket.name] = row | {"status": "made"}
            output.say(f"exported {row['way']}")
        except Exception as error:
            said = "\n".join(getattr(error, "__notes__", ())).splitlines()[-LINES:]
            status = "skipped" if isinstance(error, (NotAvailableError, UnsupportedError)) else "failed"
            rows[row["way"], bucket.name] = row | {"status": status, "reason": reason(error), "said": said}
            output.say(f"export of {row['way']} {status}: {reason(error)}")
        bundle = Bundle.open(root)
    (folder / f"{network}-{EXPORTS}").write_text(json.dumps(list(rows.values()), indent=1))
    (folder / f"{network}-{WORK}").write_text(json.dumps(_work(bundle)))


def _work(bundle: Bundle) -> dict[str, float]:
    graphs = {v.lengths: v.model for v in bundle.manifest.variants if (v.format, v.precision) == ("onnx", "fp32")}
    one = {bucket: random_inputs(bundle.manifest.contract, bucket, 1) for bucket in graphs}
    return {bucket.name: gflop(bundle.root / model, one[bucket]) for bucket, model in graphs.items()}


def exports_of(folder: Path, network: str) -> list[dict[str, Any]]:
    """What became of each export: `way`, `bucket`, `status` made, failed or skipped (it cannot be), and why."""
    path = folder / f"{network}-{EXPORTS}"
    found: list[dict[str, Any]] = json.loads(path.read_text()) if path.is_file() else []
    return found


def work_of(folder: Path, network: str, bucket: Bucket) -> float | None:
    """GFLOP of one item in a bucket; None where it was not counted."""
    path = folder / f"{network}-{WORK}"
    found: dict[str, float] = json.loads(path.read_text()) if path.is_file() else {}
    return found.get(bucket.name)


def default_jobs() -> int:
    """As many networks at a time as memory allows: the largest take 12 GiB each while they are exported."""
    free = available_bytes() or 0
    return max(1, free // (12 * 2**30))
