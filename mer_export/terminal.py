"""Values as lines of plain text, for a terminal, or as JSON."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from mer_export.metrics.table import known


def json_text(value: Any) -> str:
    """A value as JSON, which has neither NaN nor infinity: what is undefined is null."""
    return json.dumps(_defined(value), indent=1, default=str)


def _defined(value: Any) -> Any:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {n: _defined(v) for n, v in value.items()}
    return [_defined(v) for v in value] if isinstance(value, list | tuple) else value


def columns(header: Sequence[str], rows: Iterable[Sequence[Any]]) -> list[str]:
    """Aligned columns, two spaces apart; the last one is not padded."""
    cells = [[str(c) for c in row] for row in [header, *rows]]
    widths = [max(len(row[i]) for row in cells) for i in range(len(header))]
    return ["  ".join(c.ljust(w) for c, w in zip(row, widths, strict=True)).rstrip() for row in cells]


def outline(value: Mapping[Any, Any], indent: str = "") -> Iterable[str]:
    """Nested mappings, one line per value; a `histogram` on one line."""
    for key, entry in value.items():
        if key == "histogram":
            yield f"{indent}{key}: " + " ".join(f"{k}×{n}" for k, n in entry.items())
        elif isinstance(entry, dict):
            yield f"{indent}{key}:"
            yield from outline(entry, indent + "  ")
        else:
            yield f"{indent}{key}: {entry}"


def summary_line(values: Mapping[str, Any]) -> str:
    """`name value, name value`: metrics as they are written, other floats with two digits."""
    return ", ".join(f"{k} {_number(k, v)}" if isinstance(v, float) else f"{k} {v}" for k, v in values.items())


def _number(name: str, value: float) -> str:
    metric = known(name)
    return metric.text(value) if metric else f"{value:.2f}"
