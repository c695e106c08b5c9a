"""Reads what `torch.save` wrote of whole objects, without their classes and without running anything.

The file is a zip archive: a pickle that refers to storages, and the bytes of each storage. The pickle is interpreted as
data (see `unpickle`); objects come back as dicts of their attributes, tensors as numpy arrays.
"""

from __future__ import annotations

import io
import math
import pickle
import struct
import zipfile
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from mer_export.errors import InputError
from mer_export.untrusted.unpickle import BUILDERS, Refused, _DataUnpickler, _Name, _Pending

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
}
"""Kinds of storage and the dtype of their bytes; bfloat16 has none in numpy and becomes float32."""
MAX_DIMS, MAX_DEPTH = 32, 64
WRAPPERS = ("_original_module.", "_forward_module.module.", "_forward_module.", "module.")
"""What training wrappers put in front of a model's names; a wrapper may hold one model under two of them."""


def load_archive(path: Path | str, records: Collection[str] = (), stubs: bool = False) -> Any:
    """The object of an archive.

    Args:
        path: the file.
        records: full names of classes whose objects are read as dicts of their attributes.
        stubs: read objects of all classes so, and what any other call would have made as an empty dict. No class or
            function is looked up either way.

    Raises:
        InputError: no such archive, damaged, or holding what is not admitted.
    """
    path = Path(path)
    try:
        with zipfile.ZipFile(path) as archive:
            return _read(archive, records, stubs)
    except Refused as refusal:
        raise InputError(f"{path} was not read: it holds {refusal}, which is not plain data") from None
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror or error}") from None
    except (
        zipfile.BadZipFile,
        pickle.UnpicklingError,
        struct.error,
        ArithmeticError,
        AssertionError,
        AttributeError,
        EOFError,
        LookupError,
        MemoryError,
        RecursionError,
        TypeError,
        ValueError,
    ) as error:
        cause = f"{type(error).__name__}: {' '.join(str(error).split())[:80]}"
        raise InputError(f"{path} is not a readable torch archive ({cause}): it is truncated or damaged") from None


def load_module(path: Path | str) -> dict[str, np.ndarray]:
    """Parameters and persistent buffers of a module that was saved whole, by the names of the model itself.

    Raises:
        InputError: as `load_archive`, or the object is not a module.
    """
    found = dict(_entries(load_archive(path, stubs=True), ""))
    if not found:
        raise InputError(f"{path} holds no module with parameters")
    for prefix in WRAPPERS:
        own = {n.removeprefix(prefix): a for n, a in found.items() if n.startswith(prefix)}
        if own:
            return own
    return found


def _entries(module: Any, prefix: str, depth: int = 0) -> list[tuple[str, np.ndarray]]:
    if not isinstance(module, dict) or depth > MAX_DEPTH:
        return []
    hidden = module.get("_non_persistent_buffers_set") or ()
    found = []
    for kind in ("_parameters", "_buffers"):
        tensors = module.get(kind)
        for name, value in tensors.items() if isinstance(tensors, dict) else ():
            if isinstance(value, np.ndarray) and name not in hidden:
                found.append((f"{prefix}{name}", value))
    children = module.get("_modules")
    for name, child in children.items() if isinstance(children, dict) else ():
        found += _entries(child, f"{prefix}{name}.", depth + 1)
    return found


def _read(archive: zipfile.ZipFile, records: Collection[str], stubs: bool) -> Any:
    names = [n for n in archive.namelist() if n.endswith("data.pkl")]
    if len(names) != 1:
        raise ValueError("it holds no data.pkl")
    storages = _Storages(archive, names[0].removesuffix("data.pkl"))
    reader = _ObjectUnpickler(io.BytesIO(storages.bytes_of("data.pkl")), storages, records, stubs)
    found = reader.load()
    return found.value if isinstance(found, _Pending) else found


class _Storages:
    """The storages of an archive, each read once."""

    def __init__(self, archive: zipfile.ZipFile, folder: str):
        self.archive, self.folder = archive, folder
        self._read: dict[str, np.ndarray] = {}

    def bytes_of(self, name: str) -> bytes:
        entry = self.archive.getinfo(self.folder + name)
        # torch.save never compresses; a small file that claims to hold much was not written by it.
        if entry.compress_type != zipfile.ZIP_STORED:
            raise Refused("a compressed entry")
        return self.archive.read(entry)

    def find(self, kind: str, key: str) -> np.ndarray:
        if kind not in STORAGES or not isinstance(key, str) or not key.isalnum():
            raise Refused(f"a storage of kind {kind!r}")
        if key not in self._read:
            values = np.frombuffer(self.bytes_of(f"data/{key}"), dtype=STORAGES[kind])
            if kind == "BFloat16Storage":
                values = (values.astype(np.uint32) << 16).view(np.float32)
            self._read[key] = values
        return self._read[key]


class _ObjectUnpickler(_DataUnpickler):
    """The data unpickler with storages, and where asked for with stubs in place of every class."""

    dispatch: ClassVar[dict[int, Any]] = dict(_DataUnpickler.dispatch)

    def __init__(self, content: Any, storages: _Storages, records: Collection[str], stubs: bool):
        super().__init__(content, TENSORS, records)
        self.storages, self.stubs = storages, stubs

    def find_class(self, module: str, name: str) -> _Name:
        if self.stubs or (module == "torch" and name in STORAGES):
            return _Name(f"{module}.{name}")
        return super().find_class(module, name)

    def load_binpersid(self) -> None:
        reference = self.stack.pop()
        if not isinstance(reference, tuple) or len(reference) < 3 or reference[0] != "storage":
            raise Refused("a reference to something that is not a storage")
        kind = getattr(reference[1], "name", "").removeprefix("torch.")
        self.stack.append(self.storages.find(kind, reference[2]))

    def load_reduce(self) -> None:
        target = self.stack[-2]
        if self.stubs and getattr(target, "name", None) not in self.builders:
            self._stub(2)
        else:
            super().load_reduce()

    def load_newobj(self) -> None:
        if self.stubs:
            self._stub(2)
        else:
            super().load_newobj()

    def load_newobj_ex(self) -> None:
        if not self.stubs:
            raise Refused("an object made with keywords")
        self._stub(3)

    def load_build(self) -> None:
        if not self.stubs or isinstance(self.stack[-2], _Pending):
            super().load_build()
            return
        state = self.stack.pop()
        parts = state if isinstance(state, tuple) else (state,)
        for part in parts if isinstance(self.stack[-1], dict) else ():
            if isinstance(part, dict):
                self.stack[-1].update(part)

    def load_append(self) -> None:
        if isinstance(self.stack[-2], list):
            super().load_append()
        else:
            self._drop(self.stack.pop())

    def load_appends(self) -> None:
        items = self.pop_mark()
        if isinstance(self.stack[-1], list):
            self.stack[-1].extend(items)
        else:
            self._drop(items)

    def _stub(self, operands: int) -> None:
        del self.stack[-operands:]
        self.stack.append({})

    def _drop(self, _items: Any) -> None:
        """Items of an object that is none of ours."""
        if not self.stubs:
            raise Refused("items of an object that is not a list")

    for _code, _method in {
        pickle.BINPERSID: load_binpersid,
        pickle.REDUCE: load_reduce,
        pickle.NEWOBJ: load_newobj,
        pickle.NEWOBJ_EX: load_newobj_ex,
        pickle.BUILD: load_build,
        pickle.APPEND: load_append,
        pickle.APPENDS: load_appends,
    }.items():
        dispatch[_code[0]] = _method


def _tensor(storage: Any, offset: Any, size: Any, stride: Any, *_rest: Any) -> np.ndarray:
    if not isinstance(storage, np.ndarray) or not isinstance(size, tuple) or not isinstance(stride, tuple):
        raise Refused("a tensor without a storage")
    if len(size) != len(stride) or len(size) > MAX_DIMS:
        raise Refused("a tensor with a malformed shape")
    if not all(type(n) is int and n >= 0 for n in (offset, *size, *stride)):
        raise Refused("a tensor with a malformed shape")
    count = math.prod(size)
    last = offset + sum((n - 1) * s for n, s in zip(size, stride, strict=True)) if count else 0
    if count > len(storage) or (count and last >= len(storage)):
        raise Refused(f"a tensor of shape {size} in a storage of {len(storage)}")
    step = storage.itemsize
    view = np.lib.stride_tricks.as_strided(storage[offset:], size, tuple(s * step for s in stride), writeable=False)
    return view.copy()


def _parameter(tensor: Any, *_rest: Any) -> Any:
    return tensor


TENSORS: Mapping[str, Callable[..., Any]] = {
    **BUILDERS,
    "torch._utils._rebuild_tensor": _tensor,
    "torch._utils._rebuild_tensor_v2": _tensor,
    "torch._utils._rebuild_parameter": _parameter,
}
