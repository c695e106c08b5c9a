"""The device itself: what it is, and its limits for products and copies."""

from __future__ import annotations

import gc
from collections.abc import Callable
from functools import partial
from typing import Any

from benchmarks.gpu.rows import Results, Row
from runtimes.backends.eager import computing_in
from runtimes.backends.session import SessionOptions
from runtimes.backends.table import backend_problem, known_backends

SIZE = 8192
"""Of the square matrices whose product is taken."""
COPIED = 2**30
"""Bytes of a copy."""
REPEATS = 10
DTYPES = {"fp32": "float32", "tf32": "float32", "bf16": "bfloat16", "fp16": "float16"}
"""Of the matrices, by the precision of their product."""


def probe(results: Results) -> None:
    """Which runtimes can run here; of a GPU versions, and limits of products and copies."""
    with results.piece(part="device", way="runtimes"):
        for name, backend in known_backends().items():
            options = SessionOptions(device=results.device)
            problem = backend_problem(name, options)
            if options not in backend.offers:
                problem = problem or f"it does not run on {results.device}"
            row = {"way": name, "status": "skipped", "reason": problem} if problem else {"way": name}
            results.add([row], part="device", kind="runtime")
    if results.device == "cuda":
        _describe(results)
        for precision in DTYPES:
            _limit(results, f"product {precision}", "gflops", partial(_product, precision))
        _limit(results, "copy on the device", "gb_per_s", _copy_there)
        _limit(results, "copy from the host", "gb_per_s", _copy_from_host)


def _describe(results: Results) -> None:
    with results.piece(part="device", way="versions"):
        import torch

        properties = torch.cuda.get_device_properties(0)
        results.add(
            [
                {
                    "way": "versions",
                    "torch": torch.__version__,
                    "cuda": torch.version.cuda,
                    "cudnn": torch.backends.cudnn.version(),
                    "capability": f"{properties.major}.{properties.minor}",
                    "multiprocessors": properties.multi_processor_count,
                    "memory_gib": round(properties.total_memory / 2**30),
                }
            ],
            part="device",
        )


def _limit(results: Results, way: str, unit: str, measure: Callable[[], float]) -> None:
    if not results.has(part="device", way=way):
        with results.piece(part="device", way=way):
            results.add([{unit: measure()}], part="device", way=way)
        free()


def limit_gflops(rows: list[Row]) -> dict[str, float]:
    """GFLOP/s of products by precision, as probed."""
    return {r["way"].removeprefix("product "): r["gflops"] for r in rows if r["part"] == "device" and "gflops" in r}


def _product(precision: str) -> float:
    """GFLOP/s."""
    import torch

    a, b = (torch.randn(SIZE, SIZE, device="cuda", dtype=getattr(torch, DTYPES[precision])) for _ in range(2))
    with computing_in(SessionOptions(device="cuda", reduced="tf32" if precision == "tf32" else None)):
        return 2 * SIZE**3 / (1e9 * _fastest(lambda: torch.mm(a, b)))


def _copy_there() -> float:
    """GB/s; a copy on the device reads and writes."""
    import torch

    source, target = (torch.empty(COPIED // 4, device="cuda") for _ in range(2))
    return 2 * COPIED / (1e9 * _fastest(lambda: target.copy_(source)))


def _copy_from_host() -> float:
    import torch

    source, target = torch.empty(COPIED // 4, pin_memory=True), torch.empty(COPIED // 4, device="cuda")
    return COPIED / (1e9 * _fastest(lambda: target.copy_(source, non_blocking=True)))


def _fastest(call: Callable[[], Any]) -> float:
    """Seconds of the fastest of a few calls, by the device's own clock."""
    import torch

    times = []
    for _ in range(REPEATS):
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        begin.record()
        call()
        end.record()
        torch.cuda.synchronize()
        times.append(begin.elapsed_time(end) / 1000)
    return min(times)


def free() -> None:
    """Memory of what was closed goes back to the device, for runtimes beside PyTorch too."""
    import torch

    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
