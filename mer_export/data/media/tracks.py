"""One track of a video file through PyAV: opened as what it is, decoded within bounds."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from fractions import Fraction
from functools import cache
from pathlib import Path
from typing import Any, Literal

from mer_export.errors import InputError, MissingTrack, NotAvailableError
from mer_export.install import not_installed
from mer_export.untrusted.media_files import Kind

Type = Literal["audio", "video"]
WORDS: dict[Type, str] = {"audio": "sound", "video": "pictures"}
CODECS = {
    *("h264", "hevc", "av1", "libdav1d", "vp8", "vp9", "libvpx", "libvpx-vp9", "theora", "flv", "h263"),
    *("mpeg1video", "mpeg2video", "mpeg4", "msmpeg4", "msmpeg4v2", "mjpeg", "prores", "dvvideo"),
    *("aac", "mp3", "mp3float", "mp2", "mp2float", "opus", "libopus", "vorbis", "flac", "alac", "ac3", "eac3"),
    *("amrnb", "amrwb", "libopencore_amrnb", "adpcm_ms", "adpcm_ima_wav", "adpcm_ima_qt"),
}
"""Decoders that may run; libavcodec has hundreds, some of them for files that nobody records."""
PCM = "pcm_"
"""Begins the names of all decoders of plain samples."""
MOST_PIXELS = 1 << 26
"""Of one frame or picture."""
PIXELS_PER_BYTE = 64
"""Decoded pixels that count as one byte of a file's budget: frames do not stay in memory, they take time."""


def library(name: str, why: str) -> Any:
    """A package of the extra `media`; raises NotAvailableError where it is missing."""
    try:
        return __import__(name)
    except ImportError:
        raise NotAvailableError(not_installed(f"{name}, which {why},", "media")) from None


@contextmanager
def opened(path: Path, kind: Kind, track: Type) -> Iterator[tuple[Any, Any]]:
    """The container and its best track of a type.

    Raises:
        MissingTrack: it has none.
        InputError: damaged, or in a form that is not read.
        NotAvailableError: PyAV is not installed.
    """
    if not kind.demuxer:
        raise MissingTrack(f"{path} has no {WORDS[track]}, it is a {kind.name} file")
    av = _av()
    try:
        # From 18 on: where tracks show up late, options crash the versions before. Tags may be in any encoding.
        how = {"format": kind.demuxer, "options": _limits(), "io_open": _refuse, "metadata_errors": "replace"}
        with path.open("rb") as file, av.open(file, **how) as container:
            yield container, _best(path, container, track, av.stream.Disposition.attached_pic)
    # PyAV knows no track that shows up within a file: IndexError.
    except (av.FFmpegError, OSError, ValueError, EOFError, IndexError) as error:
        raise InputError(f"{path} cannot be decoded as {kind.name} ({_reason(error)}): it is damaged") from None


def _av() -> Any:
    return library("av", "reads video files")


@cache
def _limits() -> dict[str, str]:
    """What the library is told: it also decodes where it only looks at what a file holds."""
    plain = {c for c in _av().codecs_available if c.startswith(PCM)}
    return {"max_pixels": str(MOST_PIXELS), "codec_whitelist": ",".join(sorted(CODECS | plain))}


def zero(container: Any) -> Fraction:
    """The time (seconds) at which the first of all tracks begins; times that are handed out count from it."""
    return Fraction(container.start_time or 0, 1_000_000)


def _best(path: Path, container: Any, track: Type, cover: Any) -> Any:
    """The best track of a type; the picture of a record's cover is none."""
    streams = [s for s in container.streams if s.type == track and not s.disposition & cover]
    if not streams:
        held = sorted({WORDS.get(s.type, s.type) for s in container.streams}) or ["an empty list of tracks"]
        raise MissingTrack(f"{path} has no {WORDS[track]}, only {' and '.join(held)}")
    best = container.streams.best(track)
    found = best if best in streams else streams[0]
    codec = found.codec_context
    if codec is None or codec.name not in _limits()["codec_whitelist"].split(","):
        name = "an unknown codec" if codec is None else codec.name
        raise InputError(f"{path} has {WORDS[track]} in {name}, which is not read: convert it to h264 and aac in mp4")
    if track == "video":
        _refuse_huge(path, codec)
    codec.options = _limits()
    return found


def _refuse_huge(path: Path, codec: Any) -> None:
    if not codec.width or not codec.height:
        raise InputError(f"{path} has pictures of {codec.width} x {codec.height} pixels: it is damaged")
    if codec.width * codec.height > MOST_PIXELS:
        raise InputError(f"{path} has pictures of {codec.width} x {codec.height}, more than {MOST_PIXELS} pixels")


def _refuse(url: str, flags: int, options: dict[str, str]) -> Any:
    """A media file that names another one."""
    raise ValueError(f"it asks for another file, {url[:80]!r}")


def _reason(error: Exception) -> str:
    text = getattr(error, "strerror", None) or str(error)
    return " ".join(str(text).split())[:120]
