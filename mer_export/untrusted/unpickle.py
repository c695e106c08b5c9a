"""The machine that interprets pickles as data.

The standard loader calls whatever a pickle names, so it is not used. This one is the interpreter of the standard
library with a cut-down table of opcodes: a global is only a name, the few admitted names are looked up in a table of
builders that check their arguments, and sizes are taken from the budget of the file.

What it relies on of the private class `pickle._Unpickler` is pinned by tests/test_untrusted.py.
"""

from __future__ import annotations

import pickle
import struct
from collections.abc import Callable, Collection, Mapping
from typing import Any, ClassVar, Protocol

import numpy as np

from mer_export.errors import InputError
from mer_export.untrusted.budget import Budget
from mer_export.untrusted.builders import NAMES, Name, Pending, Record, Refused, check_key, done, is_key
from mer_export.untrusted.tensors import is_storage, storage_kind

LONG = 64
"""Bytes of a text or array from which on its use in several places is counted."""
LINE_ENDS = (
    "{} was changed in transfer: every line end became CRLF, which alters what a pickle says; copy the original in "
    "binary mode (git: `*.pkl -text` in .gitattributes), or turn a pickle of protocol 0 back with dos2unix"
)


class Storages(Protocol):
    """Where a pickle's references to storages lead."""

    def find(self, kind: str, key: str, numel: Any, view: Any) -> Any:
        """The values of a storage."""


_Base: Any = pickle._Unpickler  # type: ignore[attr-defined]
# The interpreter in Python: the C one takes memory for any size and memo index that a file claims.


class DataUnpickler(_Base):  # type: ignore[misc,valid-type]
    """The pickle machine without the opcodes that make or call arbitrary objects.

    `builders` are what may be called; an object of a class in `records` is read as the record of its attributes, its
    class is never looked up. `storages` resolves the references of files that `torch.save` wrote.
    """

    dispatch: ClassVar[dict[int, Any]] = dict(_Base.dispatch)

    def __init__(
        self,
        stream: Any,
        budget: Budget,
        builders: Mapping[str, Callable[..., Any]],
        records: Collection[str] = (),
        storages: Storages | None = None,
    ):
        super().__init__(stream, encoding="latin1")
        self.budget, self.builders, self.storages = budget, builders, storages
        self.records = frozenset(records)
        self.shared = False

    def read_value(self) -> Any:
        """The value of the pickle; what it uses in several places is counted as often."""
        found = done(self.load())
        if self.shared:
            self.budget.weigh(found)
        return found

    def find_class(self, module: str, name: str) -> Name:
        if "\r" in module or "\r" in name:
            raise InputError(LINE_ENDS.format(self.budget.name))
        full = f"{module}.{name}"
        if full in self.builders or full in self.records or full in NAMES or is_storage(module, name):
            return Name(full)
        return self.unknown(full)

    def unknown(self, full: str) -> Name:
        """A name that is not admitted."""
        raise Refused(full)

    def load_reduce(self) -> None:
        arguments = self.stack.pop()
        target = self.stack.pop()
        if not isinstance(target, Name) or target.name not in self.builders or not isinstance(arguments, tuple):
            raise Refused(f"a call of {getattr(target, 'name', type(target).__name__)}")
        self.stack.append(self._counted(self.builders[target.name](*(done(a) for a in arguments))))

    def load_newobj(self) -> None:
        arguments = self.stack.pop()
        target = self.stack.pop()
        if not isinstance(target, Name) or target.name not in self.records or arguments != ():
            raise Refused(f"an object of {getattr(target, 'name', type(target).__name__)}")
        self.stack.append(Record(target.name))

    def load_build(self) -> None:
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

    def load_binpersid(self) -> None:
        reference = self.stack.pop()
        if self.storages is None or not isinstance(reference, tuple) or len(reference) < 3:
            raise Refused("a reference to something outside")
        if reference[0] == "module":
            # Files of before 2020 name a class so, with its source; the source is of no interest.
            self.stack.append(reference[1])
            return
        if reference[0] != "storage" or not isinstance(reference[2], str):
            raise Refused("a reference to something that is not a storage")
        kind = storage_kind(reference[1])
        self.stack.append(self.storages.find(kind, reference[2], *(*reference[4:6], None, None)[:2]))

    def _counted(self, value: Any) -> Any:
        if isinstance(value, np.ndarray):
            self.budget.take(value.nbytes)
        elif isinstance(value, str | bytes | bytearray):
            self.budget.take(len(value))
        elif isinstance(value, dict | list | tuple | set | frozenset):
            self.budget.take(8 * len(value), len(value))
        return value

    def _recall(self, index: int) -> None:
        value = done(self.memo[index])
        if isinstance(value, dict | list | tuple | set | frozenset):
            self.shared = True  # an empty one may yet be filled
        elif isinstance(value, str | bytes | bytearray | np.ndarray):
            self.shared |= (value.nbytes if isinstance(value, np.ndarray) else len(value)) > LONG
        self.stack.append(value)

    def load_get(self) -> None:
        self._recall(int(self.readline()[:-1]))

    def load_binget(self) -> None:
        self._recall(self.read(1)[0])

    def load_long_binget(self) -> None:
        self._recall(struct.unpack("<I", self.read(4))[0])

    def store(self, target: Any, keys: list[Any], values: list[Any]) -> None:
        """Puts items into a dict."""
        if not isinstance(target, dict):
            raise Refused(f"items of a {type(target).__name__} by key")
        for key in keys:
            check_key(key)
        target.update(zip(keys, values, strict=True))

    def load_setitem(self) -> None:
        value, key = self.stack.pop(), self.stack.pop()
        self.store(self.stack[-1], [key], [value])

    def load_setitems(self) -> None:
        items = self.pop_mark()
        self.store(self.stack[-1], items[::2], items[1::2])

    def load_dict(self) -> None:
        items = self.pop_mark()
        found: dict[Any, Any] = {}
        self.store(found, items[::2], items[1::2])
        self.append(found)

    def extend(self, target: Any, items: list[Any]) -> None:
        """Puts items into a list."""
        if not isinstance(target, list):
            raise Refused(f"items of a {type(target).__name__}")
        target += items

    def load_append(self) -> None:
        value = self.stack.pop()
        self.extend(self.stack[-1], [value])

    def load_appends(self) -> None:
        items = self.pop_mark()
        self.extend(self.stack[-1], items)

    def add(self, target: Any, items: list[Any]) -> None:
        """Puts items into a set."""
        if not isinstance(target, set):
            raise Refused(f"members of a {type(target).__name__}")
        for item in items:
            check_key(item)
        target.update(items)

    def load_additems(self) -> None:
        items = self.pop_mark()
        self.add(self.stack[-1], items)

    def load_frozenset(self) -> None:
        items: set[Any] = set()
        self.add(items, self.pop_mark())
        self.append(frozenset(items))

    def load_bytearray8(self) -> None:
        (size,) = struct.unpack("<Q", self.read(8))
        self.append(bytearray(self.read(size)))

    for _code, _method in {
        pickle.REDUCE: load_reduce,
        pickle.NEWOBJ: load_newobj,
        pickle.BUILD: load_build,
        pickle.BINPERSID: load_binpersid,
        pickle.GET: load_get,
        pickle.BINGET: load_binget,
        pickle.LONG_BINGET: load_long_binget,
        pickle.SETITEM: load_setitem,
        pickle.SETITEMS: load_setitems,
        pickle.DICT: load_dict,
        pickle.APPEND: load_append,
        pickle.APPENDS: load_appends,
        pickle.ADDITEMS: load_additems,
        pickle.FROZENSET: load_frozenset,
        pickle.BYTEARRAY8: load_bytearray8,
    }.items():
        dispatch[_code[0]] = _method
    for _code in (
        *(pickle.INST, pickle.OBJ, pickle.NEWOBJ_EX, pickle.PERSID),
        *(pickle.EXT1, pickle.EXT2, pickle.EXT4, pickle.NEXT_BUFFER, pickle.READONLY_BUFFER),
    ):
        del dispatch[_code[0]]


class RecordUnpickler(DataUnpickler):
    """The machine for training checkpoints: whatever is not data becomes an empty record, and what it holds with it.

    So the weights can be read whatever lies beside them: optimisers, schedulers, arguments, random states. No class or
    function is looked up, nothing is called.
    """

    dispatch: ClassVar[dict[int, Any]] = dict(DataUnpickler.dispatch)

    def read_value(self) -> Any:
        return done(self.load())  # modules refer to each other; whoever walks through them counts

    def unknown(self, full: str) -> Name:
        return Name(full)

    def load_reduce(self) -> None:
        target = self.stack[-2]
        if getattr(target, "name", None) not in self.builders:
            self._record(2)
            return
        try:
            super().load_reduce()
        except Refused:
            if target.name.startswith("torch._utils._rebuild_tensor"):
                raise  # a damaged tensor, not something beside it
            self.stack.append(Record(target.name))

    def load_build(self) -> None:
        try:
            super().load_build()
        except Refused:
            self.stack[-1] = Record("numpy.ndarray")  # a kind of array that is not read

    def load_newobj(self) -> None:
        self._record(2)

    def load_newobj_ex(self) -> None:
        self._record(3)

    def attributes(self, target: Any, state: Any) -> None:
        parts = state if isinstance(state, tuple) else (state,)
        for part in parts if isinstance(target, Record) else ():
            if isinstance(part, dict):
                target.update(self._counted(part))

    def store(self, target: Any, keys: list[Any], values: list[Any]) -> None:
        if isinstance(target, dict):
            target.update((k, v) for k, v in zip(keys, values, strict=True) if is_key(k))

    def extend(self, target: Any, items: list[Any]) -> None:
        if isinstance(target, list):
            target += items

    def add(self, target: Any, items: list[Any]) -> None:
        if isinstance(target, set):
            target.update(i for i in items if is_key(i))

    def _record(self, operands: int) -> None:
        kind = getattr(self.stack[-operands], "name", "")
        del self.stack[-operands:]
        self.stack.append(Record(kind))

    for _code, _method in {
        pickle.REDUCE: load_reduce,
        pickle.BUILD: load_build,
        pickle.NEWOBJ: load_newobj,
        pickle.NEWOBJ_EX: load_newobj_ex,
    }.items():
        dispatch[_code[0]] = _method
