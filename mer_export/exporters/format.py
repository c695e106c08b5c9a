"""What an export format announces in its module as `FORMAT`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from importlib import import_module
from pathlib import Path
from pkgutil import iter_modules

OPSETS = range(18, 23)
DEFAULT_OPSET = 20
NATIVE = "native"
"""Machine code: no table can say what it does."""


@dataclass(frozen=True)
class ExportFormat:
    """One kind of artefact.

    `exporter` is a `module:function` string taking (ExportJob, Path). `dynamic_batch` says whether batch 0 (any size)
    exists; without it batch 0 means 1. `uses_opset` says whether an ONNX graph is part of it.
    """

    name: str
    title: str
    file: str
    exporter: str
    rank: int
    """Its place in lists."""
    dynamic_batch: bool = True
    uses_opset: bool = False
    precisions: tuple[str, ...] = ("fp32",)
    devices: tuple[str, ...] = ()
    """Devices for which there is a form of its own; none where one file suits them all."""
    shares_weights: bool = False
    """Whether the buckets of a precision share one data file of weights."""
    advice: Mapping[str, str] = field(default_factory=dict)
    """What to do instead, by precision that it does not have."""
    program: str | None = None
    """Where the file is a program: the `module:function` that refuses one which does what no export of ours does, or
    `NATIVE`; None where it is data."""


@cache
def export_formats() -> dict[str, ExportFormat]:
    """Every format by name: the modules and packages of this one that announce a `FORMAT`. Needs no torch."""
    here = [str(Path(__file__).parent)]
    found = [
        module.FORMAT
        for m in iter_modules(here)
        if hasattr(module := import_module(f"{__package__}.{m.name}"), "FORMAT")
    ]
    return {f.name: f for f in sorted(found, key=lambda f: f.rank)}
