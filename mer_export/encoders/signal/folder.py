"""Writes the folder of a signal encoder: a bundle that says everything in its manifest."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from mer_export.bundle import Bundle
from mer_export.encoders.encoder import manifest_of
from mer_export.encoders.signal import SYSTEM
from mer_export.encoders.signal.config import Kind, signal_config


def write_signal_encoder(kind: Kind, out: Path | str, force: bool = False, **settings: Any) -> Bundle:
    """Writes a bundle without weights and variants.

    Args:
        kind: `egemaps`, `egemaps_lld`, `log_mel` or `mfcc`.
        out: the new folder.
        force: replace an existing bundle.
        settings: see `signal_config`.

    Raises:
        UsageError: no such signal or setting, or `out` is taken.
        NotAvailableError: opensmile is not installed.
    """
    config = signal_config(kind, **settings)
    bundle = Bundle.create(out, manifest_of(SYSTEM, config), force)
    with bundle.commit():
        pass
    return bundle
