"""A bundle that was opened: its manifest, its files after they were checked, and the way to change it."""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections.abc import Iterable, Iterator
from pathlib import Path, PurePosixPath

from mer_export import faults
from mer_export.bundle import holds
from mer_export.bundle.commit import Commit, abandon, begin, finish, land, read_data_files
from mer_export.bundle.consistency import require_consistent
from mer_export.bundle.files import inside, plain, plain_files, plain_folder, refuse_links, sha256
from mer_export.bundle.manifest import (
    JOURNAL,
    LOCK,
    MANIFEST,
    STAGING,
    Manifest,
    Variant,
    read_journal,
    read_manifest,
)
from mer_export.errors import BundleError, UsageError
from mer_export.untrusted.file_state import State, state_of


class Bundle:
    """An opened bundle. Make one with `Bundle.open` or `Bundle.create`.

    What it says is as of its opening: a file that another process has replaced since is refused by name. `trust` lets
    programs run that neither this user exported nor a table admits.
    """

    def __init__(self, root: Path, manifest: Manifest, trust: bool = False):
        self.root = root
        self.manifest = manifest
        self.trust = trust
        self._checked: dict[str, State] = {}
        self._reads: dict[tuple[str, str | None], list[str]] = {}
        """What files read beside themselves, by SHA-256 and format."""
        self._staged: frozenset[str] | None = None
        self._fresh = False
        self._replaced: list[str] = []
        self._lock_depth = 0

    @classmethod
    def create(cls, root: Path | str, manifest: Manifest, force: bool = False) -> Bundle:
        """A new bundle at `root`, which the first commit writes; with `force` that commit replaces an existing one."""
        root = Path(root)
        existing = taken(root, force)
        root.mkdir(parents=True, exist_ok=True)
        bundle = cls(root, manifest)
        bundle._fresh = True
        with bundle.lock():
            if existing:
                finish(root)
                names = [p.relative_to(root).as_posix() for p in plain_files(root)]
                # A journal says which files go.
                if odd := [n for n in names if n.encode(errors="replace").decode() != n]:
                    raise UsageError(
                        f"{root} holds a file whose name is no UTF-8, {odd[0]!r}: remove it, or choose another --out"
                    )
                bundle._replaced = [n for n in names if n != LOCK]
        return bundle

    def move_to(self, root: Path, force: bool = False) -> Bundle:
        """The same bundle at another place on the same disk: in one change, so that what is there stays or goes whole.

        Raises:
            UsageError: as `create`.
        """
        moved = Bundle.create(root, self.manifest, force)
        with moved.commit() as change:
            for name in self.manifest.files:
                (self.root / name).rename(change.file(name))
        return moved

    @classmethod
    def open(cls, root: Path | str, trust: bool = False) -> Bundle:
        """Opens a bundle for reading, and for writing by `commit`. Writes nothing itself.

        Verifies the manifest's checksum and what has to agree in it, and that every listed file is a plain file inside
        the bundle and has its size. Contents are hashed when they are handed out (`path`) and by `verify`. Beside a
        process that writes, the bundle is as before a change or as after it. After one that was killed while it moved
        files it is as after the change (`pending`), and the next commit finishes it.

        Args:
            root: the bundle's directory.
            trust: run programs in it whoever wrote them.

        Raises:
            BundleError: missing, corrupt, of a newer schema, or pointing outside itself.
        """
        root = Path(root)
        if not root.is_dir():
            raise BundleError(f"{root} is not a bundle: it has no {MANIFEST}")
        with holds.reading(root):
            manifest, staged = _state(root)
            bundle = cls(root, manifest, trust)
            bundle._staged = staged
            bundle._check_files()
        return bundle

    @property
    def pending(self) -> bool:
        """Whether a change waits for the next commit to finish it."""
        return self._staged is not None

    def path(self, name: str) -> Path:
        """The path of a listed file, after its checksum was verified (again if it was written since)."""
        entry = self.manifest.files.get(name)
        if entry is None:
            raise BundleError(f"{self.root}: no file {name} in this bundle")
        with holds.reading(self.root):
            path = self._located(name)
            found = plain(path)
            if found is not None and self._checked.get(name) == state_of(found):
                return path
            if found is None or sha256(path) != entry.sha256:
                raise self._changed(name)
            self._checked[name] = state_of(found)
        return path

    def folder(self, name: str) -> Path:
        """Where the listed files of a folder lie: in its place, or after a writer that was killed still staged for it.

        They are not verified (see `path`), and whoever reads a folder takes what is there.

        Raises:
            BundleError: that writer had moved some of them already or not yet removed what they replace, or there is a
                link among them.
        """
        with holds.reading(self.root):
            own = [self._located(n) for n in self.manifest.files if n.startswith(f"{name}/")]
            found = (self.root / STAGING if self._staged_alike(own, name) else self.root) / name
            refuse_links(found)
            if self.pending and not set(plain_files(found)) <= set(own):
                raise self._cut_short(name)
        return found

    def verified_folder(self, name: str) -> Path:
        """The same after all its listed files were verified; raises as `folder` and `path`."""
        with holds.reading(self.root):
            found = self.folder(name)
            for file in self.manifest.files:
                if file.startswith(f"{name}/"):
                    self.path(file)
        return found

    def variant_files(self, variant: Variant) -> Path:
        """The model file of a variant, after it, its own directory and every data file it reads were verified.

        Raises:
            BundleError: a damaged file, or an ONNX file that reads something other than a listed file beside it.
        """
        return self._paths(variant)[variant.model]

    def variant_digest(self, variant: Variant) -> str:
        """SHA-256 of what a variant is: of its files and every data file that they read. Raises as `variant_files`."""
        said = sorted((name, self.manifest.files[name].sha256) for name in self._paths(variant))
        return hashlib.sha256(json.dumps(said).encode()).hexdigest()

    def variant_size(self, variant: Variant) -> int:
        """Bytes of the files of a variant and every data file that they read. Raises as `variant_files`."""
        return sum(self.manifest.files[name].size for name in self._paths(variant))

    def _paths(self, variant: Variant) -> dict[str, Path]:
        """The verified files of a variant by name."""
        own = [n for n in self.manifest.files if n.startswith(f"variants/{variant.name}/")]
        paths = {}
        models = {variant.model, *variant.models}
        for name in dict.fromkeys([*own, *sorted(models)]):
            paths[name] = self.path(name)
            form = variant.format if name in models else None
            known = self.manifest.files[name].sha256, form
            if known not in self._reads:
                self._reads[known] = read_data_files(paths[name], form)
            for data in self._reads[known]:
                beside = str(PurePosixPath(name).parent / data)
                if beside not in self.manifest.files:
                    raise BundleError(
                        f"{self.root}: {name} reads {data!r}, which is not a file of this bundle beside it"
                    )
                paths[beside] = self.path(beside)
        self._staged_alike(paths.values(), variant.name)
        return paths

    def _staged_alike(self, paths: Iterable[Path], what: str) -> bool:
        """Whether files that belong together are staged; raises BundleError where some are and others are not."""
        states = {(self.root / STAGING) in p.parents for p in paths}
        if len(states) > 1:
            raise self._cut_short(what)
        return True in states

    def _cut_short(self, what: str) -> BundleError:
        return BundleError(f"{self.root}: a change of {what} was cut short: any command that writes ends it")

    def verify(self) -> int:
        """Checks the bundle as it stands now: every checksum, what each variant reads, that there is no link.

        Returns:
            The number of files.
        """
        with holds.reading(self.root):
            self._refresh()
            self._check_files()
            for name in self.manifest.files:
                self.path(name)
            for variant in self.manifest.variants:
                self.variant_files(variant)
                self._check_record(variant)
            refuse_links(self.root)
        return len(self.manifest.files)

    def find(self, name: str) -> Variant:
        """The variant of that name; raises UsageError with the existing ones."""
        for variant in self.manifest.variants:
            if variant.name == name:
                return variant
        raise UsageError(f"no variant {name!r} in {self.root}, there are {[v.name for v in self.manifest.variants]}")

    @contextlib.contextmanager
    def reading(self) -> Iterator[None]:
        """Keeps other processes from replacing files between a check and their loading."""
        with holds.reading(self.root):
            yield

    @contextlib.contextmanager
    def lock(self) -> Iterator[None]:
        """Holds the bundle for writing; a second writer gets a BundleError. Freed when the process ends.

        A change that a killed writer left is finished first: readers wait for it as long as somebody writes.
        """
        if self._lock_depth:
            yield
            return
        with holds.writing(self.root):
            self._lock_depth += 1
            try:
                if not self._fresh:
                    finish(self.root)
                    self._refresh()
                yield
            finally:
                self._lock_depth -= 1

    @contextlib.contextmanager
    def commit(self) -> Iterator[Commit]:
        """A transaction: stage files and change the manifest inside the block; all of it lands, or nothing.

        It starts from the bundle as it stands now, with what other processes have added since this one opened it.
        """
        with faults.at(self.root), self.lock():
            change = begin(self.root, self.manifest)
            try:
                yield change
                self._take_over(land(change, self._replaced), None)
            finally:
                abandon(self.root)
            self._fresh, self._replaced = False, []

    def _refresh(self) -> None:
        """Takes over what the directory says now."""
        self._take_over(*_state(self.root))

    def _take_over(self, manifest: Manifest, staged: frozenset[str] | None) -> None:
        """Another state of the bundle. What is listed as before stays verified, as long as nobody writes it."""
        before, now = self.manifest.files, manifest.files
        self._checked = {n: state for n, state in self._checked.copy().items() if now.get(n) == before.get(n)}
        self.manifest, self._staged = manifest, staged

    def _check_files(self) -> None:
        require_consistent(self.root / MANIFEST, self.manifest)
        for name in (LOCK, MANIFEST, JOURNAL):
            plain(self.root / name)
        plain_folder(self.root / STAGING)
        for name, entry in self.manifest.files.items():
            found = plain(self._located(name))
            if found is None:
                raise BundleError(f"{self.root}: {name} is missing: restore it or export again")
            if found.st_size != entry.size:
                raise BundleError(f"{self.root}: {name} has {found.st_size} bytes, not {entry.size}: it is damaged")

    def _check_record(self, variant: Variant) -> None:
        name = f"variants/{variant.name}/variant.json"
        try:
            recorded = Variant.model_validate_json(self.path(name).read_bytes())
        except ValueError as error:
            raise BundleError(f"{self.root}: {name} cannot be read: {str(error).splitlines()[0]}") from None
        if recorded != variant:
            raise BundleError(f"{self.root}: {name} says something else than {MANIFEST}: one of them was changed")

    def _located(self, name: str) -> Path:
        """Where a listed file lies: in its place, or still staged for it."""
        if name in (self._staged or ()):
            staged = inside(self.root, f"{STAGING}/{name}")
            if staged.exists():
                return staged
        return inside(self.root, name)

    def _changed(self, name: str) -> BundleError:
        """The error for a file that is not what the manifest says: replaced by another process, or damaged."""
        with contextlib.suppress(BundleError):
            now = _state(self.root)[0].files.get(name)
            if now != self.manifest.files[name]:
                return BundleError(f"{self.root}: {name} was replaced since this bundle was opened: open it again")
        return BundleError(f"{self.root}: {name} does not match its checksum: it was changed or is damaged")


def _state(root: Path) -> tuple[Manifest, frozenset[str] | None]:
    """What a directory says it is; with a journal, which outranks the manifest, also what may still be staged."""
    if plain(root / JOURNAL) is not None:
        journal = read_journal(root / JOURNAL)
        plain_folder(root / STAGING)
        return journal.manifest, frozenset(journal.moves)
    if plain(root / MANIFEST) is None:
        raise BundleError(f"{root} is not a bundle: it has no {MANIFEST}")
    return read_manifest(root / MANIFEST), None


def _only_leftovers(root: Path) -> bool:
    """True where a first command was killed before it wrote a manifest."""
    return all(p.name in (LOCK, STAGING) or p.name.endswith(".tmp") for p in root.iterdir())


def taken(root: Path, force: bool) -> bool:
    """Whether a bundle is there, which may be replaced; raises UsageError where it may not, or where no bundle is."""
    existing = any((root / n).exists() for n in (MANIFEST, JOURNAL))
    if existing and not force:
        raise UsageError(f"{root} already holds a bundle: pass --force to replace it, or another --out")
    if root.exists() and not root.is_dir():
        raise UsageError(f"{root} is a file: choose another --out")
    if root.is_dir() and not existing and not _only_leftovers(root):
        raise UsageError(f"{root} is not empty and is not a bundle: choose another --out")
    return existing
