"""Floating-point work of an ONNX file, counted from its nodes and the shapes that they see in a run.

    python3 -m benchmarks.flops --network cmerc_meld --seq-len utterances=30

prints the work of a network by module, one full item. Of a recurrent layer the products of what it reads stand apart
from those of its states, which take one step after the other; in both the directions have equal parts.

PyTorch's counter sees neither recurrent layers nor fused attention; a folded graph shows both, and nothing that an
export has pruned away. A multiply-add is two operations. Norms, activations and other element-wise work are left out.
"""

from __future__ import annotations

import argparse
import tempfile
from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import output
from mer_export.exporters.graph.names import module_of

Shape = tuple[int, ...]
SUFFIX = "::shape"


def main(arguments: list[str] | None = None) -> None:
    """Prints the work of a network by part."""
    from benchmarks.suite import NETWORKS, random_bundle, samples_of
    from mer_export.data.collate import collate
    from mer_export.exporters import export_variant
    from mer_export.markdown import table

    parser = argparse.ArgumentParser(prog="python3 -m benchmarks.flops", description="the work of a network by part")
    parser.add_argument("--network", choices=list(NETWORKS), required=True)
    parser.add_argument("--seq-len", help="such as utterances=30; default: its longest bucket")
    chosen = parser.parse_args(arguments)
    network = NETWORKS[chosen.network]
    with tempfile.TemporaryDirectory() as folder:
        bundle = random_bundle(Path(folder) / "bundle", network)
        contract = bundle.manifest.contract
        lengths = contract.parse_bucket(chosen.seq_len) if chosen.seq_len else network.buckets[-1]
        variant = export_variant(bundle, "onnx", lengths)
        found = parts(bundle.variant_files(variant), collate(samples_of(contract, [lengths]), contract, lengths))
    whole = sum(found.values())
    rows = [(part, f"{n / 1e6:.1f}", f"{n / whole:.1%}") for part, n in found.items() if n >= whole / 1000]
    print("\n".join(table(("part", "MFLOP", "of all"), [*rows, ("all", f"{whole / 1e6:.1f}", "")])))


def gflop(path: Path, arrays: Mapping[str, np.ndarray]) -> float:
    """Operations in 1e9 of one run on `arrays`, every step of a recurrent layer and all padding included."""
    return sum(parts(path, arrays).values()) / 1e9


def parts(path: Path, arrays: Mapping[str, np.ndarray]) -> dict[str, int]:
    """Operations of one run by module, in the order of the file."""
    import onnx

    model = onnx.load(str(path), load_external_data=False)
    counted = [n for n in model.graph.node if n.op_type in (*PRODUCTS, *RECURRENT)]
    known = {i.name: tuple(i.dims) for i in model.graph.initializer}
    asked = dict.fromkeys(n for node in counted for n in _tensors(node) if n not in known)
    for name in asked:
        model.graph.node.append(onnx.helper.make_node("Shape", [name], [name + SUFFIX]))
    del model.graph.output[:]
    model.graph.output.extend(
        onnx.helper.make_tensor_value_info(name + SUFFIX, onnx.TensorProto.INT64, None) for name in asked
    )
    known |= dict(zip(asked, _run(model, path, arrays), strict=True))
    found: Counter[str] = Counter()
    for node in counted:
        shapes, module = [known[n] for n in _tensors(node)], module_of(node.name) or node.op_type
        if node.op_type in RECURRENT:
            for what, work in _recurrent(shapes).items():
                found[f"{node.name}, {what}"] += work
        else:
            found[module] += PRODUCTS[node.op_type](node, shapes)
    return dict(found)


def _tensors(node: Any) -> list[str]:
    """The inputs that the counts need, and the first output that is there."""
    return [*node.input[:2], *node.input[2:3] * (node.op_type in RECURRENT), next(n for n in node.output if n)]


def _run(model: Any, path: Path, arrays: Mapping[str, np.ndarray]) -> list[Shape]:
    """Runs the changed graph beside the original file, where its external weights are found."""
    import onnx
    import onnxruntime

    beside = path.with_name(f"{path.stem}.shapes.onnx")
    try:
        onnx.save_model(model, str(beside))
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3
        # Nothing may be merged away: what the file says is what is counted.
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
        session = onnxruntime.InferenceSession(str(beside), options, providers=["CPUExecutionProvider"])
        return [tuple(int(n) for n in shape) for shape in session.run(None, dict(arrays))]
    finally:
        beside.unlink(missing_ok=True)


def _matmul(node: Any, shapes: list[Shape]) -> int:
    return 2 * int(np.prod(shapes[-1])) * shapes[0][-1]


def _gemm(node: Any, shapes: list[Shape]) -> int:
    transposed = any(a.name == "transA" and a.i for a in node.attribute)
    return 2 * int(np.prod(shapes[-1])) * shapes[0][0 if transposed else 1]


def _conv(node: Any, shapes: list[Shape]) -> int:
    """Each output element is a product over (channels of its group) x kernel."""
    return 2 * int(np.prod(shapes[-1])) * int(np.prod(shapes[1][1:]))


def _recurrent(shapes: list[Shape]) -> dict[str, int]:
    """Products of every gate, step and direction."""
    (time, batch, _), (directions, rows, inputs), (_, _, hidden) = shapes[:3]
    each = 2 * time * batch * directions * rows
    return {"of what it reads": each * inputs, "of its states": each * hidden}


RECURRENT = ("LSTM", "GRU")
PRODUCTS: dict[str, Callable[[Any, list[Shape]], int]] = {"MatMul": _matmul, "Gemm": _gemm, "Conv": _conv}


if __name__ == "__main__":
    output.end_well(main)
