"""One ONNX file for others' runtimes: the weights inside, and in its metadata all that asking it takes.

Every value of `metadata_props` is JSON; docs/deploying.md has the table. Whoever reads it needs nothing of ours.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from mer_export import __version__
from mer_export.bucket import Bucket
from mer_export.bundle import Bundle, Variant, replacing
from mer_export.contract import BATCH, Contract, TensorSpec
from mer_export.encoders import FOLDER
from mer_export.encoders.attached import attached
from mer_export.encoders.encoder import TOKENIZER
from mer_export.errors import UnsupportedError, UsageError
from mer_export.exporters.precision_gate import open_file, run_file
from mer_export.untrusted.arrays import load_arrays

SCHEMA = 1
ENDING = ".onnx"
MOST = (1 << 31) - 1
"""Bytes of a protobuf message."""


def check(path: Path, jobs: Sequence[tuple[str, str, Bucket, int]], stages: bool, force: bool) -> None:
    """Holds a wish against what one file can hold, before any work.

    Args:
        path: where the file is to be.
        jobs: format, precision, bucket and batch of each variant that is asked for.
        stages: whether they are exported in stages.
        force: whether a file may be replaced.

    Raises:
        UsageError: several variants are asked for, or no file can be written there.
        UnsupportedError: another format, or stages.
    """
    if stages or any(name != "onnx" for name, *_ in jobs):
        asked = "stages" if stages else " and ".join(dict.fromkeys(name for name, *_ in jobs))
        raise UnsupportedError(f"--onnx-file holds one ONNX graph, not {asked}: leave --stages and other formats out")
    if len(jobs) != 1:
        which = ", ".join(f"{precision} {bucket.name}" for _, precision, bucket, _ in jobs)
        raise UsageError(f"--onnx-file holds one variant, these are {which}: name one --precision and one --seq-len")
    if path.suffix != ENDING:
        raise UsageError(f"--onnx-file {path}: the ending must be {ENDING}")
    if path.is_dir() or not path.absolute().parent.is_dir():
        raise UsageError(f"--onnx-file {path}: it must be a file in a directory that exists")
    if path.exists() and not force:
        raise UsageError(f"--onnx-file {path} exists: pass --force to replace it")


def write(bundle: Bundle, variant: Variant, path: Path) -> None:
    """Writes an ONNX variant as one file; what was at `path` is replaced once the new file gives the variant's answers.

    Raises:
        UnsupportedError: it is larger than one file can be, or lacks values that all items share.
        UsageError: the file does not give the variant's answers.
        InputError: samples of the bundle that are not what its contract says.
    """
    import onnx

    source = bundle.variant_files(variant)
    # Read before the weights are: a message of more bytes than that cannot even be counted.
    graph = onnx.load_model(source, load_external_data=False)
    size = source.stat().st_size + sum(_outside(t) for t in graph.graph.initializer)
    if size > MOST:
        raise UnsupportedError(
            f"{variant.name} has {size / 1e9:.1f} GB, one ONNX file holds {MOST / 1e9:.1f}: export a smaller "
            "--precision (fp16, int8), or hand on the bundle, where weights have a file of their own"
        )
    model = onnx.load_model(source)
    onnx.helper.set_model_props(model, {k: json.dumps(v) for k, v in metadata(bundle, variant).items()})
    with replacing(path) as temporary:
        onnx.save_model(model, temporary)
        _prove(bundle, variant, source, temporary)


def _outside(tensor: Any) -> int:
    return sum(int(e.value) for e in tensor.external_data if e.key == "length")


def _prove(bundle: Bundle, variant: Variant, source: Path, made: Path) -> None:
    """Runs both files on the bundle's own samples, where ONNX Runtime is installed."""
    from importlib.util import find_spec

    name = f"samples/{variant.lengths.name}.npz"
    if find_spec("onnxruntime") is None or name not in bundle.manifest.files:
        return
    contract = bundle.manifest.contract
    kept = load_arrays(bundle.path(name))
    arrays = {s.name: kept[s.name] for s in contract.inputs if s.name in kept}
    contract.check(arrays)
    before, after = (run_file(open_file(p), contract, arrays, variant.batch) for p in (source, made))
    for output, wanted in before.items():
        if not np.array_equal(wanted, after[output], equal_nan=wanted.dtype.kind == "f"):
            raise UsageError(f"{output} of the ONNX file is not that of {variant.name}: it was not written")


def metadata(bundle: Bundle, variant: Variant) -> dict[str, Any]:
    """What the file says of itself, by key."""
    manifest = bundle.manifest
    contract, task = manifest.contract, manifest.task
    return {
        "schema": SCHEMA,
        "labels": task.labels,
        "task": task.model_dump(mode="json"),
        "inputs": [_input(s, contract, variant) for s in contract.inputs],
        "outputs": [_tensor(s, variant) | {"per_unit": contract.unit_dim in s.dims[1:]} for s in contract.outputs],
        "lengths": dict(variant.lengths),
        "shortest": contract.shortest,
        "features": {n: f.model_dump(mode="json") for n, f in manifest.features.items()},
        "encoders": _encoders(bundle),
        "tokenizer": {n: e.sha256 for n, e in manifest.files.items() if n.startswith(f"{TOKENIZER}/")},
        "source": _source(bundle, variant),
    }


def _tensor(spec: TensorSpec, variant: Variant) -> dict[str, Any]:
    """Names and sizes of its dims; the size of a free batch dim is null."""
    shape = spec.shape(variant.batch, variant.lengths)
    sizes = [n if d != BATCH or variant.batch else None for d, n in zip(spec.dims, shape, strict=True)]
    return {"name": spec.name, "dtype": spec.dtype, "dims": spec.dims, "shape": sizes}


def _input(spec: TensorSpec, contract: Contract, variant: Variant) -> dict[str, Any]:
    """How one input is filled: with an item's own values, with a count of their steps, or with values given here."""
    about = _tensor(spec, variant) | {"padding": spec.padding or 0, "description": spec.description}
    if spec.modality:
        about["modality"] = spec.modality
    if spec.below is not None:
        about["below"] = spec.below
    fill = {
        d: contract.fill[d].model_dump() for d in (*spec.dims, spec.counts) if isinstance(d, str) and d in contract.fill
    }
    if fill:
        about["fill"] = fill
    if spec.counts:
        return about | _count(spec, contract)
    if not spec.batched:
        return about | {"kind": "given", "values": _shared(spec, contract, variant)}
    return about | {"kind": "own"}


def _count(spec: TensorSpec, contract: Contract) -> dict[str, Any]:
    """Of which inputs, along which axis of an item, a count says the real length."""
    dim = str(spec.counts)
    if dim in contract.shared_lengths:
        return {"kind": "given", "counts": dim, "values": [contract.shared_lengths[dim]]}
    counted = [s for s in contract.features if dim in s.dims and spec.modality in (None, s.modality)]
    return {"kind": "count", "counts": dim, "of": {s.name: s.dims.index(dim) - 1 for s in counted}}


def _shared(spec: TensorSpec, contract: Contract, variant: Variant) -> list[Any]:
    rows = contract.shared_arrays.get(spec.name)
    if rows is None:
        raise UnsupportedError(f"{spec.name} has no values in this bundle: give them with the data or the checkpoint")
    values = np.full(spec.shape(1, variant.lengths), spec.padding or 0, dtype=spec.dtype)
    values[: len(rows)] = rows
    return list(values.tolist())


def _encoders(bundle: Bundle) -> dict[str, list[dict[str, Any]]]:
    """Who makes an input of raw things: their names, digests and what they read, as they are not in the file."""
    return {
        name: [e.identity.model_dump(mode="json") | {"input": e.input.model_dump(mode="json")} for e in own]
        for name, own in attached(bundle).items()
    }


def _source(bundle: Bundle, variant: Variant) -> dict[str, Any]:
    """Which variant of which model this is, and what of that bundle is not in the file."""
    manifest = bundle.manifest
    left = sorted({n.rpartition("/")[0] for n in manifest.files if n.startswith((f"{TOKENIZER}/", f"{FOLDER}/"))})
    return {
        "system": manifest.system,
        "model": manifest.variant,
        "variant": variant.name,
        "precision": variant.precision,
        "batch": variant.batch,
        "opset": variant.options.get("opset"),
        "exporter": variant.exporter,
        "mer": __version__,
        "sha256": manifest.files[variant.model].sha256,
        "weights_sha256": variant.options.get("weights"),
        "licence": manifest.provenance.get("licence"),
        "data_fingerprint": _fingerprint(manifest.provenance),
        "not_inside": left,
    }


def _fingerprint(provenance: Mapping[str, Any]) -> Any:
    data = provenance.get("data")
    return data.get("fingerprint") if isinstance(data, Mapping) else None
