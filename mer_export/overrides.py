"""Values set from the command line: `--set section.field=value`."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from mer_export.errors import InputError, UsageError
from mer_export.untrusted.yaml_files import parse_yaml


def apply_overrides(values: dict[str, Any], overrides: Iterable[str]) -> dict[str, Any]:
    """`values` with each `a.b=value` set; values are read as YAML, missing sections are made."""
    for override in overrides:
        path, equals, text = override.partition("=")
        *parents, last = path.strip().split(".")
        if not equals or not last or not all(parents):
            raise UsageError(f"--set {override}: write it as section.field=value")
        try:
            value = parse_yaml(text, override)
        except InputError:
            raise UsageError(f"--set {override}: {text!r} is not a value") from None
        values = _with(values, parents, last, value, override)
    return values


def _with(values: dict[str, Any], parents: list[str], last: str, value: Any, override: str) -> dict[str, Any]:
    if not parents:
        return {**values, last: value}
    inner = values.get(parents[0])
    if inner is not None and not isinstance(inner, dict):
        raise UsageError(f"--set {override}: {parents[0]} is {inner!r}, it has no fields")
    return {**values, parents[0]: _with(inner or {}, parents[1:], last, value, override)}
