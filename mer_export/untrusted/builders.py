"""What a pickle may call: arrays, numbers and plain containers, each built by a function that checks its arguments."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np

from mer_export.untrusted.contents import Build, Content, Kind, Stored

DTYPE = re.compile(r"\|?[<>=]?(\?|[bhilqpBHILQPefdFD]|b1|[iu][1248]|f[248]|c8|c16|[US]\d{1,9}|O8?)")
MAX_DIMS = 32
MAX_KEY = 16
"""Parts of a tuple that is a key."""
SCALARS = (str, bytes, float, bool, type(None))
WORD = 1 << 63


class Refused(Exception):
    """The pickle asks for something that is not data."""


class Name:
    """A global that a pickle names; never imported."""

    __slots__ = ("name",)

    def __init__(self, name: str):
        self.name = name


class Record(dict[Any, Any]):
    """An object whose class was not looked up: its attributes and items, and the full name of the class."""

    def __init__(self, kind: str):
        super().__init__()
        self.kind = kind


class Pending:
    """An array or dtype between its construction and the state that completes it."""

    __slots__ = ("complete", "value")

    def __init__(self, complete: Callable[[Any], Any], value: Any = None):
        self.complete = complete
        self.value = value


def done(value: Any) -> Any:
    """What a value became."""
    return value.value if type(value) is Pending and value.value is not None else value


def is_size(value: Any) -> bool:
    """True for a length or offset: an integer of 63 bits, as longer ones cost time and fit nothing."""
    return type(value) is int and 0 <= value < WORD


def is_key(key: Any) -> bool:
    """Scalars and short flat tuples of them.

    Hashing a deeply nested key would overflow the interpreter's stack, and hashing a long one takes time at every use.
    """
    if isinstance(key, tuple):
        return len(key) <= MAX_KEY and all(_is_scalar(k) for k in key)
    return _is_scalar(key) or isinstance(key, np.generic)


def check_key(key: Any) -> None:
    """Raises Refused for what cannot be a key."""
    if not is_key(key):
        raise Refused(f"a {type(key).__name__} as a key")


def _is_scalar(key: Any) -> bool:
    return isinstance(key, SCALARS) or (type(key) is int and -WORD <= key < 2 * WORD)


def _bytes_of(data: Any) -> bytes:
    if isinstance(data, Content):
        return data.raw()
    # Python 2 wrote the buffer as a str, which latin1 maps back byte for byte.
    if isinstance(data, str):
        return data.encode("latin1")
    if isinstance(data, bytes | bytearray):
        return bytes(data)
    raise Refused("an array whose data are not bytes")


def _dtype(code: Any, *_flags: Any) -> Pending:
    if not isinstance(code, str) or not DTYPE.fullmatch(code):
        raise Refused(f"the dtype {str(code)[:60]!r}")
    plain = np.dtype(code)
    return Pending(lambda state: _dtype_state(plain, state), plain)


def _dtype_state(plain: np.dtype, state: Any) -> np.dtype:
    _version, order, subdtype, names, fields, size = state[:6]
    if order not in ("<", ">", "|", "=") or subdtype is not None or names or fields:
        raise Refused("a structured dtype")
    if plain.kind == "U" and size >= 0:
        plain = np.dtype(f"U{size // 4}")
    if plain.kind == "S" and size >= 0:
        plain = np.dtype(f"S{size}")
    return plain if order in "|=" else plain.newbyteorder(order)


def _array(data: Any, dtype: Any, shape: Any, fortran: Any) -> Any:
    if not isinstance(dtype, np.dtype) or not isinstance(shape, tuple) or len(shape) > MAX_DIMS:
        raise Refused("an array with a malformed shape or dtype")
    if not all(map(is_size, shape)):
        raise Refused(f"an array of shape {str(shape)[:60]}")
    count = math.prod(shape)
    if dtype.hasobject:
        # An object array is how numpy stores ragged rows; as data it is a list.
        if not isinstance(data, list) or len(shape) != 1 or len(data) != count:
            raise Refused("an object array that is not one-dimensional")
        return data
    if count and not dtype.itemsize:
        raise Refused(f"an array of {dtype.str}, whose items have no bytes")
    if isinstance(data, Content) and data.file.lazy:
        return Stored(_kind(data, dtype, shape, bool(fortran)), data.at)
    content = _bytes_of(data)
    if len(content) != count * dtype.itemsize:
        raise Refused(f"an array of shape {shape} with {len(content)} bytes")
    return _filled([content], dtype, shape, bool(fortran))[0]


def _kind(data: Content, dtype: np.dtype, shape: tuple[int, ...], fortran: bool) -> Kind:
    """That of an array with this content."""
    kinds, key = data.file.kinds, (data.size, data.form, shape, dtype, fortran)
    if key not in kinds:
        nbytes = math.prod(shape) * dtype.itemsize
        if not data.may_be(nbytes):
            raise Refused(f"an array of shape {shape} with {data.size} bytes")
        build: Build = partial(_filled, dtype=dtype, shape=shape, fortran=fortran)
        build = data.file.builds.setdefault(key[1:], build)
        kinds[key] = Kind(data.file, data.size, data.form, shape, dtype, nbytes, build)
    return kinds[key]


def _filled(contents: Sequence[bytes], dtype: np.dtype, shape: tuple[int, ...], fortran: bool) -> np.ndarray:
    """Arrays with these bytes one above the other, in memory of their own and the byte order of the machine."""
    array = np.frombuffer(b"".join(contents), dtype) if math.prod(shape) else np.zeros(0, dtype)
    if fortran:
        array = array.reshape(len(contents), *shape[::-1]).transpose(0, *range(len(shape), 0, -1))
    return array.reshape(len(contents), *shape).astype(dtype.newbyteorder("="))


def _reconstruct(kind: Any, _shape: Any, _code: Any) -> Pending:
    if not isinstance(kind, Name) or kind.name != ARRAY:
        raise Refused("an array subclass")
    return Pending(lambda state: _array(state[4], state[2], state[1], state[3]))


def _scalar(dtype: Any, data: Any = b"") -> Any:
    return _array(data, dtype, (1,), False)[0]


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
            check_key(item)
        return kind(*arguments)

    return build


def _ordered_dict(pairs: Any = ()) -> dict[Any, Any]:
    for key, _ in pairs:
        check_key(key)
    return dict(pairs)


def _counter(counts: Any = ()) -> dict[Any, Any]:
    if not isinstance(counts, Mapping):
        raise Refused("a Counter of something that is not a dict")
    return dict(counts)


def _default_dict(factory: Any = None) -> dict[Any, Any]:
    if factory is not None and not isinstance(factory, Name):
        raise Refused("a defaultdict whose default is not a name")
    return {}


def _deque(items: Any = (), _longest: Any = None) -> list[Any]:
    if not isinstance(items, list | tuple):
        raise Refused("a deque of something that is not a sequence")
    return list(items)


def _numpy_names(attribute: str, *modules: str) -> list[str]:
    return [f"numpy.{core}.{module}.{attribute}" for core in ("core", "_core") for module in modules]


ARRAY = "numpy.ndarray"
RECONSTRUCT = frozenset(_numpy_names("_reconstruct", "multiarray"))
"""What makes arrays that are completed by a state."""
BUILTINS = ("builtins", "__builtin__")
BUILDERS: Mapping[str, Callable[..., Any]] = {
    **dict.fromkeys(RECONSTRUCT, _reconstruct),
    **dict.fromkeys(_numpy_names("scalar", "multiarray"), _scalar),
    **dict.fromkeys(_numpy_names("_frombuffer", "numeric"), _frombuffer),
    "numpy.dtype": _dtype,
    "_codecs.encode": _encode,
    "collections.OrderedDict": _ordered_dict,
    "collections.Counter": _counter,
    "collections.defaultdict": _default_dict,
    "collections.deque": _deque,
    **{f"{m}.{k.__name__}": _plain(k) for m in BUILTINS for k in (set, frozenset, list, tuple, bytes, bytearray)},
}
"""Everything that a pickle may call, by name."""

NAMES = {
    ARRAY,
    *(f"{m}.{k}" for m in BUILTINS for k in ("dict", "int", "long", "float", "str", "unicode", "bool")),
}
"""What a pickle may name without calling it: the defaults of a defaultdict, the kind of an array."""
