"""Reads plain pickles that hold PyTorch tensors, the form of some authors' checkpoints and dataset caches."""

from __future__ import annotations

import io
import math
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any

import numpy as np

from mer_export.errors import NotAvailableError
from mer_export.install import not_installed
from mer_export.untrusted.unpickle import Refused, load_pickle

MAX_DIMS = 32


def load_tensor_pickle(path: Path | str, records: Collection[str] = ()) -> Any:
    """The content of a plain pickle of tensors, arrays and containers; tensors come back as numpy arrays.

    Args:
        path: the file.
        records: full names of classes whose objects are read as dicts of their attributes.

    Raises:
        InputError: not a pickle, truncated, or holding anything else.
        NotAvailableError: PyTorch, which decodes the storages, is not installed.
    """
    return load_pickle(path, builders=TENSOR_BUILDERS, records=records)


def _storage(content: Any) -> Any:
    """The storage that `torch.save` wrote into `content`, read as weights only and on the CPU."""
    try:
        import torch
    except ImportError:
        raise NotAvailableError(not_installed("torch, which reads PyTorch tensors,", "export")) from None
    import pickle

    if not isinstance(content, bytes | bytearray):
        raise Refused("a tensor storage that is not bytes")
    try:
        storage = torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, ValueError, EOFError) as error:
        raise Refused(f"a tensor storage that cannot be read ({str(error).splitlines()[0][:80]})") from None
    if not isinstance(storage, torch.storage.TypedStorage):
        raise Refused(f"a {type(storage).__name__} as a tensor storage")
    return storage


def _tensor(storage: Any, offset: Any, size: Any, stride: Any, *_rest: Any) -> np.ndarray:
    import torch

    if not isinstance(storage, torch.storage.TypedStorage):
        raise Refused("a tensor without a storage")
    plain = isinstance(size, tuple) and isinstance(stride, tuple) and len(size) == len(stride) <= MAX_DIMS
    if not plain or not all(type(n) is int and n >= 0 for n in (offset, *size, *stride)):
        raise Refused("a tensor with a malformed shape")
    tensor = torch.empty(0, dtype=storage.dtype)
    raw = storage._untyped_storage
    count, held = math.prod(size), raw.nbytes() // tensor.element_size()
    last = offset + sum((n - 1) * s for n, s in zip(size, stride, strict=True)) if count else 0
    if count > held or (count and last >= held):
        raise Refused(f"a tensor of shape {size} in a storage of {held}")
    tensor.set_(raw, offset, size, stride)
    wide = tensor.float() if tensor.dtype in (torch.bfloat16, torch.float16) else tensor
    return np.ascontiguousarray(wide.numpy()).reshape(size)


def _parameter(tensor: Any, *_rest: Any) -> Any:
    return tensor


TENSOR_BUILDERS: dict[str, Callable[..., Any]] = {
    "torch.storage._load_from_bytes": _storage,
    "torch._utils._rebuild_tensor_v2": _tensor,
    "torch._utils._rebuild_parameter": _parameter,
}
