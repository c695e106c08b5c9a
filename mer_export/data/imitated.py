"""What a synthetic data set takes over from the real one."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Imitated:
    """The number of items of the real data set, and settings that it fixes."""

    items: int
    defaults: dict[str, Any] = field(default_factory=dict)
