"""What there is to choose from: systems, presets, formats, runtimes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from mer_export import exporters, registry
from mer_export.data.formats.format import known_formats
from runtimes.backends.table import known_backends


def collect(presets: Sequence[str], experiments: Sequence[str]) -> dict[str, Any]:
    """Names by kind, systems and data formats with a title."""
    systems = [registry.get(name) for name in registry.names()]
    return {
        "systems": {
            s.name: {"title": s.title, "paper": s.paper, "variants": s.variants, "encoders": dict(s.encoders)}
            for s in systems
        },
        "presets": list(presets),
        "experiments": list(experiments),
        "export formats": list(exporters.export_formats()),
        "runtimes": list(known_backends()),
        "data formats": {name: record.title for name, record in known_formats().items()},
    }


def lines(known: dict[str, Any]) -> Iterator[str]:
    """The same for people."""
    for name, s in known["systems"].items():
        yield f"{name}  {s['title']} ({s['paper']}); variants: {', '.join(s['variants'])}"
        yield from (f"  {modality}: {encoder}" for modality, encoder in s["encoders"].items())
    for key in ("presets", "experiments", "export formats", "runtimes"):
        yield f"{key}: {', '.join(known[key])}"
    yield "data formats:"
    yield from (f"  {name}  {title}" for name, title in known["data formats"].items())
