"""A frozen TorchScript trace as a side.

A trace keeps no modules and calls its values by number. It is what the same Python did that PyTorch's own graph is of,
so its steps are those of that graph, but for what freezing folded: both are laid side by side by operator and shape.
"""

from __future__ import annotations

from collections.abc import Sequence
from difflib import SequenceMatcher
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mer_export.contract import Contract
from mer_export.exporters.graph.names import TOP
from mer_export.exporters.torchscript import attention_as_written, quiet
from runtimes.debug.captured import Captured
from runtimes.debug.values import Arrays, Value

UNPACKS = ("prim::ListUnpack", "prim::TupleUnpack")


class TraceSide:
    """See `Side`; values are those whose step was found in the captured graph, by its names."""

    def __init__(self, path: Path, contract: Contract, captured: Captured, inputs: Arrays):
        """Reads a file that may be loaded, and runs it and `captured` on `inputs` for the shapes of their values."""
        with quiet():
            self._graph = torch.jit.load(str(path), map_location="cpu").inlined_graph
        self._contract = contract
        if not any(
            i.debugName() == next(self._graph.inputs()).debugName() for n in self._graph.nodes() for i in n.inputs()
        ):
            self._graph.eraseInput(0)
        made = [(n, v) for n in self._graph.nodes() for v in n.outputs() if v.type().kind() == "TensorType"]
        shapes = self._call(inputs, [v.debugName() for _, v in made], {})
        kept = captured.run(inputs, [s.name for s in captured.steps])
        theirs = [s for s in captured.steps if s.name in kept]
        ours = [(_operator(n, v), shapes[v.debugName()].shape) for n, v in made]
        match = SequenceMatcher(
            None, ours, [((s.operator, s.place), kept[s.name].shape) for s in theirs], autojunk=False
        )
        pairs = [(a + k, b + k) for a, b, size in match.get_matching_blocks() for k in range(size)]
        names = {made[a][1].debugName(): theirs[b] for a, b in pairs}
        self._modules = _modules(self._graph, {own: step.module for own, step in names.items()})
        self._own = {step.name: own for own, step in names.items()}
        self.values = self._values({own: step.name for own, step in names.items()})

    def _values(self, names: dict[str, str]) -> list[Value]:
        readers: dict[str, set[str]] = {}
        for place, node in enumerate(self._graph.nodes()):
            for value in node.inputs():
                readers.setdefault(value.debugName(), set()).add(self._modules[place])
        return [
            Value(names[own], self._modules[place], frozenset(others))
            for place, node in enumerate(self._graph.nodes())
            for own in (v.debugName() for v in node.outputs())
            if own in names
            for others in [readers.get(own, set()) - {self._modules[place]}]
            if others
        ]

    def run(self, inputs: Arrays, wanted: Sequence[str] = (), given: Arrays | None = None) -> dict[str, np.ndarray]:
        """See `Side`."""
        given = given or {}
        outputs = [s.name for s in self._contract.outputs]
        found = self._call(
            inputs,
            [self._own[n] for n in wanted if n in self._own],
            {self._own[n]: v for n, v in given.items() if n in self._own},
        )
        back = {own: name for name, own in self._own.items()}
        values = {back.get(own, own): v for own, v in found.items()}
        return values | {n: np.asarray(v) for n, v in given.items() if n in outputs}

    def _call(self, inputs: Arrays, wanted: Sequence[str], given: Arrays) -> dict[str, np.ndarray]:
        """Outputs by the contract's names, other values by those of the trace."""
        graph = self._graph.copy()
        taken = {name: graph.addInput() for name in given}
        makers = {v.debugName(): place for place, n in enumerate(graph.nodes()) for v in n.outputs()}
        for place, node in enumerate(graph.nodes()):
            for index, value in enumerate(node.inputs()):
                name = value.debugName()
                if name in taken and self._modules[makers[name]] != self._modules[place]:
                    node.replaceInput(index, taken[name])
        values = {v.debugName(): v for n in graph.nodes() for v in n.outputs()}
        for name in wanted:
            graph.registerOutput(values[name])
        run = torch._C._create_function_from_graph("forward", graph)
        arrays = [inputs[s.name] for s in self._contract.inputs] + list(given.values())
        with torch.no_grad(), attention_as_written(), quiet():
            found = run(*(torch.from_numpy(np.ascontiguousarray(a)) for a in arrays))
        first, *rest = found if wanted else [found]
        outputs = first if isinstance(first, tuple) else (first,)
        named = {s.name: v for s, v in zip(self._contract.outputs, outputs, strict=True)}
        named |= dict(zip(wanted, rest, strict=True))
        return {name: value.detach().clone().numpy() for name, value in named.items() if isinstance(value, Tensor)}


def _operator(node: Any, value: Any) -> tuple[str, int]:
    """The operator that makes a value, and its place among what that makes."""
    outputs = [v.debugName() for v in node.outputs()]
    place = outputs.index(value.debugName()) if len(outputs) > 1 or node.kind() in UNPACKS else 0
    source = next(node.inputs()).node() if node.kind() in UNPACKS else node
    return source.kind().partition("::")[2].rstrip("_"), place


def _modules(graph: Any, known: dict[str, str]) -> list[str]:
    """The module of each node: of its values, or of whoever reads them."""
    nodes = list(graph.nodes())
    found: list[str] = [TOP] * len(nodes)
    reading: dict[str, str] = {}
    for place in reversed(range(len(nodes))):
        outputs = [v.debugName() for v in nodes[place].outputs()]
        own = next((known[o] for o in outputs if o in known), None) or next(
            (reading[o] for o in outputs if o in reading), TOP
        )
        found[place] = own
        reading |= dict.fromkeys((v.debugName() for v in nodes[place].inputs()), own)
    return found
