"""What serving a bundle takes: the engine that runs it, and the extras that hold the packages."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import get_args

from mer_export.bundle import Bundle, Variant
from mer_export.data.bundle_data import line_spec
from mer_export.encoders.attached import attached
from mer_export.encoders.encoder import FACES, TOKENIZER, Encoder
from mer_export.encoders.signal.config import LEVELS, SignalConfig
from mer_export.errors import UnsupportedError
from mer_export.install import Extra
from runtimes.backends.table import find_backend

ENGINES: dict[str, Extra] = {"onnxruntime": "cpu", "openvino": "openvino"}
"""Runtimes that an image is made for, the usual one first, and the extra of each."""
DECODED = ("sound", "picture")
"""Kinds of encoders whose files are decoded first."""


@dataclass(frozen=True)
class Needs:
    """The runtime and precision that serve a bundle, the variants that they run, and the extras they take."""

    runtime: str
    precision: str
    variants: tuple[Variant, ...]
    extras: tuple[Extra, ...]


def needs_of(bundle: Bundle, runtime: str | None = None, precision: str = "fp32") -> Needs:
    """What a bundle takes to be served on CPUs without PyTorch.

    Args:
        bundle: opened bundle.
        runtime: one of `ENGINES`; None takes the first that has variants.
        precision: of the variants, or what the runtime makes of fp32 ones.

    Raises:
        UnsupportedError: another runtime, or none that has variants in this precision.
    """
    if runtime is not None and runtime not in ENGINES:
        raise UnsupportedError(f"an image runs {' or '.join(ENGINES)} on CPUs, not {runtime}: choose one of these")
    for name in [runtime] if runtime else ENGINES:
        if variants := _variants(bundle, name, precision):
            extras = {"serve", ENGINES[name], *_reads(bundle)}
            return Needs(name, precision, variants, tuple(e for e in get_args(Extra) if e in extras))
    raise UnsupportedError(
        f"{bundle.root} has no variant in {precision} that {runtime or ' or '.join(ENGINES)} runs: "
        "mer export --format onnx makes one"
    )


def _variants(bundle: Bundle, runtime: str, precision: str) -> tuple[Variant, ...]:
    record = find_backend(runtime)
    stored = record.stored(precision)
    if stored not in record.precisions:
        return ()
    return tuple(v for v in record.usable(bundle.manifest.variants, "cpu") if v.precision == stored)


def _reads(bundle: Bundle) -> Iterator[Extra]:
    """The extras of what people send: sentences, recordings."""
    kept = [n.split("/") for n in bundle.manifest.files]
    if any(TOKENIZER in folders[:-1] for folders in kept) or line_spec(bundle).tokenizer is not None:
        yield "text"
    for encoder in (e for own in attached(bundle).values() for e in own):
        yield from _decodes(encoder)
    if any(FACES in folders[:-1] for folders in kept):
        # Faces are found by ONNX Runtime, whatever runs the networks.
        yield "cpu"


def _decodes(encoder: Encoder) -> Iterator[Extra]:
    if encoder.input.kind in DECODED:
        yield "media"
    if isinstance(encoder.config, SignalConfig) and encoder.config.signal in LEVELS:
        yield "opensmile"
