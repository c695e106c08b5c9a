"""Pictures of a video at chosen times, one after the other: the whole clip is never in memory."""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from fractions import Fraction
from functools import cached_property, lru_cache
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from mer_export.data.media.sound import PARTS, check_span
from mer_export.data.media.tracks import MOST_PIXELS, PIXELS_PER_BYTE, library, opened, zero
from mer_export.errors import InputError
from mer_export.untrusted.budget import Budget
from mer_export.untrusted.file_state import State, state_of
from mer_export.untrusted.media_files import Kind, media_kind

SOUGHT = frozenset({"mov", "matroska"})
"""Demuxers of files with an index of their key frames."""
FAR = 250
"""Packets that are passed over one by one sooner than looked up."""
TICK = 1e-6
"""Seconds by which a frame may come after the time that it is asked for: times of frames are rounded."""


@dataclass(frozen=True, eq=False)
class Frame:
    """A picture (height, width, 3) uint8 in red, green, blue, upright, and its time in seconds."""

    picture: np.ndarray
    time: float


def read_frames(
    path: Path | str,
    start: float | None = None,
    end: float | None = None,
    count: int | None = None,
    rate: float | None = None,
) -> Iterator[Frame]:
    """Pictures of a video from `start` to `end`: all, `count` evenly, or `rate` a second.

    At each wanted time it is the frame that a player shows then, by the frames' own times, which need not be even: the
    middle of each of `count` equal parts, or every 1 / `rate` s. A frame that is shown at several of them comes again.

    Args:
        path: the file; its content decides what it is, not its name.
        start: seconds from the beginning of the file.
        end: seconds from the beginning of the file; what lies behind the last frame is not there.
        count: how many pictures.
        rate: pictures per second.

    Raises:
        MissingTrack: a file without pictures.
        InputError: no such file, of another kind, cut off, damaged, or a `start` and `end` that name no part of it.
        NotAvailableError: PyAV is not installed.
    """
    path = Path(path)
    if count is not None and rate is not None:
        raise InputError(f"{path}: pass count ({count}) or rate ({rate}), not both")
    if not all(n is None or (n > 0 and n < math.inf) for n in (count, rate)):
        raise InputError(f"{path}: count and rate are positive, not {count if rate is None else rate}")
    span = check_span(path, start, end)
    kind = media_kind(path)
    budget = Budget.of(path, PARTS)
    timeline = _timeline(path, kind, state_of(path.stat()))
    return _shown(path, kind, _Wanted(timeline, timeline.wanted(path, span, count, rate, budget)), budget)


class _Key(NamedTuple):
    """A frame that needs no other: when it is shown, and its packet's number, time in ticks and place in the file."""

    time: float
    number: int
    ticks: int
    place: int | None


FIRST = _Key(-math.inf, 0, 0, None)
"""The beginning of the track."""


@dataclass(frozen=True)
class _Timeline:
    """When the frames of a track are shown, in seconds, and where among its packets decoding may begin."""

    times: Sequence[float]
    """In order."""
    end: float
    keys: Sequence[_Key]

    def entry(self, time: float) -> _Key:
        """The packet at which decoding must begin for what is shown at a time."""
        found = bisect_right(self.keys, time + TICK, key=lambda k: k.time)
        return self.keys[found - 1] if found else FIRST

    def wanted(
        self, path: Path, span: tuple[float, float], count: int | None, rate: float | None, budget: Budget
    ) -> Iterator[float]:
        """Times at which pictures are wanted; raises InputError where none is shown."""
        first, last = max(span[0], self.times[0]), min(span[1], self.end)
        if first >= last:
            raise InputError(f"{path}: no picture is shown from {span[0]} to {span[1]} s, they end at {self.end:.3f} s")
        if count is None and rate is None:
            # What is shown at the start may have come before it.
            begin = self.times[bisect_right(self.times, first + TICK) - 1]
            return (t for t in self.times if begin <= t < last - TICK)
        step, offset = ((last - first) / count, 0.5) if count is not None else (1 / (rate or 1), 0.0)
        number = count or max(1, math.ceil((last - first) / step - TICK))
        # Times that lie far apart can ask for any number of copies.
        budget.take(objects=number)
        return (first + (k + offset) * step for k in range(number))


class _Wanted:
    """The time that is wanted next, None after the last, and the packet at which decoding must begin for it."""

    def __init__(self, timeline: _Timeline, times: Iterator[float]):
        self._timeline, self._times = timeline, times
        self.advance()

    def advance(self) -> None:
        """To the next one."""
        self.time = next(self._times, None)
        # Asked for every packet that is passed over, of which a long recording has many.
        self.entry = FIRST if self.time is None else self._timeline.entry(self.time)


@lru_cache(maxsize=4)
def _timeline(path: Path, kind: Kind, _state: State) -> _Timeline:
    """Reads the packets of the picture track without decoding them, once for all parts of a file as it is now."""
    budget = Budget.of(path, PARTS)
    times, keys, lengths = [], [], {}
    with opened(path, kind, "video") as (container, stream):
        for number, packet in enumerate(container.demux(stream)):
            budget.take(objects=1)
            ticks = packet.pts if packet.pts is not None else packet.dts
            if ticks is None:
                continue
            time = _seconds(ticks, stream.time_base, container)
            if packet.is_keyframe:
                keys.append(_Key(time, number, ticks, packet.pos))
            if not packet.is_discard:
                times.append(time)
                lengths[time] = float((packet.duration or 0) * stream.time_base)
    if not times:
        raise InputError(f"{path} has no pictures: its track is empty")
    times.sort()
    usual = (times[-1] - times[0]) / max(1, len(times) - 1)
    return _Timeline(times, times[-1] + (lengths[times[-1]] or usual or 1.0), sorted(keys))


def _seconds(ticks: int, base: Fraction, container: Any) -> float:
    return float(ticks * base - zero(container))


def _shown(path: Path, kind: Kind, wanted: _Wanted, budget: Budget) -> Iterator[Frame]:
    """The frame shown at each of the wanted times, which rise."""
    held: _Held | None = None
    with _entered(path, kind, wanted.entry) as (container, stream, packets):
        for decoded in _decoded(stream, packets, wanted, budget):
            own = _seconds(decoded.pts, decoded.time_base, container)
            while held is not None and wanted.time is not None and own > wanted.time + TICK:
                yield held.frame
                wanted.advance()
            if wanted.time is None:
                return
            held = _Held(path, decoded, own)
        while held is not None and wanted.time is not None:
            yield held.frame
            wanted.advance()
        if wanted.time is not None:
            raise InputError(f"{path} is damaged: nothing can be decoded at {wanted.time:.3f} s")


@contextmanager
def _entered(path: Path, kind: Kind, key: _Key) -> Iterator[tuple[Any, Any, Iterator[tuple[int, Any]]]]:
    """The container, its picture track, and packets of it by their numbers: all, or those from a key on."""
    if key.number > FAR and kind.demuxer in SOUGHT:
        with opened(path, kind, "video") as (container, stream):
            packets = _sought(container, stream, key)
            if packets is not None:
                yield container, stream, packets
                return
    with opened(path, kind, "video") as (container, stream):
        yield container, stream, enumerate(container.demux(stream))


def _sought(container: Any, stream: Any, key: _Key) -> Iterator[tuple[int, Any]] | None:
    """The packets from a key on by the file's own index; None where that leads elsewhere, or there is none."""
    if key.place is None:
        return None
    try:
        container.seek(key.ticks, stream=stream)
    except library("av", "reads video files").FFmpegError:
        return None
    packets = container.demux(stream)
    for packet in packets:
        if (packet.pts, packet.pos) == (key.ticks, key.place):
            return chain([(key.number, packet)], enumerate(packets, key.number + 1))
        if packet.pos is None or packet.pos > key.place:
            return None
    return None


def _decoded(stream: Any, packets: Iterable[tuple[int, Any]], wanted: _Wanted, budget: Budget) -> Iterator[Any]:
    """Decoded frames in order; packets before those that the wanted time needs are passed over."""
    skipped = False
    for number, packet in packets:
        if number < wanted.entry.number:
            skipped = True
            continue
        if skipped:
            stream.codec_context.flush_buffers()
            skipped = False
        for frame in packet.decode():
            budget.take(nbytes=frame.width * frame.height // PIXELS_PER_BYTE, objects=1)
            if frame.pts is not None:
                yield frame


@dataclass(frozen=True)
class _Held:
    """A decoded frame; it becomes a picture when it is wanted."""

    path: Path
    decoded: Any
    time: float

    @cached_property
    def frame(self) -> Frame:
        """Raises InputError where it is damaged or huge."""
        size = self.decoded.width, self.decoded.height
        if self.decoded.is_corrupt:
            raise InputError(f"{self.path} is damaged: its picture at {self.time:.3f} s cannot be decoded whole")
        if math.prod(size) > MOST_PIXELS:
            raise InputError(f"{self.path} has pictures of {size[0]} x {size[1]}, more than {MOST_PIXELS} pixels")
        picture = self.decoded.to_ndarray(format="rgb24")
        quarters = round(self.decoded.rotation / 90) % 4
        return Frame(np.ascontiguousarray(np.rot90(picture, quarters)), self.time)
