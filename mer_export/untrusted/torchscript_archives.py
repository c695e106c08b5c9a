"""Holds the code of a TorchScript archive against what our exports say. Needs no torch.

An archive is a program: its code may write files (`torch.from_file`), and setters of state run while it is loaded. What
`mer export` writes is one class with one method, `forward`, that calls operators on tensors. That is what is admitted,
token by token: nothing is inferred from the structure, so nothing depends on two parsers agreeing about it.
"""

from __future__ import annotations

import keyword
import pickletools
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from mer_export.untrusted.operators import ATEN
from mer_export.untrusted.program_archive import ProgramArchive

MEMBERS = re.compile(
    r"data\.pkl|constants\.pkl|(data|constants)/\d+|code/__torch__(/\w+)+\.py(\.debug_pkl)?"
    r"|byteorder|version|\.data/(version|serialization_id)"
)
TOKEN = re.compile(
    r"(?P<name>[A-Za-z_]\w*(?:\.[A-Za-z_]\w*)*)"
    r'|(?P<text>"[\w:,.> -]{0,64}")'
    r"|(?P<number>\d+\.?\d*(?:[eE][+-]?\d+)?(?![\w.]))"
    r"|(?P<sign>->|[()\[\]:,=-])"
    r"|(?P<blank>[ \n]+)",
    re.ASCII,
)
"""Everything that the code of an export is made of: no comments, no operators, no attributes of expressions."""
KEYWORDS = {"class", "def", "return", "None", "True", "False"}
CALLS = {"annotate", "bool", "float", "int"}
"""What is called by a bare name."""
CONSTANT = re.compile(r"c\d+", re.ASCII)
TORCH = ATEN | {"device"}
STORAGES = {"Bool": 1, "Byte": 1, "Char": 1, "Short": 2, "Half": 2, "BFloat16": 2, "Int": 4, "Float": 4}
STORAGES |= {"Long": 8, "Double": 8}
"""Kinds of storage and the bytes of one element."""
GLOBALS = {f"torch {kind}Storage" for kind in STORAGES}
GLOBALS |= {"torch._utils _rebuild_tensor_v2", "collections OrderedDict", "torch.jit._pickle build_intlist"}
OWN_CLASS = re.compile(r"__torch__(\.(?!torch\b)\w+)+ \w+")
"""A class of the archive's own code; those of `torch.classes` are native code."""


def check(path: Path) -> None:
    """Refuses a TorchScript archive that does more than our exports do.

    Raises:
        UntrustedError: names what it does, or why it cannot be checked.
    """
    with ProgramArchive.open(path) as archive:
        for name in archive.members:
            if not MEMBERS.fullmatch(name):
                raise archive.refusal(f"holds {name}, which no export of ours has")
        for name in archive.members:
            problem = _problem(archive, name)
            if problem:
                raise archive.refusal(problem)


def _problem(archive: ProgramArchive, name: str) -> str | None:
    if name.endswith(".py"):
        return code_problem(archive.text(name))
    if name.endswith(".debug_pkl"):
        return _scan(archive.read(name))
    if name.endswith(".pkl"):
        return _Tables(archive, name.removesuffix(".pkl")).problem(archive.read(name))
    return None


def code_problem(code: str) -> str | None:
    """What in the code of an archive is not in the table; None where all of it is."""
    try:
        tokens = ["", "", *_tokens(code), "", "", ""]
    except _Unusual as unusual:
        return str(unusual)
    problems = (_token_problem(tokens, i) for i in range(2, len(tokens) - 3))
    return next((p for p in problems if p), None)


def _tokens(code: str) -> Iterator[str]:
    at = 0
    while at < len(code):
        token = TOKEN.match(code, at)
        if token is None:
            raise _Unusual(f"says {code[at : at + 20].splitlines()[0]!r} in its code, which no export of ours does")
        at = token.end()
        if token.lastgroup != "blank":
            yield token.group()


def _token_problem(tokens: list[str], place: int) -> str | None:
    text, before, after = tokens[place], tokens[place - 1], tokens[place + 1]
    if text[0].isalpha() or text[0] == "_":
        if text == "class" and tokens[place + 2 : place + 5] != ["(", "Module", ")"]:
            return f"defines {after}, which is not a module"
        return _name_problem(text, before, called=after == "(")
    if text == "(" and (before in (")", "]") or before[:1] in ('"', *"0123456789")):
        return "calls the result of an expression, which no export of ours does"
    return None


def _name_problem(name: str, before: str, called: bool) -> str | None:
    first, _, rest = name.partition(".")
    if first == "torch":
        return None if rest in TORCH else f"calls {name}"
    if first == "ops":
        return None if name == "ops.prim.NumToTensor" else f"calls {name}"
    if first == "CONSTANTS":
        return None if CONSTANT.fullmatch(rest) and not called else f"says {name}"
    if first == "__torch__":
        return f"calls {name}" if called or before != ":" else None
    if rest:
        return f"uses {name}, an attribute"
    if keyword.iskeyword(name):
        return None if name in KEYWORDS and (name == "return" or not called) else f"says {name}"
    if before == "def":
        return None if name == "forward" else f"defines {name}, a second method"
    return f"calls {name}" if called and before != "class" and name not in CALLS else None


FIXED = re.compile(rb"(?:[(\]Rte.\x85-\x87]|[Kqh\x80].|M..|[Jrj].{4})++", re.DOTALL)
"""Operations of a pickle with operands of a fixed size that PyTorch's own reader knows."""


def _scan(content: bytes) -> str | None:
    """What a table of source lines holds besides numbers, texts and lists of them."""
    at = 0
    while at < len(content):
        run = FIXED.match(content, at)
        if run:
            at = run.end()
        elif content[at : at + 1] == b"X":
            at += 5 + int.from_bytes(content[at + 1 : at + 5], "little")
        elif content[at : at + 1] == b"c":
            called, at = _line_pair(content, at + 1)
            if called not in GLOBALS:
                return f"names {called!r} in a table of source lines"
        else:
            return "has a table of source lines that holds something else"
    return None if at == len(content) else "has a table of source lines that is truncated"


def _line_pair(content: bytes, at: int) -> tuple[str, int]:
    """Module and name of a global, and where they end."""
    parts = content[at : at + 512].split(b"\n", 2)
    if len(parts) < 3:
        return "?", len(content)
    return f"{parts[0].decode('latin-1')} {parts[1].decode('latin-1')}", at + len(parts[0]) + len(parts[1]) + 2


class _Mark:
    """Where a tuple or list begins."""


MARK = _Mark()
Stack = list[Any]


class _Tables:
    """Follows the pickle of an archive's constants or state: tensors and one object, whose storages are as long as
    it says they are (PyTorch believes it)."""

    def __init__(self, archive: ProgramArchive, folder: str):
        self.archive, self.folder = archive, folder
        self.stack: Stack = []
        self.memo: dict[int, Any] = {}

    def problem(self, content: bytes) -> str | None:
        """What is not in the table; None where all of it is."""
        try:
            for operation, operand, _ in pickletools.genops(content):
                self._step(operation.name, operand)
        except _Unusual as unusual:
            return str(unusual)
        except (ValueError, IndexError, TypeError, KeyError, UnicodeError):
            return f"holds a damaged {self.folder}.pkl"
        return None

    def _step(self, name: str, operand: Any) -> None:
        if name in PUSHES:
            self.stack.append(PUSHES[name](operand))
        elif name in POPS:
            del self.stack[len(self.stack) - POPS[name] :]
            self.stack.append(None)
        elif name in STEPS:
            STEPS[name](self, operand)
        else:
            raise _Unusual(f"has {name} in {self.folder}.pkl, which no export of ours has")

    def _global(self, operand: str) -> None:
        if operand not in GLOBALS and not OWN_CLASS.fullmatch(operand):
            raise _Unusual(f"names {operand!r} in {self.folder}.pkl")
        self.stack.append(operand)

    def _mark(self) -> int:
        """The place of the last mark; what stands above it goes with it, so nothing is passed over twice."""
        for place in reversed(range(len(self.stack))):
            if self.stack[place] is MARK:
                return place
        raise ValueError("a list that begins nowhere")

    def _tuple(self, _: Any) -> None:
        place = self._mark()
        self.stack[place:] = [tuple(self.stack[place + 1 :])]

    def _items(self, _: Any) -> None:
        del self.stack[self._mark() :]

    def _storage(self, _: Any) -> None:
        word, kind, key, device, count = self.stack.pop()
        said = all(isinstance(part, str) for part in (kind, key, device)) and type(count) is int
        if word != "storage" or not said:
            raise _Unusual(f"has a reference in {self.folder}.pkl that is not to a storage")
        kind = kind.removeprefix("torch ").removesuffix("Storage")
        member = self.archive.members.get(f"{self.folder}/{key}")
        if kind not in STORAGES or member is None or count < 0 or count * STORAGES[kind] > member.size:
            raise _Unusual(f"has a storage in {self.folder}.pkl that is longer than its bytes")
        self.stack.append(None)


class _Unusual(Exception):
    """Something that is not in the table, as the end of a sentence."""


PUSHES: dict[str, Callable[[Any], Any]] = {
    **dict.fromkeys(("BINUNICODE", "BININT", "BININT1", "BININT2"), lambda operand: operand),
    **dict.fromkeys(("NEWFALSE", "NEWTRUE", "NONE", "EMPTY_TUPLE", "EMPTY_LIST", "EMPTY_DICT"), lambda _: None),
    "LONG1": lambda operand: operand,
    "MARK": lambda _: MARK,
}
POPS = {"REDUCE": 2, "NEWOBJ": 2, "TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3, "BUILD": 2}
STEPS: dict[str, Callable[[_Tables, Any], None]] = {
    "PROTO": lambda tables, _: None,
    "STOP": lambda tables, _: None,
    "GLOBAL": _Tables._global,
    "TUPLE": _Tables._tuple,
    "SETITEMS": _Tables._items,
    "APPENDS": _Tables._items,
    "BINPERSID": _Tables._storage,
    "BINPUT": lambda tables, place: tables.memo.__setitem__(place, tables.stack[-1]),
    "LONG_BINPUT": lambda tables, place: tables.memo.__setitem__(place, tables.stack[-1]),
    "BINGET": lambda tables, place: tables.stack.append(tables.memo[place]),
    "LONG_BINGET": lambda tables, place: tables.stack.append(tables.memo[place]),
}
