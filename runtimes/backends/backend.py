"""What a runtime announces about itself."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from mer_export.bundle import Variant
from runtimes.backends.session import Reduced, SessionOptions


@dataclass(frozen=True)
class Backend:
    """What a runtime announces in its module as `BACKEND`: its class as `module:class`, and the formats it runs (none:
    the bundle's own weights).

    `precisions` are those of the variants that it runs; `reduces` those that it makes of fp32 ones when it loads them.
    """

    name: str
    title: str
    session: str
    formats: tuple[str, ...]
    rank: int
    """Its place in lists; the reference is first."""
    colour: str = "#5b6472"
    """Its colour in charts."""
    offers: tuple[SessionOptions, ...] = (SessionOptions(), SessionOptions(device="cuda"))
    """The options worth trying on a machine."""
    precisions: tuple[str, ...] = ("fp32", "fp16", "int8")
    reduces: tuple[Reduced, ...] = ()
    captures: bool = False
    """Whether it can run as a CUDA graph."""

    def takes(self, variant: Variant) -> bool:
        """Whether it runs this variant."""
        return variant.format in self.formats and variant.precision in self.precisions

    def stored(self, precision: str) -> str:
        """The precision of the variants with which it answers in `precision`."""
        return "fp32" if precision in self.reduces else precision


def fitting(variants: Iterable[Variant], device: str) -> list[Variant]:
    """Without the forms for another device of what is there in a form for this one."""
    found = list(variants)
    own = {_answers(v) for v in found if v.device == device}
    return [v for v in found if v.device == device or _answers(v) not in own]


def _answers(variant: Variant) -> tuple[str, str, str, bool]:
    return variant.format, variant.precision, variant.lengths.name, bool(variant.stages)
