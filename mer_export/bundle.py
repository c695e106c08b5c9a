"""The bundle: the one directory that commands hand to each other.

    bundle.json          manifest; the only file that says what belongs to the bundle
    model.safetensors    weights of the PyTorch model (float32)
    config.yaml          resolved training or import configuration
    variants/<name>/     one exported artefact each
    variants/<group>/    ONNX files of one precision, with the weights that they share
    samples/ reports/ train/

Every change goes through `Bundle.commit`: new files are staged beside the bundle's own, then a journal is written,
then they are moved into place. A process killed at any moment leaves either the old bundle or a journal that the
next opening replays. Nothing in a bundle is ever unpickled.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import shutil
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import Any, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from mer_export.bucket import Bucket
from mer_export.contract import Contract
from mer_export.errors import BundleError, InputError, UsageError
from mer_export.task import Task
from mer_export.untrusted.json_files import parse_json
from mer_export.untrusted.onnx_files import data_files

SCHEMA_VERSION = 1
MANIFEST = "bundle.json"
WEIGHTS = "model.safetensors"
CONFIG = "config.yaml"
JOURNAL = ".journal.json"
STAGING = ".staging"
LOCK = ".lock"

Model = TypeVar("Model", bound=BaseModel)


class Strict(BaseModel):
    model_config = ConfigDict(extra="forbid")


class FileEntry(Strict):
    """Size in bytes and SHA-256 of one file."""

    size: int
    sha256: str


class FeatureStatistics(Strict):
    """What the training data of one input looked like: the fingerprint that foreign features are held against."""

    extractor: str = "unknown"
    width: int
    mean: float
    std: float
    minimum: float
    maximum: float


class Variant(Strict):
    """One exported artefact. `batch` 0 means dynamic; `model` is the path of the file a runtime loads.

    With `stages` there is one file for each of them, `<stage>/<file>`, and `model` is that of the last one.
    """

    format: str
    precision: str
    lengths: Bucket
    batch: int
    model: str
    exporter: str
    stages: tuple[str, ...] = ()
    options: dict[str, Any] = Field(default_factory=dict)

    @property
    def name(self) -> str:
        batch = "dynamic" if self.batch == 0 else str(self.batch)
        stages = "-stages" if self.stages else ""
        return f"{self.format}-{self.precision}-{self.lengths.name}-b{batch}{stages}"


class Manifest(Strict):
    """Content of bundle.json."""

    schema_version: int = SCHEMA_VERSION
    system: str
    variant: str
    config: dict[str, Any]
    task: Task
    contract: Contract
    features: dict[str, FeatureStatistics] = Field(default_factory=dict)
    provenance: dict[str, Any] = Field(default_factory=dict)
    variants: list[Variant] = Field(default_factory=list)
    files: dict[str, FileEntry] = Field(default_factory=dict)


class _Journal(Strict):
    manifest: Manifest
    moves: list[str]
    removals: list[str]


def sha256(path: Path) -> str:
    """SHA-256 of a file, in hexadecimal."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


class Bundle:
    """An opened bundle. Make one with `Bundle.open` or `Bundle.create`."""

    def __init__(self, root: Path, manifest: Manifest):
        self.root = root
        self.manifest = manifest
        self._checked: set[str] = set()
        self._replaced: list[str] = []
        self._lock_depth = 0

    @classmethod
    def create(cls, root: Path | str, manifest: Manifest, force: bool = False) -> Bundle:
        """A new bundle at `root`, which the first commit writes; with `force` that commit replaces an existing one."""
        root = Path(root)
        existing = (root / MANIFEST).exists()
        if existing and not force:
            raise UsageError(f"{root} already holds a bundle: pass --force to replace it, or another --out")
        if root.exists() and not root.is_dir():
            raise UsageError(f"{root} is a file: choose another --out")
        if root.is_dir() and not existing and not _only_leftovers(root):
            raise UsageError(f"{root} is not empty and is not a bundle: choose another --out")
        root.mkdir(parents=True, exist_ok=True)
        bundle = cls(root, manifest)
        with bundle.lock():
            if existing:
                bundle._replay()
                bundle._replaced = [str(p.relative_to(root).as_posix()) for p in _files(root) if p.name != LOCK]
            bundle.manifest = manifest
        return bundle

    @classmethod
    def open(cls, root: Path | str) -> Bundle:
        """Opens a bundle, finishing an interrupted commit first.

        Verifies schema version, that every listed file is a plain file inside the bundle and has its size.
        Contents are hashed when they are handed out (`path`) and by `verify`.

        Raises:
            BundleError: missing, corrupt, of a newer schema, or pointing outside itself.
        """
        root = Path(root)
        if not (root / MANIFEST).is_file():
            raise BundleError(f"{root} is not a bundle: it has no {MANIFEST}")
        bundle = cls(root, _read(root / MANIFEST, Manifest))
        if (root / JOURNAL).exists():
            with bundle.lock():
                bundle._replay()
        for name, entry in bundle.manifest.files.items():
            path = bundle._inside(name)
            if not path.is_file():
                raise BundleError(f"{root}: {name} is missing: restore it or export again")
            if path.stat().st_size != entry.size:
                raise BundleError(f"{root}: {name} has {path.stat().st_size} bytes, not {entry.size}: it is damaged")
        return bundle

    def path(self, name: str) -> Path:
        """The path of a listed file, after its checksum was verified (once per opening)."""
        entry = self.manifest.files.get(name)
        if entry is None:
            raise BundleError(f"{self.root}: no file {name} in this bundle")
        path = self._inside(name)
        if name not in self._checked:
            if sha256(path) != entry.sha256:
                raise BundleError(f"{self.root}: {name} does not match its checksum: it was changed or is damaged")
            self._checked.add(name)
        return path

    def variant_files(self, variant: Variant) -> Path:
        """The model file of a variant, after it, its own directory and every data file it reads were verified.

        Raises:
            BundleError: a damaged file, or an ONNX file that reads something other than a listed file beside it.
        """
        own = [n for n in self.manifest.files if n.startswith(f"variants/{variant.name}/")]
        for name in dict.fromkeys([*own, variant.model]):
            path = self.path(name)
            for data in _data_files(path):
                beside = str(PurePosixPath(name).with_name(data)) if PurePosixPath(data).name == data else data
                if beside not in self.manifest.files:
                    raise BundleError(
                        f"{self.root}: {name} reads {data!r}, which is not a file of this bundle beside it"
                    )
                self.path(beside)
        return self.path(variant.model)

    def verify(self) -> int:
        """Checks every checksum, and what each variant reads; returns the number of files."""
        for name in self.manifest.files:
            self.path(name)
        for variant in self.manifest.variants:
            self.variant_files(variant)
        return len(self.manifest.files)

    def find(self, name: str) -> Variant:
        """The variant of that name; raises UsageError with the existing ones."""
        for variant in self.manifest.variants:
            if variant.name == name:
                return variant
        raise UsageError(f"no variant {name!r} in {self.root}, there are {[v.name for v in self.manifest.variants]}")

    @contextlib.contextmanager
    def lock(self) -> Iterator[None]:
        """Holds the bundle for writing; a second writer gets a BundleError. Freed when the process ends."""
        if self._lock_depth:
            yield
            return
        with (self.root / LOCK).open("a+") as stream:
            try:
                fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                stream.seek(0)
                owner = stream.read().strip() or "another process"
                raise BundleError(f"{self.root} is being written by {owner}: wait for it to end") from None
            stream.truncate(0)
            stream.write(f"process {os.getpid()}")
            stream.flush()
            self._lock_depth += 1
            try:
                yield
            finally:
                self._lock_depth -= 1

    @contextlib.contextmanager
    def commit(self) -> Iterator[Commit]:
        """A transaction: stage files and change the manifest inside the block; all of it lands, or nothing."""
        with self.lock():
            if not self._replaced:
                self._replay()
            staging = self.root / STAGING
            shutil.rmtree(staging, ignore_errors=True)
            for leftover in self.root.glob(".*.tmp"):
                leftover.unlink()
            staging.mkdir()
            change = Commit(staging, self.manifest.model_copy(deep=True), self.root)
            try:
                yield change
                self._land(change)
            finally:
                if not (self.root / JOURNAL).exists():
                    shutil.rmtree(staging, ignore_errors=True)

    def _land(self, change: Commit) -> None:
        moves = sorted(str(p.relative_to(change.staging).as_posix()) for p in _files(change.staging))
        for name in moves:
            path = change.staging / name
            _fsync(path)
            change.manifest.files[name] = FileEntry(size=path.stat().st_size, sha256=sha256(path))
        removals = [n for n in {*change.removals, *self._replaced} if n not in moves and n != MANIFEST]
        for name in removals:
            change.manifest.files.pop(name, None)
        journal = _Journal(manifest=change.manifest, moves=moves, removals=removals)
        write_atomic(self.root / JOURNAL, journal.model_dump_json().encode())
        self._replaced = []
        self._replay()

    def _replay(self) -> None:
        """Finishes what a journal says; does nothing without one. Safe to repeat."""
        path = self.root / JOURNAL
        if not path.exists():
            return
        journal = _read(path, _Journal)
        for name in journal.moves:
            staged, final = self.root / STAGING / name, self._inside(name)
            if staged.exists():
                final.parent.mkdir(parents=True, exist_ok=True)
                os.replace(staged, final)
                _fsync(final.parent)
        for name in journal.removals:
            self._inside(name).unlink(missing_ok=True)
            with contextlib.suppress(OSError):
                self._inside(name).parent.rmdir()
        write_atomic(self.root / MANIFEST, journal.manifest.model_dump_json(indent=1).encode())
        path.unlink()
        _fsync(self.root)
        self.manifest = journal.manifest
        self._checked.clear()

    def _inside(self, name: str) -> Path:
        """A listed name as a path; refuses absolute names, `..` and links."""
        relative = PurePosixPath(name)
        if relative.is_absolute() or ".." in relative.parts or not relative.parts:
            raise BundleError(f"{self.root}: {name!r} points outside the bundle")
        path = self.root
        for part in relative.parts:
            path = path / part
            if path.is_symlink():
                raise BundleError(f"{self.root}: {name} is a symbolic link, a bundle holds plain files only")
        return path


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
        staged = {str(p.relative_to(self.staging).as_posix()) for p in _files(self.staging)}
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
            models = [v.model for v in self.manifest.variants if str(PurePosixPath(v.model).parent) == folder]
            read = {n for m in models for n in _data_files((self.staging if m in staged else self.root) / m)}
            for name in (n for n in data if str(n.parent) == folder and n.name not in read):
                self.remove(str(name))


def write_atomic(path: Path, content: bytes) -> None:
    """Writes a file so that a reader or a killed writer sees the old or the new content, never a part."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with temporary.open("wb") as stream:
            stream.write(content)
            stream.flush()
            os.fsync(stream.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
    _fsync(path.parent)


def _read(path: Path, kind: type[Model]) -> Model:
    try:
        content = parse_json(path.read_bytes(), str(path))
        version = (content.get("manifest") or content).get("schema_version")
        if isinstance(version, int) and version > SCHEMA_VERSION:
            raise BundleError(f"{path} has schema version {version}, this mer reads up to {SCHEMA_VERSION}: update mer")
        return kind.model_validate(content)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(p) for p in first["loc"])
        raise BundleError(f"{path} is not valid: {where}: {first['msg']}") from None
    except (InputError, AttributeError) as error:
        raise BundleError(f"{path} cannot be read as JSON: {error}") from None


def _data_files(path: Path) -> list[str]:
    try:
        return data_files(path) if path.suffix == ".onnx" else []
    except ValueError as error:
        raise BundleError(f"{path} is not an ONNX file: {error}") from None


def _files(folder: Path) -> Iterator[Path]:
    return (p for p in folder.rglob("*") if p.is_file())


def _only_leftovers(root: Path) -> bool:
    """True where a first command was killed before it wrote a manifest."""
    return all(p.name in (LOCK, STAGING) or p.name.endswith(".tmp") for p in root.iterdir())


def _fsync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
