"""Files that stand in for the data that a name promises: pointers of Git LFS and git-annex, web pages."""

from __future__ import annotations

import re
from contextlib import suppress
from pathlib import Path

from mer_export.errors import InputError

HEAD = 1024
LFS, ANNEX = b"version https://git-lfs.github.com/spec/", b"/annex/objects/"
PAGE = re.compile(
    rb"(\xef\xbb\xbf)?\s*(<!--.*?-->\s*)?<(!doctype html|html|head|body|\?xml)\b", re.IGNORECASE | re.DOTALL
)
SIZE = re.compile(rb"^size (\d{1,19})\s*$", re.MULTILINE)
TITLE = re.compile(rb"<title[^>]*>\s*([^<]{1,80})", re.IGNORECASE)


def refuse_impostor(path: Path | str) -> None:
    """Raises InputError where a file is a pointer or a web page; a file that is not there is its reader's to name."""
    head = b""
    with suppress(OSError), open(path, "rb") as stream:
        head = stream.read(HEAD)
    refuse_head(head, str(path))


def refuse_head(head: bytes, name: str) -> None:
    """The same of the first bytes of a file."""
    reason = _reason(head)
    if reason:
        raise InputError(f"{name} is {reason}")


def _reason(head: bytes) -> str | None:
    if head.startswith(LFS):
        size = SIZE.search(head)
        missing = f" of {int(size[1])} bytes" if size else ""
        return f"a Git LFS pointer, the file{missing} itself is missing: run `git lfs pull` where it was cloned"
    if head.startswith(ANNEX):
        return "a git-annex pointer, the file itself is missing: run `git annex get` where it was cloned"
    if PAGE.match(head):
        title = TITLE.search(head)
        named = f" ({' '.join(title[1].decode('utf-8', 'replace').split())!r})" if title else ""
        return f"a web page{named} that was saved in place of the file: download it again"
    return None


def read_genuine(path: Path) -> bytes:
    """The bytes of a file; raises InputError where it is another, or cannot be read."""
    refuse_impostor(path)
    try:
        return path.read_bytes()
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror or error}") from None
