"""The machine that interprets pickles as data.

The standard loader calls whatever a pickle names, so it is not used. This one walks over the bytes of a file with a
table of opcodes: a global is only a name, the few admitted names are looked up in a table of builders that check their
arguments, a size is held against the bytes that are there, and what is built is taken from the budget of the file.

Nearly all bytes of a feature file are the contents of arrays, and nearly all opcodes stand around them or are numbers
in a row. Both are taken in one step: `_content` and `_row`. The memo keeps where such a content lies, not a copy.
"""

from __future__ import annotations

import codecs
import pickle
import re
import struct
from collections.abc import Callable, Collection, Mapping
from typing import Any, Protocol

import numpy as np

from mer_export.errors import InputError
from mer_export.untrusted.budget import Budget
from mer_export.untrusted.builders import NAMES, Name, Pending, Record, Refused, check_key, done
from mer_export.untrusted.contents import Content, Form, Stored
from mer_export.untrusted.tensors import is_storage, storage_kind

LONG = 64
"""Bytes of a text or array from which on its use in several places is counted."""
LINE_ENDS = (
    "{} was changed in transfer: every line end became CRLF, which alters what a pickle says; copy the original in "
    "binary mode (git: `*.pkl -text` in .gitattributes), or turn a pickle of protocol 0 back with dos2unix"
)
PROTOCOLS = range(pickle.HIGHEST_PROTOCOL + 1)
ENCODE = "_codecs.encode"
GET, PUT = rb"(h.|j.{4})", rb"(q.|r.{4}|\x94|)"
AFTER_TEXT = re.compile(PUT + GET + rb"\x86" + PUT + b"R" + PUT + b"t" + PUT + b"b", re.DOTALL)
"""What follows an array's content that is written as a text to be encoded: the last parts of its state, and BUILD."""
AFTER_BYTES = re.compile(PUT + b"t" + PUT + b"b", re.DOTALL)
FLOATS, SMALL_INTEGERS = (re.compile(form, re.DOTALL) for form in (rb"(?:G.{8}){1,4096}+", rb"(?:K.){1,4096}+"))
ARRAYS, TEXTS = frozenset((np.ndarray, Stored)), frozenset((str, bytes, bytearray))
CONTAINERS = frozenset((dict, Record, list, tuple, set, frozenset))
FLOAT_ROW = np.dtype([("opcode", "u1"), ("value", ">f8")])
U16, I32, U32, U64, F64 = (struct.Struct(form).unpack_from for form in ("<H", "<i", "<I", "<Q", ">d"))


class Storages(Protocol):
    """Where a pickle's references to storages lead."""

    def find(self, kind: str, key: str, numel: Any, view: Any) -> Any:
        """The values of a storage."""


class _Later:
    """What the memo keeps of an array's content that nobody may ask for again: where it lies, and the state around."""

    __slots__ = ("content", "state")

    def __init__(self, content: Content, state: list[Any]):
        self.content, self.state = content, state

    def value(self, place: int) -> Any:
        """The text, the arguments of its encoding, what the state holds of it, or the state."""
        if place < 2:
            text = self.content.text()
            return (text, "latin1") if place else text
        found = self.content.value()
        return found if place == 2 else (*self.state[:4], found)


class DataUnpickler:
    """The pickle machine without the opcodes that make or call arbitrary objects.

    `builders` are what may be called; an object of a class in `records` is read as the record of its attributes, its
    class is never looked up. `storages` resolves the references of files that `torch.save` wrote. `at` is the place
    that is read next, after `load` the one behind the pickle. With `crlf`, an argument that ends with CRLF is refused;
    with `lazy`, arrays stay in `data` as `Stored` where they can.
    """

    def __init__(
        self,
        data: Any,
        budget: Budget,
        builders: Mapping[str, Callable[..., Any]],
        records: Collection[str] = (),
        storages: Storages | None = None,
        at: int = 0,
        crlf: bool = False,
        lazy: bool = False,
    ):
        self.data, self.size, self.at = data, len(data), at
        self.budget, self.builders, self.storages = budget, builders, storages
        self.records = frozenset(records)
        self.crlf, self.lazy = crlf, lazy
        self.shared = False
        self.memo: dict[int, Any] = {}
        self.stack: list[Any] = []
        self.outer: list[list[Any]] = []

    def read_value(self) -> Any:
        """The value of the pickle; what it uses in several places is counted as often."""
        found = done(self.load())
        if self.shared:
            self.budget.weigh(found)
        return found

    def load(self) -> Any:
        """What the pickle leaves, before arrays that were never completed are told apart."""
        steps = [self._unknown] * 256
        for code, method in OPCODES.items():
            steps[code[0]] = getattr(self, method)
        data, at, stop = self.data, self.at, pickle.STOP[0]
        code = data[at]
        while code != stop:
            at = steps[code](at + 1)
            code = data[at]
        self.at = at + 1
        return self.stack.pop()

    # What a pickle may not do

    def _unknown(self, at: int) -> int:
        raise Refused(f"the opcode {bytes(self.data[at - 1 : at])!r}")

    def named(self, module: str, name: str) -> Name:
        """A global; only its name counts."""
        if "\r" in module or "\r" in name:
            raise InputError(LINE_ENDS.format(self.budget.name))
        full = f"{module}.{name}"
        if full in self.builders or full in self.records or full in NAMES or is_storage(module, name):
            return Name(full)
        return self.unknown(full)

    def unknown(self, full: str) -> Name:
        """A name that is not admitted."""
        raise Refused(full)

    # Bytes and lines

    def _bytes(self, at: int, size: int) -> bytes:
        """Bytes that the file holds; what it only claims takes no memory."""
        self._end(at, size)
        return bytes(self.data[at : at + size])

    def _end(self, at: int, size: int) -> int:
        if not 0 <= size <= self.size - at:
            raise EOFError(f"{size} bytes are claimed, {self.size - at} are left")
        return at + size

    def _line(self, at: int) -> tuple[bytes, int]:
        end = self.data.find(b"\n", at)
        if end < 0:
            raise EOFError("a line has no end")
        if self.crlf and self.data[end - 1] == 13:
            raise InputError(LINE_ENDS.format(self.budget.name))
        return bytes(self.data[at:end]), end + 1

    # The stack

    def _mark(self, at: int) -> int:
        self.outer.append(self.stack)
        self.stack = []
        return at

    def _popped(self) -> list[Any]:
        """What stands above the mark."""
        items, self.stack = self.stack, self.outer.pop()
        return items

    def _pop(self, at: int) -> int:
        if self.stack:
            del self.stack[-1]
        else:
            self._popped()
        return at

    def _pop_mark(self, at: int) -> int:
        self._popped()
        return at

    def _dup(self, at: int) -> int:
        self.stack.append(self.stack[-1])
        return at

    def _protocol(self, at: int) -> int:
        if self.data[at] not in PROTOCOLS:
            raise ValueError(f"protocol {self.data[at]}")
        return at + 1

    def _frame(self, at: int) -> int:
        self._end(at + 8, U64(self.data, at)[0])
        return at + 8

    # Numbers and constants

    def _none(self, at: int) -> int:
        self.stack.append(None)
        return at

    def _true(self, at: int) -> int:
        self.stack.append(True)
        return at

    def _false(self, at: int) -> int:
        self.stack.append(False)
        return at

    def _float(self, at: int) -> int:
        line, at = self._line(at)
        self.stack.append(float(line))
        return at

    def _int(self, at: int) -> int:
        line, at = self._line(at)
        self.stack.append(line == b"01" if line in (b"00", b"01") else int(line, 0))
        return at

    def _long(self, at: int) -> int:
        line, at = self._line(at)
        self.stack.append(int(line.removesuffix(b"L"), 0))
        return at

    def _integer(self, at: int) -> int:
        self.stack.append(I32(self.data, at)[0])
        return at + 4

    def _byte(self, at: int) -> int:
        if self.data[at + 1] == 75:  # K, as here
            end = self._row(SMALL_INTEGERS, at - 1)
            self.stack += self.data[at:end:2]
            return end
        self.stack.append(self.data[at])
        return at + 1

    def _short(self, at: int) -> int:
        self.stack.append(U16(self.data, at)[0])
        return at + 2

    def _long1(self, at: int) -> int:
        return self._little(at + 1, self.data[at])

    def _long4(self, at: int) -> int:
        return self._little(at + 4, I32(self.data, at)[0])

    def _little(self, at: int, size: int) -> int:
        self.stack.append(int.from_bytes(self._bytes(at, size), "little", signed=True))
        return at + size

    def _double(self, at: int) -> int:
        if self.data[at + 8] == 71:  # G, as here
            end = self._row(FLOATS, at - 1)
            self.stack += np.frombuffer(self.data[at - 1 : end], FLOAT_ROW)["value"].tolist()
            return end
        self.stack.append(F64(self.data, at)[0])
        return at + 8

    def _row(self, kind: re.Pattern[bytes], at: int) -> int:
        """Where numbers end that are written one after the other."""
        found = kind.match(self.data, at)
        return found.end() if found else at

    # Texts and bytes

    def _string(self, at: int) -> int:
        line, at = self._line(at)
        if len(line) < 2 or line[:1] != line[-1:] or line[:1] not in (b"'", b'"'):
            raise ValueError("a string without quotes")
        self.stack.append(codecs.escape_decode(line[1:-1])[0].decode("latin1"))  # type: ignore[attr-defined]
        return at

    def _unicode(self, at: int) -> int:
        line, at = self._line(at)
        self.stack.append(str(line, "raw-unicode-escape"))
        return at

    def _latin(self, at: int, size: int) -> int:
        """A string of Python 2, whose bytes latin1 keeps as they are."""
        return self._content(at, size, "latin1") or self._pushed(at, size, self._bytes(at, size).decode("latin1"))

    def _text(self, at: int, size: int) -> int:
        went = self._content(at, size, "utf-8")
        return went or self._pushed(at, size, str(self._bytes(at, size), "utf-8", "surrogatepass"))

    def _raw(self, at: int, size: int) -> int:
        return self._content(at, size, "bytes") or self._pushed(at, size, self._bytes(at, size))

    def _pushed(self, at: int, size: int, value: Any) -> int:
        self.stack.append(value)
        return at + size

    def _latin1(self, at: int) -> int:
        return self._latin(at + 1, self.data[at])

    def _latin4(self, at: int) -> int:
        return self._latin(at + 4, I32(self.data, at)[0])

    def _text1(self, at: int) -> int:
        return self._text(at + 1, self.data[at])

    def _text4(self, at: int) -> int:
        return self._text(at + 4, U32(self.data, at)[0])

    def _text8(self, at: int) -> int:
        return self._text(at + 8, U64(self.data, at)[0])

    def _raw1(self, at: int) -> int:
        return self._raw(at + 1, self.data[at])

    def _raw4(self, at: int) -> int:
        return self._raw(at + 4, U32(self.data, at)[0])

    def _raw8(self, at: int) -> int:
        return self._raw(at + 8, U64(self.data, at)[0])

    def _bytearray(self, at: int) -> int:
        (size,) = U64(self.data, at)
        return self._pushed(at + 8, size, bytearray(self._bytes(at + 8, size)))

    def _content(self, at: int, size: int, form: Form) -> int:
        """Completes the array whose content lies here, if one does: goes on behind its BUILD, else returns 0.

        Args:
            at: where the content begins.
            size: its bytes in the file.
            form: how it is written; the state of an array holds the name of the encoding function before a text.
        """
        state, encoded = self.stack, form == "utf-8"
        if len(state) != 4 + encoded or not self.outer or not self.outer[-1]:
            return 0
        array = self.outer[-1][-1]
        if type(array) is not Pending or array.value is not None or (encoded and not _is_encode(state[4])):
            return 0
        found = (AFTER_TEXT if encoded else AFTER_BYTES).match(self.data, self._end(at, size))
        if found is None:
            return 0
        puts: tuple[bytes, ...] = found.groups()
        if encoded:
            if self.memo.get(_index(puts[1])) != "latin1":
                return 0
            puts = puts[:1] + puts[2:]
        content = Content(self.data, at, size, form, self.budget.name, self.lazy)
        self._popped()
        self.budget.take(size)
        array.value = self._counted(array.complete((*map(done, state[:4]), content)))
        self.stack[-1] = array.value
        later = _Later(content, state)
        for place, put in enumerate(puts, 4 - len(puts)):
            if put:
                self.memo[len(self.memo) if put == pickle.MEMOIZE else _index(put)] = later, place
        return found.end()

    # Containers

    def _empty_list(self, at: int) -> int:
        self.stack.append([])
        return at

    def _empty_dict(self, at: int) -> int:
        self.stack.append({})
        return at

    def _empty_tuple(self, at: int) -> int:
        self.stack.append(())
        return at

    def _empty_set(self, at: int) -> int:
        self.stack.append(set())
        return at

    def _list(self, at: int) -> int:
        items = self._popped()
        self.stack.append(items)
        return at

    def _tuple(self, at: int) -> int:
        items = self._popped()
        self.stack.append(tuple(items))
        return at

    def _tuple1(self, at: int) -> int:
        self.stack[-1] = (self.stack[-1],)
        return at

    def _tuple2(self, at: int) -> int:
        stack = self.stack
        stack[-2:] = [(stack[-2], stack[-1])]
        return at

    def _tuple3(self, at: int) -> int:
        stack = self.stack
        stack[-3:] = [(stack[-3], stack[-2], stack[-1])]
        return at

    def store(self, target: Any, keys: list[Any], values: list[Any]) -> None:
        """Puts items into a dict."""
        if not isinstance(target, dict):
            raise Refused(f"items of a {type(target).__name__} by key")
        for key in keys:
            check_key(key)
        target.update(zip(keys, values, strict=True))

    def _set_item(self, at: int) -> int:
        value, key = self.stack.pop(), self.stack.pop()
        self.store(self.stack[-1], [key], [value])
        return at

    def _set_items(self, at: int) -> int:
        items = self._popped()
        self.store(self.stack[-1], items[::2], items[1::2])
        return at

    def _dict(self, at: int) -> int:
        items = self._popped()
        found: dict[Any, Any] = {}
        self.store(found, items[::2], items[1::2])
        self.stack.append(found)
        return at

    def extend(self, target: Any, items: list[Any]) -> None:
        """Puts items into a list."""
        if not isinstance(target, list):
            raise Refused(f"items of a {type(target).__name__}")
        target += items

    def _append(self, at: int) -> int:
        value = self.stack.pop()
        self.extend(self.stack[-1], [value])
        return at

    def _appends(self, at: int) -> int:
        items = self._popped()
        self.extend(self.stack[-1], items)
        return at

    def add(self, target: Any, items: list[Any]) -> None:
        """Puts items into a set."""
        if not isinstance(target, set):
            raise Refused(f"members of a {type(target).__name__}")
        for item in items:
            check_key(item)
        target.update(items)

    def _add_items(self, at: int) -> int:
        items = self._popped()
        self.add(self.stack[-1], items)
        return at

    def _frozenset(self, at: int) -> int:
        items: set[Any] = set()
        self.add(items, self._popped())
        self.stack.append(frozenset(items))
        return at

    # The memo

    def _put(self, at: int) -> int:
        line, at = self._line(at)
        index = int(line)
        if index < 0:
            raise ValueError(f"a negative place {index}")
        self.memo[index] = self.stack[-1]
        return at

    def _put1(self, at: int) -> int:
        self.memo[self.data[at]] = self.stack[-1]
        return at + 1

    def _put4(self, at: int) -> int:
        self.memo[U32(self.data, at)[0]] = self.stack[-1]
        return at + 4

    def _memoize(self, at: int) -> int:
        self.memo[len(self.memo)] = self.stack[-1]
        return at

    def _recall(self, index: int) -> None:
        value = self.memo[index]
        if type(value) is tuple and len(value) == 2 and type(value[0]) is _Later:
            value = self.memo[index] = self._counted(value[0].value(value[1]))
        value = done(value)
        kind = type(value)
        if kind in ARRAYS:
            self.shared |= value.nbytes > LONG
        elif kind in TEXTS:
            self.shared |= len(value) > LONG
        elif kind in CONTAINERS:
            self.shared = True  # an empty one may yet be filled
        self.stack.append(value)

    def _get(self, at: int) -> int:
        line, at = self._line(at)
        self._recall(int(line))
        return at

    def _get1(self, at: int) -> int:
        self._recall(self.data[at])
        return at + 1

    def _get4(self, at: int) -> int:
        self._recall(U32(self.data, at)[0])
        return at + 4

    # Names, calls and states

    def _global(self, at: int) -> int:
        module, at = self._line(at)
        name, at = self._line(at)
        self.stack.append(self.named(module.decode(), name.decode()))
        return at

    def _stack_global(self, at: int) -> int:
        name, module = self.stack.pop(), self.stack.pop()
        if type(name) is not str or type(module) is not str:
            raise TypeError("a name that is not a text")
        self.stack.append(self.named(module, name))
        return at

    def _reduce(self, at: int) -> int:
        self.reduce()
        return at

    def reduce(self) -> None:
        """Calls a builder."""
        arguments = self.stack.pop()
        target = self.stack.pop()
        if not isinstance(target, Name) or target.name not in self.builders or not isinstance(arguments, tuple):
            raise Refused(f"a call of {getattr(target, 'name', type(target).__name__)}")
        self.stack.append(self._counted(self.builders[target.name](*(done(a) for a in arguments))))

    def _new_object(self, at: int) -> int:
        arguments = self.stack.pop()
        target = self.stack.pop()
        if not isinstance(target, Name) or target.name not in self.records or arguments != ():
            raise Refused(f"an object of {getattr(target, 'name', type(target).__name__)}")
        self.stack.append(Record(target.name))
        return at

    def _new_object_ex(self, at: int) -> int:
        return self._unknown(at)

    def _build(self, at: int) -> int:
        self.build()
        return at

    def build(self) -> None:
        """Completes an array, or gives a record its attributes."""
        state = self.stack.pop()
        target = self.stack[-1]
        if isinstance(target, Pending):
            if not isinstance(state, tuple) or len(state) < 5:
                raise Refused("a state for something that is not an array")
            target.value = self._counted(target.complete(tuple(done(s) for s in state)))
            self.stack[-1] = target.value
            return
        self.attributes(target, state)

    def attributes(self, target: Any, state: Any) -> None:
        """Attributes: of a record they are its content, of a plain dict (a state_dict's versions) nothing."""
        if not isinstance(target, dict) or not isinstance(state, dict):
            raise Refused("a state for something that is not an array")
        if isinstance(target, Record):
            target.update(self._counted(state))

    def _reference(self, at: int) -> int:
        reference = self.stack.pop()
        if self.storages is None or not isinstance(reference, tuple) or len(reference) < 3:
            raise Refused("a reference to something outside")
        if reference[0] == "module":
            # Files of before 2020 name a class so, with its source; the source is of no interest.
            self.stack.append(reference[1])
            return at
        if reference[0] != "storage" or not isinstance(reference[2], str):
            raise Refused("a reference to something that is not a storage")
        kind = storage_kind(reference[1])
        self.stack.append(self.storages.find(kind, reference[2], *(*reference[4:6], None, None)[:2]))
        return at

    def _counted(self, value: Any) -> Any:
        kind = type(value)
        if kind in ARRAYS:
            self.budget.take(value.nbytes)
        elif kind in TEXTS:
            self.budget.take(len(value))
        elif kind in CONTAINERS:
            self.budget.take(8 * len(value), len(value))
        return value


def _index(opcode: bytes) -> int:
    """The place in the memo that an opcode names by one byte or four."""
    return int.from_bytes(opcode[1:], "little")


def _is_encode(value: Any) -> bool:
    return type(value) is Name and value.name == ENCODE


OPCODES = {
    pickle.PROTO: "_protocol",
    pickle.FRAME: "_frame",
    pickle.MARK: "_mark",
    pickle.POP: "_pop",
    pickle.POP_MARK: "_pop_mark",
    pickle.DUP: "_dup",
    pickle.NONE: "_none",
    pickle.NEWTRUE: "_true",
    pickle.NEWFALSE: "_false",
    pickle.FLOAT: "_float",
    pickle.INT: "_int",
    pickle.LONG: "_long",
    pickle.BININT: "_integer",
    pickle.BININT1: "_byte",
    pickle.BININT2: "_short",
    pickle.LONG1: "_long1",
    pickle.LONG4: "_long4",
    pickle.BINFLOAT: "_double",
    pickle.STRING: "_string",
    pickle.UNICODE: "_unicode",
    pickle.SHORT_BINSTRING: "_latin1",
    pickle.BINSTRING: "_latin4",
    pickle.SHORT_BINUNICODE: "_text1",
    pickle.BINUNICODE: "_text4",
    pickle.BINUNICODE8: "_text8",
    pickle.SHORT_BINBYTES: "_raw1",
    pickle.BINBYTES: "_raw4",
    pickle.BINBYTES8: "_raw8",
    pickle.BYTEARRAY8: "_bytearray",
    pickle.EMPTY_LIST: "_empty_list",
    pickle.EMPTY_DICT: "_empty_dict",
    pickle.EMPTY_TUPLE: "_empty_tuple",
    pickle.EMPTY_SET: "_empty_set",
    pickle.LIST: "_list",
    pickle.TUPLE: "_tuple",
    pickle.TUPLE1: "_tuple1",
    pickle.TUPLE2: "_tuple2",
    pickle.TUPLE3: "_tuple3",
    pickle.DICT: "_dict",
    pickle.SETITEM: "_set_item",
    pickle.SETITEMS: "_set_items",
    pickle.APPEND: "_append",
    pickle.APPENDS: "_appends",
    pickle.ADDITEMS: "_add_items",
    pickle.FROZENSET: "_frozenset",
    pickle.PUT: "_put",
    pickle.BINPUT: "_put1",
    pickle.LONG_BINPUT: "_put4",
    pickle.MEMOIZE: "_memoize",
    pickle.GET: "_get",
    pickle.BINGET: "_get1",
    pickle.LONG_BINGET: "_get4",
    pickle.GLOBAL: "_global",
    pickle.STACK_GLOBAL: "_stack_global",
    pickle.REDUCE: "_reduce",
    pickle.NEWOBJ: "_new_object",
    pickle.NEWOBJ_EX: "_new_object_ex",
    pickle.BUILD: "_build",
    pickle.BINPERSID: "_reference",
}
"""The step of each admitted opcode: it is told the place behind the opcode, and tells where to go on."""
