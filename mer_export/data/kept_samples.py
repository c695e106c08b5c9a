"""Samples of the authors' files as they were read, kept for the next time in a folder of this user.

Reading such a file means decoding it value by value. What came of it is kept as arrays that lie one after the other,
sealed by the user's key like everything in `mer_export.kept`: what anybody else lays there is as good as absent. It is
found by everything that decides about it: the files (where they are, their inode, size and times), the data section,
the labels, and the code that reads. `MER_CACHE` names the folder, or is `off`; by default it is `mer` in
`XDG_CACHE_HOME` or `~/.cache`.
"""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

import mer_export
from mer_export.data.formats.format import Format
from mer_export.data.samples import Sample
from mer_export.data.spec import DataSpec
from mer_export.kept import Kept

FORM = 3
"""Of the files; another one is another name."""
LEAST, MOST = 16 << 20, 1 << 30
"""Bytes of the read files from which on keeping pays, and the most that is kept of one."""
ALL = 4 << 30
"""Bytes of the whole folder."""
SETTLED = 2.0
"""Seconds for which a file must not have changed: a change within the clock's step would not show in its times."""
LENGTH, ALIGNED = 8, 64


def kept_or_read(
    path: Path,
    found: Format,
    spec: DataSpec,
    labels: Sequence[str] | None,
    split: str | None,
    read: Callable[[], list[Sample]],
) -> Iterable[Sample]:
    """The samples that `read` gives, from the folder where they are there; their arrays are then read-only.

    Args:
        path: the data.
        found: their format, whose `files` name all that is read.
        spec: the data section.
        labels: class names of the model.
        split: the one split that is read, or all.
        read: reads them.
    """
    folder = cache_folder()
    files = found.load().files(path, spec) if folder else []
    before = _states(files)
    if folder is None or before is None or sum(size for *_, size, _, _ in before) < LEAST:
        return read()
    kept, name = Kept(folder / "samples", ALL), _name(found, spec, labels, split, before)
    content = kept.read(name)
    if content is not None:
        return unpacked(content)
    samples = read()
    changed = max(t for *_, modified, created in before for t in (modified, created)) / 1e9
    size = sum(a.nbytes for s in samples for a in s.inputs.values() if isinstance(a, np.ndarray))
    if size <= MOST and _states(files) == before and changed < time.time() - SETTLED and all(map(_plain, samples)):
        kept.folder.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        kept.write(name, *packed(samples))
    return samples


def cache_folder() -> Path | None:
    """Where this user keeps what was read; None where nothing is to be kept."""
    said = os.environ.get("MER_CACHE", "")
    if said == "off":
        return None
    home = os.environ.get("XDG_CACHE_HOME", "")
    try:
        return Path(said) if said else (Path(home) if os.path.isabs(home) else Path.home() / ".cache") / "mer"
    except RuntimeError:  # nobody's home
        return None


def _states(files: Iterable[Path]) -> list[tuple[Any, ...]] | None:
    """What tells files apart from others and from what they were: place, inode, size and times."""
    try:
        found = [(os.path.realpath(f), f.stat()) for f in files]
    except OSError:
        return None
    return [(f, s.st_dev, s.st_ino, s.st_size, s.st_mtime_ns, s.st_ctime_ns) for f, s in found] or None


def _name(
    found: Format, spec: DataSpec, labels: Sequence[str] | None, split: str | None, states: list[tuple[Any, ...]]
) -> str:
    """The name that such samples are kept under."""
    said = spec.model_dump(mode="json"), None if labels is None else list(labels), split, states
    decisive = [FORM, mer_export.__version__, _code(str(found.load().__file__)), found.name, *said]
    return hashlib.sha256(json.dumps(decisive).encode()).hexdigest()


@cache
def _code(reader: str) -> str:
    """SHA-256 of the code that decides what is read: of a reader's package, labels, what takes bytes from strangers."""
    folders = Path(reader).parent, Path(mer_export.__file__).parent / "untrusted"
    files = (Path(__file__).with_name("labels.py"), *(f for folder in folders for f in sorted(folder.glob("*.py"))))
    return hashlib.sha256(b"\0".join(f.read_bytes() for f in files)).hexdigest()


def _plain(sample: Sample) -> bool:
    """Whether all of it is arrays of numbers; pictures that are decoded later are not kept."""
    arrays = [*sample.inputs.values(), *([] if sample.labels is None else [sample.labels])]
    return type(sample) is Sample and all(type(a) is np.ndarray and a.dtype.kind in "biuf" for a in arrays)


def packed(samples: Sequence[Sample]) -> list[bytes | memoryview]:
    """Samples as the parts of one piece: the length of a table, its lines, and the arrays that they name."""
    arrays: list[np.ndarray] = []
    at = 0

    def place(array: np.ndarray) -> list[Any]:
        nonlocal at
        arrays.append(array)
        begin, at = at, -(-(at + array.nbytes) // ALIGNED) * ALIGNED
        return [array.dtype.str, list(array.shape), begin]

    rows = (
        [
            *(s.id, s.units, s.split, s.group),
            {n: place(a) for n, a in s.inputs.items()},
            s.labels is not None and place(s.labels),
        ]
        for s in samples
    )
    table = b"".join(json.dumps(row).encode() + b"\n" for row in rows)
    table += b" " * (-(len(table) + LENGTH) % ALIGNED)
    parts: list[bytes | memoryview] = [len(table).to_bytes(LENGTH, "little"), table]
    for array in arrays:
        parts += [np.ascontiguousarray(array).data, bytes(-array.nbytes % ALIGNED)]
    return parts


def unpacked(content: bytes) -> Iterator[Sample]:
    """What was packed, one by one; the arrays are views of `content`."""
    start = LENGTH + int.from_bytes(content[:LENGTH], "little")

    def array(said: Any) -> np.ndarray:
        dtype, shape, at = said
        return np.ndarray(tuple(shape), np.dtype(dtype), content, start + at)

    begin = LENGTH
    while (end := content.find(b"\n", begin, start)) >= 0:
        name, units, split, group, inputs, labels = json.loads(content[begin:end])
        arrays = {n: array(a) for n, a in inputs.items()}
        yield Sample(name, arrays, tuple(units), array(labels) if labels else None, split, group)
        begin = end + 1
