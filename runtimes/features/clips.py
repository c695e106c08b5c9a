"""What `mer features` reads: an open source of utterances; a plain table by the names of its columns."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from mer_export.data.bundle_data import choose_spec, overridden
from mer_export.data.draft import drafted
from mer_export.data.formats.format import known_formats
from mer_export.data.inspect import READING, undescribed
from mer_export.data.open import OpenData, detect
from mer_export.data.spec import DataSpec
from mer_export.errors import UsageError


def open_clips(
    path: Path,
    data_format: str = "auto",
    sets: Sequence[str] = (),
    outside: Iterable[Path] | None = None,
    say: Callable[[str], None] = lambda line: None,
) -> OpenData:
    """Opens a source.

    Args:
        path: table, JSON lines, Parquet, or a directory with a table or recordings.
        data_format: its name, or auto.
        sets: overrides of the data section.
        outside: folders that paths in files may lead to.
        say: told how a table is read that nothing describes.

    Raises:
        UsageError: files of a system's authors, which name no recordings.
        InputError: missing, unknown or damaged.
    """
    said = overridden(DataSpec(), sets)
    plain = DataSpec.model_validate({n: v for n, v in said.model_dump().items() if n in READING})
    configured = DataSpec()
    if data_format == "auto" and undescribed(path, plain):
        configured, lines = drafted(path, plain)
        say(f"{path} has no table.yaml, it is read by the names of its columns:")
        for line in lines:
            say(f"  {line}")
    spec = choose_spec(path, data_format, configured, sets, outside)
    found = known_formats()[detect(path, spec)]
    if not found.open:
        can = [n for n, f in known_formats().items() if f.open]
        raise UsageError(f"{path} is in the format {found.name}, features are made of {', '.join(can)}")
    return OpenData.at(path, found, spec)
