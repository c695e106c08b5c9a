"""Bundles of the networks at published sizes and their exports, made before a GPU is there, or beside other work.

Random weights come from a seed, so that a machine that cannot be sent large files makes the same ones itself.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from queue import Queue
from typing import Any

from benchmarks import output
from benchmarks.flops import gflop
from benchmarks.suite import NETWORKS, random_bundle
from mer_export.bundle import Bundle
from mer_export.data.example_inputs import random_inputs
from mer_export.exporters import export_formats, export_variant
from mer_export.machine import available_bytes

WORK = "work.json"
"""GFLOP of one item in the longest bucket, beside the bundle."""
PRECISIONS = ("fp32", "fp16", "bf16")


def prepare(folder: Path, networks: Sequence[str], device: str, jobs: int, without: Sequence[str] = ()) -> None:
    """Makes what is missing for a device, each network in a process of its own; formats `without` are left out."""
    folder.mkdir(parents=True, exist_ok=True)
    free: Queue[set[int]] = Queue()
    for cores in _shares(jobs):
        free.put(cores)

    def make(network: str) -> None:
        cores = free.get()
        output.say(f"{network}: {_in_a_process(folder, network, device, without, cores)}")
        free.put(cores)

    with ThreadPoolExecutor(jobs) as pool:
        list(pool.map(make, networks))
    mib = sum(f.stat().st_size for f in folder.rglob("*") if f.is_file()) / 2**20
    output.say(f"{folder} holds {mib:.0f} MiB for {len(networks)} networks")


def _shares(jobs: int) -> list[set[int]]:
    """Cores of each job: runtimes start a thread per core that they see, and would disturb each other."""
    cores = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else []
    each = max(1, len(cores) // jobs)
    return [set(cores[i * each : (i + 1) * each]) or set(cores) for i in range(jobs)]


def _in_a_process(folder: Path, network: str, device: str, without: Sequence[str], cores: set[int]) -> str:
    command = [sys.executable, "-m", "benchmarks.gpu", "prepare", str(folder), "--here"]
    command += ["--network", network, "--device", device]
    command += [word for format in without for word in ("--without", format)]
    root = Path(__file__).parents[2]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, cwd=root) as done:
        if cores:
            os.sched_setaffinity(done.pid, cores)
        assert done.stderr is not None
        said = done.stderr.read()
    lines = said.strip().splitlines() or [f"exit status {done.returncode}"]
    return "; ".join(line for line in lines if line.startswith("export")) or lines[-1]


def prepare_here(folder: Path, network: str, device: str, without: Sequence[str] = ()) -> None:
    """One network in this process: bundle, exports in its longest bucket, and how much work one item is."""
    record = NETWORKS[network]
    root = folder / network
    bundle = Bundle.open(root) if (root / "bundle.json").is_file() else random_bundle(root, record)
    bucket = record.buckets[-1]
    for format, about in export_formats().items():
        form = device if device in about.devices else "cpu"
        for precision in () if format in without else (p for p in PRECISIONS if p in about.precisions):
            name = f"{format} {precision}"
            try:
                export_variant(bundle, format, bucket, precision=precision, device=form)
                output.say(f"exported {name}")
            except Exception as error:
                output.say(f"export of {name} failed: {(str(error).splitlines() or [''])[0]}")
            bundle = Bundle.open(root)
    onnx = next((v for v in bundle.manifest.variants if (v.format, v.precision) == ("onnx", "fp32")), None)
    if onnx is not None and not (folder / f"{network}-{WORK}").is_file():
        one = random_inputs(bundle.manifest.contract, bucket, 1)
        work: dict[str, Any] = {"gflop": gflop(bundle.root / onnx.model, one)}
        (folder / f"{network}-{WORK}").write_text(json.dumps(work))


def work_of(folder: Path, network: str) -> float | None:
    """GFLOP of one item; None where it was not counted."""
    path = folder / f"{network}-{WORK}"
    return float(json.loads(path.read_text())["gflop"]) if path.is_file() else None


def default_jobs() -> int:
    """As many networks at a time as memory allows: the largest take 12 GiB each while they are exported."""
    free = available_bytes() or 0
    return max(1, free // (12 * 2**30))
