"""JSON from files that anybody may have written."""

from __future__ import annotations

import contextlib
import json
from pathlib import Path
from typing import Any

from mer_export.errors import InputError
from mer_export.untrusted.budget import Budget
from mer_export.untrusted.impostors import read_genuine

try:
    import orjson as fast
except ImportError:
    fast = None  # type: ignore[assignment]

PARTS = (b",", b"[", b"{", b":")
"""What stands before or after every object of JSON."""


def read_json(file: Path) -> Any:
    """What a JSON file holds; raises InputError if it cannot be read."""
    return parse_json(read_genuine(file), str(file))


def read_json_object(file: Path) -> dict[str, Any]:
    """A JSON object; raises InputError for anything else."""
    content = read_json(file)
    if not isinstance(content, dict):
        raise InputError(f"{file} holds a {type(content).__name__}, expected an object")
    return content


def parse_json(content: bytes | str, name: str) -> Any:
    """What a JSON text holds; raises InputError, whose message begins with `name`."""
    content = content.encode("utf-8", "surrogatepass") if isinstance(content, str) else content
    Budget(name, len(content)).take(objects=sum(content.count(part) for part in PARTS))
    if fast is not None:
        # What it refuses may still be JSON to Python, such as NaN; and Python says better what is wrong.
        with contextlib.suppress(ValueError):
            return fast.loads(content)
    try:
        return json.loads(content)
    except RecursionError:
        raise InputError(f"{name} is not JSON that can be read: it is nested too deep") from None
    except ValueError as error:
        raise InputError(f"{name} is not JSON: {' '.join(str(error).split())[:200]}") from None
