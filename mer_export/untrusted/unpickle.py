"""Reads pickles as data: numpy arrays and plain containers, and nothing that runs.

Authors distribute features as pickles. The standard loader calls whatever a pickle names, so it is not used. This one
is the interpreter of the standard library with a cut-down opcode table: a global is only a name, the few admitted names
are looked up in a table of builders that check their arguments, and sizes are checked before memory is taken.
"""

from __future__ import annotations

import math
import mmap
import pickle
import re
import struct
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from mer_export.errors import InputError

DTYPE = re.compile(r"\|?[<>=]?(\?|[bhilqpBHILQPefdFD]|b1|[iu][1248]|f[248]|c8|c16|[US]\d{1,9}|O8?)")
MAX_DIMS = 32
KEYS = (str, bytes, int, float, bool, type(None))


class Refused(Exception):
    """The pickle asks for something that is not data."""


class _Name:
    """A global that a pickle names; never imported."""

    __slots__ = ("name",)

    def __init__(self, name: str):
        self.name = name


class _Pending:
    """An array or dtype between its construction and the state that completes it."""

    __slots__ = ("complete", "value")

    def __init__(self, complete: Callable[[Any], Any], value: Any = None):
        self.complete = complete
        self.value = value


def _bytes_of(data: Any) -> bytes:
    # Python 2 wrote the buffer as a str, which latin1 maps back byte for byte.
    if isinstance(data, str):
        return data.encode("latin1")
    if isinstance(data, bytes | bytearray):
        return bytes(data)
    raise Refused("an array whose data are not bytes")


def _dtype(code: Any, *_flags: Any) -> _Pending:
    if not isinstance(code, str) or not DTYPE.fullmatch(code):
        raise Refused(f"the dtype {code!r}")
    plain = np.dtype(code)
    return _Pending(lambda state: _dtype_state(plain, state), plain)


def _dtype_state(plain: np.dtype, state: Any) -> np.dtype:
    _version, order, subdtype, names, fields, size = state[:6]
    if order not in ("<", ">", "|", "=") or subdtype is not None or names or fields:
        raise Refused("a structured dtype")
    if plain.kind == "U" and size >= 0:
        plain = np.dtype(f"U{size // 4}")
    if plain.kind == "S" and size >= 0:
        plain = np.dtype(f"S{size}")
    return plain if order in "|=" else plain.newbyteorder(order)


def _array(data: Any, dtype: Any, shape: Any, fortran: Any) -> np.ndarray | list[Any]:
    if not isinstance(dtype, np.dtype) or not isinstance(shape, tuple) or len(shape) > MAX_DIMS:
        raise Refused("an array with a malformed shape or dtype")
    if not all(type(n) is int and n >= 0 for n in shape):
        raise Refused(f"an array of shape {shape}")
    count = math.prod(shape)
    if dtype.hasobject:
        # An object array is how numpy stores ragged rows; as data it is a list.
        if not isinstance(data, list) or len(shape) != 1 or len(data) != count:
            raise Refused("an object array that is not one-dimensional")
        return data
    content = _bytes_of(data)
    if len(content) != count * dtype.itemsize:
        raise Refused(f"an array of shape {shape} with {len(content)} bytes")
    array = np.frombuffer(content, dtype=dtype) if count and dtype.itemsize else np.zeros(count, dtype)
    return array.reshape(shape, order="F" if fortran else "C").astype(dtype.newbyteorder("="))


def _reconstruct(kind: Any, _shape: Any, _code: Any) -> _Pending:
    if not isinstance(kind, _Name) or kind.name != "numpy.ndarray":
        raise Refused("an array subclass")
    return _Pending(lambda state: _array(state[4], state[2], state[1], state[3]))


def _scalar(dtype: Any, data: Any = b"") -> Any:
    value = _array(data, dtype, (1,), False)
    return value[0]


def _frombuffer(data: Any, dtype: Any, shape: Any, order: Any) -> Any:
    return _array(data, dtype, shape, order == "F")


def _encode(text: Any, codec: Any) -> bytes:
    if not isinstance(text, str) or codec not in ("latin1", "latin-1"):
        raise Refused("an encoding other than latin1")
    return text.encode("latin1")


def _plain(kind: Callable[..., Any]) -> Callable[..., Any]:
    def build(*arguments: Any) -> Any:
        if len(arguments) > 1 or not all(isinstance(a, list | tuple | bytes) for a in arguments):
            raise Refused(f"{kind.__name__} of something that is not a sequence")
        for item in arguments[0] if arguments and kind in (set, frozenset) else ():
            _check_key(item)
        return kind(*arguments)

    return build


def _ordered_dict(pairs: Any = ()) -> dict[Any, Any]:
    for key, _ in pairs:
        _check_key(key)
    return dict(pairs)


def _numpy_names(attribute: str, *modules: str) -> list[str]:
    return [f"numpy.{core}.{module}.{attribute}" for core in ("core", "_core") for module in modules]


BUILDERS: dict[str, Callable[..., Any]] = {
    **dict.fromkeys(_numpy_names("_reconstruct", "multiarray"), _reconstruct),
    **dict.fromkeys(_numpy_names("scalar", "multiarray"), _scalar),
    **dict.fromkeys(_numpy_names("_frombuffer", "numeric"), _frombuffer),
    "numpy.dtype": _dtype,
    "_codecs.encode": _encode,
    "collections.OrderedDict": _ordered_dict,
    **{
        f"{module}.{kind.__name__}": _plain(kind)
        for module in ("builtins", "__builtin__")
        for kind in (set, frozenset, list, tuple, bytes, bytearray)
    },
}
"""Everything that a pickle may call, by name."""

NAMES = {"numpy.ndarray"}
"""What a pickle may name without calling it."""


def _check_key(key: Any) -> None:
    """Keys are scalars or flat tuples of them: hashing a deeply nested one would overflow the interpreter's stack."""
    if isinstance(key, (*KEYS, np.generic)):
        return
    if not isinstance(key, tuple) or not all(isinstance(k, KEYS) for k in key):
        raise Refused(f"a {type(key).__name__} as a key")


_Base: Any = pickle._Unpickler  # type: ignore[attr-defined]
# The interpreter in Python: the C one takes memory for any size and memo index that a file claims.


class _DataUnpickler(_Base):  # type: ignore[misc,valid-type]
    """The pickle machine without the opcodes that make or call arbitrary objects.

    `builders` are what may be called besides `BUILDERS`; an object of a class in `records` is read as the dict of its
    attributes, its class is never looked up.
    """

    dispatch: ClassVar[dict[int, Any]] = dict(_Base.dispatch)

    def __init__(self, content: Any, builders: Mapping[str, Callable[..., Any]], records: Collection[str]):
        super().__init__(content, encoding="latin1")
        self.builders = {**BUILDERS, **builders}
        self.records = frozenset(records)

    def find_class(self, module: str, name: str) -> _Name:
        full = f"{module}.{name}"
        if full not in self.builders and full not in self.records and full not in NAMES:
            raise Refused(full)
        return _Name(full)

    def load_reduce(self) -> None:
        arguments = self.stack.pop()
        target = self.stack.pop()
        if not isinstance(target, _Name) or target.name not in self.builders or not isinstance(arguments, tuple):
            raise Refused(f"a call of {getattr(target, 'name', type(target).__name__)}")
        self.stack.append(self.builders[target.name](*(_done(a) for a in arguments)))

    def load_newobj(self) -> None:
        arguments = self.stack.pop()
        target = self.stack.pop()
        if not isinstance(target, _Name) or target.name not in self.records or arguments != ():
            raise Refused(f"an object of {getattr(target, 'name', type(target).__name__)}")
        self.stack.append({})

    def load_build(self) -> None:
        state = self.stack.pop()
        pending = self.stack[-1]
        if isinstance(pending, dict) and isinstance(state, dict):
            # Attributes: of a record they are its content, of an OrderedDict (a state_dict's versions) nothing.
            if not pending:
                pending.update(state)
            return
        if not isinstance(pending, _Pending) or not isinstance(state, tuple) or len(state) < 5:
            raise Refused("a state for something that is not an array")
        pending.value = pending.complete(tuple(_done(s) for s in state))
        self.stack[-1] = pending.value

    def _recall(self, index: int) -> None:
        self.stack.append(_done(self.memo[index]))

    def load_get(self) -> None:
        self._recall(int(self.readline()[:-1]))

    def load_binget(self) -> None:
        self._recall(self.read(1)[0])

    def load_long_binget(self) -> None:
        self._recall(struct.unpack("<I", self.read(4))[0])

    def load_setitem(self) -> None:
        _check_key(self.stack[-2])
        super().load_setitem()

    def load_setitems(self) -> None:
        for key in self.stack[::2]:
            _check_key(key)
        super().load_setitems()

    def load_dict(self) -> None:
        for key in self.stack[::2]:
            _check_key(key)
        super().load_dict()

    def load_additems(self) -> None:
        for key in self.stack:
            _check_key(key)
        super().load_additems()

    def load_frozenset(self) -> None:
        for key in self.stack:
            _check_key(key)
        super().load_frozenset()

    def load_bytearray8(self) -> None:
        (size,) = struct.unpack("<Q", self.read(8))
        self.append(bytearray(self.read(size)))

    for _code, _method in {
        pickle.REDUCE: load_reduce,
        pickle.NEWOBJ: load_newobj,
        pickle.BUILD: load_build,
        pickle.GET: load_get,
        pickle.BINGET: load_binget,
        pickle.LONG_BINGET: load_long_binget,
        pickle.SETITEM: load_setitem,
        pickle.SETITEMS: load_setitems,
        pickle.DICT: load_dict,
        pickle.ADDITEMS: load_additems,
        pickle.FROZENSET: load_frozenset,
        pickle.BYTEARRAY8: load_bytearray8,
    }.items():
        dispatch[_code[0]] = _method
    for _code in (
        *(pickle.INST, pickle.OBJ, pickle.NEWOBJ_EX, pickle.PERSID, pickle.BINPERSID),
        *(pickle.EXT1, pickle.EXT2, pickle.EXT4, pickle.NEXT_BUFFER, pickle.READONLY_BUFFER),
    ):
        del dispatch[_code[0]]


def _done(value: Any) -> Any:
    return value.value if isinstance(value, _Pending) and value.value is not None else value


def load_pickle(
    path: Path | str, builders: Mapping[str, Callable[..., Any]] | None = None, records: Collection[str] = ()
) -> Any:
    """The content of a pickle of numpy arrays and plain containers; strings of Python 2 are read as latin1.

    Object arrays come back as lists, OrderedDicts as dicts.

    Args:
        path: the file.
        builders: further functions that the pickle may call, by name; they check their arguments themselves.
        records: full names of classes whose objects are read as dicts of their attributes.

    Raises:
        InputError: not a pickle, truncated, or holding anything else; the refused name is in the message.
    """
    path = Path(path)
    try:
        with path.open("rb") as stream, mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ) as content:
            return _done(_DataUnpickler(content, builders or {}, records).load())
    except Refused as refusal:
        raise InputError(
            f"{path} was not read: it holds {refusal}, which is not plain data; convert it where you trust it"
        ) from None
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror or error}") from None
    except (
        EOFError,
        KeyError,
        IndexError,
        MemoryError,
        RecursionError,
        TypeError,
        ValueError,
        AttributeError,
    ) as error:
        raise InputError(f"{path} is not a readable pickle ({_cause(error)}): it is truncated or damaged") from None
    except (pickle.UnpicklingError, struct.error, OverflowError, AssertionError) as error:
        raise InputError(f"{path} is not a readable pickle ({_cause(error)}): it is truncated or damaged") from None


def _cause(error: BaseException) -> str:
    text = " ".join(str(error).split())[:80]
    return f"{type(error).__name__}: {text}" if text else type(error).__name__
