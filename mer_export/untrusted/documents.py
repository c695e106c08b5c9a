"""JSON and YAML of strangers: no references, no depth that overflows the stack, no more than their size explains."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import yaml

from mer_export.errors import InputError
from mer_export.untrusted.budget import Budget
from mer_export.untrusted.impostors import refuse_impostor

MOST_YAML = 1 << 19
"""Bytes. A configuration has thousands; the reader takes seconds for this many."""
DEEPEST_YAML = 100
PARTS = (b",", b"[", b"{", b":")
"""What stands before or after every object of JSON."""


def read_json(path: Path) -> Any:
    """The content of a JSON file in UTF-8; raises InputError."""
    return parse_json(_read(path), str(path))


def parse_json(content: bytes | str, name: str) -> Any:
    """The content of a JSON text; raises InputError, which begins with `name`."""
    content = content.encode("utf-8", "surrogatepass") if isinstance(content, str) else content
    Budget(name, len(content)).take(objects=sum(content.count(part) for part in PARTS))
    try:
        return json.loads(content)
    except RecursionError:
        raise InputError(f"{name} is not JSON that can be read: it is nested too deep") from None
    except ValueError as error:
        raise InputError(f"{name} is not JSON: {' '.join(str(error).split())[:200]}") from None


def read_yaml(path: Path) -> Any:
    """The content of a YAML file in UTF-8; raises InputError."""
    return parse_yaml(_read(path), str(path))


def parse_yaml(content: bytes | str, name: str) -> Any:
    """The plain values of a YAML text; raises InputError, which begins with `name`."""
    if len(content) > MOST_YAML:
        raise InputError(f"{name} has {len(content)} bytes, a YAML file may have {MOST_YAML}: move data to other files")
    try:
        return yaml.load(content, Loader=_Loader)  # noqa: S506: a safe loader without aliases
    except yaml.MarkedYAMLError as error:
        raise InputError(f"{name} is not YAML that can be read: {' '.join(str(error).split())[:200]}") from None
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise InputError(f"{name} is not YAML that can be read: {' '.join(str(error).split())[:200]}") from None


class _Loader(yaml.SafeLoader):
    """Plain values and no aliases: nine short lines of these unfold to a billion values."""

    depth = 0

    def compose_node(self, parent: Any, index: Any) -> Any:
        event = self.peek_event()
        mark: Any = event.start_mark
        if isinstance(event, yaml.AliasEvent):
            raise yaml.MarkedYAMLError(problem="an alias (*) is not read, write the value out", problem_mark=mark)
        if self.depth >= DEEPEST_YAML:
            raise yaml.MarkedYAMLError(problem="it is nested too deep", problem_mark=mark)
        self.depth += 1
        node = super().compose_node(parent, index)
        self.depth -= 1
        return node


def _read(path: Path) -> bytes:
    refuse_impostor(path)
    try:
        return path.read_bytes()
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror or error}") from None
