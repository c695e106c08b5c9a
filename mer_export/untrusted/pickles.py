"""Pickles and files of `torch.save` as data: arrays, tensors and plain containers, and nothing that runs."""

from __future__ import annotations

import gc
import mmap
import pickle
import re
import struct
import zipfile
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from mer_export.errors import InputError
from mer_export.untrusted.budget import Budget
from mer_export.untrusted.builders import Refused
from mer_export.untrusted.impostors import refuse_impostor
from mer_export.untrusted.record_unpickle import RecordUnpickler
from mer_export.untrusted.torch_files import builders, is_legacy, read_legacy, read_zip
from mer_export.untrusted.unpickle import DataUnpickler

ZIP, PROTOCOL, TAR = b"PK\x03\x04", b"\x80", b"ustar"
TAR_AT = 257
LONE_LINE_END = re.compile(rb"(?<!\r)\n")
DAMAGE = (
    pickle.UnpicklingError,
    struct.error,
    zipfile.BadZipFile,
    ArithmeticError,
    AssertionError,
    AttributeError,
    EOFError,
    LookupError,
    MemoryError,
    RecursionError,
    RuntimeError,
    TypeError,
    ValueError,
)


def load_pickle(path: Path | str, records: Collection[str] = (), lazy: bool = False) -> Any:
    """The content of a pickle, or of a file of `torch.save`; tensors are numpy arrays, bfloat16 becomes float32.

    Strings of Python 2 are read as latin1. Object arrays and deques come back as lists; every kind of dict as a dict.

    Args:
        path: the file.
        records: full names of classes whose objects are read as `Record`s of their attributes.
        lazy: arrays may come as `Stored`, which are read from the file when numpy asks for them.

    Raises:
        InputError: not a pickle, damaged, holding anything else (the refused name is in the message), or unfolding to
            far more than the file's size.
    """
    return _load(Path(path), DataUnpickler, records, lazy)


def load_records(path: Path | str) -> Any:
    """As `load_pickle`, but every object that is not data is a `Record` of its attributes, most often empty.

    No class or function is looked up, so this reads checkpoints with optimisers, arguments and whole modules in them.
    """
    return _load(Path(path), RecordUnpickler, ())


def _load(path: Path, kind: type[DataUnpickler], records: Collection[str], lazy: bool = False) -> Any:
    refuse_impostor(path)
    budget = Budget.of(path)
    what = "pickle"
    try:
        with path.open("rb") as stream, _uncollected():
            # Not closed here: arrays that stay in the file hold it, it closes with the last of them.
            content = mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ)
            if content[: len(ZIP)] == ZIP:
                what = "torch archive"
                with zipfile.ZipFile(stream) as archive:
                    return read_zip(archive, budget, kind, records)
            if content[TAR_AT : TAR_AT + len(TAR)] == TAR:
                raise InputError(
                    f"{path} is a tar archive of PyTorch 0.1: load and save it with a PyTorch of 2017 to 2025"
                )
            if is_legacy(content[:16]):
                what = "torch file"
                return read_legacy(content, budget, kind, records)
            crlf = _may_be_changed(content)
            return kind(content, budget, builders(budget), records, crlf=crlf, lazy=lazy).read_value()
    except Refused as refusal:
        raise InputError(
            f"{path} was not read: it holds {refusal}, which is not plain data; convert it where you trust it"
        ) from None
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror or error}") from None
    except DAMAGE as error:
        raise InputError(f"{path} is not a readable {what} ({_cause(error)}): it is truncated or damaged") from None


@contextmanager
def _uncollected() -> Iterator[None]:
    """Without looks for cycles among all that was built so far, which took up to half of the time."""
    was = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was:
            gc.enable()


def _may_be_changed(content: mmap.mmap) -> bool:
    """True for a pickle of protocol 0 or 1 in which no line feed stands without a carriage return.

    Protocol 0 ends every argument with its line, and writes the carriage returns of strings as escapes: where an
    argument ends with CRLF, the file was changed.
    """
    return content[:1] != PROTOCOL and content.find(b"\r\n") >= 0 and LONE_LINE_END.search(content) is None


def _cause(error: BaseException) -> str:
    text = " ".join(str(error).split())[:80]
    return f"{type(error).__name__}: {text}" if text else type(error).__name__
