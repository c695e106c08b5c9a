"""Sound, frames and pictures from media files: what is read, and what is in it."""

from __future__ import annotations

import math
import os
import struct
import tracemalloc
import zlib
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from media_files import HEIGHT, RATE, SOUNDS, TIMES, VIDEOS, WIDTH, colour, made, number_of, tone, write_video

from mer_export.data.media import frames as frames_module
from mer_export.data.media.frames import read_frames
from mer_export.data.media.pictures import read_picture
from mer_export.data.media.sound import read_sound
from mer_export.data.media.times import seconds
from mer_export.errors import InputError, MissingTrack

av = pytest.importorskip("av")
soundfile = pytest.importorskip("soundfile")


CONTAINERS = (
    Path(os.environ.get("MER_SAMPLE_DATA", Path(__file__).parents[2] / "shared" / "data")) / "media" / "containers"
)


@pytest.fixture(scope="module")
def video(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """With a frame that needs no other every fifth, and others that need the next."""
    path = tmp_path_factory.mktemp("video") / "named.wav"
    return write_video(path, options={"g": "5", "bf": "2", "keyint_min": "5", "sc_threshold": "0", "crf": "10"})


# --- what there is in files of every kind ----------------------------------------------------------------------------

FINE = {
    "alaw_8k.wav": (1.0, 8000, 0, None),
    "audio_only.mp4": (3.008, 16000, 0, None),
    "broken_header_odd_data.wav": (15999 / 16000, 16000, 2**-15, None),
    "face_angry.webm": (3.0, 48000, 0, 75),
    "face_happy.mp4": (3.008, 16000, 0, 75),
    "happy.mp3": (61395 / 16000, 16000, 0, None),
    "happy.ogg": (61395 / 16000, 16000, 0, None),
    "pcm_f32.wav": (1.0, 16000, 0, None),
    "pcm_s24.wav": (1.0, 16000, 0, None),
    "pcm_s32.wav": (1.0, 16000, 0, None),
    "pcm_u8.wav": (1.0, 16000, 0, None),
    "six_channel.wav": (1.0, 16000, 2**-15, None),
    "stereo_44100.wav": (1.0, 44100, 2**-15, None),
    "streamed_header_ffffffff.wav": (1.0, 16000, 2**-15, None),
    "testpattern_15fps.mp4": (3.008, 16000, 0, 45),
    "vfr.mp4": (3.008, 16000, 0, 50),
    "video_only.mp4": (None, 0, 0, 75),
}
"""File to the seconds, rate and step of its sound and the number of its frames; None: a track that is missing."""

BROKEN = {
    "broken_header_only_20_bytes.wav": "is not a readable wav file: Error in WAV/W64/RF64 file.",
    "broken_header_sizes_too_large.wav": "claims 128000 bytes of sound and has 32000: it was cut off, get it again",
    "broken_header_sizes_zero.wav": "claims no sound and 32000 bytes follow: whoever wrote it did not finish",
    "broken_truncated_half.mp4": "claims 38610 bytes and has 19305: it was cut off, get it again",
    "broken_truncated_no_moov.mp4": "claims 59902 bytes and has 37421: it was cut off, get it again",
    "broken_zero_bytes.wav": "is empty",
    "broken_zero_sample_rate.wav": "is not a readable wav file: Internal error : SF_INFO struct incomplete.",
    "not_audio_text.wav": "is not a sound or video file of a kind that is read",
    "zero_samples.wav": "has no samples: there is nothing to read",
}
"""File to what is said when its sound is asked for."""


@pytest.fixture(scope="module")
def containers() -> Path:
    if not CONTAINERS.is_dir():
        pytest.skip("no media files here: set MER_SAMPLE_DATA")
    return CONTAINERS


@pytest.mark.parametrize("name", FINE)
def test_sound_and_frames_of_a_good_file_are_read(containers: Path, name: str) -> None:
    seconds, rate, step, count = FINE[name]
    if seconds is None:
        with pytest.raises(MissingTrack, match="has no sound, only pictures"):
            read_sound(containers / name)
    else:
        sound = read_sound(containers / name)
        assert (sound.seconds, sound.rate, sound.step) == (pytest.approx(seconds), rate, step)
        assert sound.samples.dtype == np.float32
        assert 0.05 < np.abs(sound.samples).max() < 1
    if count is None:
        with pytest.raises(MissingTrack, match=r"has no pictures, (only sound|it is a)"):
            read_frames(containers / name)
    else:
        frames = list(read_frames(containers / name))
        assert len(frames) == count
        assert all(f.picture.shape == (240, 320, 3) and f.picture.dtype == np.uint8 for f in frames)
        assert all(a.time < b.time for a, b in pairwise(frames))


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_file_is_named_in_one_sentence(containers: Path, name: str) -> None:
    with pytest.raises(InputError) as caught:
        read_sound(containers / name)
    assert str(caught.value).startswith(f"{containers / name} {BROKEN[name]}")


def test_every_file_there_is_tested(containers: Path) -> None:
    assert {p.name for p in containers.iterdir() if p.suffix != ".md"} == {*FINE, *BROKEN}


def test_decoders_agree_on_the_same_sound(containers: Path) -> None:
    wav = read_sound(containers / "streamed_header_ffffffff.wav").samples[:, 0]
    for name, error in (("pcm_s24.wav", 0), ("pcm_f32.wav", 0), ("happy.mp3", 0.02), ("happy.ogg", 0.05)):
        other = read_sound(containers / name)
        part = read_sound(containers / name, 1.2, 2.2).mono(RATE) if other.seconds > 2 else other.mono(RATE)
        assert np.abs(part - wav).max() <= error


# --- sound -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [*SOUNDS, *VIDEOS])
def test_the_content_of_a_file_decides_what_it_is(tmp_path: Path, kind: str) -> None:
    sound = read_sound(made(tmp_path, kind))
    assert sound.samples.shape[1] == 1
    heard = sound.mono(RATE)
    assert len(tone()) - 200 <= len(heard) <= len(tone()) + 3000
    spectrum = np.abs(np.fft.rfft(heard[: len(tone())]))
    assert np.argmax(spectrum) == pytest.approx(440 * len(tone()) / RATE, abs=1)
    assert np.sqrt(np.mean(heard[1000:7000] ** 2)) == pytest.approx(0.5 / math.sqrt(2), rel=0.05)


@pytest.mark.parametrize("kind", [*SOUNDS, *VIDEOS])
def test_a_part_of_a_sound_is_that_part_of_the_whole(tmp_path: Path, kind: str) -> None:
    path = made(tmp_path, kind)
    whole = read_sound(path)
    part = read_sound(path, 0.123, 0.3)
    own = slice(round(0.123 * whole.rate), round(0.3 * whole.rate))
    np.testing.assert_array_equal(part.samples, whole.samples[own])
    np.testing.assert_array_equal(read_sound(path, 0.25).samples, whole.samples[round(0.25 * whole.rate) :])
    np.testing.assert_array_equal(read_sound(path, end=99).samples, whole.samples)


@pytest.mark.parametrize(
    ("start", "end", "sentence"),
    [
        (-0.1, None, "start -0.1 is not a time in seconds"),
        (float("nan"), None, "start nan is not a time in seconds"),
        (0.2, 0.2, "end 0.2 does not come after start 0.2"),
        (0.2, 0.1, "end 0.1 does not come after start 0.2"),
        (0.2, float("nan"), "end nan does not come after start 0.2"),
        (30.0, None, "is past the end|no picture is shown"),
    ],
)
def test_a_part_that_is_none_is_refused(video: Path, start: float, end: float | None, sentence: str) -> None:
    for read in (read_sound, read_frames):
        with pytest.raises(InputError, match=sentence):
            read(video, start, end)


def test_a_part_too_short_for_a_sample_is_named(video: Path) -> None:
    with pytest.raises(InputError, match=r"from start 0\.1 to its end there is no sample at 16000 Hz"):
        read_sound(video, 0.1, 0.100001)


def test_mono_is_the_mean_of_the_channels_at_the_rate_that_is_asked_for(tmp_path: Path) -> None:
    soxr = pytest.importorskip("soxr")
    both = np.stack([tone(), np.random.default_rng(0).uniform(-0.5, 0.5, 8000).astype(np.float32)], axis=1)
    soundfile.write(tmp_path / "a.wav", both, RATE, subtype="FLOAT")
    sound = read_sound(tmp_path / "a.wav")
    np.testing.assert_array_equal(sound.mono(RATE), both.mean(axis=1))
    np.testing.assert_array_equal(sound.mono(22050), soxr.resample(both.mean(axis=1), RATE, 22050, quality="VHQ"))
    assert sound.mono(22050).dtype == np.float32


def test_sound_that_begins_after_the_pictures_is_preceded_by_silence(tmp_path: Path) -> None:
    sound = read_sound(write_video(tmp_path / "a.mkv", "matroska", audio="pcm_s16le", late=0.25))
    heard = np.flatnonzero(np.abs(sound.samples[:, 0]) > 0.01)[0]
    assert heard / RATE == pytest.approx(0.25, abs=0.002)


# --- frames ----------------------------------------------------------------------------------------------------------


def test_frames_have_the_times_that_the_file_gives_them(video: Path) -> None:
    frames = list(read_frames(video))
    assert [number_of(f) for f in frames] == list(range(len(TIMES)))
    assert [f.time for f in frames] == pytest.approx([t / 50 for t in TIMES], abs=1e-4)


@pytest.mark.parametrize("kind", [kind for kind, (_, codec, _) in VIDEOS.items() if codec])
def test_frames_of_every_kind_come_in_order(tmp_path: Path, kind: str) -> None:
    frames = list(read_frames(made(tmp_path, kind)))
    assert [number_of(f) for f in frames] == list(range(12))
    assert np.diff([f.time for f in frames]) == pytest.approx([0.04] * 11, abs=2e-3)


@pytest.mark.parametrize("count", [1, 3, 5, 40])
def test_frames_are_sampled_evenly_over_the_clip(video: Path, count: int) -> None:
    end = (TIMES[-1] + 1) / 50
    middles = [(k + 0.5) * end / count for k in range(count)]
    shown = [max(i for i, t in enumerate(TIMES) if t / 50 <= m) for m in middles]
    assert [number_of(f) for f in read_frames(video, count=count)] == shown


@pytest.mark.parametrize("rate", [4, 10, 50])
def test_frames_of_a_rate_are_those_that_are_shown_then(video: Path, rate: float) -> None:
    ticks = [0.1 + k / rate for k in range(math.ceil(0.3 * rate - 1e-6))]
    shown = [max(i for i, t in enumerate(TIMES) if t / 50 <= m + 1e-6) for m in ticks]
    assert [number_of(f) for f in read_frames(video, 0.1, 0.4, rate=rate)] == shown


def test_a_frame_is_the_same_whatever_is_passed_over_before_it(video: Path) -> None:
    whole = {f.time: f.picture for f in read_frames(video)}
    for count in (1, 2, 4):
        for frame in read_frames(video, 0.2, count=count):
            np.testing.assert_array_equal(frame.picture, whole[frame.time])


@pytest.mark.parametrize("kind", [kind for kind, (_, codec, _) in VIDEOS.items() if codec])
def test_frames_far_into_a_file_are_looked_up_and_are_those_that_all_before_them_lead_to(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    form, codec, audio = VIDEOS[kind]
    path = write_video(tmp_path / "media.bin", form, codec, audio, times=range(0, 1600, 2), options={"g": "24"})
    found: list[bool] = []

    def noted(*given: Any) -> Any:
        packets = sought(*given)
        found.append(packets is not None)
        return packets

    sought = frames_module._sought
    monkeypatch.setattr(frames_module, "_sought", noted)
    parts = [(start, start + 0.31) for start in (4.0, 12.51, 20.0, 31.5)]
    looked_up = [list(read_frames(path, *part)) for part in parts]
    assert found == ([True] * 3 if kind in ("mp4", "mov", "mkv", "webm") else [])
    monkeypatch.setattr(frames_module, "FAR", math.inf)
    for part, own in zip(parts, looked_up, strict=True):
        passed = list(read_frames(path, *part))
        assert [f.time for f in own] == [f.time for f in passed]
        for one, other in zip(own, passed, strict=True):
            np.testing.assert_array_equal(one.picture, other.picture)
    assert len(found) in (0, 3)


def test_an_index_that_leads_elsewhere_is_passed_over(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_video(tmp_path / "a.mp4", times=range(0, 1600, 2), options={"g": "24"})
    wanted = list(read_frames(path, 30.0))
    misled = frames_module._Key._replace
    timeline = frames_module._Timeline.entry
    for change in ({"place": 1}, {"place": None}, {"place": 1 << 40}, {"ticks": 0}, {"ticks": 1 << 40}):
        monkeypatch.setattr(
            frames_module._Timeline, "entry", lambda own, time, c=change: misled(timeline(own, time), **c)
        )
        found = list(read_frames(path, 30.0))
        assert [f.time for f in found] == [f.time for f in wanted]
        np.testing.assert_array_equal(found[0].picture, wanted[0].picture)


def test_a_clip_is_never_in_memory_whole(tmp_path: Path) -> None:
    path = write_video(tmp_path / "a.mp4", times=range(400))
    tracemalloc.start()
    try:
        shapes = {f.picture.shape for f in read_frames(path)}
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert shapes == {(HEIGHT, WIDTH, 3)}
    assert peak < 100 * HEIGHT * WIDTH * 3


def test_frames_stand_upright(video: Path, tmp_path: Path) -> None:
    content = video.read_bytes()
    upright = struct.pack(">9I", 1 << 16, 0, 0, 0, 1 << 16, 0, 0, 0, 1 << 30)
    place = content.index(b"tkhd")
    place = content.index(upright, place)
    # As a telephone writes that was held upright: turn it by 90 degrees clockwise.
    turned = struct.pack(">9I", 0, 1 << 16, 0, (1 << 32) - (1 << 16), 0, 0, HEIGHT << 16, 0, 1 << 30)
    (tmp_path / "turned.mp4").write_bytes(content[:place] + turned + content[place + len(turned) :])
    frame, flat = (list(read_frames(p))[5] for p in (tmp_path / "turned.mp4", video))
    assert frame.picture.shape == (WIDTH, HEIGHT, 3)
    np.testing.assert_array_equal(frame.picture, np.rot90(flat.picture, -1))
    assert frame.picture[: WIDTH // 4, :, 0].mean() > 60 > frame.picture[-WIDTH // 4 :, :, 0].mean()


def test_count_and_rate_exclude_each_other_and_are_positive(video: Path) -> None:
    with pytest.raises(InputError, match="not both"):
        read_frames(video, count=3, rate=2.0)
    for bad in ({"count": 0}, {"rate": -1.0}, {"rate": float("nan")}):
        with pytest.raises(InputError, match="count and rate are positive"):
            read_frames(video, **bad)  # type: ignore[arg-type]


def test_the_picture_of_a_cover_is_no_picture_track(tmp_path: Path) -> None:
    with av.open(str(tmp_path / "a.m4a"), "w", format="mp4") as out:
        sounds, cover = out.add_stream("aac", rate=RATE, layout="mono"), out.add_stream("mjpeg", rate=1)
        cover.width, cover.height, cover.pix_fmt = WIDTH, HEIGHT, "yuvj420p"
        cover.disposition = av.stream.Disposition.attached_pic
        picture = av.VideoFrame.from_ndarray(colour(1), format="rgb24")
        sound = av.AudioFrame.from_ndarray(tone()[None, :1024], format="fltp", layout="mono")
        sound.rate = RATE
        packets = [*cover.encode(picture.reformat(format="yuvj420p")), *cover.encode()]
        out.mux([*sounds.encode(sound), *sounds.encode(), *packets])
    assert read_sound(tmp_path / "a.m4a").seconds > 0
    with pytest.raises(MissingTrack):
        read_frames(tmp_path / "a.m4a")


@pytest.mark.parametrize("digits", [400, 5000])
def test_a_time_of_more_digits_than_any_recording_has_is_named(digits: int) -> None:
    with pytest.raises(InputError, match=r"start is '9+:00', it must be seconds"):
        seconds("9" * digits + ":00", "start")
    assert seconds("01:00:02,5", "start") == 3602.5


# --- pictures --------------------------------------------------------------------------------------------------------


def test_pictures_are_red_green_blue_and_upright(tmp_path: Path) -> None:
    from PIL import Image

    plain = Image.fromarray(colour(9))
    plain.save(tmp_path / "a.png")
    np.testing.assert_array_equal(read_picture(tmp_path / "a.png"), colour(9))
    exif = Image.Exif()
    exif[0x0112] = 6
    plain.save(tmp_path / "b.png", exif=exif)
    np.testing.assert_array_equal(read_picture(tmp_path / "b.png"), np.rot90(colour(9), -1))
    for mode in ("L", "P", "RGBA", "CMYK", "1"):
        plain.convert(mode).save(tmp_path / "c.tiff")
        assert read_picture(tmp_path / "c.tiff").shape == (HEIGHT, WIDTH, 3)


def claimed_png(width: int, height: int) -> bytes:
    header = b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    data = b"IDAT" + zlib.compress(bytes(100))
    chunks = (struct.pack(">I", len(c) - 4) + c + struct.pack(">I", zlib.crc32(c)) for c in (header, data, b"IEND"))
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunks)


def test_pictures_that_are_none_are_refused(tmp_path: Path, video: Path) -> None:
    from PIL import Image

    path = tmp_path / "a.png"
    for content, sentence in (
        (b"", "cannot be read as an image"),
        (claimed_png(0, 0), "cannot be read as an image"),
        (claimed_png(9_000, 9_000), "is a picture of 9000 x 9000, more than"),
        (claimed_png(60_000, 60_000), "cannot be read as an image .* decompression bomb"),
        (claimed_png(64, 64), "cannot be read as an image"),
        (video.read_bytes(), "cannot be read as an image"),
    ):
        path.write_bytes(content)
        with pytest.raises(InputError, match=sentence):
            read_picture(path)
    Image.fromarray(np.full((4, 4), 40_000, dtype=np.uint16)).save(path)
    with pytest.raises(InputError, match="more than 8 bits a channel"):
        read_picture(path)
