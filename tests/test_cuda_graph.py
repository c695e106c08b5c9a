"""Captured CUDA graphs: one per shape, one pool for all, on the device that is asked for, nothing left of a failure.

PyTorch's CUDA calls are stand-ins that say what they were told; what they capture is computed on the CPU.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import pytest
import torch

from mer_export.cuda import tf32
from mer_export.errors import UnsupportedError
from runtimes.backends.cuda_graph import KEPT, WARM, CudaGraphs
from runtimes.backends.eager import computing_in
from runtimes.backends.session import SessionOptions


class Graph:
    """Runs what it captured once more, into the same output."""

    def __init__(self) -> None:
        self.replays = 0

    def replay(self) -> None:
        self.replays += 1


class Card:
    """What PyTorch was told of its GPU."""

    def __init__(self) -> None:
        self.pools: list[int] = []
        self.modes: list[str] = []
        self.handles = 0
        self.stream = "main"
        self.device = 0

    def handle(self) -> int:
        self.handles += 1
        return self.handles

    @contextlib.contextmanager
    def capture(self, graph: Graph, pool: int, capture_error_mode: str) -> Iterator[None]:
        self.pools.append(pool)
        self.modes.append(capture_error_mode)
        self.stream = "capture"
        try:
            yield
        except RuntimeError:
            # As PyTorch: the end of a capture that failed raises too, before the stream is put back.
            raise RuntimeError("operation failed due to a previous error during capture") from None
        self.stream = "main"

    @contextlib.contextmanager
    def current(self, number: int) -> Iterator[None]:
        before, self.device = self.device, number
        yield
        self.device = before


class Stream:
    def wait_stream(self, other: Any) -> None:
        """Nothing to wait for."""


@pytest.fixture
def card(monkeypatch: pytest.MonkeyPatch) -> Card:
    made = Card()

    class Current(Stream):
        name = property(lambda self: made.stream)

    stand_ins = {
        "CUDAGraph": Graph,
        "Stream": Stream,
        "current_stream": Current,
        "set_stream": lambda stream: setattr(made, "stream", "main"),
        "stream": lambda stream: contextlib.nullcontext(),
        "graph_pool_handle": made.handle,
        "graph": made.capture,
        "device": made.current,
    }
    for name, stand_in in stand_ins.items():
        monkeypatch.setattr(torch.cuda, name, stand_in)
    return made


def test_shapes_share_one_pool_and_other_threads_may_use_the_gpu_meanwhile(card: Card) -> None:
    calls: list[int] = []

    def module(x: torch.Tensor) -> torch.Tensor:
        calls.append(len(x))
        return 2 * x

    graphs = CudaGraphs(module)
    for size in (1, 3, 1, 3, 2):
        graphs(torch.ones(size))
    assert calls == [1] * (WARM + 1) + [3] * (WARM + 1) + [2] * (WARM + 1)
    assert set(card.pools) == {1}
    assert set(card.modes) == {"thread_local"}


def test_a_graph_reads_what_came_last_where_it_was_captured(card: Card) -> None:
    kept = torch.ones(2)
    graphs = CudaGraphs(lambda x: x)
    assert graphs(kept) is kept
    graphs(torch.full((2,), 5.0))
    assert kept.tolist() == [5.0, 5.0]


def test_the_shape_that_was_used_longest_ago_makes_room(card: Card) -> None:
    graphs = CudaGraphs(lambda x: x)
    for size in range(1, KEPT + 2):
        graphs(torch.ones(size))
    assert [len(key) for key in graphs._held] == [1] * KEPT
    assert ((1,),) not in graphs._held


def test_a_capture_that_fails_says_what_failed_first_and_harms_nothing_after_it(card: Card) -> None:
    broken = True

    def module(x: torch.Tensor) -> torch.Tensor:
        if broken and card.stream == "capture":
            raise RuntimeError("operation not permitted when stream is capturing\nmore")
        return x

    graphs = CudaGraphs(module)
    with pytest.raises(UnsupportedError, match=r"as a CUDA graph: operation not permitted when stream is capturing$"):
        graphs(torch.ones(1))
    assert card.stream == "main"
    broken = False
    graphs(torch.ones(1))
    assert card.pools == [1, 2], "the pool of the failure stays open in PyTorch"


def test_what_runs_on_the_cpu_leaves_the_switches_of_gpus_to_sessions_on_them() -> None:
    with tf32(True), computing_in(SessionOptions()):
        assert torch.backends.cudnn.conv.fp32_precision == "tf32"


def test_what_runs_on_one_of_several_gpus_has_it_current(card: Card) -> None:
    with computing_in(SessionOptions(device="cuda:1")):
        assert card.device == 1
    assert card.device == 0
