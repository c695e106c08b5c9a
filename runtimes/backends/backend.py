"""What a runtime announces about itself."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
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
    bound: bool = False
    """Whether a file runs on the kind of device alone that it was made for."""
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

    def usable(self, variants: Iterable[Variant], device: str) -> list[Variant]:
        """Those that it runs on a kind of device, without the forms for another one of what has a form for this one."""
        found = [v for v in variants if self.takes(v) and (v.device == device or not self.bound)]
        own = {_answers(v) for v in found if v.device == device}
        return [v for v in found if v.device == device or _answers(v) not in own]


def _answers(variant: Variant) -> tuple[str, str, str, bool]:
    return variant.format, variant.precision, variant.lengths.name, bool(variant.stages)
