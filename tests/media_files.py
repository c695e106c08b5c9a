"""Small media files of every kind, written for a test, and what is in them."""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest

from mer_export.data.media.frames import Frame

av = pytest.importorskip("av")
soundfile = pytest.importorskip("soundfile")

RATE = 16000
WIDTH, HEIGHT = 64, 48
TIMES = (0, 2, 3, 7, 8, 12, 13, 14, 18, 19, 23, 24)
"""When the frames of the video here are shown, in fiftieths of a second; its sound lasts 0.5 s."""


def tone(seconds: float = 0.5, rate: int = RATE) -> np.ndarray:
    return (0.5 * np.sin(2 * np.pi * 440 * np.arange(round(seconds * rate)) / rate)).astype(np.float32)


def colour(number: int) -> np.ndarray:
    """The picture of a frame: halves of two colours that say its number."""
    picture = np.zeros((HEIGHT, WIDTH, 3), dtype=np.uint8)
    picture[:, : WIDTH // 2, 0], picture[:, WIDTH // 2 :, 2] = 20 * number % 256, 255 - 20 * number % 256
    return picture


def number_of(frame: Frame) -> int:
    return round(float(frame.picture[:, : WIDTH // 4, 0].mean()) / 20)


def write_video(
    path: Path,
    form: str = "mp4",
    codec: str = "libx264",
    audio: str = "aac",
    times: Sequence[int] = TIMES,
    late: float = 0.0,
    options: dict[str, str] | None = None,
) -> Path:
    """A video of frames that say their number, at times in fiftieths, and a tone that begins `late` seconds after."""
    base = Fraction(1, 50)
    with av.open(str(path), "w", format=form) as out:
        pictures = out.add_stream(codec, rate=50, options=options or {}) if codec else None
        sounds = out.add_stream(audio, rate=RATE) if audio else None
        if pictures:
            pictures.width, pictures.height, pictures.pix_fmt = WIDTH, HEIGHT, "yuv420p"
            pictures.codec_context.time_base = base
        if sounds:
            sounds.layout = "mono"
        for number, time in enumerate(times if pictures else ()):
            frame = av.VideoFrame.from_ndarray(colour(number), format="rgb24")
            frame.pts, frame.time_base = time, base
            out.mux(pictures.encode(frame))
        if sounds:
            sound = av.AudioFrame.from_ndarray(tone()[None], format="fltp", layout="mono")
            sound.rate, sound.pts, sound.time_base = RATE, round(late * RATE), Fraction(1, RATE)
            resampler = av.AudioResampler(format=sounds.format, layout="mono", rate=RATE, frame_size=1024)
            for part in (*resampler.resample(sound), *resampler.resample(None)):
                out.mux(sounds.encode(part))
        for stream in (pictures, sounds):
            if stream:
                out.mux(stream.encode())
    return path


SOUNDS = {
    "wav": ("WAV", "PCM_16"),
    "rf64": ("RF64", "PCM_24"),
    "aiff": ("AIFF", "PCM_16"),
    "flac": ("FLAC", "PCM_16"),
    "vorbis": ("OGG", "VORBIS"),
    "opus": ("OGG", "OPUS"),
    "mp3": ("MP3", "MPEG_LAYER_III"),
}
VIDEOS = {
    "mp4": ("mp4", "libx264", "aac"),
    "mov": ("mov", "libx264", "pcm_s16le"),
    "m4a": ("ipod", "", "aac"),
    "webm": ("webm", "libvpx", "libopus"),
    "mkv": ("matroska", "libx264", "flac"),
    "avi": ("avi", "mpeg4", "pcm_s16le"),
    "mpegts": ("mpegts", "mpeg2video", "mp2"),
    "flv": ("flv", "libx264", "aac"),
    "aac": ("adts", "", "aac"),
}


def made(folder: Path, kind: str) -> Path:
    """A file of half a second of tone whose name says nothing."""
    path = folder / "media.bin"
    if kind in SOUNDS:
        form, subtype = SOUNDS[kind]
        soundfile.write(str(path), tone(), RATE, format=form, subtype=subtype)
        return path
    form, codec, audio = VIDEOS[kind]
    return write_video(path, form, codec, audio, times=range(0, 24, 2))
