"""Every system on one GPU: a training step, and inference on every path that exists, at published sizes.

    python3 -m benchmarks.gpu --out DIR [--network cmerc_iemocap] [--batch 1 --batch 16]

Every part stands alone: one whose package or device is missing is written down as skipped with the reason, one that
breaks as failed, and the others still run. On a machine without a GPU the suite runs to its end and says that
nothing was measured; `--device cpu` rehearses the parts that need no CUDA (its numbers mean nothing for a GPU).
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks import output
from benchmarks.flops import gflop
from benchmarks.gpu_parts import PARTS, Case, SkippedError, tf32
from benchmarks.suite import NETWORKS, random_bundle
from mer_export import machine
from mer_export.data.example_inputs import random_inputs
from mer_export.errors import MerError, NotAvailableError
from mer_export.exporters import export_variant
from mer_export.install import not_installed
from mer_export.markdown import table
from runtimes.parity.report import used_part

LIMIT_SIZE = 8192
"""Of the square matrices whose product is taken for the device's limit."""


def run_part(part: Callable[[Case], list[dict[str, Any]]], case: Case) -> dict[str, Any]:
    """A part's rows, or why there are none."""
    try:
        return {"status": "measured", "rows": part(case)}
    except (SkippedError, NotAvailableError, ImportError) as error:
        return {"status": "skipped", "reason": str(error)}
    except Exception as error:
        traceback.print_exc(file=sys.stderr)
        return {"status": "failed", "reason": f"{type(error).__name__}: {(str(error).splitlines() or [''])[0]}"}


def main(arguments: list[str] | None = None) -> None:
    """Runs every part for every network, bucket and batch; writes gpu.json and gpu.md."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--out", type=Path, required=True, help="directory of the results")
    parser.add_argument("--network", choices=list(NETWORKS), action="append", help="default: all")
    parser.add_argument("--batch", type=int, action="append", help="repeat for several; default: the network's own")
    parser.add_argument("--rounds", type=int, default=21)
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    chosen = parser.parse_args(arguments)
    missing = _problem(chosen.device)
    cases = []
    for network in chosen.network or NETWORKS:
        for batch in chosen.batch or NETWORKS[network].batches:
            cases.append(_case(network, batch, chosen.device, chosen.rounds, missing))
    content = {
        "machine": machine.describe(),
        "device": chosen.device,
        "unmeasured": missing,
        "limit_gflops": {} if missing or chosen.device == "cpu" else device_limit(),
        "cases": cases,
    }
    output.write(chosen.out, "gpu", content, markdown(content))


def _problem(device: str) -> str | None:
    """Why nothing can be measured on this machine; None where something can."""
    try:
        import torch
    except ImportError:
        return not_installed("torch", "export")
    if device == "cuda" and not torch.cuda.is_available():
        return f"torch {torch.__version__} finds no CUDA device"
    return None


def device_limit() -> dict[str, float]:
    """GFLOP/s of one large matrix product on the GPU by kind, fastest of a few."""
    import torch

    found = {}
    for kind in ("fp32", "tf32", "bf16"):
        dtype = torch.bfloat16 if kind == "bf16" else torch.float32
        a, b = (torch.randn(LIMIT_SIZE, LIMIT_SIZE, device="cuda", dtype=dtype) for _ in range(2))
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        times = []
        with tf32(kind == "tf32"):
            for _ in range(10):
                begin.record()
                torch.mm(a, b)
                end.record()
                torch.cuda.synchronize()
                times.append(begin.elapsed_time(end))
        found[kind] = 2 * LIMIT_SIZE**3 / (1e6 * min(times))
    return found


def _gflop(case: Case) -> float | None:
    """Work of the case from its fp32 ONNX file; None where that cannot be written or run here."""
    try:
        variant = export_variant(case.bundle, "onnx", case.bucket, case.batch)
        return gflop(case.bundle.root / variant.model, case.arrays)
    except (MerError, ImportError) as error:
        print(f"work not counted: {error}", file=sys.stderr)
        return None


def _case(network: str, batch: int, device: str, rounds: int, missing: str | None) -> dict[str, Any]:
    bucket = NETWORKS[network].buckets[-1]
    case: dict[str, Any] = {"network": network, "lengths": dict(bucket), "batch": batch}
    if missing:
        return case | {"parts": {name: {"status": "skipped", "reason": missing} for name in PARTS}}
    parts = {}
    with tempfile.TemporaryDirectory() as folder:
        bundle = random_bundle(Path(folder) / "bundle", NETWORKS[network])
        arrays = random_inputs(bundle.manifest.contract, bucket, batch)
        case = Case(bundle, bucket, batch, device, rounds, arrays)
        for name, part in PARTS.items():
            print(f"{network}, batch {batch}: {name}", file=sys.stderr, flush=True)
            parts[name] = run_part(part, case)
        work = _gflop(case)
    return case | {"parts": parts, "gflop": work}


def markdown(content: dict[str, Any]) -> str:
    """One table per part that ran, one line per part that did not."""
    device = content["machine"]
    gpu = "; ".join(", ".join(g.values()) for g in device["gpu"]) or "no GPU"
    lines = ["# Every system on a GPU", "", f"{gpu}; {device['cpu']}.", ""]
    lines.append(", ".join(f"{k} {v}" for k, v in device["versions"].items()) + f", Python {device['python']}.")
    if content["unmeasured"]:
        lines += ["", f"**Nothing was measured**: {content['unmeasured']}."]
    if content["device"] == "cpu":
        lines += ["", "**A rehearsal on the CPU: these times say nothing about a GPU.**"]
    bounds = content["limit_gflops"]
    if bounds:
        named = ", ".join(f"{kind} {value / 1000:.1f} TFLOP/s" for kind, value in bounds.items())
        lines += [
            "",
            f"Limit, product of two {LIMIT_SIZE}² matrices: {named}. `of fp32 limit` is the padded work over it.",
        ]
    for case in content["cases"]:
        size = ", ".join(f"{k} {v}" for k, v in case["lengths"].items())
        lines += ["", f"## {case['network']}, {size}, batch {case['batch']}"]
        for name, part in case["parts"].items():
            lines += ["", f"### {name}: {part['status']}", ""]
            lines += (
                [part["reason"]]
                if "reason" in part
                else table(HEADER, [_row(r, case, bounds.get("fp32")) for r in part["rows"]])
            )
    return "\n".join(lines) + "\n"


HEADER = ("path", "p50 ms", "p90 ms", "items/s", "x first row", "of fp32 limit", "max abs difference", "of tolerance")


def _row(row: dict[str, Any], case: dict[str, Any], bound: float | None) -> tuple[str, ...]:
    difference, part = row.get("max_abs_difference"), row.get("of_tolerance")
    last = ("–" if difference is None else f"{difference:.1e}", "–" if part is None else used_part(part))
    if "latency" not in row:
        return (row["name"], "–", "–", "–", row.get("skipped", "–"), "–", *last)
    spread, work = row["ratio"], case.get("gflop")
    if work and row["name"].startswith("training"):
        # Backward costs about twice the forward pass.
        work *= 3
    return (
        row["name"],
        f"{row['latency']['p50']:.3f}",
        f"{row['latency']['p90']:.3f}",
        f"{row['items_per_s']:.0f}",
        f"{spread['median']:.2f} [{spread['q25']:.2f}, {spread['q75']:.2f}]",
        f"{1000 * work / row['latency']['p50'] / bound:.1%}" if work and bound else "–",
        *last,
    )


if __name__ == "__main__":
    main()
