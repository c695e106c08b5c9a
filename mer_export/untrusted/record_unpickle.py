"""The machine for training checkpoints, which hold weights beside objects of any class."""

from __future__ import annotations

from typing import Any

from mer_export.untrusted.builders import Name, Record, Refused, done, is_key
from mer_export.untrusted.contents import Form
from mer_export.untrusted.unpickle import DataUnpickler


class RecordUnpickler(DataUnpickler):
    """The machine for training checkpoints: whatever is not data becomes an empty record, and what it holds with it.

    So the weights can be read whatever lies beside them: optimisers, schedulers, arguments, random states. No class or
    function is looked up, nothing is called.
    """

    def read_value(self) -> Any:
        return done(self.load())  # modules refer to each other; whoever walks through them counts

    def unknown(self, full: str) -> Name:
        return Name(full)

    def _content(self, at: int, size: int, form: Form) -> int:
        return 0  # an array that cannot be read is a record, in `build`

    def _array(self, function: str, at: int) -> int:
        return 0

    def reduce(self) -> None:
        target = self.stack[-2]
        if getattr(target, "name", None) not in self.builders:
            self._record(2)
            return
        try:
            super().reduce()
        except Refused:
            if target.name.startswith("torch._utils._rebuild_tensor"):
                raise  # a damaged tensor, not something beside it
            self.stack.append(Record(target.name))

    def build(self) -> None:
        try:
            super().build()
        except Refused:
            self.stack[-1] = Record("numpy.ndarray")  # a kind of array that is not read

    def _new_object(self, at: int) -> int:
        self._record(2)
        return at

    def _new_object_ex(self, at: int) -> int:
        self._record(3)
        return at

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
