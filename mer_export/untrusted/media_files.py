"""What a file of sound or video is, by its first bytes, and whether its claims about itself hold.

A library opens a file only after this: as the kind that it was found to be, never by its name. Files that make a
library open others (playlists, addresses) are none of the kinds. Index tables of mp4 can claim billions of samples in a
few bytes; an honest one claims hardly more samples than the file has bytes.
"""

from __future__ import annotations

import re
import stat
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from mer_export.errors import InputError
from mer_export.untrusted.impostors import refuse_impostor

HEAD = 1024
ADDRESS = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+:")
PLAYLIST = re.compile(rb"(\xef\xbb\xbf)?\s*(#EXTM3U|ffconcat version|\[playlist\]|\[Reference\]|v=0\s)", re.IGNORECASE)
OPEN_END = 0xFFFFFFFF
"""The length of a chunk that was written without knowing it, into a pipe."""


@dataclass(frozen=True)
class Kind:
    """A kind of file."""

    name: str
    begins: re.Pattern[bytes]
    demuxer: str = ""
    """Of libavformat; none for files of sound alone, which libsndfile reads."""


def _kind(name: str, begins: bytes, demuxer: str = "") -> Kind:
    return Kind(name, re.compile(begins, re.DOTALL), demuxer)


KINDS = (
    _kind("wav", rb"(RIFF|RIFX|RF64).{4}WAVE"),
    _kind("aiff", rb"FORM.{4}AIF[FC]"),
    _kind("flac", rb"fLaC"),
    _kind("ogg video", rb"OggS.{24,600}\x80theora", "ogg"),
    _kind("ogg", rb"OggS"),
    _kind("mp3", rb"ID3|\xff[\xe2-\xe7\xf2-\xf7\xfa-\xff]"),
    _kind("aac", rb"\xff[\xf0\xf1\xf8\xf9]", "aac"),
    _kind("mp4", rb".{4}(ftyp|moov|mdat|wide|free|skip|pnot)", "mov"),
    _kind("matroska", rb"\x1a\x45\xdf\xa3", "matroska"),
    _kind("avi", rb"RIFF.{4}AVI ", "avi"),
    _kind("flv", rb"FLV\x01", "flv"),
    _kind("mpeg", rb"\0\0\x01\xba", "mpeg"),
    _kind("mpegts", rb"(.{4})?G.{187}(.{4})?G", "mpegts"),
)
"""Kinds in the order in which they are tried."""
READ = "wav, aiff, flac, ogg, mp3, aac, mp4, mov, m4a, mkv, webm, avi, flv, mpeg"


def media_kind(path: Path | str) -> Kind:
    """What kind of file stands there; what it claims about its length is true.

    Raises:
        InputError: an address, a playlist, no ordinary file, none of the kinds, cut off, or an index that cannot be.
    """
    path = Path(path)
    require_file(path)
    with path.open("rb") as stream:
        head = stream.read(HEAD)
    found = next((kind for kind in KINDS if kind.begins.match(head)), None)
    if found is None:
        raise InputError(f"{path} {_what_else(head)}")
    if found.name in CLAIMS:
        CLAIMS[found.name](path, path.stat().st_size)
    return found


def require_file(path: Path) -> None:
    """Raises InputError for what no library may see: an address, a pipe, a folder, a stand-in, nothing at all."""
    try:
        mode = path.stat().st_mode
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        if ADDRESS.match(str(path)):
            reason = "it looks like an address, which is never opened: download the file first"
        raise InputError(f"{path} cannot be read: {reason}") from None
    if not stat.S_ISREG(mode):
        raise InputError(f"{path} is not an ordinary file")
    refuse_impostor(path)
    try:
        path.open("rb").close()
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror or error}") from None


def _what_else(head: bytes) -> str:
    if not head:
        return "is empty"
    if PLAYLIST.match(head):
        return "is a playlist, which names other files: pass those files themselves"
    return f"is not a sound or video file of a kind that is read ({READ}): convert it to one of them"


def _cut_off(path: Path, claimed: int, held: int) -> InputError:
    return InputError(f"{path} claims {claimed} bytes and has {held}: it was cut off, get it again")


# --- wav, aiff, avi --------------------------------------------------------------------------------------------------

CHUNKS = {b"RIFF": ("<I", b"data"), b"RF64": ("<I", b"data"), b"RIFX": (">I", b"data"), b"FORM": (">I", b"SSND")}
"""How a file begins, to how it writes a length, and the chunk that holds its samples."""


def _chunked(path: Path, held: int) -> None:
    """libsndfile reads what there is, so a file that was cut off would be a shorter recording."""
    with path.open("rb") as stream:
        order, samples = CHUNKS[stream.read(4)]
        long = None
        stream.seek(12)
        while len(head := stream.read(8)) == 8:
            (size,) = struct.unpack(order, head[4:])
            begin = stream.tell()
            if head[:4] == b"ds64":
                long = int.from_bytes(stream.read(16)[8:], "little")
            if head[:4] == samples:
                _require_samples(path, long if long is not None and size == OPEN_END else size, held - begin)
                return
            stream.seek(begin + size + size % 2)


def _require_samples(path: Path, claimed: int, rest: int) -> None:
    if claimed == 0 and rest:
        raise InputError(
            f"{path} claims no sound and {rest} bytes follow: whoever wrote it did not finish, write it again "
            "from its source"
        )
    if claimed != OPEN_END and claimed > rest:
        raise InputError(f"{path} claims {claimed} bytes of sound and has {rest}: it was cut off, get it again")


def _avi(path: Path, held: int) -> None:
    with path.open("rb") as stream:
        (size,) = struct.unpack("<4xI", stream.read(8))
    if size != OPEN_END and size + 8 > held:
        raise _cut_off(path, size + 8, held)


# --- ogg -------------------------------------------------------------------------------------------------------------

LONGEST_PAGE = 1 << 16
LAST = 4
"""The flag of a last page."""


def _ogg(path: Path, held: int) -> None:
    """Ogg says no length, but its last page says that it is the last."""
    with path.open("rb") as stream:
        stream.seek(max(0, held - LONGEST_PAGE))
        end = stream.read()
    page = end[max(0, end.rfind(b"OggS\0")) :]
    segments = page[27 : 27 + page[26]] if len(page) > 26 else b""
    if len(page) < 27 or not page[5] & LAST or len(page) < 27 + page[26] + sum(segments):
        raise InputError(f"{path} has {held} bytes and no last page: it was cut off, get it again")


# --- matroska --------------------------------------------------------------------------------------------------------

SEGMENT = 0x18538067


def _matroska(path: Path, held: int) -> None:
    at = 0
    with path.open("rb") as stream:
        while at < held:
            stream.seek(at)
            head = stream.read(12)
            name, width = _number(head[:4], keep=True)
            size, length = _number(head[width : width + 8])
            if name is None or size is None:
                return
            at += width + length + size
            # All bits set: written without knowing the size.
            if name == SEGMENT and size != (1 << 7 * length) - 1 and at > held:
                raise _cut_off(path, at, held)


def _number(content: bytes, keep: bool = False) -> tuple[int | None, int]:
    """An integer of EBML, whose leading zero bits say its length (`keep`: they belong to it), and that length."""
    length = 9 - content[0].bit_length() if content else 9
    if length > len(content):
        return None, 0
    value = int.from_bytes(content[:length], "big")
    return (value if keep else value & ((1 << 7 * length) - 1)), length


# --- mp4, mov --------------------------------------------------------------------------------------------------------

WHOLE = {b"moov", b"moof", b"mdat"}
"""Boxes that must end within the file."""
INSIDE = {b"moov", b"trak", b"mdia", b"minf", b"stbl", b"mvex", b"moof", b"traf", b"edts"}
"""Boxes of boxes."""
ENTRY = {b"stts": 8, b"ctts": 8, b"stsc": 12, b"stco": 4, b"co64": 8, b"stss": 4, b"elst": 12}
"""Bytes of an entry of tables that begin with a flag word and a count."""
MOST_DEPTH = 10
SAMPLES_PER_BYTE = 8
"""More than one only in old files, whose index counts what a codec makes of the bytes."""
Boxes = dict[bytes, np.ndarray]


def _mp4(path: Path, held: int) -> None:
    indexed, at = False, 0
    with path.open("rb") as stream:
        while at < held and len(head := stream.read(16)) >= 8:
            size, header = _box(head, held - at)
            kind = head[4:8]
            if size < header:
                break
            if kind in WHOLE and at + size > held:
                raise _cut_off(path, at + size, held)
            if kind in INSIDE:
                stream.seek(at + header)
                _Index(path, held).check(stream.read(size - header))
                indexed = True
            at += size
            stream.seek(min(at, held))
    if not indexed:
        raise InputError(f"{path} has no index (moov): it was cut off or never finished, get it again")


def _box(head: bytes, rest: int) -> tuple[int, int]:
    """Size of a box with its header, and that of the header."""
    size = int.from_bytes(head[:4], "big")
    if size == 1 and len(head) == 16:
        return int.from_bytes(head[8:16], "big"), 16
    return (size or rest), 8


@dataclass(frozen=True)
class _Index:
    """Holds the tables of an mp4 file against its size."""

    path: Path
    held: int

    def check(self, content: bytes, depth: int = 0) -> None:
        """The boxes inside a box, and those inside them."""
        found: Boxes = {}
        for kind, inner in _boxes(content) if depth < MOST_DEPTH else ():
            if kind in INSIDE:
                self.check(inner, depth + 1)
            elif kind == b"cmov":
                raise InputError(f"{self.path} has a compressed index (cmov), which is not read: write it again")
            elif kind in ENTRY:
                found[kind] = self._entries(kind, inner)
            elif kind in (b"stsz", b"stz2", b"trun"):
                self._samples(kind, inner)
        for kind in (b"stts", b"ctts"):
            if kind in found:
                self._bounded(int(found[kind][:, 0].sum()))
        self._chunks(found)

    def _entries(self, kind: bytes, inner: bytes) -> np.ndarray:
        """The table (entries, words) of a box; raises InputError where it claims more than the box holds."""
        width, count = ENTRY[kind], int.from_bytes(inner[4:8], "big")
        if count * width > max(len(inner) - 8, 0):
            raise self._impossible(count)
        return np.frombuffer(inner[8 : 8 + count * width], ">u4").reshape(count, width // 4).astype(np.int64)

    def _samples(self, kind: bytes, inner: bytes) -> None:
        if kind == b"trun":
            self._bounded(int.from_bytes(inner[4:8], "big"))
            return
        each = int.from_bytes(inner[4:8], "big") if kind == b"stsz" else 0
        count = int.from_bytes(inner[8:12], "big")
        if kind == b"stsz" and not each and 4 * count > len(inner) - 12:
            raise self._impossible(count)
        self._bounded(count * max(each, 1))

    def _chunks(self, found: Boxes) -> None:
        """Samples that the runs of chunks make together."""
        runs, chunks = found.get(b"stsc"), found.get(b"stco", found.get(b"co64"))
        if runs is None or chunks is None or not len(runs):
            return
        firsts = np.append(runs[:, 0], len(chunks) + 1).clip(1, len(chunks) + 1)
        lengths = np.diff(firsts).clip(0)
        self._bounded(sum(int(n) * int(each) for n, each in zip(lengths, runs[:, 1], strict=True)))

    def _bounded(self, samples: int) -> None:
        if samples > SAMPLES_PER_BYTE * self.held:
            raise self._impossible(samples)

    def _impossible(self, samples: int) -> InputError:
        return InputError(
            f"{self.path} was not read: its index claims {samples} samples in {self.held} bytes, get it again from "
            "where you trust it"
        )


def _boxes(content: bytes) -> Iterator[tuple[bytes, bytes]]:
    at = 0
    while at + 8 <= len(content):
        size, header = _box(content[at : at + 16], len(content) - at)
        if size < header:
            return
        yield content[at + 4 : at + 8], content[at + header : at + size]
        at += size


CLAIMS = {
    "wav": _chunked,
    "aiff": _chunked,
    "ogg": _ogg,
    "ogg video": _ogg,
    "avi": _avi,
    "matroska": _matroska,
    "mp4": _mp4,
}
"""Kind of file to what holds its claims against it."""
