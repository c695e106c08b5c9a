"""YAML from files that anybody may have written: plain values, no references, no depth that overflows the stack."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from mer_export.errors import InputError
from mer_export.untrusted.impostors import read_genuine

MOST_BYTES = 1 << 19
"""A configuration has thousands; the parser takes seconds for this many."""
DEEPEST = 100


def read_yaml(path: Path) -> Any:
    """What a YAML file holds; raises InputError if it cannot be read."""
    return parse_yaml(read_genuine(path), str(path))


def parse_yaml(content: bytes | str, name: str) -> Any:
    """What a YAML text holds; raises InputError, whose message begins with `name`."""
    if len(content) > MOST_BYTES:
        raise InputError(
            f"{name} has {len(content)} bytes, a YAML file may have {MOST_BYTES}: move data to other files"
        )
    try:
        return yaml.load(content, Loader=_Loader)
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
        if self.depth >= DEEPEST:
            raise yaml.MarkedYAMLError(problem="it is nested too deep", problem_mark=mark)
        self.depth += 1
        node = super().compose_node(parent, index)
        self.depth -= 1
        return node
