"""NVIDIA Model Navigator on an ONNX file and the CPU: `python -I navigator.py GIVEN OUT`.

Reads `plain.onnx` and `inputs.npz` in GIVEN; writes `result.json` in OUT with the file that it found best.
"""

from __future__ import annotations

import filecmp
import json
import sys
from pathlib import Path

import model_navigator
import numpy
import onnx
from model_navigator.configuration import DeviceKind, Format


def main(given: Path, out: Path) -> None:
    # Of what it is given it copies the one file, so weights have to be inside.
    whole = out / "whole.onnx"
    onnx.save(onnx.load(given / "plain.onnx"), whole)
    names = [i.name for i in onnx.load(given / "plain.onnx", load_external_data=False).graph.input]
    with numpy.load(given / "inputs.npz") as arrays:
        # It sorts a dictionary by name and then takes its arrays for the inputs of the file in their order.
        sample = tuple(arrays[name] for name in names)
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
    same = "the file as it was given" if filecmp.cmp(model, whole, shallow=False) else "a file of its own"
    did = f"`model_navigator.onnx.optimize` for the CPU chose {best.runner_status.runner_name} with {same}"
    (out / "result.json").write_text(json.dumps({"model": str(model), "did": did}))


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
