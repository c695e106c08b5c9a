"""ONNX weights in a file of their own: shared by all buckets of a precision, and where one file may not grow further.

Names are content addresses: a data file is called by its SHA-256, so an ONNX file says exactly which bytes it means.
Runtimes read data files beside the model or below it only, hence one folder for all files that share.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator, Mapping
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

from mer_export.bundle import Bundle, Commit, Variant

LARGE = 1_500_000_000
"""Bytes of weights from which a file keeps them outside: the encoding ends at 2 GiB."""
SMALLEST = 1024
"""Bytes from which a tensor goes outside; shapes and indices, which readers want at once, stay."""
WORTH = 64 << 10
"""Bytes from which tensors are worth a data file."""
PAGE, LINE = 4096, 64
"""Tensors of a page and more start at one, so that they can be mapped; others at a cache line."""
ENDING = ".weights"


class Place(NamedTuple):
    """Where the bytes of a tensor lie."""

    file: str
    offset: int
    size: int


Held = Mapping[bytes, Place]
"""Digest of a tensor's bytes to where they lie already."""


def save(model: Any, path: Path) -> None:
    """Writes an `onnx.ModelProto`, its weights beside it where they are `LARGE`; they are gone from `model` then."""
    import onnx

    if sum(_size(t) for t in model.graph.initializer) >= LARGE:
        write(model, path, {})
    else:
        onnx.save_model(model, path)


def write(model: Any, path: Path, held: Held) -> None:
    """Writes an `onnx.ModelProto` whose weights lie in `held` or in a new data file beside it, and no longer in it."""
    import onnx

    outside = [t for t in model.graph.initializer if _size(t) >= SMALLEST]
    known = {t.name: held[digest] for t in outside if (digest := _digest(_content(t))) in held}
    fresh = [t for t in outside if t.name not in known]
    if sum(_size(t) for t in fresh) >= WORTH:
        known |= _write_data(fresh, path.parent)
    for tensor in outside:
        if tensor.name in known:
            _refer(tensor, known[tensor.name])
    onnx.save_model(model, path)


def share_weights(bundle: Bundle, change: Commit, variant: Variant, made: Path) -> str:
    """Moves the staged file `made` to the folder of its format and precision, sharing weights with what lies there.

    Returns:
        The name of the model file in the bundle.
    """
    import onnx

    folder = f"variants/{variant.format}-{variant.precision}"
    name = f"{folder}/{variant.form}.onnx"
    model = onnx.load_model(made)
    write(model, change.file(name), dict(_held(bundle, folder, variant.options["weights"])))
    for own in (made, *made.parent.glob(f"*{ENDING}")):
        own.unlink()
    return name


def _held(bundle: Bundle, folder: str, present: str) -> Iterator[tuple[bytes, Place]]:
    """Every tensor in a data file of the folder that was made from the `present` weights, by digest.

    A variant of earlier weights may have constants in common, for which its whole file would have to stay.
    """
    for variant in bundle.manifest.variants:
        if str(PurePosixPath(variant.model).parent) == folder and variant.options.get("weights") == present:
            yield from held_by(bundle.variant_files(variant))


def held_by(path: Path) -> Iterator[tuple[bytes, Place]]:
    """Every tensor of an ONNX file in a data file beside it, by digest; both have been verified."""
    import onnx

    seen: set[Place] = set()
    for tensor in onnx.load_model(path, load_external_data=False).graph.initializer:
        entries = {e.key: e.value for e in tensor.external_data}
        if not entries:
            continue
        place = Place(entries["location"], int(entries["offset"]), int(entries["length"]))
        if place not in seen:
            seen.add(place)
            with (path.parent / place.file).open("rb") as stream:
                stream.seek(place.offset)
                yield _digest(stream.read(place.size)), place


def _write_data(tensors: list[Any], folder: Path) -> dict[str, Place]:
    """One new data file, equal contents once; places by name of the tensor."""
    starts: dict[bytes, int] = {}
    scratch, whole, end = folder / f"new{ENDING}", hashlib.sha256(), 0
    found = []
    with scratch.open("wb") as stream:
        for tensor in tensors:
            content = _content(tensor)
            digest = _digest(content)
            if digest not in starts:
                gap = -end % (PAGE if len(content) >= PAGE else LINE)
                for part in (bytes(gap), content):
                    stream.write(part)
                    whole.update(part)
                starts[digest] = end + gap
                end += gap + len(content)
            found.append((tensor.name, starts[digest], len(content)))
    final = scratch.rename(folder / f"{whole.hexdigest()}{ENDING}")
    return {name: Place(final.name, start, size) for name, start, size in found}


def _refer(tensor: Any, place: Place) -> None:
    import onnx

    for kind in ("raw_data", "float_data", "int32_data", "int64_data", "double_data", "uint64_data"):
        tensor.ClearField(kind)
    tensor.data_location = onnx.TensorProto.EXTERNAL
    for key, value in (("location", place.file), ("offset", place.offset), ("length", place.size)):
        tensor.external_data.add(key=key, value=str(value))


def _content(tensor: Any) -> bytes:
    from onnx import numpy_helper

    return tensor.raw_data if tensor.HasField("raw_data") else numpy_helper.to_array(tensor).tobytes()


def _size(tensor: Any) -> int:
    from onnx import TensorProto, helper

    if tensor.data_type == TensorProto.STRING:
        return 0
    return math.prod(tensor.dims) * helper.tensor_dtype_to_np_dtype(tensor.data_type).itemsize


def _digest(content: bytes) -> bytes:
    return hashlib.sha256(content).digest()
