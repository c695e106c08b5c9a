"""A graph that PyTorch captured, run node by node with PyTorch's own operators."""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, fx

from mer_export.contract import Contract
from mer_export.exporters.graph.lowering import run_rnn
from mer_export.exporters.graph.names import TOP, WRAPPER, path_of
from runtimes.debug.values import Arrays, Shelf, Value

OUTPUT = ""
"""Stands for the module that reads what the network gives."""


class Step(NamedTuple):
    """What one node makes, with the operator that makes it and the place among several that this makes at once."""

    name: str
    module: str
    operator: str
    place: int


class Border(NamedTuple):
    """Values that one call of a module reads from outside of it, and those that it gives there."""

    read: list[str]
    given: list[str]


class Captured:
    """A `torch.export.ExportedProgram` as a side: nodes are called as the program has them, outputs as the contract."""

    def __init__(self, program: torch.export.ExportedProgram, contract: Contract):
        self._graph, self._contract = program.module(), contract
        nodes = list(self._graph.graph.nodes)
        last = nodes[-1]
        given = fx.node.map_arg(last.args[0], lambda n: n)
        outputs = [given] if isinstance(given, fx.Node) else list(given)
        self._names = {n: n.name for n in nodes}
        self._names |= {n: s.name for n, s in zip(outputs, contract.outputs, strict=True)}
        self._modules = {n: OUTPUT if n is last else _module(n) for n in nodes}
        self.values = [
            Value(self._names[n], self._modules[n], readers)
            for n in nodes
            if n.op == "call_function"
            and (readers := frozenset({self._modules[u] for u in n.users} - {self._modules[n]}))
        ]

    @cached_property
    def _scopes(self) -> dict[fx.Node, set[str]]:
        return {n: _scopes(n) for n in self._graph.graph.nodes}

    def maker(self, name: str) -> str:
        """The module that makes a value."""
        return next(v.module for v in self.values if v.name == name)

    def border(self, module: str, call: int = 0) -> Border:
        """The values that cross the border of the call of a module that came after so many others."""
        scope = f"{module}@{call}" if call else module
        inside = dict.fromkeys(n for n, scopes in self._scopes.items() if scope in scopes)
        read = dict.fromkeys(self._names[n] for user in inside for n in user.all_input_nodes if n not in inside)
        return Border([*read], [self._names[n] for n in inside if any(u not in inside for u in n.users)])

    @property
    def loose(self) -> set[str]:
        """None: nodes of both sides have the same names."""
        return set()

    @property
    def steps(self) -> list[Step]:
        """Every node that computes, in their order."""
        return [
            Step(self._names[n], self._modules[n], *_operator(n))
            for n in self._graph.graph.nodes
            if n.op == "call_function"
        ]

    def run(self, inputs: Arrays, wanted: Sequence[str] = (), given: Arrays | None = None) -> dict[str, np.ndarray]:
        """See `Side`; values that are no tensors are left out."""
        kept: dict[str, np.ndarray] = {}
        self._run(inputs, wanted, given or {}, lambda name, value: kept.update({name: _copied(value)}))
        outputs = [s.name for s in self._contract.outputs]
        return kept | {n: np.asarray(v) for n, v in (given or {}).items() if n in outputs}

    def fill(self, shelf: Shelf, inputs: Arrays) -> None:
        """Puts the outputs and every value that is a tensor on a shelf, each when it is made."""
        self._run(inputs, [v.name for v in self.values], {}, lambda name, value: shelf.put(name, _copied(value)))

    def shapes(self, inputs: Arrays) -> dict[str, tuple[int, ...]]:
        """The shape of what each step makes, of those that make a tensor."""
        found: dict[str, tuple[int, ...]] = {}
        self._run(inputs, [s.name for s in self.steps], {}, lambda name, value: found.update({name: (*value.shape,)}))
        return found

    def _run(self, inputs: Arrays, wanted: Sequence[str], given: Arrays, keep: Callable[[str, Tensor], object]) -> None:
        outputs = [s.name for s in self._contract.outputs]
        run = _Run(self._graph, self._names, self._modules, {*wanted, *outputs}, given, keep)
        with torch.no_grad():
            run.run(*(torch.from_numpy(inputs[s.name]) for s in self._contract.inputs))


class _Run(fx.Interpreter):
    def __init__(
        self,
        graph: fx.GraphModule,
        names: Mapping[fx.Node, str],
        modules: Mapping[fx.Node, str],
        wanted: set[str],
        given: Arrays,
        keep: Callable[[str, Tensor], object],
    ):
        super().__init__(graph)
        self._names, self._modules, self._wanted = names, modules, wanted
        self._given = {n: torch.from_numpy(np.ascontiguousarray(v)) for n, v in given.items()}
        self._keep = keep

    def run_node(self, n: fx.Node) -> Any:
        found = super().run_node(n)
        if isinstance(found, Tensor) and (name := self._names[n]) in self._wanted:
            self._keep(name, found.detach())
        return found

    def fetch_args_kwargs_from_env(self, n: fx.Node) -> tuple[tuple[Any, ...], dict[str, Any]]:
        def value(source: fx.Node) -> Any:
            name = self._names[source]
            if name in self._given and self._modules[source] != self._modules[n]:
                return self._given[name].clone()
            return self.env[source]

        args, kwargs = fx.node.map_arg((n.args, n.kwargs), value)
        return args, kwargs

    def call_function(self, target: Any, args: Any, kwargs: Any) -> Any:
        # What stands for a recurrent operator of ONNX computes nothing itself.
        if str(target).startswith("onnx_symbolic._symbolic"):
            (x, w, r, b, *steps), kind = args[:2]
            return run_rnn(kind, x, (w, r, b), steps[0] if steps else None)
        return super().call_function(target, args, kwargs)


def _copied(value: Tensor) -> np.ndarray:
    # An operator may change a value in place later on.
    return value.clone().numpy()


def _operator(node: fx.Node) -> tuple[str, int]:
    if node.target is operator.getitem and isinstance(source := node.args[0], fx.Node):
        return _operator(source)[0], int(str(node.args[1]))
    return str(node.target).split(".")[1 if str(node.target).startswith("aten.") else 0].rstrip("_"), 0


def _scopes(node: fx.Node) -> set[str]:
    """The modules that a node lies in, a later call with its number: `encoder@1`."""
    paths = (path for path, _ in node.meta.get("nn_module_stack", {}).values())
    return {path.removeprefix(WRAPPER).removeprefix(".") for path in paths}


def _module(node: fx.Node) -> str:
    stack = node.meta.get("nn_module_stack")
    return path_of(list(stack.values())[-1][0]) if stack else TOP
