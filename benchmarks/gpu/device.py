"""The device itself: what it is, and its limits for products and copies."""

from __future__ import annotations

from collections.abc import Callable, Iterator
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


def probe(results: Results) -> None:
    """Versions, which runtimes can run here, and limits of products and copies."""
    with results.piece(part="device", way="runtimes"):
        for name, backend in known_backends().items():
            options = SessionOptions(device=results.device)
            problem = backend_problem(name, options)
            if options not in backend.offers:
                problem = problem or f"it does not run on {results.device}"
            row = {"way": name, "status": "skipped", "reason": problem} if problem else {"way": name}
            results.add([row], part="device", kind="runtime")
    if results.device == "cpu":
        return
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
    with results.piece(part="device", way="limits"):
        results.add(_limits(), part="device")


def limit_gflops(rows: list[Row]) -> dict[str, float]:
    """GFLOP/s of products by precision, as probed."""
    return {r["way"].removeprefix("product "): r["gflops"] for r in rows if r["part"] == "device" and "gflops" in r}


def _limits() -> Iterator[Row]:
    import torch

    for precision, dtype in (
        ("fp32", torch.float32),
        ("tf32", torch.float32),
        ("bf16", torch.bfloat16),
        ("fp16", torch.float16),
    ):
        a, b = (torch.randn(SIZE, SIZE, device="cuda", dtype=dtype) for _ in range(2))
        with computing_in(SessionOptions(device="cuda", reduced="tf32" if precision == "tf32" else None)):
            best = _fastest(lambda a=a, b=b: torch.mm(a, b))  # type: ignore[misc]
        yield {"way": f"product {precision}", "gflops": 2 * SIZE**3 / (1e9 * best)}
    device, other = (torch.empty(COPIED // 4, device="cuda") for _ in range(2))
    host = torch.empty(COPIED // 4, pin_memory=True)
    # A copy on the device reads and writes.
    yield {"way": "copy on the device", "gb_per_s": 2 * COPIED / (1e9 * _fastest(lambda: other.copy_(device)))}
    yield {"way": "copy from the host", "gb_per_s": COPIED / (1e9 * _fastest(lambda: device.copy_(host)))}


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
