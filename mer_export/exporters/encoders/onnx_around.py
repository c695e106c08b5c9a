"""What the recipe of an ONNX encoder asks for, as nodes around its graph: one file, from our inputs to features."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from mer_export.bucket import Bucket
from mer_export.encoders.encoder import LEAST
from mer_export.encoders.file import SYSTEM
from mer_export.encoders.file.config import FileConfig, FilePicture
from mer_export.encoders.inputs import SoundInput, TextInput
from mer_export.encoders.log_mel import LogMel
from mer_export.errors import InputError, NotAvailableError, UnsupportedError
from mer_export.exporters.graph import external_data
from mer_export.exporters.precision_gate import Arrays, open_file
from mer_export.install import not_installed
from mer_export.untrusted.onnx_files import require_own_data

OLDEST = 11
"""The opset from which all operators that are put around a file mean the same."""
DOMAINS = ("", "ai.onnx", "com.microsoft")
"""Operators that runtimes bring themselves; others come in libraries that somebody would have to load."""
INNER = "file/"
"""Stands before every name of the file, so that none is one of ours."""

Run = Callable[[Arrays], np.ndarray]
"""The output of a file for arrays of the contract."""


def run_onnx(path: Path) -> Run:
    """Runs a file in ONNX Runtime; raises InputError where that refuses it."""
    try:
        session = open_file(path)
    except NotAvailableError:
        raise
    except Exception as error:
        raise InputError(f"ONNX Runtime does not load the file: {str(error).strip().splitlines()[0]}") from None
    names = [i.name for i in session.get_inputs()]
    return lambda arrays: session.run(None, {n: arrays[n] for n in names})[0]


class OnnxFile:
    """A file that was read and found to be of the operators of ONNX alone."""

    def __init__(self, path: Path):
        """Reads a file and the data files beside it.

        Raises:
            InputError: damaged, or data files elsewhere.
            UnsupportedError: operators of a library, or an opset that is too old.
            NotAvailableError: `onnx` is missing.
        """
        try:
            import onnx
        except ImportError:
            raise NotAvailableError(not_installed("onnx, which reads the file,", "export")) from None
        require_own_data(path)
        try:
            model = onnx.load_model(path)
            onnx.checker.check_model(model)
        except Exception as error:
            # It raises what protobuf, its checker and the file system raise.
            raise InputError(f"{path} is not a valid ONNX file: {str(error).strip().splitlines()[0]}") from None
        self.path, self.model = path, _prepared(model, path)
        known = {i.name for i in self.model.graph.initializer}
        self.inputs = {i.name: _declared(i) for i in self.model.graph.input if i.name not in known}
        self.outputs = [o.name for o in self.model.graph.output]
        self.names = list(self.inputs)

    def fixed(self, name: str) -> Sequence[int | None]:
        """The dims of an input, None where any size goes."""
        return self.inputs[name][1]

    def try_out(self, config: FileConfig, bucket: Bucket, batch: int, arrays: Arrays) -> np.ndarray:
        """What the file itself gives."""
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "file.onnx"
            external_data.save(self.around(config, bucket, batch, None), path)
            return run_onnx(path)(arrays)

    def write(
        self, config: FileConfig, bucket: Bucket, batch: int, shape: Sequence[int], path: Path, beside: Path | None
    ) -> Run:
        """Writes the file with what is put around it, sharing weights with the one `beside`; gives what runs it."""
        held = dict(external_data.held_by(beside)) if beside else {}
        external_data.write(self.around(config, bucket, batch, shape), path, held)
        return run_onnx(path)

    def around(self, config: FileConfig, bucket: Bucket, batch: int, shape: Sequence[int] | None) -> Any:
        """An `onnx.ModelProto` at fixed lengths, from the contract's inputs to its output.

        Args:
            config: what goes in and comes out.
            bucket: its lengths.
            batch: items of a call; 0 leaves them free.
            shape: of what the file gives; None leaves that as it is, to find it out.
        """
        import onnx
        from onnx import TensorProto, helper

        contract = SYSTEM.contract(config)
        inner = onnx.compose.add_prefix(self.model, INNER)
        graph = inner.graph
        draw = _Nodes(inner)
        known = {i.name for i in graph.initializer}
        own = [i for i in graph.input if i.name not in known]
        for value, node in zip(own, self._fed(draw, config, bucket), strict=True):
            draw.named("Cast", [_rounded(draw, node, value)], value.name, to=value.type.tensor_type.elem_type)
        before, body = list(draw.nodes), list(graph.node)
        draw.nodes.clear()
        spec = contract.outputs[0]
        found = draw.add("Cast", [f"{INNER}{config.output}"], to=TensorProto.FLOAT)
        last = found if shape is None else _features(draw, found, shape, config, bucket)
        draw.named("Identity", [last], spec.name)
        del graph.node[:], graph.input[:], graph.output[:]
        graph.node.extend([*before, *body, *draw.nodes])
        graph.input.extend(
            helper.make_tensor_value_info(
                s.name, helper.np_dtype_to_tensor_dtype(np.dtype(s.dtype)), [batch or "batch", *s.shape(1, bucket)[1:]]
            )
            for s in contract.inputs
        )
        dims = None if shape is None else [batch or "batch", *spec.shape(1, bucket)[1:]]
        graph.output.append(helper.make_tensor_value_info(spec.name, TensorProto.FLOAT, dims))
        inner.ir_version = max(inner.ir_version, 8)
        return inner

    def _fed(self, draw: _Nodes, config: FileConfig, bucket: Bucket) -> Iterator[str]:
        """What each input of the file is given, before its dtype."""
        values = _values(draw, config)
        for name, role in config.takes.items():
            if role == "values":
                yield values
            elif role == "zeros":
                yield draw.add("Mul", [values, draw.constant(np.asarray(0, _dtype(config)))])
            elif role == "mask":
                yield draw.add("Cast", [_real(draw, config, _places(config, bucket))], to=1)
            else:
                rank = len(self.inputs[name][1])
                yield draw.add("Reshape", [_told_length(draw, config), draw.constant(np.asarray([-1, 1][:rank]))])


class _Nodes:
    """Nodes and constants that are put around a graph."""

    def __init__(self, model: Any):
        self.graph = model.graph
        self.nodes: list[Any] = []

    def constant(self, value: np.ndarray) -> str:
        """The name of a constant."""
        from onnx import numpy_helper

        name = f"around/constant{len(self.graph.initializer)}"
        self.graph.initializer.append(numpy_helper.from_array(np.asarray(value), name))
        return name

    def add(self, kind: str, inputs: Sequence[str], **attributes: Any) -> str:
        """The name of what a new node gives."""
        return self.named(
            kind, inputs, f"around/{kind.lower()}{len(self.nodes)}/{len(self.graph.initializer)}", **attributes
        )

    def named(self, kind: str, inputs: Sequence[str], output: str, **attributes: Any) -> str:
        from onnx import helper

        self.nodes.append(
            helper.make_node(kind, list(inputs), [output], name=f"around/{len(self.nodes)}/{output}", **attributes)
        )
        return output


def _prepared(model: Any, path: Path) -> Any:
    import onnx.inliner

    if model.functions:
        model = onnx.inliner.inline_local_functions(model)
    opset = next((o.version for o in model.opset_import if o.domain in ("", "ai.onnx")), 0)
    if opset < OLDEST:
        raise UnsupportedError(f"{path} is of opset {opset}: export it again with opset {OLDEST} or later")
    foreign = sorted({n.domain for n in _nodes(model.graph)} - {*DOMAINS})
    if foreign:
        raise UnsupportedError(f"{path} has operators of {foreign[0]}, which come in a library: none is loaded here")
    return model


def _nodes(graph: Any) -> Iterator[Any]:
    """Every node, those of inner graphs too."""
    for node in graph.node:
        yield node
        for attribute in node.attribute:
            for inner in (attribute.g, *attribute.graphs):
                yield from _nodes(inner)


def _declared(value: Any) -> tuple[int, list[int | None]]:
    tensor = value.type.tensor_type
    return tensor.elem_type, [d.dim_value if d.HasField("dim_value") else None for d in tensor.shape.dim]


def _dtype(config: FileConfig) -> str:
    return "int64" if isinstance(config.input, TextInput) else "float32"


def _rounded(draw: _Nodes, name: str, value: Any) -> str:
    """Numbers of pictures and sound as the nearest whole ones that the file's type has, where it takes those."""
    from onnx import TensorProto, helper

    wide = (TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.DOUBLE, TensorProto.BFLOAT16)
    if value.type.tensor_type.elem_type in wide or name == "input_ids":
        return name
    whole = draw.add("Round", [draw.add("Cast", [name], to=TensorProto.FLOAT)])
    kind = np.dtype(helper.tensor_dtype_to_np_dtype(value.type.tensor_type.elem_type))
    if kind.kind not in "iu" or kind.itemsize > 2:
        return whole
    # What is louder than full scale, as resampled sound is, would come out with the other sign.
    ends = np.iinfo(kind)
    return draw.add("Clip", [whole, *(draw.constant(np.asarray(n, np.float32)) for n in (ends.min, ends.max))])


def _values(draw: _Nodes, config: FileConfig) -> str:
    """The raw thing in the file's layout."""
    recipe = config.input
    if isinstance(recipe, TextInput):
        return "input_ids"
    if isinstance(recipe, FilePicture):
        found = "picture"
        if recipe.colours == "bgr":
            found = draw.add("Gather", [found, draw.constant(np.asarray([2, 1, 0]))], axis=1)
        return found if recipe.layout == "nchw" else draw.add("Transpose", [found], perm=[0, 2, 3, 1])
    if recipe.form == "log_mel":
        rows = draw.add("Reshape", ["sound", draw.constant(np.asarray([0, -1, recipe.mels]))])
        return draw.add("Transpose", [rows], perm=[0, 2, 1])
    found = draw.add("Reshape", ["sound", draw.constant(np.asarray([0, -1]))])
    if recipe.field > recipe.hop:
        found = draw.add("Pad", [found, draw.constant(np.asarray([0, 0, 0, recipe.field - recipe.hop]))])
    return draw.add("Reshape", [found, draw.constant(np.asarray([0, 1, -1]))]) if recipe.channel else found


def _length(config: FileConfig) -> str:
    return "tokens_len" if isinstance(config.input, TextInput) else "samples"


def _told_length(draw: _Nodes, config: FileConfig) -> str:
    """How many of the places that the file is given are real."""
    if getattr(config.input, "form", "") != "log_mel":
        return _length(config)
    hop = draw.constant(np.asarray(LogMel.HOP))
    return draw.add("Div", [draw.add("Add", ["samples", draw.constant(np.asarray(LogMel.HOP - 1))]), hop])


def _places(config: FileConfig, bucket: Bucket) -> np.ndarray:
    """Where (int64) each place begins that a mask says something about: token, sample, or frame of a spectrogram."""
    recipe = config.input
    if isinstance(recipe, SoundInput) and recipe.form == "log_mel":
        return np.arange(0, bucket["frames"] * recipe.hop, LogMel.HOP)
    if isinstance(recipe, SoundInput):
        return np.arange(bucket["frames"] * recipe.hop + max(0, recipe.field - recipe.hop))
    return np.arange(bucket["tokens"])


def _real(draw: _Nodes, config: FileConfig, ends: np.ndarray) -> str:
    """Whether the place or state that ends at each of `ends` is real: (batch, places) bool."""
    count = draw.add("Reshape", [_length(config), draw.constant(np.asarray([-1, 1]))])
    return draw.add("Less", [draw.constant(ends[None]), count])


def _features(draw: _Nodes, found: str, shape: Sequence[int], config: FileConfig, bucket: Bucket) -> str:
    """The contract's output of what the file gives."""
    from onnx import TensorProto

    if config.pools:
        return _unit(draw, found, config) if config.unit else found
    if len(shape) == 4:
        wide = isinstance(config.input, FilePicture) and config.input.layout == "nhwc"
        found = draw.add(
            "Reshape", [found, draw.constant(np.asarray([0, -1, config.width] if wide else [0, config.width, -1]))]
        )
        found = found if wide else draw.add("Transpose", [found], perm=[0, 2, 1])
    elif config.width_first:
        found = draw.add("Transpose", [found], perm=[0, 2, 1])
    ends = _state_ends(config, bucket)
    if ends is None:
        count = int(np.prod(shape[1:])) // config.width
        weights = {
            "mean": np.full(count, 1 / count),
            "first": np.eye(1, count)[0],
            "last": np.eye(1, count, count - 1)[0],
        }
        row = draw.constant(weights[config.pooling].astype(np.float32)[None, None])
    else:
        real = draw.add("Cast", [_real(draw, config, ends)], to=TensorProto.FLOAT)
        if config.pooling == "none":
            column = draw.add("Reshape", [real, draw.constant(np.asarray([0, -1, 1]))])
            return draw.add("Mul", [found, column])
        row = _pooled_weights(draw, real, len(ends), config)
    vector = draw.add("Reshape", [draw.add("MatMul", [row, found]), draw.constant(np.asarray([0, -1]))])
    return _unit(draw, vector, config) if config.unit else vector


def _state_ends(config: FileConfig, bucket: Bucket) -> np.ndarray | None:
    """The last place (states,) int64 that each state needs; None of pictures."""
    recipe = config.input
    if isinstance(recipe, SoundInput):
        whole = 1 if recipe.form == "log_mel" else recipe.field
        return np.arange(bucket["frames"]) * recipe.hop + whole - 1
    return np.arange(bucket["tokens"]) if isinstance(recipe, TextInput) else None


def _pooled_weights(draw: _Nodes, real: str, states: int, config: FileConfig) -> str:
    """The part (batch, 1, states) that each state has in the vector."""
    if config.pooling == "first":
        return draw.constant(np.eye(1, states, dtype=np.float32)[None])
    count = draw.add("MatMul", [real, draw.constant(np.ones((states, 1), np.float32))])
    if config.pooling == "last":
        number = draw.constant(np.arange(1, states + 1, dtype=np.float32)[None])
        row = draw.add("Cast", [draw.add("Equal", [number, count])], to=1)
    else:
        row = draw.add("Div", [real, count])
    return draw.add("Reshape", [row, draw.constant(np.asarray([0, 1, -1]))])


def _unit(draw: _Nodes, vector: str, config: FileConfig) -> str:
    squares = draw.add(
        "MatMul", [draw.add("Mul", [vector, vector]), draw.constant(np.ones((config.width, 1), np.float32))]
    )
    length = draw.add("Max", [draw.add("Sqrt", [squares]), draw.constant(np.asarray([LEAST], np.float32))])
    return draw.add("Div", [vector, length])
