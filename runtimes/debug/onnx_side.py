"""An ONNX file as a side: values become outputs of a copy, or inputs of it where they are given.

The copy runs in the backend that the candidate runs in. A recording of one run with every value read off shows how an
error grows; one with every value given where modules read each other's shows what each module adds by itself.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np

from mer_export.contract import TensorSpec
from mer_export.errors import UnsupportedError
from mer_export.exporters.graph.external_data import write
from mer_export.exporters.graph.names import TOP, module_of
from mer_export.exporters.graph.nodes import reads, within
from mer_export.registry import resolve
from runtimes.backends.session import Artefact, Session
from runtimes.backends.table import find_backend
from runtimes.backends.way import Way
from runtimes.debug.values import Arrays, Value

SHAPE = "probe.shape"


class OnnxSide:
    """See `Side`; values are those of the file that the reference knows too, whose `shapes` are given by name."""

    def __init__(self, artefact: Artefact, way: Way, shapes: Mapping[str, tuple[int, ...]], folder: Path):
        """Reads the file and leaves copies in `folder`.

        Raises:
            UnsupportedError: nodes do not say of which module they are, as in files of earlier releases.
        """
        import onnx

        self._artefact, self._way, self._folder, self._copies = artefact, way, folder, count()
        self._model = onnx.load_model(artefact.path)
        self._graph = self._model.graph
        self._modules = _modules(self._graph)
        # From here on the weights lie in one file, which all copies read.
        write(self._model, folder / "weights.onnx", {})
        self._types = _types(self._model)
        self._shapes = shapes
        values = self._values()
        self.values = [v for v in values if shapes.get(v.name)]
        self.loose = {v.module for v in values if v.readers and not shapes.get(v.name)}

    def _values(self) -> list[Value]:
        outputs = {o.name for o in self._graph.output}
        readers: dict[str, set[str]] = {}
        for place, node in enumerate(self._graph.node):
            for name in reads(node):
                readers.setdefault(name, set()).add(self._modules[place])
        return [
            Value(name, own, frozenset(others))
            for place, node in enumerate(self._graph.node)
            for name in node.output
            for own in [self._modules[place]]
            for others in [readers.get(name, set()) - {own}]
            if others or name in outputs
        ]

    def run(self, inputs: Arrays, wanted: Sequence[str] = (), given: Arrays | None = None) -> dict[str, np.ndarray]:
        """See `Side`; what is read off comes without its shape."""
        given = given or {}
        outputs = [s.name for s in self._artefact.contract.outputs]
        taken = {f"given.{k}": name for k, name in enumerate(given) if name not in outputs}
        probed = {f"probe.{k}": name for k, name in enumerate(wanted) if name not in outputs}
        path = self._folder / f"{next(self._copies)}.onnx"
        self._write(path, taken, probed)
        feed = {**inputs, **{n: np.asarray(given[name], dtype=np.float32) for n, name in taken.items()}}
        with self._open(path, taken, probed) as session:
            found = session.run(feed)
        path.unlink()
        values = {probed.get(n, n): v for n, v in found.items()}
        return values | {n: np.asarray(v) for n, v in given.items() if n in outputs}

    def _open(self, path: Path, taken: Mapping[str, str], probed: Mapping[str, str]) -> Session:
        contract = self._artefact.contract
        extra = (
            [TensorSpec(name=n, dtype="float32", dims=self._shapes[v]) for n, v in taken.items()],
            [TensorSpec(name=n, dtype="float32", dims=(1, int(np.prod(self._shapes[v])))) for n, v in probed.items()],
        )
        contract = contract.model_copy(
            update={"inputs": (*contract.inputs, *extra[0]), "outputs": (*contract.outputs, *extra[1])}
        )
        kind: type[Session] = resolve(find_backend(self._way.backend).session)
        artefact = replace(self._artefact, path=path, contract=contract, kept=None, digest=path.name)
        return kind(artefact, self._way.options)

    def _write(self, path: Path, taken: Mapping[str, str], probed: Mapping[str, str]) -> None:
        """Writes a copy."""
        import onnx
        from onnx import TensorProto, helper, numpy_helper

        model = onnx.ModelProto()
        model.CopyFrom(self._model)
        graph, read, first, last = model.graph, {}, [], []
        for name, value in taken.items():
            graph.input.append(helper.make_tensor_value_info(name, TensorProto.FLOAT, self._shapes[value]))
            kind = self._types.get(value, TensorProto.FLOAT)
            read[value] = name if kind == TensorProto.FLOAT else f"{name}.cast"
            if read[value] != name:
                first.append(helper.make_node("Cast", [name], [read[value]], name=read[value], to=kind))
        makers = {o: self._modules[place] for place, node in enumerate(graph.node) for o in node.output}
        for place, node in enumerate(graph.node):
            # What a loop holds reads the values around it by their names.
            for inner in within(node):
                for index, name in enumerate(inner.input):
                    if name in read and makers[name] != self._modules[place]:
                        inner.input[index] = read[name]
        graph.initializer.append(numpy_helper.from_array(np.array([1, -1], np.int64), SHAPE))
        for name, value in probed.items():
            last += [
                helper.make_node("Cast", [value], [f"{name}.cast"], name=f"{name}.cast", to=TensorProto.FLOAT),
                helper.make_node("Reshape", [f"{name}.cast", SHAPE], [name], name=name),
            ]
            graph.output.append(helper.make_tensor_value_info(name, TensorProto.FLOAT, [1, None]))
        nodes = list(graph.node)
        del graph.node[:]
        graph.node.extend([*first, *nodes, *last])
        onnx.save_model(model, path)


def _modules(graph: Any) -> list[str]:
    """The module of each node: as its name says, or that of whoever reads what it makes."""
    named = [module_of(node.name) for node in graph.node]
    if not any(named):
        raise UnsupportedError(
            "the nodes of this file do not say of which module they are, as in exports of earlier releases: "
            "run mer export --force"
        )
    reading: dict[str, str] = {}
    for place in reversed(range(len(named))):
        node = graph.node[place]
        named[place] = named[place] or next((reading[n] for n in node.output if n in reading), None)
        if own := named[place]:
            reading |= dict.fromkeys(reads(node), own)
    return [name or TOP for name in named]


def _types(model: Any) -> dict[str, int]:
    """ONNX element types of the values between nodes, as far as they follow from the graph."""
    import onnx

    found = onnx.shape_inference.infer_shapes(model).graph
    return {v.name: v.type.tensor_type.elem_type for v in found.value_info if v.type.tensor_type.elem_type}
