"""Tensors of PyTorch as numpy arrays, built from their storages without PyTorch."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import numpy as np

from mer_export.untrusted.budget import Budget
from mer_export.untrusted.builders import MAX_DIMS, Name, Refused, is_size

STORAGES = {
    "FloatStorage": "<f4",
    "DoubleStorage": "<f8",
    "HalfStorage": "<f2",
    "BFloat16Storage": "<u2",
    "LongStorage": "<i8",
    "IntStorage": "<i4",
    "ShortStorage": "<i2",
    "CharStorage": "i1",
    "ByteStorage": "u1",
    "BoolStorage": "?",
    "UntypedStorage": "u1",
}
"""Kinds of storage and the dtype of their bytes; bfloat16 has none in numpy and becomes float32."""
MODULES = ("torch", "torch.cuda", "torch.storage")
PLAIN = ("torch.Tensor", "torch.nn.parameter.Parameter", "torch.nn.Parameter")


def is_storage(module: str, name: str) -> bool:
    """True for a name of a kind of storage."""
    return module in MODULES and name in STORAGES


def storage_kind(reference: Any) -> str:
    """The kind of storage that a reference names; raises Refused for another."""
    module, _, name = (reference.name if isinstance(reference, Name) else "").rpartition(".")
    if not is_storage(module, name):
        raise Refused(f"a storage of kind {name!r}")
    return name


def decode(kind: str, content: bytearray) -> np.ndarray:
    """The values of a storage."""
    values = np.frombuffer(content, dtype=STORAGES[kind])
    return (values.astype(np.uint32) << 16).view(np.float32) if kind == "BFloat16Storage" else values


def tensor(budget: Budget, storage: Any, offset: Any, size: Any, stride: Any, *_rest: Any) -> np.ndarray:
    """The array of a view of a storage; a tensor that lies in one piece shares its memory."""
    if not isinstance(storage, np.ndarray) or storage.ndim != 1:
        raise Refused("a tensor without a storage")
    plain = isinstance(size, tuple) and isinstance(stride, tuple) and len(size) == len(stride) <= MAX_DIMS
    if not plain or not all(is_size(n) for n in (offset, *size, *stride)):
        raise Refused("a tensor with a malformed shape")
    count = math.prod(size)
    last = offset + sum((n - 1) * s for n, s in zip(size, stride, strict=True)) if count else 0
    if count and last >= len(storage):
        raise Refused(f"a tensor of shape {size} in a storage of {len(storage)}")
    budget.take(count * storage.itemsize)
    if not count:
        return np.zeros(size, storage.dtype)
    steps = tuple(s * storage.itemsize for s in stride)
    view = np.lib.stride_tricks.as_strided(storage[offset:], size, steps)
    return view if view.flags.c_contiguous else view.copy()


def _parameter(value: Any, *_rest: Any) -> Any:
    return value


def _typed(builders: Mapping[str, Callable[..., Any]], build: Any, kind: Any, arguments: Any, *_state: Any) -> Any:
    """A tensor that carries attributes of its own, which are left out; one of another class may mean something else."""
    if not isinstance(kind, Name) or kind.name not in PLAIN or not isinstance(arguments, tuple):
        raise Refused(f"a tensor of class {getattr(kind, 'name', type(kind).__name__)}")
    if not isinstance(build, Name) or build.name not in builders:
        raise Refused("a tensor that is built in another way")
    return builders[build.name](*arguments)


def tensor_builders(budget: Budget) -> dict[str, Callable[..., Any]]:
    """What a pickle of tensors may call besides what every pickle may."""
    found: dict[str, Callable[..., Any]] = {
        "torch._utils._rebuild_tensor": partial(tensor, budget),
        "torch._utils._rebuild_tensor_v2": partial(tensor, budget),
        "torch._utils._rebuild_parameter": _parameter,
        "torch._utils._rebuild_parameter_with_state": _parameter,
        "torch.Size": lambda size=(): tuple(size) if isinstance(size, tuple | list) else size,
    }
    return found | {"torch._tensor._rebuild_from_type_v2": partial(_typed, found)}
