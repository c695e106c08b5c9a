"""A change of a bundle: prepared beside the bundle's own files, said in a journal, then made by moving files.

All that needs room on the disk is written before the journal is; what comes after it only moves and removes. So a full
disk stops a change before it begins, and a process that is killed leaves the old bundle, or a journal that says what
the new one is.
"""

from __future__ import annotations

import os
import shutil
from pathlib import Path, PurePosixPath

from mer_export.bundle.consistency import require_consistent
from mer_export.bundle.files import (
    drop_empty_folders,
    drop_leftovers,
    fsync,
    inside,
    plain,
    plain_files,
    plain_folder,
    sha256,
    write_atomic,
    write_new,
)
from mer_export.bundle.holds import landing
from mer_export.bundle.manifest import (
    JOURNAL,
    MANIFEST,
    SCHEMA_VERSION,
    STAGING,
    FileEntry,
    Journal,
    Manifest,
    Variant,
    read_journal,
    seal,
)
from mer_export.errors import BundleError
from mer_export.untrusted.onnx_files import data_files

ONNX = "onnx"
"""Name of the format, and ending."""


class Commit:
    """What a transaction is about to change."""

    def __init__(self, staging: Path, manifest: Manifest, root: Path):
        self.staging = staging
        self.manifest = manifest
        self.root = root
        self.removals: list[str] = []

    def file(self, name: str) -> Path:
        """Where to write the file that will be `name` in the bundle."""
        path = self.staging / name
        path.parent.mkdir(parents=True, exist_ok=True)
        return path

    def write(self, name: str, content: bytes | str) -> None:
        """Stages a whole file."""
        self.file(name).write_bytes(content.encode() if isinstance(content, str) else content)

    def remove(self, name: str) -> None:
        """Takes a listed file out of the bundle."""
        self.removals.append(name)

    def add_variant(self, variant: Variant) -> None:
        """Lists a variant, in place of one of the same name."""
        staged = {_relative(p, self.staging) for p in plain_files(self.staging)}
        folder = f"variants/{variant.name}/"
        for name in list(self.manifest.files):
            if name.startswith(folder) and name not in staged:
                self.remove(name)
        replaced = [v for v in self.manifest.variants if v.name == variant.name]
        for old in replaced:
            if old.model in self.manifest.files and old.model not in staged:
                self.remove(old.model)
        self.manifest.variants = [v for v in self.manifest.variants if v not in replaced] + [variant]
        self.write(folder + "variant.json", variant.model_dump_json(indent=1))
        self._drop_unread({str(PurePosixPath(v.model).parent) for v in (variant, *replaced)}, staged)

    def _drop_unread(self, folders: set[str], staged: set[str]) -> None:
        """Takes out data files that no variant with its model in the same folder reads any more."""
        data = [n for n in map(PurePosixPath, self.manifest.files) if n.suffix == ".weights"]
        for folder in folders & {str(n.parent) for n in data}:
            beside = [v for v in self.manifest.variants if str(PurePosixPath(v.model).parent) == folder]
            models = [((self.staging if v.model in staged else self.root) / v.model, v.format) for v in beside]
            read = {n for path, form in models for n in read_data_files(path, form)}
            for name in (n for n in data if str(n.parent) == folder and n.name not in read):
                self.remove(str(name))


def begin(root: Path, manifest: Manifest) -> Commit:
    """An empty transaction; what an earlier one left behind is gone."""
    staging = root / STAGING
    if plain_folder(staging):
        shutil.rmtree(staging)
    for name in (JOURNAL, MANIFEST):
        drop_leftovers(root / name)
    staging.mkdir()
    return Commit(staging, manifest.model_copy(deep=True), root)


def abandon(root: Path) -> None:
    """Removes what was staged, unless a journal says that it will be moved."""
    if not (root / JOURNAL).exists():
        shutil.rmtree(root / STAGING, ignore_errors=True)


def land(change: Commit, replaced: list[str]) -> Manifest:
    """Makes a change; returns the new manifest.

    Args:
        change: what was staged.
        replaced: files of the bundle before, which go unless they were staged again.

    Raises:
        BundleError: the manifest would contradict itself, what a file is to replace is none of the bundle's own, or
            readers do not let go of the bundle.
        OSError: the disk is full or gives up; nothing has changed then.
    """
    root, manifest = change.root, change.manifest
    moves = sorted(_relative(p, change.staging) for p in plain_files(change.staging))
    # The directory was made under the umask, and says what it leaves to others.
    readable = change.staging.stat().st_mode & 0o666
    for name in moves:
        path = change.staging / name
        path.chmod(readable)
        fsync(path)
        manifest.files[name] = FileEntry(size=path.stat().st_size, sha256=sha256(path))
        place = inside(root, name)
        # What cannot be moved there is said before the journal promises that it will be.
        plain(place)
        place.parent.mkdir(parents=True, exist_ok=True)
    plain(root / MANIFEST)
    removals = [n for n in {*change.removals, *replaced} if n not in moves and n != MANIFEST]
    for name in removals:
        manifest.files.pop(name, None)
    manifest.schema_version = SCHEMA_VERSION
    require_consistent(root / MANIFEST, manifest)
    write_new(change.staging / MANIFEST, seal(manifest))
    fsync(change.staging)
    journal = Journal(manifest=manifest, moves=moves, removals=removals)
    write_atomic(root / JOURNAL, journal.model_dump_json().encode())
    finish(root)
    return manifest


def finish(root: Path) -> None:
    """Makes the change that a journal says; does nothing without one. Safe to repeat.

    Raises:
        BundleError: a journal that is damaged, or that leads through a link.
    """
    if plain(root / JOURNAL) is None:
        return
    journal = read_journal(root / JOURNAL)
    require_consistent(root / JOURNAL, journal.manifest)
    staging = root / STAGING
    plain_folder(staging)
    for name in (*journal.moves, MANIFEST):
        plain(inside(staging, name))
        plain(inside(root, name))
    with landing(root):
        folders = {root}
        for name in journal.moves:
            if (staging / name).exists():
                folders.add((root / name).parent)
                (root / name).parent.mkdir(parents=True, exist_ok=True)
                os.replace(staging / name, root / name)
        for name in journal.removals:
            inside(root, name).unlink(missing_ok=True)
            drop_empty_folders(root, name)
        if (staging / MANIFEST).exists():
            os.replace(staging / MANIFEST, root / MANIFEST)
        else:
            write_atomic(root / MANIFEST, seal(journal.manifest))
        for folder in folders:
            if folder.is_dir():
                fsync(folder)
        (root / JOURNAL).unlink()
        fsync(root)
    shutil.rmtree(staging, ignore_errors=True)


def read_data_files(path: Path, form: str | None) -> list[str]:
    """The data files that a file reads; none but ONNX files do: by their ending, or as the model of that format."""
    try:
        return data_files(path) if ONNX in (path.suffix[1:], form) else []
    except ValueError as error:
        raise BundleError(f"{path} is not an ONNX file: {error}") from None


def _relative(path: Path, folder: Path) -> str:
    return path.relative_to(folder).as_posix()
