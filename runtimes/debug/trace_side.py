"""A frozen TorchScript trace as a side.

A trace keeps no modules and calls its values by number. It is what the same Python did that PyTorch's own graph is of,
so its steps are those of that graph, but for what freezing folded: both are laid side by side by operator and shape.
"""

from __future__ import annotations

import math
from collections.abc import Container, Sequence
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
from runtimes.debug.values import HELD, Arrays, Value

UNPACKS = ("prim::ListUnpack", "prim::TupleUnpack")


class TraceSide:
    """See `Side`; values are those whose step was found in the captured graph, by its names."""

    def __init__(self, path: Path, contract: Contract, captured: Captured, inputs: Arrays, known: Container[str]):
        """Reads a file that may be loaded, and runs it and `captured` on `inputs` for the shapes of their values.

        `known` are the values of `captured` that can be given.
        """
        with quiet():
            self._graph = torch.jit.load(str(path), map_location="cpu").inlined_graph
        self._contract = contract
        if not any(
            i.debugName() == next(self._graph.inputs()).debugName() for n in self._graph.nodes() for i in n.inputs()
        ):
            self._graph.eraseInput(0)
        made = {
            k: (n, v)
            for k, n, v in _keyed(self._graph)
            if v.type().kind() == "TensorType" and n.kind() != "prim::Constant"
        }
        shapes = captured.shapes(inputs)
        theirs = [s for s in captured.steps if s.name in shapes]
        # All values of both sides take about the same room.
        size = 4 * sum(map(math.prod, shapes.values()))
        own = self._shapes(inputs, [*made], 1 + size // HELD)
        match = SequenceMatcher(
            None,
            [(_operator(*made[k]), own[k]) for k in made],
            [((s.operator, s.place), shapes[s.name]) for s in theirs],
            autojunk=False,
        )
        ours = [*made]
        found = {ours[a + k]: theirs[b + k] for a, b, size in match.get_matching_blocks() for k in range(size)}
        self._modules = _modules(self._graph, {key: step.module for key, step in found.items()})
        self._keys = {step.name: key for key, step in found.items()}
        self.values = self._values({key: step.name for key, step in found.items()})
        self.loose = self._loose({key for key, step in found.items() if step.name in known})

    def _shapes(self, inputs: Arrays, keys: Sequence[str], parts: int) -> dict[str, tuple[int, ...]]:
        """The shapes of values, read off in so many runs."""
        most = -(-len(keys) // parts)
        found: dict[str, tuple[int, ...]] = {}
        for start in range(0, len(keys), most or 1):
            found |= {k: v.shape for k, v in self._call(inputs, keys[start : start + most], {}).items()}
        return found

    def _loose(self, known: set[str]) -> set[str]:
        makers = {v.debugName(): (key, self._modules[_place(key)]) for key, _, v in _keyed(self._graph)}
        return {
            made[1]
            for place, node in enumerate(self._graph.nodes())
            for value in node.inputs()
            if (made := makers.get(value.debugName())) and made[0] not in known and made[1] != self._modules[place]
        }

    def _values(self, names: dict[str, str]) -> list[Value]:
        outputs = {s.name for s in self._contract.outputs}
        readers: dict[str, set[str]] = {}
        for place, node in enumerate(self._graph.nodes()):
            for value in node.inputs():
                readers.setdefault(value.debugName(), set()).add(self._modules[place])
        return [
            Value(names[key], own, frozenset(others))
            for key, _, value in _keyed(self._graph)
            if key in names
            for own in [self._modules[_place(key)]]
            for others in [readers.get(value.debugName(), set()) - {own}]
            if others or names[key] in outputs
        ]

    def run(self, inputs: Arrays, wanted: Sequence[str] = (), given: Arrays | None = None) -> dict[str, np.ndarray]:
        """See `Side`."""
        given = given or {}
        outputs = [s.name for s in self._contract.outputs]
        asked = {self._keys[n]: n for n in wanted if n in self._keys}
        found = self._call(inputs, [*asked], {self._keys[n]: v for n, v in given.items() if n in self._keys})
        values = {asked.get(key, key): value for key, value in found.items()}
        return values | {n: np.asarray(v) for n, v in given.items() if n in outputs}

    def _call(self, inputs: Arrays, wanted: Sequence[str], given: Arrays) -> dict[str, np.ndarray]:
        """Outputs by the contract's names, other values by their keys."""
        graph = self._graph.copy()
        values = {key: value for key, _, value in _keyed(graph)}
        taken = {values[key].debugName(): (key, graph.addInput()) for key in given}
        for place, node in enumerate(graph.nodes()):
            for index, name in enumerate([v.debugName() for v in node.inputs()]):
                if name in taken and self._modules[_place(taken[name][0])] != self._modules[place]:
                    node.replaceInput(index, taken[name][1])
        for key in wanted:
            graph.registerOutput(values[key])
        if wanted:
            graph.makeMultiOutputIntoTuple()
        run = torch._C._create_function_from_graph("forward", graph)
        arrays = [inputs[s.name] for s in self._contract.inputs] + list(given.values())
        with torch.no_grad(), attention_as_written(), quiet():
            found = run(*(torch.from_numpy(np.ascontiguousarray(a)) for a in arrays))
        first, *rest = found if wanted else [found]
        outputs = first if isinstance(first, tuple) else (first,)
        named = {s.name: v for s, v in zip(self._contract.outputs, outputs, strict=True)}
        named |= dict(zip(wanted, rest, strict=True))
        return {name: value.detach().clone().numpy() for name, value in named.items() if isinstance(value, Tensor)}


def _keyed(graph: Any) -> list[tuple[str, Any, Any]]:
    """Every value with a key that it has in a copy of the graph too, and its node; names that are numbers change."""
    return [(f"{p}.{k}", n, v) for p, n in enumerate(graph.nodes()) for k, v in enumerate(n.outputs())]


def _place(key: str) -> int:
    return int(key.partition(".")[0])


def _operator(node: Any, value: Any) -> tuple[str, int]:
    """The operator that makes a value, and its place among what that makes."""
    outputs = [v.debugName() for v in node.outputs()]
    place = outputs.index(value.debugName()) if len(outputs) > 1 or node.kind() in UNPACKS else 0
    source = next(node.inputs()).node() if node.kind() in UNPACKS else node
    return source.kind().partition("::")[2].rstrip("_"), place


def _modules(graph: Any, known: dict[str, str]) -> list[str]:
    """The module of each node: of its values (`known`, by key), or of whoever reads them."""
    nodes = list(graph.nodes())
    found: list[str] = [TOP] * len(nodes)
    reading: dict[str, str] = {}
    for place, node in reversed([*enumerate(nodes)]):
        said = [known.get(f"{place}.{k}") or reading.get(v.debugName()) for k, v in enumerate(node.outputs())]
        found[place] = next((m for m in said if m), TOP)
        reading |= dict.fromkeys((v.debugName() for v in node.inputs()), found[place])
    return found
