"""The module in which PyTorch's own graph is off from the network: where capturing froze a choice.

Eager PyTorch runs with a hook on every module. What goes into a call and what comes out of it is held against the
values of the graph that cross the border of the same call. The graph then runs with the network's own values in place
of those that are off, the first of them first: the one by which its outputs come right is where the graph went wrong.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from mer_export.exporters.export_job import ExportJob
from mer_export.exporters.graph.names import TOP
from mer_export.exporters.torchscript import attention_as_written
from runtimes.debug.captured import Captured
from runtimes.debug.modules import NOISE
from runtimes.debug.values import Arrays, Shelf, distance


class Off(NamedTuple):
    """A value of the graph that is off from the network's, and the module that makes it."""

    name: str
    module: str


def frozen_in(
    job: ExportJob, graph: Captured, inputs: Arrays, reference: Shelf, right: Callable[[Arrays], bool], folder: Path
) -> str:
    """The module in which the graph first goes wrong; the network itself where no module does.

    Args:
        job: with the network.
        graph: what was captured of it.
        inputs: of a sample that shows it.
        reference: all values of the graph.
        right: whether outputs are the network's.
        folder: where values of the network may be kept.
    """
    found, own = _off(job, graph, inputs, reference, Shelf(folder))

    def mended(count: int) -> bool:
        # Of a value that passes several borders the last one counts.
        return right(graph.run(inputs, given={off.name: own[str(k)] for k, off in enumerate(found[:count])}))

    low, high = 0, len(found) + 1
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if mended(middle) else (middle, high)
    return found[low].module if low < len(found) else TOP


def _off(job: ExportJob, graph: Captured, inputs: Arrays, reference: Shelf, own: Shelf) -> tuple[list[Off], Shelf]:
    """Values that are off, in the order in which the network makes them, and the network's in their place."""
    assert job.model is not None, "of a file nothing is captured"
    calls = Counter[str]()
    found: list[Off] = []

    def hold(border: Sequence[str], tensors: Any, module: str | None) -> None:
        arrays = [t.detach().numpy() for t in _floats(tensors)]
        for place, value in enumerate(arrays):
            there = [n for n in border if n in reference and reference.shapes[n] == value.shape]
            alike = [k for k, a in enumerate(arrays) if a.shape == value.shape]
            name: str | None
            if len(there) == len(alike):
                # One for each, in the same order.
                name = there[alike.index(place)]
            else:
                name = min(there, key=lambda n: distance(value, reference[n]), default=None)
            if name is None:
                continue
            known = [own[str(k)] for k, off in enumerate(found) if off.name == name][-1:]
            if distance(value, known[0] if known else reference[name]) > NOISE["fp32"]:
                own.put(str(len(found)), value.copy())
                found.append(Off(name, module or graph.maker(name)))

    def before(path: str, module: nn.Module, args: Any, kwargs: Any) -> None:
        hold(graph.border(path, calls[path]).read, (args, kwargs), None)

    def after(path: str, module: nn.Module, args: Any, given: Any) -> None:
        hold(graph.border(path, calls[path]).given, given, path)
        calls[path] += 1

    network = job.module()
    with torch.no_grad(), attention_as_written(), ExitStack() as hooks:
        for path, module in job.model.named_modules():
            if path:
                hooks.callback(module.register_forward_pre_hook(partial(before, path), with_kwargs=True).remove)
                hooks.callback(module.register_forward_hook(partial(after, path)).remove)
        network(*(torch.from_numpy(inputs[s.name]) for s in job.contract.inputs))
    return found, own


def _floats(values: Any) -> Iterator[Tensor]:
    if isinstance(values, Tensor) and values.is_floating_point():
        yield values
    elif isinstance(values, dict):
        yield from _floats(tuple(values.values()))
    elif isinstance(values, tuple | list):
        for value in values:
            yield from _floats(value)
