"""Every kind of encoder: exported from a small random network, held against PyTorch on each runtime.

    python3 -m benchmarks.encoders --out benchmarks/results [--kind wavlm] [--precision int8]

One network of each kind, saved by the `transformers` package; its longest bucket is exported. An error is the largest
difference to PyTorch's vector of any item; `alone` is that of a batch to each item by itself, `package` that of PyTorch
here, where items are padded into a batch, to the package's own states of each item unpadded. Writes `encoders.json` and
`.md`.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import output
from benchmarks.small_encoders import KINDS, PICTURES, SOUNDS, raw_things, save_folder
from mer_export.bundle import Bundle
from mer_export.errors import MerError
from mer_export.exporters import export_variant
from mer_export.exporters.encoders.transformers_folder import Wanted, import_folder
from mer_export.markdown import table
from runtimes.encode import Encoding, open_encoder

RUNTIMES = ("onnxruntime", "openvino")


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs the suite."""
    parser = argparse.ArgumentParser(prog="python3 -m benchmarks.encoders", description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True, help="directory of the results")
    parser.add_argument("--kind", choices=list(KINDS), action="append", help="repeat for several; default: all")
    parser.add_argument("--precision", action="append", default=[], help="also in this precision; repeat for several")
    chosen = parser.parse_args(arguments)
    rows: list[dict[str, Any]] = []
    found = {"command": output.command("encoders", arguments), "machine": output.here(), "rows": rows}
    for kind in chosen.kind or KINDS:
        output.say(kind)
        with tempfile.TemporaryDirectory() as folder:
            rows.append(measure(kind, Path(folder), chosen.precision))
    text = "\n".join([*output.head("Encoders of every kind", found), "", *page(rows), ""])
    output.write(chosen.out, "encoders", found, text)


def measure(kind: str, folder: Path, precisions: Sequence[str]) -> dict[str, Any]:
    """The errors of one kind."""
    model = save_folder(kind, folder / "source")
    # Sound of its own window, whatever the window that it was trained with.
    bundle = import_folder(folder / "source", folder / "encoder", Wanted(window=1.0 if kind in SOUNDS else None))
    bucket, things = bundle.manifest.contract.buckets[-1], raw_things(kind)
    export_variant(bundle, "onnx", bucket)
    row: dict[str, Any] = {"kind": kind, "package": package_error(kind, model, folder)}
    with open_encoder(folder / "encoder", "torch") as reference:
        wanted = list(reference.encode(things))
    for runtime in RUNTIMES:
        with open_encoder(folder / "encoder", runtime, batch=len(things)) as encoding:
            found = list(encoding.encode(things))
            alone = [next(iter(encoding.encode([t]))) for t in things]
        row |= {runtime: difference(wanted, found), f"{runtime} alone": difference(alone, found)}
    for precision in precisions:
        row[precision] = reduced(Bundle.open(folder / "encoder"), bucket, precision)
    return row


def package_error(kind: str, model: Any, folder: Path) -> float | None:
    """The package's own states of each item, unpadded, beside ours of all in one batch; None for pictures."""
    import torch

    if kind in (*PICTURES, "whisper"):
        return None
    import_folder(folder / "source", folder / "states", Wanted(pooling="none", window=1.0 if kind in SOUNDS else None))
    with open_encoder(folder / "states", "torch", batch=8) as encoding, torch.no_grad():
        things = raw_things(kind)
        return difference([_own(model, encoding, t) for t in things], list(encoding.encode(things)))


def _own(model: Any, encoding: Encoding, thing: Any) -> np.ndarray:
    import torch

    if isinstance(thing, str):
        states = model(input_ids=torch.from_numpy(encoding.encoder.tokenizer.encode(thing))[None])
    else:
        wide = thing.astype(np.float64)
        said = (wide - wide.mean()) / np.sqrt(wide.var() + 1e-7) if encoding.encoder.input.normalise else wide
        states = model(torch.from_numpy(said.astype(np.float32))[None])
    return np.asarray(states[0][0].numpy())


def reduced(bundle: Bundle, bucket: Any, precision: str) -> str:
    """What the gate says of a precision."""
    try:
        variant = export_variant(bundle, "onnx", bucket, precision=precision)
    except MerError as error:
        return str(error)
    gate: dict[str, Any] = variant.options["rewrite"]["gate"]
    return f"off by {gate['vector relative']:.2%} of its size"


def difference(a: Sequence[np.ndarray], b: Sequence[np.ndarray]) -> float:
    """The largest difference of any item."""
    return max(float(np.abs(x - y).max()) for x, y in zip(a, b, strict=True))


def page(rows: Sequence[dict[str, Any]]) -> list[str]:
    """The errors as a table."""
    names = list(dict.fromkeys(name for row in rows for name in row))
    cells = [[_cell(row.get(name)) for name in names] for row in rows]
    return table(names, cells)


def _cell(value: Any) -> str:
    if value is None:
        return "–"
    return f"{value:.1e}" if isinstance(value, float) else str(value)


if __name__ == "__main__":
    output.end_well(main)
