"""What a runtime announces about itself."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from mer_export.bundle import Variant
from runtimes.backends.session import Reduced, SessionOptions


@dataclass(frozen=True)
class Backend:
    """What a runtime announces in its module as `BACKEND`: its class as `module:class`, and the formats it runs (none:
    the bundle's own weights).

    `precisions` are those of the variants that it runs; `reduces` those that it makes of fp32 ones when it loads them,
    by device.
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
    reduces: Mapping[str, tuple[Reduced, ...]] = field(default_factory=dict)
    captures: bool = False
    """Whether it can run as a CUDA graph."""

    def takes(self, variant: Variant) -> bool:
        """Whether it runs this variant."""
        return variant.format in self.formats and variant.precision in self.precisions

    def reduced(self, precision: str, device: str) -> Reduced | None:
        """`precision` where it is made of fp32 variants on that device, None where variants have it."""
        return next((p for p in self.reduces.get(device, ()) if p == precision), None)

    def stored(self, precision: str, device: str = "cpu") -> str:
        """The precision of the variants with which it answers in `precision`."""
        return "fp32" if self.reduced(precision, device) else precision

    @property
    def answers_in(self) -> tuple[str, ...]:
        """Every precision that it computes in, on some device."""
        return tuple(dict.fromkeys([*self.precisions, *(p for own in self.reduces.values() for p in own)]))
