"""Which variants may be loaded: data always, programs when this user exported them, a table admits them, or --trust."""

from __future__ import annotations

from mer_export.bundle import Bundle, Variant
from mer_export.errors import UntrustedError
from mer_export.registry import resolve
from mer_export.trust import recognises

DATA = frozenset({"onnx"})
"""Formats whose files are no programs, as `export_formats` says too: who runs them needs no exporter."""
_passed: set[tuple[str, str]] = set()
"""Format and SHA-256 of what a table has admitted in this process."""


def admit(bundle: Bundle, variant: Variant) -> None:
    """Lets a variant pass whose files may be loaded; their checksums have been verified.

    Raises:
        UntrustedError: a program that nobody vouches for and that does what no export of ours does.
    """
    if bundle.trust or variant.format in DATA:
        return
    from mer_export.exporters.format import NATIVE, export_formats

    known = export_formats().get(variant.format)
    if known is None or known.program is None:
        return
    if recognises(bundle, variant, variant.models):
        return
    if known.program == NATIVE:
        raise UntrustedError(
            f"{bundle.root}: {variant.name} is machine code that you did not export: "
            f"run mer export --format {variant.format} --force, or pass --trust if you know who made it"
        )
    for name in variant.models:
        key = (variant.format, bundle.manifest.files[name].sha256)
        if key not in _passed:
            resolve(known.program)(bundle.path(name))
            _passed.add(key)


def refusal(bundle: Bundle, variant: Variant) -> str | None:
    """Why a variant may not be loaded, in one sentence; None where it may.

    Raises:
        BundleError: damaged files.
    """
    try:
        admit(bundle, variant)
    except UntrustedError as error:
        return str(error)
    return None
