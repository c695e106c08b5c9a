"""The difficulty file of CMERC's curriculum: dialogue id -> difficulty, as the authors' pickle or as JSON."""

from __future__ import annotations

import json
import pickle
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mer_export.bundle import write_atomic
from mer_export.errors import InputError
from mer_export.untrusted.json_files import read_json
from mer_export.untrusted.pickles import load_pickle


def read_difficulty(path: Path | str) -> dict[str, float]:
    """Difficulties by dialogue id, in file order (the order decides ties in the curriculum).

    MELD's ids are ints in the file and decimal strings here, as in `Sample.id`.

    Raises:
        InputError: no dict of finite numbers, or unreadable.
    """
    path = Path(path)
    content = read_json(path) if path.suffix == ".json" else load_pickle(path)
    if not is_difficulty(content):
        raise InputError(f"{path} is not a difficulty file: it must map dialogue ids to finite numbers")
    return {str(key): float(value) for key, value in content.items()}


def write_difficulty(path: Path | str, values: Mapping[str, float]) -> None:
    """Writes the published format: a plain dict, pickle protocol 4, int keys where all ids are decimal (MELD).

    A path that ends in `.json` gets the same as JSON. Written atomically.
    """
    path = Path(path)
    plain = {str(k): float(v) for k, v in values.items()}
    if path.suffix == ".json":
        write_atomic(path, json.dumps(plain, indent=0).encode())
        return
    decimal = all(k.isascii() and k.isdecimal() and str(int(k)) == k for k in plain)
    keyed: dict[Any, float] = {int(k): v for k, v in plain.items()} if decimal else dict(plain)
    write_atomic(path, pickle.dumps(keyed, protocol=4))


def is_difficulty(content: Any) -> bool:
    """True for a dict of ids to finite numbers."""
    return (
        isinstance(content, dict)
        and bool(content)
        and all(isinstance(k, str | int) and _is_number(v) for k, v in content.items())
    )


def _is_number(value: Any) -> bool:
    # An integer may be larger than any float.
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) <= sys.float_info.max
