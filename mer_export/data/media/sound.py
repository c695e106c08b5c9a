"""Sound of any file as samples: libsndfile reads files of sound alone, PyAV the sound of video files."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from mer_export import faults
from mer_export.data.media.tracks import library, opened, zero
from mer_export.errors import InputError
from mer_export.untrusted.budget import MOST_BYTES, Budget
from mer_export.untrusted.media_files import Kind, media_kind

FORMATS = {"WAV", "WAVEX", "RF64", "AIFF", "FLAC", "OGG", "MPEG", "MP3"}
EXACT = {"WAV", "WAVEX", "RF64", "AIFF", "FLAC"}
"""Formats of libsndfile in which a place is found exactly; the others are decoded from their beginning."""
FULL_SCALE = 1 << 15
STEPS = {"PCM_16": 1 / FULL_SCALE}
UNKNOWN = 1 << 62
"""Frames that libsndfile reports where a file does not say."""
BLOCK = 1 << 18
SLACK = 0.02
"""Seconds that a track may stand beside its own clock: containers round times."""
PARTS = "read it in parts (start and end)"
CHANGES = "changes its rate or channels within the sound: convert it to one"


@dataclass(frozen=True, eq=False)
class Sound:
    """Samples (frames, channels) float32 in -1..1 at a rate in Hz; `step` is that of a 16-bit source, else 0."""

    samples: np.ndarray
    rate: int
    step: float = 0.0

    @property
    def seconds(self) -> float:
        """How long it lasts."""
        return len(self.samples) / self.rate

    def mono(self, rate: int) -> np.ndarray:
        """The mean of the channels (samples,) float32 at another rate; raises InputError if it would be far larger."""
        return resample(self.samples.mean(axis=1), self.rate, rate)


def read_sound(path: Path | str, start: float | None = None, end: float | None = None) -> Sound:
    """The sound of a file, whole or from `start` to `end`.

    Args:
        path: wav, flac, ogg, mp3 or the like, or a video file; its content decides, not its name.
        start: seconds from the beginning of the file.
        end: seconds from the beginning of the file; what lies behind the end of the sound is not there.

    Raises:
        MissingTrack: a file without sound.
        InputError: no such file, of another kind, cut off, damaged, empty, with values that are not finite, or a
            `start` and `end` that name no part of it.
        NotAvailableError: the library that reads it is not installed.
    """
    path = Path(path)
    span, kind = check_span(path, start, end), media_kind(path)
    blocks: list[np.ndarray] = []
    part = _decoded(path, kind, span, blocks.append, Budget.of(path, PARTS))
    return Sound(np.concatenate(blocks), part.rate, part.step)


def decode_sound(path: Path, keep: Callable[[np.ndarray], None]) -> tuple[int, float]:
    """Hands all samples of a file to `keep`, block by block (frames, channels), and returns their rate and step.

    However long it is: `keep` decides what is too much. Raises as `read_sound`.
    """
    kind, budget = media_kind(path), Budget.of(path)
    budget.bytes = MOST_BYTES
    part = _decoded(path, kind, check_span(path, None, None), keep, budget)
    return part.rate, part.step


def check_span(path: Path, start: float | None, end: float | None) -> tuple[float, float]:
    """A part of a file in seconds, its beginning and end where not given; raises InputError for none."""
    first, last = start if start is not None else 0.0, end if end is not None else np.inf
    if not 0 <= first < np.inf:
        raise InputError(f"{path}: start {first} is not a time in seconds")
    if not first < last:
        raise InputError(f"{path}: end {last} does not come after start {first}")
    return float(first), float(last)


def write_sound(path: Path, samples: np.ndarray, rate: int) -> None:
    """One channel (samples,) in -1..1 as 16-bit PCM; what was read from 16 bits is written as it was."""
    whole = np.rint(samples.astype(np.float64) * FULL_SCALE).clip(-FULL_SCALE, FULL_SCALE - 1)
    # libsndfile does not say why it cannot write, such as that the disk is full.
    content = io.BytesIO()
    _soundfile().write(content, whole.astype(np.int16), rate, subtype="PCM_16", format="WAV")
    with faults.at(path):
        path.write_bytes(content.getbuffer())


def resample(audio: np.ndarray, rate: int, wanted: int) -> np.ndarray:
    """A waveform (samples,) at another rate, float32; raises InputError where it would become far larger."""
    if not rate > 0 or not wanted > 0:
        raise InputError(f"rates must be positive, not {rate} and {wanted}")
    if rate == wanted or not len(audio):
        return audio.astype(np.float32)
    Budget(f"sound at {rate} Hz", audio.nbytes).take(4 * len(audio) * wanted // rate)
    return library("soxr", "changes the rate of sound").resample(audio.astype(np.float32), rate, wanted, quality="VHQ")


class _Part:
    """Keeps the samples that lie between two times, block by block, and says when it has all.

    `keep` takes blocks (frames, channels) within the `budget`; what comes before is dropped.
    """

    def __init__(
        self,
        path: Path,
        span: tuple[float, float],
        keep: Callable[[np.ndarray], None],
        budget: Budget,
        rate: int,
        step: float = 0.0,
    ):
        self.path, self.keep, self.budget, self.rate, self.step = path, keep, budget, rate, step
        self.start, end = span
        self.first = round(self.start * rate)
        self.last = round(end * rate) if end < np.inf else UNKNOWN
        self.at = self.channels = 0

    @property
    def complete(self) -> bool:
        return self.at >= self.last

    def add(self, block: np.ndarray) -> None:
        """The next samples (frames, channels); raises InputError where they have not as many channels as before."""
        kept = block[max(0, self.first - self.at) : max(0, self.last - self.at)]
        self.budget.take(kept.nbytes, objects=1)
        self.at += len(block)
        if not len(kept):
            return
        if self.channels not in (0, kept.shape[1]):
            raise InputError(f"{self.path} {CHANGES}")
        if not np.isfinite(kept).all():
            raise InputError(f"{self.path} holds samples that are not finite: it is damaged, get it again")
        self.channels = kept.shape[1]
        self.keep(kept)

    def silence(self, frames: int, channels: int) -> None:
        """A gap."""
        self.budget.take(4 * frames * channels)
        for begin in range(0, frames, BLOCK):
            self.add(np.zeros((min(BLOCK, frames - begin), channels), dtype=np.float32))

    def require_some(self) -> None:
        """Raises InputError where there is nothing."""
        if not self.at:
            raise InputError(f"{self.path} has no samples: there is nothing to read")
        if not self.channels and self.first >= self.last:
            raise InputError(f"{self.path}: from start {self.start} to its end there is no sample at {self.rate} Hz")
        if not self.channels:
            raise InputError(
                f"{self.path}: start {self.start} is past the end, the sound lasts {self.at / self.rate:.3f} s"
            )


Begin = Callable[..., _Part]
"""Makes the part of a file whose rate, and step if any, are known."""


def _decoded(
    path: Path, kind: Kind, span: tuple[float, float], keep: Callable[[np.ndarray], None], budget: Budget
) -> _Part:
    """Hands the part of a file to `keep`; raises as `read_sound`."""
    part = (_from_libav if kind.demuxer else _from_libsndfile)(path, kind, partial(_Part, path, span, keep, budget))
    part.require_some()
    return part


def _soundfile() -> Any:
    return library("soundfile", "reads and writes sound files")


def _from_libsndfile(path: Path, kind: Kind, begin: Begin) -> _Part:
    try:
        with _soundfile().SoundFile(str(path)) as file:
            if file.format not in FORMATS:
                raise InputError(f"{path} is {file.format} inside, which is not read: convert it to wav")
            part = begin(int(file.samplerate), STEPS.get(file.subtype, 0.0))
            if file.format in EXACT and part.first < file.frames < UNKNOWN:
                part.at = file.seek(part.first)
            while not part.complete:
                block = file.read(min(BLOCK, part.last - part.at), dtype="float32", always_2d=True)
                if not len(block):
                    break
                part.add(block)
            if part.at < min(part.last, file.frames) and file.frames < UNKNOWN:
                raise InputError(
                    f"{path} claims {file.frames / part.rate:.3f} s of sound and has {part.at / part.rate:.3f} s: it "
                    "was cut off or is damaged, get it again"
                )
            return part
    except (OSError, RuntimeError, ValueError) as error:
        reason = " ".join(str(error).rpartition("': ")[2].split())
        raise InputError(f"{path} is not a readable {kind.name} file: {reason}") from None


def _from_libav(path: Path, kind: Kind, begin: Begin) -> _Part:
    with opened(path, kind, "audio") as (container, stream):
        part: _Part | None = None
        for time, rate, block in _blocks(container, stream):
            part = part or begin(rate)
            if rate != part.rate:
                raise InputError(f"{path} {CHANGES}")
            gap = round((time - zero(container)) * rate) - part.at
            if gap > SLACK * rate:
                part.silence(gap, block.shape[1])
            part.add(block)
            if part.complete:
                break
        return part or begin(1)


def _blocks(container: Any, stream: Any) -> Iterator[tuple[Any, int, np.ndarray]]:
    """Times, rates and samples (frames, channels) of a sound track; a gap in its times is silence."""
    av = library("av", "reads video files")
    form, resampler = ("", "", 0), av.AudioResampler(format="fltp")
    for frame in container.decode(stream):
        own = frame.format.name, frame.layout.name, frame.sample_rate
        if own != form:
            form, resampler = own, av.AudioResampler(format="fltp", layout=frame.layout, rate=frame.sample_rate)
        time = frame.pts * frame.time_base if frame.pts is not None else 0
        for converted in resampler.resample(frame):
            yield time, frame.sample_rate, np.ascontiguousarray(converted.to_ndarray().T, dtype=np.float32)
