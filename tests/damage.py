"""Files that were damaged on their way, and bundles whose writer was."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mer_export.bundle import Bundle, Commit

BUNDLES = Path(__file__).parent / "data" / "bundles"


@contextmanager
def cut_short(bundle: Bundle, moved: int) -> Iterator[Commit]:
    """A change whose writer ends when it has moved so many files; the journal took its place before them."""
    replace, left = os.replace, moved + 1

    def counted(*paths: Any) -> None:
        nonlocal left
        if not left:
            raise KeyboardInterrupt
        left -= 1
        replace(*paths)

    with pytest.MonkeyPatch.context() as patch, suppress(KeyboardInterrupt):
        patch.setattr(os, "replace", counted)
        with bundle.commit() as change:
            yield change


def mutations(content: bytes, count: int, seed: int) -> Iterator[bytes]:
    """Bytes flipped, runs copied, cut out or set to the extremes, and the end cut off."""
    rng = np.random.default_rng(seed)
    for number in range(count):
        changed = bytearray(content)
        for _ in range(int(rng.integers(1, 5))):
            place, length = int(rng.integers(len(changed))), int(rng.integers(1, 9))
            kind = number % 5
            if kind == 0:
                changed[place] = int(rng.integers(256))
            elif kind == 1:
                changed[place : place + length] = bytes([int(rng.choice([0, 127, 128, 255]))]) * length
            elif kind == 2:
                del changed[place : place + length]
            elif kind == 3:
                changed[place:place] = changed[place // 2 : place // 2 + length]
            else:
                del changed[max(1, place) :]
            if not changed:
                break
        yield bytes(changed)


def written(root: Path) -> Path:
    """A bundle of an earlier release that this one has written to."""
    shutil.copytree(BUNDLES / "emt", root)
    commit(root, "{}")
    return root


def few_files(root: Path) -> Path:
    """A bundle of a few small files."""
    manifest = Bundle.open(BUNDLES / "cmerc").manifest.model_copy(update={"variants": [], "files": {}})
    with Bundle.create(root, manifest).commit() as change:
        change.write("config.yaml", "seed: 1\n")
    return root


def commit(root: Path, content: str = "{'new': 1}") -> None:
    with Bundle.open(root).commit() as change:
        change.write("reports/note.json", content)


def tree(folder: Path) -> dict[str, tuple[str, bytes]]:
    """Everything below a directory: what kind it is, and its content or where it leads."""
    found = {}
    for path in sorted(folder.rglob("*")):
        if path.is_symlink():
            found[str(path)] = ("link", os.readlink(path).encode())
        elif path.is_file():
            found[str(path)] = ("file", path.read_bytes())
    return found
