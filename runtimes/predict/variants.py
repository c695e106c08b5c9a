"""Which exported variant of a bundle a backend uses for each bucket."""

from __future__ import annotations

from collections.abc import Sequence

from mer_export.bucket import Bucket
from mer_export.bundle import WEIGHTS, Bundle, Variant
from mer_export.errors import UnsupportedError, UsageError
from runtimes.backends.table import find_backend, known_backends


def by_bucket(
    bundle: Bundle, backend: str, stored: str, device: str, variants: Sequence[Variant] | None
) -> dict[Bucket | None, Variant | None]:
    """The variant that a backend uses for each bucket; a dynamic batch is preferred, then the largest.

    Args:
        bundle: opened bundle.
        backend: a name in `known_backends()`.
        stored: precision of the files.
        device: `cpu` or `cuda`.
        variants: of these alone.

    Raises:
        UsageError: there is none.
        UnsupportedError: the backend runs no such precision there.
    """
    record = find_backend(backend)
    if stored not in record.precisions:
        offered = [n for n, b in known_backends().items() if stored in b.precisions or b.reduced(stored, device)]
        elsewhere = f"pass --runtime with one of {offered}" if offered else "on a GPU some do: pass --device cuda"
        raise UnsupportedError(f"runtime {backend} does not run {stored} on {device}: {elsewhere}")
    _refuse_other_files(bundle, backend, device)
    if not record.formats:
        return {None: None}
    able = [v for v in record.usable(bundle.manifest.variants, device) if v.precision == stored]
    chosen = able if variants is None else list(variants)
    if not chosen:
        raise UsageError(
            f"{bundle.root} has no {stored} variant for runtime {backend}: "
            f"run mer export --format {record.formats[0]} --precision {stored}"
            f"{f' --device {device}' if record.bound and device != 'cpu' else ''}"
        )
    # Of two variants for one bucket stages win: they do not repeat work for items that share it.
    chosen.sort(key=lambda v: (bool(v.stages), float("inf") if v.batch == 0 else v.batch))
    return {v.lengths: v for v in chosen}


def _refuse_other_files(bundle: Bundle, backend: str, device: str) -> None:
    """Raises UsageError where a backend runs no file of a bundle without weights: of those nothing else is made."""
    if WEIGHTS in bundle.manifest.files:
        return
    able = [n for n, b in known_backends().items() if b.usable(bundle.manifest.variants, device)]
    if able and backend not in able:
        raise UsageError(
            f"{bundle.root} has exported files and no weights, and runtime {backend} runs none of them: pass --runtime "
            f"with one of {able}"
        )
