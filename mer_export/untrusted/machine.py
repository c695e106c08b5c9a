"""The part of the pickle machine that names nothing: its stack, numbers, texts and containers.

A size is held against the bytes that are there before it takes memory; numbers in a row are taken in one step.
"""

from __future__ import annotations

import codecs
import pickle
import re
import struct
from typing import Any

import numpy as np

from mer_export.errors import InputError
from mer_export.untrusted.budget import Budget
from mer_export.untrusted.builders import Refused, check_key
from mer_export.untrusted.contents import Form

LINE_ENDS = (
    "{} was changed in transfer: every line end became CRLF, which alters what a pickle says; copy the original in "
    "binary mode (git: `*.pkl -text` in .gitattributes), or turn a pickle of protocol 0 back with dos2unix"
)
PROTOCOLS = range(pickle.HIGHEST_PROTOCOL + 1)
FLOATS, SMALL_INTEGERS = (re.compile(form, re.DOTALL) for form in (rb"(?:G.{8}){1,4096}+", rb"(?:K.){1,4096}+"))
FLOAT_ROW = np.dtype([("opcode", "u1"), ("value", ">f8")])
U16, I32, U32, U64, F64 = (struct.Struct(form).unpack_from for form in ("<H", "<i", "<I", "<Q", ">d"))


class Machine:
    """Walks over the opcodes of a pickle. `at` is the place that is read next, after `load` the one behind it.

    With `crlf`, an argument that ends with CRLF is refused.
    """

    def __init__(self, data: Any, budget: Budget, at: int = 0, crlf: bool = False):
        self.data, self.size, self.at = data, len(data), at
        self.budget, self.crlf = budget, crlf
        self.stack: list[Any] = []
        self.outer: list[list[Any]] = []

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

    def _unknown(self, at: int) -> int:
        raise Refused(f"the opcode {bytes(self.data[at - 1 : at])!r}")

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
        """Takes more than a text or bytes where they are part of something, and returns the place behind; else 0."""
        return 0

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


OPCODES = {
    pickle.PROTO: "_protocol",
    pickle.FRAME: "_frame",
    pickle.MARK: "_mark",
    pickle.POP: "_pop",
    pickle.POP_MARK: "_pop_mark",
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
"""The step of each admitted opcode: it is told the place behind the opcode, and tells where to go on.

No pickler writes DUP. What a pickle says in two places it gets from the memo, so that one step counts what is shared.
"""
