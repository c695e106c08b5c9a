"""NVIDIA Model Navigator on an ONNX file and the CPU: `python -I navigator.py GIVEN OUT`.

Reads `plain.onnx` and `inputs.npz` in GIVEN; writes `result.json` in OUT with the file that it found best.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import model_navigator
import numpy
import onnx
from model_navigator.configuration import DeviceKind, Format


def main(given: Path, out: Path) -> None:
    # It copies the one file that it is given, so weights have to be inside.
    whole = out / "whole.onnx"
    graph = onnx.load(given / "plain.onnx")
    onnx.save(graph, whole)
    # Of a dictionary it would sort the names, and give them to the inputs of the file in their order.
    with numpy.load(given / "inputs.npz") as arrays:
        sample = tuple(arrays[i.name] for i in graph.graph.input)
    package = model_navigator.onnx.optimize(
        model=whole,
        dataloader=[sample],
        batching=False,  # inputs that all items share have no batch dim
        target_formats=(Format.ONNX,),
        target_device=DeviceKind.CPU,
        runners=("OnnxCPU",),
        workspace=out / "workspace",
    )
    best = package.get_best_runtime(include_source=False)
    model = package.get_model_path(best.model_status.model_config.key)
    same = "the file as it was given" if model.read_bytes() == whole.read_bytes() else "a file of its own"
    did = f"`model_navigator.onnx.optimize` for the CPU chose {best.runner_status.runner_name} with {same}"
    (out / "result.json").write_text(json.dumps({"model": str(model), "did": did}))


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
