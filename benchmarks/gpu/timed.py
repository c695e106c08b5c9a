"""Calls timed in turns on the device: a row for each, also for one that breaks."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from benchmarks.gpu.device import free
from benchmarks.gpu.rows import Row, reason
from runtimes.speed.timing import interleave, ratio, warm_up

PAUSE = 0.002
WARM_SECONDS = 1.0


def timed(
    calls: Mapping[str, Callable[[], Any]],
    base: str,
    precisions: Mapping[str, str],
    batch: int,
    rounds: int,
    work: float | None,
) -> list[Row]:
    """Times of each call on `batch` items, ratios to `base`, and GFLOP/s where an item takes so many GFLOP of `work`.

    A call returns when the device is done. What breaks is a row with its reason, and the others are timed all the
    same; where that is the base there are no ratios.
    """
    first: dict[str, float] = {}
    broken: dict[str, Exception] = {}
    for name, call in calls.items():
        try:
            first[name] = warm_up(call, seconds=WARM_SECONDS).first_ms
        except Exception as error:
            # Its frames hold tensors, for which the others have use.
            broken[name] = error.with_traceback(None)
            free()
    turns = interleave({name: calls[name] for name in first}, rounds, PAUSE, broken=broken)
    rows: list[Row] = [{"way": n, "status": "failed", "reason": reason(error)} for n, error in broken.items()]
    for name, own in turns.items():
        latency = own.latency()
        row = {
            "way": name,
            "precision": precisions[name],
            "p50_ms": latency.p50,
            "p90_ms": latency.p90,
            "first_ms": first[name],
            "items_per_s": 1000 * batch / latency.p50,
        }
        row |= {"ratio": ratio(turns[base], own).model_dump()} if base in turns else {}
        rows.append(row | ({"gflops": batch * work / (latency.p50 / 1000)} if work else {}))
    return rows
