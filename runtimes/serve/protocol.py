"""Open Inference Protocol v2: tensors of a request, as JSON numbers or as bytes behind the JSON, and back.

https://github.com/kserve/open-inference-protocol and the binary tensor extension of NVIDIA Triton. Items may be as long
as they are: the lengths of the contract are optional, and padding is the server's.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from pydantic import BaseModel, Field, ValidationError

from mer_export.contract import BATCH, Contract, TensorSpec
from mer_export.data.given import KINDS, checked, numbered
from mer_export.data.samples import Sample
from mer_export.errors import InputError
from mer_export.registry import first_problem
from mer_export.untrusted.cells import whole_number
from mer_export.untrusted.json_files import parse_json
from runtimes.serve.refusals import malformed

HEADER_LENGTH = "Inference-Header-Content-Length"
DTYPES = {
    **{f"FP{n}": np.dtype(f"<f{n // 8}") for n in (16, 32, 64)},
    **{f"INT{n}": np.dtype(f"<i{n // 8}") for n in (8, 16, 32, 64)},
    **{f"UINT{n}": np.dtype(f"<u{n // 8}") for n in (8, 16, 32, 64)},
}
NAMES = {"float32": "FP32", "int64": "INT64"}
"""Of the dtypes of a contract."""
NAMED = {np.dtype(dtype): name for dtype, name in NAMES.items()}
"""The same by what arrays say of themselves, whose words numpy makes anew each time."""


class Tensor(BaseModel):
    """An input: its numbers are here, or `binary_data_size` bytes behind the JSON."""

    name: str
    datatype: str
    shape: list[int]
    parameters: dict[str, Any] = Field(default_factory=dict)
    data: Any = None


class Wanted(BaseModel):
    """An output that is asked for."""

    name: str
    parameters: dict[str, Any] = Field(default_factory=dict)


class Inference(BaseModel):
    """The JSON of a request."""

    id: str = Field("", max_length=256)
    inputs: list[Tensor] = Field(min_length=1, max_length=256)
    outputs: list[Wanted] = Field(default_factory=list, max_length=256)
    parameters: dict[str, Any] = Field(default_factory=dict)


@dataclass(frozen=True)
class Request:
    """What was asked, and the arrays that came."""

    asked: Inference
    tensors: Mapping[str, np.ndarray]

    @property
    def seconds(self) -> float | None:
        """How long the client waits, where it says so (in microseconds)."""
        timeout = self.asked.parameters.get("timeout")
        return timeout / 1e6 if isinstance(timeout, int) and timeout > 0 else None


def read_request(body: bytes, header_length: str | None) -> Request:
    """The arrays of a request.

    Args:
        body: all of it.
        header_length: the header that says how much of it is JSON; None where all is.

    Raises:
        Refusal: 400, it is not as the protocol says.
    """
    size = json_size(header_length, len(body))
    try:
        asked = Inference.model_validate(parse_json(body[:size], "the request"))
    except InputError as error:
        raise malformed(str(error)) from None
    except ValidationError as error:
        raise malformed(f"the request: {first_problem(error)}") from None
    tensors: dict[str, np.ndarray] = {}
    for tensor in asked.inputs:
        if tensor.name in tensors:
            raise malformed(f"input {tensor.name!r} is there twice")
        tensors[tensor.name], size = _array(tensor, body, size)
    if size != len(body):
        raise malformed(f"{len(body) - size} bytes behind the JSON belong to no input: check binary_data_size")
    return Request(asked, tensors)


def json_size(said: str | None, size: int) -> int:
    """How much of a body of so many bytes is JSON; raises Refusal (400) where the header says what cannot be."""
    if said is None:
        return size
    stated = whole_number(said)
    if stated is None or stated > size:
        raise malformed(f"{HEADER_LENGTH} is {said[:20]!r}, the body has {size} bytes")
    return stated


def _array(tensor: Tensor, body: bytes, start: int) -> tuple[np.ndarray, int]:
    """The values of an input, and where the bytes of the next one begin."""
    dtype = DTYPES.get(tensor.datatype)
    if dtype is None:
        raise malformed(f"input {tensor.name!r} is {tensor.datatype!r}, it must be one of {list(DTYPES)}")
    if any(n < 0 for n in tensor.shape):
        raise malformed(f"input {tensor.name!r} has shape {tensor.shape}: a length cannot be negative")
    count, size = math.prod(tensor.shape), tensor.parameters.get("binary_data_size")
    if size is None:
        return _listed(tensor, dtype, count), start
    if size != count * dtype.itemsize or start + size > len(body):
        raise malformed(
            f"input {tensor.name!r}: {tensor.datatype} of shape {tensor.shape} has {count * dtype.itemsize} bytes, "
            f"binary_data_size is {size!r} and {len(body) - start} are left"
        )
    values = np.frombuffer(body, dtype, count, start)
    return values.reshape(tensor.shape), start + size


def _listed(tensor: Tensor, dtype: np.dtype, count: int) -> np.ndarray:
    try:
        values = np.asarray(tensor.data)
    except ValueError:
        raise malformed(f"input {tensor.name!r}: its lists differ in length") from None
    if values.dtype.kind not in ("iu" if dtype.kind in "iu" else "iuf"):
        raise malformed(f"input {tensor.name!r}: data must be numbers of {tensor.datatype}")
    if values.size != count:
        raise malformed(f"input {tensor.name!r} of shape {tensor.shape} needs {count} numbers, data has {values.size}")
    with np.errstate(over="ignore"):
        found = values.astype(dtype)
    if dtype.kind in "iu" and (wrapped := values[found != values]).size:
        raise malformed(f"input {tensor.name!r} holds {wrapped[0]}, which is no {tensor.datatype}: send another one")
    return found.reshape(tensor.shape)


def samples_of(tensors: Mapping[str, np.ndarray], contract: Contract) -> list[Sample]:
    """The items of a request, each without its padding.

    Where a lengths input of the contract is given, items are cut to it; a modality of length 0 is missing. Inputs that
    are not given are missing modalities.

    Raises:
        InputError: names, kinds of numbers, dims or lengths that are not the contract's.
    """
    known = {s.name: s for s in contract.inputs if s.batched}
    for name, array in tensors.items():
        if name not in known:
            raise InputError(f"the model has no input {name!r}, its inputs are {list(known)}")
        _check(known[name], array)
    sizes = {len(a) for a in tensors.values()}
    if len(sizes) != 1 or sizes == {0}:
        raise InputError(f"the first dim is the number of items, the same for all inputs: it is {sorted(sizes)}")
    counts = [(s, tensors[s.name].reshape(-1)) for s in known.values() if s.counts and s.name in tensors]
    given = (numbered(f"item {i}", _item(tensors, known, counts, i), contract) for i in range(sizes.pop()))
    return list(checked(given, contract))


def _check(spec: TensorSpec, array: np.ndarray) -> None:
    fits = array.ndim == len(spec.dims) and all(
        isinstance(d, str) or d == n for d, n in zip(spec.dims[1:], array.shape[1:], strict=True)
    )
    # Where every dim after the first must have a size, lengths are said as (batch, 1).
    if not fits and not (spec.counts and array.shape[1:] == (1,)):
        raise InputError(f"{spec.name} has shape {array.shape}, expected dims {spec.dims}")
    if array.dtype.kind not in KINDS[spec.dtype]:
        raise InputError(f"{spec.name} holds {array.dtype}, the model takes {spec.dtype}")


def _item(
    tensors: Mapping[str, np.ndarray],
    known: Mapping[str, TensorSpec],
    counts: Sequence[tuple[TensorSpec, np.ndarray]],
    number: int,
) -> dict[str, np.ndarray]:
    item = {n: a[number] for n, a in tensors.items() if not known[n].counts}
    for counter, lengths in counts:
        length = int(lengths[number])
        for name in [n for n in item if counter.counts in known[n].dims]:
            if counter.modality in (None, known[name].modality):
                axis = known[name].dims.index(counter.counts) - 1
                if not 0 <= length <= item[name].shape[axis]:
                    raise InputError(f"item {number}: {counter.name} is {length}, {name} has {item[name].shape[axis]}")
                item[name] = item[name][(slice(None),) * axis + (slice(length),)]
                if not length and counter.modality:
                    del item[name]
    return item


def stacked(
    outputs: Sequence[Mapping[str, np.ndarray]], contract: Contract, tensors: Mapping[str, np.ndarray]
) -> dict[str, np.ndarray]:
    """The outputs of all items as one array each, filled with zeros to the lengths that were sent."""
    sent = {
        d: n
        for s in contract.inputs
        if s.name in tensors and not s.counts
        for d, n in zip(s.dims, tensors[s.name].shape, strict=True)
        if isinstance(d, str)
    }
    found = {}
    for spec in contract.outputs:
        rows = [o[spec.name] for o in outputs]
        most = [max(sizes) for sizes in zip(*(r.shape for r in rows), strict=True)]
        shape = [max(sent.get(str(d), 0), n) for d, n in zip(spec.dims[1:], most, strict=True)]
        found[spec.name] = np.zeros((len(rows), *shape), dtype=spec.dtype)
        for item, row in zip(found[spec.name], rows, strict=True):
            item[tuple(map(slice, row.shape))] = row
    return found


def write_response(model: str, request: Request, outputs: Mapping[str, np.ndarray]) -> tuple[bytes, int | None]:
    """The body of an answer, and how much of it is JSON where bytes follow.

    Raises:
        Refusal: 400, an output is asked for that there is not.
    """
    asked = request.asked
    binary = asked.parameters.get("binary_data_output") is True
    wanted = {w.name: w.parameters.get("binary_data", binary) is True for w in asked.outputs}
    unknown = [n for n in wanted if n not in outputs]
    if unknown:
        raise malformed(f"the model has no output {unknown[0]!r}, its outputs are {list(outputs)}")
    described, tail = [], []
    for name, as_bytes in (wanted or dict.fromkeys(outputs, binary)).items():
        array = outputs[name]
        tensor: dict[str, Any] = {"name": name, "datatype": NAMED[array.dtype], "shape": list(array.shape)}
        if as_bytes:
            tail.append(np.ascontiguousarray(array).astype(DTYPES[tensor["datatype"]], copy=False).tobytes())
            tensor["parameters"] = {"binary_data_size": len(tail[-1])}
        else:
            # JSON has no NaN: a unit without an answer is null.
            numbers = array.ravel().tolist()
            tensor["data"] = [None if n != n else n for n in numbers] if np.isnan(array).any() else numbers
        described.append(tensor)
    said = {"model_name": model, "model_version": "1", "outputs": described} | ({"id": asked.id} if asked.id else {})
    head = json.dumps(said).encode()
    return b"".join([head, *tail]), len(head) if tail else None


def metadata(name: str, backend: str, contract: Contract) -> dict[str, Any]:
    """What a client is told of a model. Lengths inputs may be left out."""
    inputs = [s for s in contract.inputs if s.batched]
    return {
        "name": name,
        "versions": ["1"],
        "platform": backend,
        "inputs": [_described(s) for s in inputs],
        "outputs": [_described(s) for s in contract.outputs],
    }


def _described(spec: TensorSpec) -> dict[str, Any]:
    shape = [-1 if d == BATCH or isinstance(d, str) else d for d in spec.dims]
    return {"name": spec.name, "datatype": NAMES[spec.dtype], "shape": shape}
