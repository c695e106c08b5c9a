"""Bundles of the networks at published sizes and their exports, made before a GPU is there, or beside other work.

Random weights come from a seed, so that a machine that cannot be sent large files makes the same ones itself.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import product
from pathlib import Path
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
NOT_NEEDED = {("onnx", "fp16", "cpu")}
"""On a GPU fp16 is run in the form for it."""
MOST_THREADS = 2


def prepare(folder: Path, networks: Sequence[str], jobs: int, without: Sequence[str] = ()) -> None:
    """Makes what is missing, each network in a process of its own; formats `without` are left out."""
    folder.mkdir(parents=True, exist_ok=True)
    with ThreadPoolExecutor(jobs) as pool:
        for name, said in zip(networks, pool.map(lambda n: _in_a_process(folder, n, without), networks), strict=True):
            output.say(f"{name}: {said}")
    mib = sum(f.stat().st_size for f in folder.rglob("*") if f.is_file()) / 2**20
    output.say(f"{folder} holds {mib:.0f} MiB for {len(networks)} networks")


def _in_a_process(folder: Path, network: str, without: Sequence[str]) -> str:
    command = [sys.executable, "-m", "benchmarks.gpu", "prepare", str(folder), "--here", "--network", network]
    command += [word for format in without for word in ("--without", format)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=Path(__file__).parents[2])
    lines = done.stderr.strip().splitlines() or [f"exit status {done.returncode}"]
    return "; ".join(line for line in lines if line.startswith("export")) or lines[-1]


def prepare_here(folder: Path, network: str, without: Sequence[str] = ()) -> None:
    """One network in this process: bundle, exports in its longest bucket, and how much work one item is."""
    import torch

    torch.set_num_threads(MOST_THREADS)
    record = NETWORKS[network]
    root = folder / network
    bundle = Bundle.open(root) if (root / "bundle.json").is_file() else random_bundle(root, record)
    bucket = record.buckets[-1]
    for format, about in export_formats().items():
        for precision, device in product((p for p in PRECISIONS if p in about.precisions), about.devices or ("cpu",)):
            name = f"{format} {precision} for {device}"
            if (format, precision, device) in NOT_NEEDED or format in without:
                continue
            try:
                export_variant(bundle, format, bucket, precision=precision, device=device)
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
