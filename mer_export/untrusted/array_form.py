"""How a pickle writes its arrays: from one to the next, only numbers change in what stands around their contents.

A form is learnt from one array and tried on the next ones. Where it fits, all that the opcodes would do is known but
for those numbers, so an array is one step; where it does not, they are taken one by one.
"""

from __future__ import annotations

import pickle
import re
import struct
from collections.abc import Container, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np

from mer_export.untrusted.builders import ARRAY, Name, done
from mer_export.untrusted.contents import Contained, Content, Form, Kind, Later
from mer_export.untrusted.memo import Memo

LONG = 64
"""Bytes of a text or array from which on its use in several places is counted."""
ENCODE, LATIN1 = "_codecs.encode", "latin1"
GET, PUT = "(?P<{}>h.|j.{{4}})", r"(?P<{}>q.|r.{{4}}|\x94|)"


def _pattern(form: str, **names: str) -> re.Pattern[bytes]:
    """A pattern in which GET and PUT stand for those opcodes, named by what they get or put."""
    named = re.sub(r"<(get|put) (\w+)>", lambda m: (GET if m[1] == "get" else PUT).format(m[2]), form)
    return re.compile(named.encode("latin1"), re.DOTALL)


BEFORE = _pattern(
    r"<get kind>K\x00\x85<put zero>(?:<get letter>|(?P<inline>[UC])\x01b<put inline_letter>)\x87<put arguments>"
    r"R<put array>"
    r"\(K\x01(?P<sizes>(?:K.|M..|J.{4}){1,3})(?P<dims>[\x85-\x87])<put shape><get dtype>(?P<order>[\x88\x89])"
    r"(?:<get encode>)?(?P<content>[UTXBC])"
)
"""What stands before an array's content, behind the name of the function that makes it: kind, shape and letter that it
is made of, the call, then the first parts of its state, which are version, shape, dtype and order."""
AFTER = {
    True: _pattern(r"<put text><get codec>\x86<put encoding>R<put raw>t<put state>b"),
    False: _pattern(r"<put raw>t<put state>b"),
}
"""What follows a content, by whether it is written as a text to be encoded: the rest of the state, and BUILD."""
PUTS = ("zero", "inline_letter", "arguments", "array", "shape", "text", "encoding", "raw", "state")
"""What may be put into the memo on the way, in this order."""
GETS = ("kind", "letter", "dtype", "encode", "codec")
"""What is got from it."""
NO_DIMS = pickle.TUPLE1[0] - 1
FORMS: Mapping[bytes, Form] = {b"U": "latin1", b"T": "latin1", b"X": "utf-8", b"B": "bytes", b"C": "bytes"}
"""How a content is written, by its opcode."""
STEP = re.compile(rb"[qhKUC].|M..|[rjJTXB].{4}|.", re.DOTALL)
"""An opcode of these with its argument; of a content with its size."""
NUMBERED = {
    b"q": "B",
    b"r": "I",
    b"K": "B",
    b"M": "H",
    b"J": "i",
    b"U": "B",
    b"C": "B",
    b"T": "i",
    b"X": "I",
    b"B": "I",
}


class Written(NamedTuple):
    """What one array says: where its content lies, what stands behind, its shape, and its first place in the memo."""

    content: int
    size: int
    end: int
    shape: tuple[int, ...]
    place: int


class Layout:
    """Opcodes with their arguments, of which some may be any."""

    def __init__(self, data: Any, start: int, end: int, free: Container[int]):
        """That of the opcodes from `start` to `end`; `free` are the places of those whose argument may be any."""
        pattern, numbers = b"", "<"
        for step in STEP.finditer(data, start, end):
            if step.start() in free:
                pattern += re.escape(step[0][:1]) + b"." * (len(step[0]) - 1)
                numbers += f"x{NUMBERED[step[0][:1]]}"
            else:
                pattern += re.escape(step[0])
                numbers += f"{len(step[0])}x"
        self.fits = re.compile(pattern, re.DOTALL).match
        self.numbers = struct.Struct(numbers).unpack_from
        self.length = end - start


@dataclass(frozen=True, slots=True, eq=False)
class ArrayForm:
    """One form.

    `arguments` make the array; `dtype`, `order` and `form` are those of its content. `puts` are the places in `PUTS` of
    those that there are; so many as `first` of their numbers come before the `dims` of the shape. It holds as long as
    nothing in the memo is `replaced`, and `held` there is the dtype. `kinds` are those of arrays that stay in the file,
    by the size of their content and shape.
    """

    before: Layout
    after: Layout
    arguments: tuple[Name, tuple[int, ...], str | bytes]
    dtype: np.dtype
    held: Any
    order: bool
    form: Form
    puts: tuple[int, ...]
    first: int
    dims: int
    replaced: int
    kinds: dict[tuple[int, tuple[int, ...]], Kind] = field(default_factory=dict)

    def read(self, data: Any, at: int, memo: Memo) -> Written | None:
        """What the array here says; None where it is written in another form, or gets other things from the memo."""
        if not self.before.fits(data, at) or memo.replaced != self.replaced or done(self.held) is not self.dtype:
            return None
        numbers = self.before.numbers(data, at)
        content = at + self.before.length
        end = content + numbers[-1]
        if not content <= end <= len(data) or not self.after.fits(data, end):
            return None
        first, behind = self.first, self.first + self.dims
        places = numbers[:first] + numbers[behind:-1] + self.after.numbers(data, end)
        if not memo.takes_row(places, len(self.puts)):
            return None
        place = places[0] if places else len(memo)
        return Written(content, numbers[-1], end + self.after.length, numbers[first:behind], place)

    def around(self, file: Contained, at: int, array: Any) -> list[Any]:
        """What the array here, which was read, put into the memo."""
        numbers = self.before.numbers(file.data, at)
        content = Content(file, at + self.before.length, numbers[-1], self.form)
        shape = numbers[self.first : self.first + self.dims]
        later = Later(content, (1, shape, self.dtype, self.order))
        found = (*self.arguments[1:], self.arguments, array, shape, *((later, i) for i in range(4)))
        return [found[i] for i in self.puts]


def learn(data: Any, at: int, memo: Memo) -> ArrayForm | None:
    """The form of the array here, behind the name of the function that makes it; None where there is none to learn."""
    head = BEFORE.match(data, at)
    opened = STEP.match(data, head.start("content")) if head else None
    if head is None or opened is None:
        return None
    encoded = head["content"] == b"X"
    size = int.from_bytes(opened[0][1:], "little", signed=head["content"] == b"T")
    tail = AFTER[encoded].match(data, opened.end() + size) if 0 <= size <= len(data) - opened.end() else None
    if tail is None or encoded != bool(head["encode"]):
        return None
    said = head.groupdict() | tail.groupdict()
    got = {name: done(memo.get(place_of(said[name]))) for name in GETS if said.get(name)}
    letter = got.get("letter", "b" if head["inline"] == b"U" else b"b")
    puts = [said.get(name) or b"" for name in PUTS]
    there, memoised = tuple(i for i, put in enumerate(puts) if put), puts.count(pickle.MEMOIZE)
    usual = is_name(got["kind"], ARRAY) and isinstance(got["dtype"], np.dtype) and type(letter) in (str, bytes)
    usual = usual and (not encoded or (is_name(got["encode"], ENCODE) and got["codec"] == LATIN1))
    dims = len(STEP.findall(head["sizes"]))
    if not usual or len(letter) > LONG or dims != head["dims"][0] - NO_DIMS or memoised not in (0, len(there)):
        return None
    numbers = {*_numbered(head), *range(*head.span("sizes")), opened.start()}
    return ArrayForm(
        before=Layout(data, at, opened.end(), numbers),
        after=Layout(data, tail.start(), tail.end(), {*_numbered(tail)}),
        arguments=(got["kind"], (0,), letter),
        dtype=got["dtype"],
        held=memo.get(place_of(said["dtype"])),
        order=head["order"] == pickle.NEWTRUE,
        form=FORMS[head["content"]],
        puts=there,
        first=sum(1 for i in there if i < PUTS.index("shape")) if not memoised else 0,
        dims=dims,
        replaced=memo.replaced,
    )


def _numbered(found: re.Match[bytes]) -> list[int]:
    """Where what is put into the memo has a number."""
    puts = {name: put for name, put in found.groupdict().items() if name in PUTS and put}
    return [found.start(name) for name, put in puts.items() if put != pickle.MEMOIZE]


def is_name(value: Any, name: str) -> bool:
    """Whether a value is that global."""
    return type(value) is Name and value.name == name


def place_of(opcode: bytes) -> int:
    """The place in the memo that an opcode names by one byte or four."""
    return int.from_bytes(opcode[1:], "little")
