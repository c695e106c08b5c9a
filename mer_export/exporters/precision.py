"""int8, fp16 and bf16 as rewrites of the fp32 ONNX graph, for ONNX Runtime and TensorRT alike.

Quantisation is dynamic: weights are int8 in the file, activations get their scale on every call. A rewrite is tried in
the order of its row in `PRECISIONS`; the first file that loads, runs and passes the gate is kept, or none.
"""

from __future__ import annotations

import logging
import tempfile
from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from mer_export.errors import MerError, NotAvailableError, ParityError, UnsupportedError
from mer_export.exporters.export_job import ExportJob
from mer_export.exporters.graph.bf16 import to_bf16
from mer_export.exporters.graph.external_data import save
from mer_export.exporters.graph.int8_gru import gru_loops
from mer_export.exporters.graph.names import module_of, node_name, nodes_of
from mer_export.exporters.graph.nodes import all_nodes
from mer_export.exporters.graph.share import share_initializers
from mer_export.exporters.precision_gate import check, open_file, runtime

log = logging.getLogger("mer")

MATRICES = ("MatMul", "Gemm")
PRODUCTS = (*MATRICES, "Conv", "LSTM", "GRU", "RNN")
"""Operators that weigh features; what comes after them is of the network's own scale."""
RECURRENT = ("LSTM",)
"""Recurrent operators with an int8 twin in ONNX Runtime; GRU has none, and becomes a loop."""
INT8_OPERATORS = ("MatMulInteger", "MatMulIntegerToFloat", "DynamicQuantizeLSTM")

FP32_OPERATORS = (
    # Sums and squares over many elements, and what divides by them.
    *("LayerNormalization", "BatchNormalization", "InstanceNormalization", "GroupNormalization"),
    *("Softmax", "LogSoftmax", "ReduceMean", "ReduceSum", "ReduceSumSquare", "ReduceL2", "ReduceLogSumExp", "CumSum"),
    # Their small constants (1e-12) and large results do not exist in fp16.
    *("Pow", "Exp", "Log", "Sqrt", "Reciprocal", "Div", "Clip"),
    # Each step builds on the last one.
    *("LSTM", "GRU", "RNN"),
    # Not defined, or not implemented by runtimes, in fp16.
    *("Range", "Min", "Max", "ReduceMax", "TopK"),
)
"""Operators that stay in fp32 in an fp16 graph."""

Rewrite = Callable[[Any, Path, Collection[str]], Any]
"""Takes an `onnx.ModelProto` that it may change, a scratch file, and the names of nodes that stay in fp32; returns the
rewritten model."""


@dataclass(frozen=True)
class Precision:
    """Ways to make it in the order they are tried, by the name that the variant remembers.

    `marks` are the operators that a rewritten graph has, and are counted in the variant's options. `twin` makes a graph
    of the same results that stands before the gate, where ONNX Runtime does not run the rewritten one on the CPU.
    """

    ways: dict[str, Rewrite]
    marks: tuple[str, ...]
    formats: tuple[str, ...]
    """Export formats that exist in it."""
    twin: Rewrite | None = None


def write(job: ExportJob, reference: Path, path: Path, gated: bool = True) -> dict[str, Any]:
    """Writes the fp32 file `reference` in the job's precision to `path`, but for the modules that it keeps in fp32.

    Without `gated` the first file that loads is kept, whatever it answers: for who wants to see what goes wrong in it.

    Returns:
        For the variant's options: the way it was made, operators, and what the gate measured.

    Raises:
        UsageError: a module to keep that the graph does not have.
        ParityError: no way gives a file that loads, runs and passes the gate; `path` does not exist then.
        UnsupportedError: nothing in the graph can be rewritten.
        NotAvailableError: ONNX Runtime is missing.
    """
    runtime()
    record = PRECISIONS[job.precision]
    problem: MerError = UnsupportedError(f"no way to make {job.precision}")
    keep = nodes_of(_prepared(reference).graph, job.keep_fp32) if job.keep_fp32 else []
    for name, rewrite in record.ways.items():
        try:
            operators = _rewritten(rewrite, reference, path, keep, record.marks)
            if not operators:
                raise UnsupportedError(f"nothing in this graph can be {job.precision}: export it in fp32")
            with tempfile.TemporaryDirectory(dir=path.parent) as folder:
                runnable = path
                if record.twin:
                    runnable = Path(folder) / path.name
                    _rewritten(record.twin, reference, runnable, keep)
                # Both after the rewrite, which holds the weights several times.
                candidate = open_file(runnable)
                report = check(job, open_file(reference), candidate) if gated else {}
            return {"way": name, "operators": operators, "gate": report}
        except NotAvailableError:
            raise
        except MerError as error:
            problem = error
        except Exception as error:
            # Rewriter and runtime raise a dozen classes of their own, most straight from Exception.
            reason = (str(error).splitlines() or [""])[0]
            problem = ParityError(f"the {job.precision} graph breaks, the variant was not written: {reason}")
        log.debug("%s %s: %s", job.precision, name, problem)
        path.unlink(missing_ok=True)
    raise problem


def _rewritten(
    rewrite: Rewrite, reference: Path, path: Path, keep: Collection[str], marks: tuple[str, ...] = ()
) -> dict[str, int]:
    """Writes the rewritten file and counts the operators that mark it; with marks of which it has none, no file."""
    model = rewrite(_prepared(reference), path, keep)
    operators = _count(model, marks)
    if operators or not marks:
        save(model, path)
    return operators


def unshare_initializers(model: Any) -> int:
    """Gives each use of an initializer of an `onnx.ModelProto` a copy of its own, in place.

    ONNX Runtime's quantiser transposes the weight of a Gemm where it lies: a second reader would get it wrong.

    Returns:
        How many copies were made.
    """
    constants = {i.name: i for i in model.graph.initializer}
    taken = set(constants) | {name for n in model.graph.node for name in (*n.input, *n.output)}
    read = Counter[str]()
    for node in model.graph.node:
        for index, name in enumerate(node.input):
            if name not in constants:
                continue
            read[name] += 1
            if read[name] > 1:
                node.input[index] = fresh = _unused(f"{name}.{read[name]}", taken)
                model.graph.initializer.add().CopyFrom(constants[name])
                model.graph.initializer[-1].name = fresh
    return sum(n - 1 for n in read.values())


def _unused(name: str, taken: set[str]) -> str:
    while name in taken:
        name += "_"
    taken.add(name)
    return name


def _prepared(reference: Path) -> Any:
    """The fp32 model as both rewrites need it: no shared weights, no stale shapes, a name of its own for each node."""
    import onnx

    model = onnx.load_model(reference)
    unshare_initializers(model)
    del model.graph.value_info[:]
    for number, node in enumerate(model.graph.node):
        node.name = node_name(module_of(node.name), node.op_type, number)
    return model


def _int8(model: Any, scratch: Path, keep: Collection[str], per_channel: bool, recurrent: bool) -> Any:
    """Dynamic quantisation of products with a constant matrix, and of `recurrent` layers."""
    import onnx
    from onnxruntime.quantization import QuantType, quantize_dynamic

    if recurrent:
        gru_loops(model, keep)
    # Without this mark the quantiser asks on the log for what was done above.
    onnx.helper.set_model_props(model, {"onnx.quant.pre_process": "onnxruntime.quant"})
    quantize_dynamic(
        model,
        scratch,
        op_types_to_quantize=[*MATRICES, *(RECURRENT if recurrent else ())],
        per_channel=per_channel,
        weight_type=QuantType.QInt8,
        nodes_to_exclude=_excluded(model.graph, keep),
        # Shapes and types behind a loop of `gru_loops` are not inferred: it has operators of ONNX Runtime alone.
        extra_options={"DefaultTensorType": onnx.TensorProto.FLOAT},
    )
    made = onnx.load_model(scratch)
    del made.metadata_props[:]
    return _finished(made)


def _excluded(graph: Any, keep: Collection[str]) -> list[str]:
    """Nodes that stay in fp32: those of `keep`, and products with a vector, whose scales do not load per channel, or
    with no constant."""
    dims = {i.name: tuple(i.dims) for i in graph.initializer}
    found = [n for n in graph.node if n.op_type in MATRICES]
    kept = [n.name for n in found if len(dims.get(n.input[1], ())) != 2 or 1 in dims[n.input[1]]]
    kept += keep
    # The quantiser turns a Gemm into a MatMul of this name before it looks at the list.
    return [*kept, *(f"{name}_MatMul" for name in kept)]


def _fp16(model: Any, scratch: Path, keep: Collection[str]) -> Any:
    """fp16 wherever `FP32_OPERATORS` does not say otherwise; inputs and outputs stay as the contract has them."""
    from onnxruntime.transformers import float16
    from onnxruntime.transformers.onnx_model import OnnxModel

    quiet = logging.getLogger("onnxruntime.transformers.float16")
    before, own = quiet.level, {n.name: list(n.output) for n in model.graph.node}
    quiet.setLevel(logging.ERROR)
    try:
        made = float16.convert_float_to_float16(
            model,
            keep_io_types=True,
            op_block_list=[*float16.DEFAULT_OP_BLOCK_LIST, *FP32_OPERATORS],
            node_block_list=[*_beside_recurrent(model.graph), *_on_raw_features(model.graph), *keep],
        )
    finally:
        quiet.setLevel(before)
    _drop_repeated_casts(made.graph)
    _drop_round_trips(made.graph, {*own})
    _call_as_before(made.graph, own)
    OnnxModel(made).topological_sort()
    return _finished(made)


def _beside_recurrent(graph: Any) -> list[str]:
    """Names of the transpositions that feed or follow a recurrent layer.

    They only move what the layer wants in fp32 anyway, and TensorRT-RTX refuses a cast between the two.
    """
    recurrent = [n for n in graph.node if n.op_type in ("LSTM", "GRU", "RNN")]
    touched = {name for n in recurrent for name in (*n.input, *n.output)}
    return [n.name for n in graph.node if n.op_type == "Transpose" and touched & {*n.input, *n.output}]


def _on_raw_features(graph: Any) -> list[str]:
    """Names of the nodes between the float inputs and the first product.

    Features come in any scale, far from what fp16 tells apart, until the network has standardised them. Lengths and
    token ids say nothing of scale: a mask made of them does not make what it masks raw.
    """
    import onnx

    floats = (i.name for i in graph.input if i.type.tensor_type.elem_type == onnx.TensorProto.FLOAT)
    raw, names = set(floats), []
    for node in graph.node:
        if node.op_type not in PRODUCTS and raw & {*node.input}:
            names.append(node.name)
            raw |= {*node.output}
    return names


def _bf16(model: Any, scratch: Path, keep: Collection[str], emulate: bool = False) -> Any:
    """Products in bf16, all else in fp32; `emulate` gives the twin."""
    return _finished(to_bf16(model, emulate, keep))


def _drop_repeated_casts(graph: Any) -> None:
    """A value with several fp32 readers is cast once: the converter adds the same cast for each of them."""
    seen: set[str] = set()
    for node in list(graph.node):
        if node.op_type == "Cast" and node.output[0] in seen:
            graph.node.remove(node)
        seen.update(node.output)


def _drop_round_trips(graph: Any, own: set[str]) -> None:
    """What one fp32 node gives to another stays fp32: the converter rounds to fp16 and back between them.

    Nodes named in `own` are not the converter's. TensorRT-RTX also fails on such casts beside an LSTM.
    """
    import onnx

    casts = [n for n in graph.node if n.op_type == "Cast"]
    half = {
        n.output[0]: n.input[0] for n in casts if n.attribute[0].i == onnx.TensorProto.FLOAT16 and n.name not in own
    }
    full = {n.output[0]: n.input[0] for n in casts if n.attribute[0].i == onnx.TensorProto.FLOAT}
    exact = {name: half[source] for name, source in full.items() if source in half}
    for node in graph.node:
        for index, name in enumerate(node.input):
            node.input[index] = exact.get(name, name)
    for outputs in (exact, half):
        used = {name for n in graph.node for name in n.input} | {o.name for o in graph.output}
        for node in [n for n in casts if n.output[0] in outputs and n.output[0] not in used]:
            graph.node.remove(node)


def _call_as_before(graph: Any, own: Mapping[str, Sequence[str]]) -> None:
    """Gives a value the name that it has in fp32 again, where no other value has it: the converter renames those of
    fp32 nodes, by which they could not be told from the reference any more. `own` has the outputs by node."""
    made = {name for n in graph.node for name in n.output}
    renamed = {
        now: name
        for n in graph.node
        for now, name in zip(n.output, own.get(n.name, ()), strict=False)
        if now != name and name not in made
    }
    for node in graph.node:
        for names in (node.input, node.output):
            for index, name in enumerate(names):
                names[index] = renamed.get(name, name)


def _finished(model: Any) -> Any:
    del model.graph.value_info[:]
    share_initializers(model)
    return model


def _count(model: Any, operators: tuple[str, ...]) -> dict[str, int]:
    return dict(Counter(n.op_type for n in all_nodes(model.graph) if n.op_type in operators))


PRECISIONS = {
    "fp16": Precision({"fp16": _fp16}, ("Cast",), formats=("onnx", "tensorrt")),
    # ONNX Runtime refuses bf16 graphs on the CPU.
    "bf16": Precision({"bf16 products": _bf16}, MATRICES, formats=("tensorrt",), twin=partial(_bf16, emulate=True)),
    "int8": Precision(
        {
            "per channel": partial(_int8, per_channel=True, recurrent=True),
            "per tensor": partial(_int8, per_channel=False, recurrent=True),
            "per channel, recurrent layers in fp32": partial(_int8, per_channel=True, recurrent=False),
            "per tensor, recurrent layers in fp32": partial(_int8, per_channel=False, recurrent=False),
        },
        INT8_OPERATORS,
        # TensorRT reads no dynamic quantisation.
        formats=("onnx",),
    ),
}


def precisions_of(format: str) -> tuple[str, ...]:
    """The precisions in which an export format exists."""
    return ("fp32", *(name for name, p in PRECISIONS.items() if format in p.formats))
