"""JSON from files that anybody may have written."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from mer_export.errors import InputError


def read_json(file: Path) -> Any:
    """What a JSON file holds; raises InputError if it cannot be read."""
    try:
        return json.loads(file.read_bytes())
    except OSError as error:
        raise InputError(f"{file} cannot be read: {error.strerror or error}") from None
    except (ValueError, RecursionError) as error:
        raise InputError(f"{file} is not JSON: {error}") from None


def read_json_object(file: Path) -> dict[str, Any]:
    """A JSON object; raises InputError for anything else."""
    content = read_json(file)
    if not isinstance(content, dict):
        raise InputError(f"{file} holds a {type(content).__name__}, expected an object")
    return content
