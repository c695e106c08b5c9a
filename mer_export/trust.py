"""What a user exported is recognised by a key of that user: own programs run, those of strangers meet a table first.

The key lies in the user's configuration directory, readable by nobody else. A variant carries a keyed digest of its
files, which says nothing to whoever has not the key and stays right wherever the bundle is moved or copied to.
"""

from __future__ import annotations

import hashlib
import hmac
import json
import logging
import os
import secrets
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from mer_export.bundle import Bundle, Variant
from mer_export.bundle.files import read_plain, write_new
from mer_export.errors import BundleError

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer as Buffer

log = logging.getLogger("mer")

SIZE = 32


def key_file() -> Path:
    """Where the key of this user lies, under XDG_CONFIG_HOME or ~/.config."""
    home = os.environ.get("XDG_CONFIG_HOME", "")
    return (Path(home) if os.path.isabs(home) else Path.home() / ".config") / "mer" / "key"


def mark(variant: Variant, digests: Mapping[str, str]) -> Variant:
    """A variant as exported by this user.

    Args:
        variant: what was exported.
        digests: SHA-256 of each of its program files, by name in the bundle.

    Returns:
        The variant with its digest; without one where no key can be kept, which is logged.
    """
    try:
        key = _key() or _new_key()
    except (OSError, BundleError, RuntimeError) as error:
        log.warning("no key for your exports can be kept (%s): running %s will need --trust", error, variant.name)
        return variant
    return variant.model_copy(update={"mac": _digest(key, variant, digests)})


def recognises(bundle: Bundle, variant: Variant, names: list[str]) -> bool:
    """Whether this user exported these files of a variant; their contents have been verified."""
    try:
        key = _key()
    except (OSError, BundleError, RuntimeError):
        return False
    if key is None or not variant.mac:
        return False
    own = _digest(key, variant, {n: bundle.manifest.files[n].sha256 for n in names})
    return hmac.compare_digest(own, variant.mac)


def seal(name: str, parts: Iterable[Buffer], make_key: bool = False) -> bytes | None:
    """A keyed digest of what this user made under a name, which is in `parts`; None where there is no key.

    `make_key` makes one where there is none; it raises OSError or BundleError where that cannot be.
    """
    key = _key() or (_new_key() if make_key else None)
    if key is None:
        return None
    whole = hashlib.sha256()
    for part in parts:
        whole.update(part)
    said = json.dumps(["mer kept", name, whole.hexdigest()])
    return hmac.digest(key, said.encode(), "sha256")


def _digest(key: bytes, variant: Variant, digests: Mapping[str, str]) -> str:
    said = json.dumps(["mer program", variant.name, sorted(digests.items())])
    return hmac.new(key, said.encode(), hashlib.sha256).hexdigest()


def _key() -> bytes | None:
    """The key of this user; None where there is none yet, or one that others can read or that is no key."""
    path = key_file()
    if not path.exists():
        return None
    found = path.stat()
    if found.st_uid != os.geteuid() or found.st_mode & 0o077 or found.st_size != SIZE:
        raise BundleError(f"{path} is not a key that only you can read")
    return read_plain(path, SIZE)


def _new_key() -> bytes:
    path = key_file()
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    key = secrets.token_bytes(SIZE)
    scratch = path.with_name(f".{path.name}.{os.getpid()}.{secrets.token_hex(4)}.tmp")
    try:
        write_new(scratch, key, mode=0o600)
        try:
            # Never over a key that another process has just made.
            os.link(scratch, path)
        except FileExistsError:
            return _key() or key
    finally:
        scratch.unlink(missing_ok=True)
    return key
