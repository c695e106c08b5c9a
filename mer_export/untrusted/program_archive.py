"""The members of a TorchScript or .pt2 archive, read in the one way that leaves no room for another.

PyTorch reads these zip files with a reader of its own. Where an archive could mean one thing to that reader and another
to a check made before it, the check is worth nothing; so whatever allows two readings (a second directory, gaps, names
that differ by case, prepended bytes, encryption) is refused, although some of it is legal in a zip file.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Self

from mer_export.errors import UntrustedError

END, END64, LOCATOR, ENTRY, LOCAL = (
    struct.Struct(f)
    for f in ("<4s4H2LH", "<4sQ2H2L4Q", "<4sLQL", "<4s6H3L5H2L", "<4s5H3L2H")
)  # fmt: skip
STORED, DEFLATED = 0, 8
FLAGS = 0x0808
"""Sizes behind the data, and names in UTF-8: what the writer of PyTorch sets."""
FULL16, FULL32 = 0xFFFF, 0xFFFFFFFF
ZIP64 = 1
MEMBERS = 200_000
TEXT = 1 << 28
"""Bytes of all members together that a check reads, inflated: code and tables, never weights."""


@dataclass(frozen=True)
class Member:
    """Where the bytes of a member lie in the file, and how many there are inflated."""

    offset: int
    packed: int
    size: int
    method: int


class ProgramArchive:
    """An opened archive; `members` are by name without the folder that all of them share."""

    def __init__(self, path: Path, stream: BinaryIO):
        self.path, self._stream = path, stream
        self._length = stream.seek(0, 2)
        self._left = TEXT
        try:
            self.members = self._below_one_folder(dict(self._entries()))
        except (struct.error, UnicodeDecodeError):
            raise self.refusal("is not an archive that PyTorch writes") from None

    @classmethod
    def open(cls, path: Path) -> Self:
        """Reads the directory of an archive; close it with `close`.

        Raises:
            UntrustedError: not a zip file, or one that can be read in two ways.
        """
        stream = path.open("rb")
        try:
            return cls(path, stream)
        except BaseException:
            stream.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._stream.close()

    def refusal(self, what: str) -> UntrustedError:
        """The error for an archive that `what` is said of."""
        return UntrustedError(
            f"{self.path} was not loaded: it {what}; export it again with mer export, "
            "or pass --trust if you know who made it"
        )

    def read(self, name: str) -> bytes:
        """The bytes of a member, inflated.

        Raises:
            UntrustedError: missing, damaged, or past the budget of what is read.
        """
        member = self.members.get(name)
        if member is None:
            raise self.refusal(f"has no member {name}")
        self._left -= member.size
        if self._left < 0:
            raise self.refusal(f"holds more than {TEXT >> 20} MiB of code")
        content = self._bytes(member.offset, member.packed)
        if member.method == DEFLATED:
            content = self._inflate(name, content, member.size)
        if len(content) != member.size:
            raise self.refusal(f"is damaged in {name}")
        return content

    def text(self, name: str) -> str:
        """A member of ASCII text."""
        try:
            return self.read(name).decode("ascii")
        except UnicodeDecodeError:
            raise self.refusal(f"holds {name}, which is not plain text") from None

    def _inflate(self, name: str, content: bytes, size: int) -> bytes:
        inflater = zlib.decompressobj(-zlib.MAX_WBITS)
        try:
            found = inflater.decompress(content, size + 1)
        except zlib.error:
            raise self.refusal(f"is damaged in {name}") from None
        if not inflater.eof or inflater.unused_data:
            raise self.refusal(f"is damaged in {name}")
        return found

    def _bytes(self, offset: int, size: int) -> bytes:
        if offset < 0 or size < 0 or offset + size > self._length:
            raise self.refusal("is truncated")
        self._stream.seek(offset)
        return self._stream.read(size)

    def _directory(self) -> tuple[int, int, int]:
        """Place and end of the directory, and how many entries it has."""
        end = self._length - END.size
        mark, disk, first, here, count, size, place, comment = END.unpack(self._bytes(end, END.size))
        if mark != b"PK\5\6" or disk or first or here != count or comment:
            raise self.refusal("is not an archive that PyTorch writes")
        if end >= LOCATOR.size:
            locator, _, at, disks = LOCATOR.unpack(self._bytes(end - LOCATOR.size, LOCATOR.size))
            if locator == b"PK\6\7":
                end -= LOCATOR.size + END64.size
                wide = END64.unpack(self._bytes(at, END64.size))
                if wide[0] != b"PK\6\6" or at != end or disks != 1 or wide[1] != END64.size - 12 or wide[4] or wide[5]:
                    raise self.refusal("has a directory in two places")
                self._agree((count, wide[6], FULL16), (count, wide[7], FULL16))
                self._agree((size, wide[8], FULL32), (place, wide[9], FULL32))
                count, size, place = wide[7:]
        if place + size != end or count > MEMBERS:
            raise self.refusal("has a directory in two places")
        return place, end, count

    def _agree(self, *pairs: tuple[int, int, int]) -> None:
        """Holds that a short number is the long one, or full."""
        if any(short not in (long, full) for short, long, full in pairs):
            raise self.refusal("has a directory in two places")

    def _entries(self) -> Iterator[tuple[str, Member]]:
        place, end, count = self._directory()
        content = self._bytes(place, end - place)
        at, seen, before = 0, set(), 0
        for _ in range(count):
            fields = ENTRY.unpack_from(content, at)
            mark, _, _, flags, method, *_, packed, size, named, extra, comment, disk, _, _, offset = fields
            name = content[at + ENTRY.size : at + ENTRY.size + named].decode("ascii")
            more = content[at + ENTRY.size + named : at + ENTRY.size + named + extra]
            at += ENTRY.size + named + extra
            if mark != b"PK\1\2" or flags & ~FLAGS or method not in (STORED, DEFLATED) or comment or disk:
                raise self.refusal(f"has an unusual entry {name!r}")
            if name.lower() in seen or not name.isprintable() or "\\" in name or ".." in name.split("/"):
                raise self.refusal(f"has an unusual entry {name!r}")
            seen.add(name.lower())
            size, packed, offset = self._wide(more, size, packed, offset)
            start = self._data(name, flags, method, offset, before)
            before = start + packed
            if before > place or (method == STORED and packed != size):
                raise self.refusal(f"is damaged in {name}")
            yield name, Member(start, packed, size, method)
        if at != len(content):
            raise self.refusal("has a directory in two places")

    def _wide(self, extra: bytes, *numbers: int) -> list[int]:
        """The numbers of an entry, those that are full from its zip64 field, of which there is one at most."""
        found, at, wide = list(numbers), 0, None
        while at < len(extra):
            kind, size = struct.unpack_from("<2H", extra, at)
            if kind == ZIP64:
                if wide is not None:
                    raise self.refusal("has an unusual entry")
                wide = extra[at + 4 : at + 4 + size]
            at += 4 + size
        if at != len(extra):
            raise self.refusal("has an unusual entry")
        places = [i for i, n in enumerate(found) if n == FULL32]
        if places:
            for i, value in zip(places, struct.unpack_from(f"<{len(places)}Q", wide or b""), strict=True):
                found[i] = value
        return found

    def _data(self, name: str, flags: int, method: int, offset: int, before: int) -> int:
        """Where the data of an entry begin, after its own header agrees with the directory's."""
        mark, _, flagged, packing, *_, named, extra = LOCAL.unpack(self._bytes(offset, LOCAL.size))
        own = self._bytes(offset + LOCAL.size, named)
        if mark != b"PK\3\4" or flagged != flags or packing != method or own != name.encode() or offset < before:
            raise self.refusal(f"has an unusual entry {name!r}")
        if before == 0 and offset:
            raise self.refusal("has something before its first member")
        return offset + LOCAL.size + named + extra

    def _below_one_folder(self, entries: dict[str, Member]) -> dict[str, Member]:
        folders = {name.partition("/")[0] for name in entries}
        if len(folders) != 1 or not all("/" in name for name in entries):
            raise self.refusal("is not an archive that PyTorch writes")
        return {name.partition("/")[2]: member for name, member in entries.items()}
