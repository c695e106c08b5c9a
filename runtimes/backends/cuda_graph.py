"""Runs of a PyTorch module captured as CUDA graphs: one launch per call instead of one per operator."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from mer_export.errors import UnsupportedError

WARM = 3
"""Plain runs before a capture: libraries choose algorithms and allocate workspaces in the first ones."""
KEPT = 32
"""Shapes whose graph is kept; the one that was used longest ago goes first."""

Shapes = tuple[tuple[int, ...], ...]


@dataclass(frozen=True)
class Captured:
    """A graph with the tensors that it always reads from and writes to."""

    graph: Any
    inputs: list[Any]
    outputs: Any


class CudaGraphs:
    """Calls `module` on CUDA tensors, through one graph per combination of shapes."""

    def __init__(self, module: Any):
        self._module = module
        self._held: OrderedDict[Shapes, Captured] = OrderedDict()
        self._pool: Any = None

    def __call__(self, *tensors: Any) -> Any:
        """The module's outputs; they are overwritten by the next call, of these shapes or others.

        The tensors of the first call of some shapes are what its graph reads from: keep them for the next ones.

        Raises:
            UnsupportedError: the module does something that a graph cannot hold.
        """
        key = tuple(tuple(t.shape) for t in tensors)
        if key not in self._held:
            while len(self._held) >= KEPT:
                self._held.popitem(last=False)
            self._held[key] = self._capture(tensors)
        self._held.move_to_end(key)
        captured = self._held[key]
        for kept, given in zip(captured.inputs, tensors, strict=True):
            if kept is not given:
                kept.copy_(given, non_blocking=True)
        captured.graph.replay()
        return captured.outputs

    def _capture(self, tensors: Sequence[Any]) -> Captured:
        import torch

        if self._pool is None:
            # One for all shapes: they run one after the other, and their outputs are fetched before the next.
            self._pool = torch.cuda.graph_pool_handle()
        inputs = list(tensors)
        # Capturing needs work that was warmed up on a stream of its own.
        aside = torch.cuda.Stream()
        aside.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(aside):
            for _ in range(WARM):
                self._module(*inputs)
        torch.cuda.current_stream().wait_stream(aside)
        graph, stream = torch.cuda.CUDAGraph(), torch.cuda.current_stream()
        try:
            # Other threads of this process may use the GPU meanwhile.
            with torch.cuda.graph(graph, pool=self._pool, capture_error_mode="thread_local"):
                outputs = self._module(*inputs)
        except RuntimeError as error:
            # PyTorch leaves the capture's stream current and its pool open, to the harm of whatever runs next.
            torch.cuda.set_stream(stream)
            self._pool = None
            raise UnsupportedError(f"this model cannot be captured as a CUDA graph: {_first(error)}") from None
        return Captured(graph, inputs, outputs)


def _first(error: BaseException) -> str:
    """What went wrong first: the end of a capture that had failed says that alone."""
    while error.__context__ is not None:
        error = error.__context__
    return (str(error).splitlines() or [type(error).__name__])[0]
