"""What this user made of a bundle on this machine and could make again: kept in a folder beside the bundle.

An engine is a program. Each file starts with a digest by the user's key (`trust`), so that what anybody else lays
there is as good as absent.
"""

from __future__ import annotations

import contextlib
import hmac
import logging
import os
from pathlib import Path
from typing import TYPE_CHECKING

from mer_export.bundle.files import open_plain, plain_files, plain_folder, replacing
from mer_export.bundle.manifest import MANIFEST
from mer_export.errors import BundleError, MerError
from mer_export.trust import seal

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer as Buffer

log = logging.getLogger("mer")

MOST = 4 << 30
"""Bytes that a folder may take; what was used longest ago goes first."""
DIGEST = 32
ENCODER = 3
"""How far below a bundle its encoders lie: `encoders/<input>/<number>`."""


class Kept:
    """Files by name in a folder; nothing here raises for what can be made again."""

    def __init__(self, folder: Path, most: int = MOST):
        self.folder, self.most = folder, most

    @classmethod
    def beside(cls, root: Path) -> Kept:
        """That of a bundle: `<bundle>-engines`; of an encoder that a bundle took along, that of the bundle."""
        own = root.resolve()
        whole = next((p for p in own.parents[:ENCODER] if (p / MANIFEST).is_file()), own)
        return cls(whole.parent / f"{whole.name}-engines")

    def read(self, name: str) -> bytes | None:
        """What this user kept under a name; None where there is nothing, or something that is not this user's."""
        path = self.folder / name
        try:
            if not self._own() or not path.exists():
                return None
            # Unbuffered, as a buffer would be joined with the rest: twice the memory.
            with os.fdopen(open_plain(path), "rb", buffering=0) as stream:
                if os.fstat(stream.fileno()).st_size > self.most:
                    raise BundleError(f"it is larger than {self.most} bytes")
                digest, content = stream.read(DIGEST), stream.read()
            wanted = seal(name, [content])
        except (OSError, BundleError, RuntimeError) as error:
            log.info("%s is not used: %s", path, error)
            return None
        if wanted is None or not hmac.compare_digest(wanted, digest):
            log.warning("%s is not used: you did not make it, or it is damaged", path)
            return None
        with contextlib.suppress(OSError):
            os.utime(path)
        return content

    def write(self, name: str, *parts: Buffer) -> bool:
        """Keeps something, in one part or several, under a name; False where that cannot be, which is logged."""
        if DIGEST + sum(memoryview(part).nbytes for part in parts) > self.most:
            return False
        try:
            digest = seal(name, parts, make_key=True)
            self.folder.mkdir(mode=0o700, exist_ok=True)
            if digest is None or not self._own():
                return False
            # A torn one is known by its digest.
            with replacing(self.folder / name, durable=False) as temporary, temporary.open("wb") as stream:
                stream.writelines((digest, *parts))
            self._shrink(name)
        except (OSError, MerError, RuntimeError) as error:
            log.info("%s is not kept: %s", self.folder / name, error)
            return False
        return True

    def _own(self) -> bool:
        """Whether the folder is there and nobody else may write to it."""
        if not plain_folder(self.folder):
            return False
        found = self.folder.stat()
        if found.st_uid != os.geteuid() or found.st_mode & 0o022:
            raise BundleError(f"{self.folder} is not a folder that only you can write to")
        return True

    def _shrink(self, newest: str) -> None:
        files = {p: p.stat() for p in plain_files(self.folder) if p.name != newest and not p.name.startswith(".")}
        free = self.most - (self.folder / newest).stat().st_size
        for path, found in sorted(files.items(), key=lambda item: item[1].st_mtime, reverse=True):
            free -= found.st_size
            if free < 0:
                path.unlink(missing_ok=True)
