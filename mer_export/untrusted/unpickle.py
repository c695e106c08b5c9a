"""The machine that interprets pickles as data.

The standard loader calls whatever a pickle names, so it is not used. This one walks over the bytes of a file with a
table of opcodes: a global is only a name, the few admitted names are looked up in a table of builders that check their
arguments, a size is held against the bytes that are there, and what is built is taken from the budget of the file.

Nearly all bytes of a feature file are the contents of arrays, and nearly all opcodes stand around them or are numbers
in a row, which `machine` takes. A content is taken in one step with what follows it, an array that is written as an
earlier one (`array_form`) as a whole; the memo keeps where a content lies, not a copy.
"""

from __future__ import annotations

import pickle
from collections.abc import Callable, Collection, Mapping
from typing import Any, Protocol

import numpy as np

from mer_export.errors import InputError
from mer_export.untrusted.array_form import AFTER, ENCODE, LATIN1, LONG, ArrayForm, Written, is_name, learn, place_of
from mer_export.untrusted.budget import Budget
from mer_export.untrusted.builders import NAMES, RECONSTRUCT, Name, Pending, Record, Refused, done
from mer_export.untrusted.contents import Contained, Content, Form, Later, Stored
from mer_export.untrusted.machine import LINE_ENDS, U32, Machine
from mer_export.untrusted.memo import Memo
from mer_export.untrusted.tensors import is_storage, storage_kind

ARRAYS, TEXTS = frozenset((np.ndarray, Stored)), frozenset((str, bytes, bytearray))
MOST_FORMS = 16
"""Forms of arrays that are tried."""
CONTAINERS = frozenset((dict, Record, list, tuple, set, frozenset))


class Storages(Protocol):
    """Where a pickle's references to storages lead."""

    def find(self, kind: str, key: str, numel: Any, view: Any) -> Any:
        """The values of a storage."""


class DataUnpickler(Machine):
    """The pickle machine without the opcodes that make or call arbitrary objects.

    `builders` are what may be called; an object of a class in `records` is read as the record of its attributes, its
    class is never looked up. `storages` resolves the references of files that `torch.save` wrote. With
    `lazy`, arrays stay in `data` as `Stored` where they can. The rest is as of a `Machine`.
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
        super().__init__(data, budget, at, crlf)
        self.builders, self.storages = builders, storages
        self.file = Contained(data, budget.name, lazy)
        self.records = frozenset(records)
        self.shared = False
        self.memo = Memo(lambda form, at, array: form.around(self.file, at, array))
        self.forms: list[ArrayForm] = []

    def read_value(self) -> Any:
        """The value of the pickle; what it uses in several places is counted as often."""
        found = done(self.load())
        if self.shared:
            self.budget.weigh(found)
        return found

    # What a pickle may not do

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
        if type(array) is not Pending or array.value is not None or (encoded and not is_name(state[4], ENCODE)):
            return 0
        found = AFTER[encoded].match(self.data, self._end(at, size))
        if found is None:
            return 0
        puts: tuple[bytes, ...] = found.groups()
        if encoded:
            if self.memo.get(place_of(puts[1])) != LATIN1:
                return 0
            puts = puts[:1] + puts[2:]
        content = Content(self.file, at, size, form)
        self._popped()
        self.budget.take(size)
        array.value = self._counted(array.complete((*map(done, state[:4]), content)))
        self.stack[-1] = array.value
        later = Later(content, state)
        for place, put in enumerate(puts, 4 - len(puts)):
            if put:
                self.memo[len(self.memo) if put == pickle.MEMOIZE else place_of(put)] = later, place
        return found.end()

    def _array(self, function: str, at: int) -> int:
        """Takes the array that this function makes in one step, where it is written as others are; else returns 0.

        Args:
            function: its name has just been taken from the memo.
            at: the place behind.
        """
        build = self.builders.get(function)
        form, written = self._written(at)
        if form is None or written is None or build is None:
            return 0
        self.budget.take(written.size)
        kind = form.kinds.get((written.size, written.shape))
        if kind is None:
            content = Content(self.file, written.content, written.size, form.form)
            array = self._counted(build(*form.arguments).complete((1, written.shape, form.dtype, form.order, content)))
            if type(array) is Stored:
                form.kinds[written.size, written.shape] = array.kind
        else:
            array = Stored(kind, written.content)
            self.budget.take(kind.nbytes)
        self.stack.append(array)
        if form.puts:
            self.memo.put_row(written.place, len(form.puts), form, at, array)
        return written.end

    def _written(self, at: int) -> tuple[ArrayForm | None, Written | None]:
        """The form in which the array here is written, and what it says. One that fits is tried first from then on."""
        for number, form in enumerate(self.forms):
            if written := form.read(self.data, at, self.memo):
                if number:
                    self.forms.insert(0, self.forms.pop(number))
                return form, written
        learnt = learn(self.data, at, self.memo) if len(self.forms) < MOST_FORMS else None
        if learnt is None:
            return None, None
        self.forms.insert(0, learnt)
        return learnt, learnt.read(self.data, at, self.memo)

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

    def _recall(self, index: int, at: int) -> int:
        """Takes a value from the memo, or with the function that makes arrays a whole one; returns the place behind."""
        value = self.memo[index]
        if type(value) is Name and value.name in RECONSTRUCT and (end := self._array(value.name, at)):
            return end
        if type(value) is tuple and len(value) == 2 and isinstance(value[0], Later):
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
        return at

    def _get(self, at: int) -> int:
        line, at = self._line(at)
        return self._recall(int(line), at)

    def _get1(self, at: int) -> int:
        return self._recall(self.data[at], at + 1)

    def _get4(self, at: int) -> int:
        return self._recall(U32(self.data, at)[0], at + 4)

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
