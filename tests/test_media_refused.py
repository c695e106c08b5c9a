"""Media files that are never opened, claim more than they hold, or are damaged: in which sentence, in which bounds."""

from __future__ import annotations

import os
import struct
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from media_files import HEIGHT, RATE, WIDTH, colour, made, tone, write_video

from mer_export.data.media import tracks
from mer_export.data.media.faces import resize
from mer_export.data.media.frames import read_frames
from mer_export.data.media.pictures import read_picture
from mer_export.data.media.sound import read_sound
from mer_export.encoders.inputs import PictureInput
from mer_export.errors import InputError, NotAvailableError
from mer_export.untrusted.budget import SPARE_BYTES

av = pytest.importorskip("av")
soundfile = pytest.importorskip("soundfile")


@pytest.fixture(scope="module")
def video(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """With a frame that needs no other every fifth, and others that need the next."""
    path = tmp_path_factory.mktemp("video") / "named.wav"
    return write_video(path, options={"g": "5", "bf": "2", "keyint_min": "5", "sc_threshold": "0", "crf": "10"})


# --- what is never opened --------------------------------------------------------------------------------------------

PLAYLISTS = {
    "list.m3u8": "#EXTM3U\n#EXTINF:1,\nhttp://127.0.0.1/a.ts\n",
    "list.wav": "ffconcat version 1.0\nfile /etc/passwd\n",
    "call.mp4": "v=0\no=- 0 0 IN IP4 127.0.0.1\nm=audio 5004 RTP/AVP 0\n",
    "list.pls": "[playlist]\nFile1=http://127.0.0.1/a.mp3\n",
}


@pytest.fixture
def closed(monkeypatch: pytest.MonkeyPatch) -> None:
    """No library is asked."""

    def refuse(name: str, why: str) -> Any:
        raise AssertionError(f"{name} was asked")

    monkeypatch.setattr(tracks, "library", refuse)


@pytest.mark.usefixtures("closed")
@pytest.mark.parametrize("read", [read_sound, read_frames, read_picture])
@pytest.mark.parametrize(
    "address",
    ["http://127.0.0.1:9/a.mp4", "file:/etc/passwd", "concat:a.ts|b.ts", "lavfi:testsrc", "data:,x"],
)
def test_an_address_is_never_opened(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, read: Any, address: str) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match="looks like an address, which is never opened: download the file first"):
        read(address)


@pytest.mark.usefixtures("closed")
@pytest.mark.parametrize("name", PLAYLISTS)
def test_a_playlist_is_never_opened(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_text(PLAYLISTS[name])
    for read in (read_sound, read_frames):
        with pytest.raises(InputError, match="is a playlist, which names other files: pass those files themselves"):
            read(tmp_path / name)


@pytest.mark.usefixtures("closed")
def test_what_is_no_file_is_refused_without_waiting(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.wav")
    for path, sentence in (
        (tmp_path / "pipe.wav", "is not an ordinary file"),
        (tmp_path, "is not an ordinary file"),
        (Path("/dev/zero"), "is not an ordinary file"),
        (tmp_path / "nothing.mp4", "cannot be read: No such file or directory"),
        ("a\0b.mp4", "cannot be read"),
    ):
        for read in (read_sound, read_frames, read_picture):
            with pytest.raises(InputError, match=sentence):
                read(path)


def test_a_library_that_is_missing_is_named(video: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    soundfile.write(tmp_path / "a.wav", tone(), RATE)
    monkeypatch.setitem(sys.modules, "av", None)
    monkeypatch.setitem(sys.modules, "soundfile", None)
    for path, package in ((video, "av"), (tmp_path / "a.wav", "soundfile")):
        with pytest.raises(NotAvailableError, match=rf"{package}, which .* pip install 'mer-export\[media\]'"):
            read_sound(path)


# --- bombs and damage ------------------------------------------------------------------------------------------------


def box(kind: bytes, *inside: bytes) -> bytes:
    content = b"".join(inside)
    return struct.pack(">I", 8 + len(content)) + kind + content


def words(*values: int) -> bytes:
    return struct.pack(f">{len(values)}I", *values)


INDEX_BOMBS = {
    "samples of one size": box(b"stsz", words(0, 1, 0xFFFFFFFF)),
    "samples of many sizes": box(b"stsz", words(0, 0, 0x40000000)),
    "times": box(b"stts", words(0, 1, 0xFFFFFFFF, 1)),
    "offsets of times": box(b"ctts", words(0, 0x20000000)),
    "chunks": box(b"stco", words(0, 0x3FFFFFFF)),
    "runs of chunks": box(b"stsc", words(0, 1, 1, 0x7FFFFFFF, 1)) + box(b"stco", words(0, 2, 0, 0)),
}


@pytest.mark.parametrize("name", INDEX_BOMBS)
def test_an_index_that_claims_billions_is_not_opened(tmp_path: Path, name: str) -> None:
    table = box(b"trak", box(b"mdia", box(b"minf", box(b"stbl", INDEX_BOMBS[name]))))
    (tmp_path / "a.mp4").write_bytes(box(b"ftyp", b"isom", words(0)) + box(b"moov", table))
    with pytest.raises(InputError, match=r"its index claims \d+ samples in \d+ bytes"):
        read_sound(tmp_path / "a.mp4")


def test_fragments_that_claim_billions_are_not_opened(tmp_path: Path) -> None:
    fragment = box(b"moof", box(b"traf", box(b"trun", words(0, 0x7FFFFFFF))))
    (tmp_path / "a.mp4").write_bytes(box(b"ftyp", b"isom", words(0)) + fragment)
    with pytest.raises(InputError, match="its index claims 2147483647 samples"):
        read_frames(tmp_path / "a.mp4")


def test_hours_of_silence_in_a_small_file_are_read_in_parts_only(tmp_path: Path) -> None:
    path, channels = tmp_path / "a.flac", 8
    with soundfile.SoundFile(str(path), "w", RATE, channels, format="FLAC") as out:
        block = np.zeros((1 << 20, channels), dtype=np.int16)
        for _ in range(1 + SPARE_BYTES // (4 * block.size)):
            out.write(block)
    with pytest.raises(InputError, match=r"unfold to far more .*, read it in parts \(start and end\)"):
        read_sound(path)
    assert read_sound(path, 300, 301).samples.shape == (RATE, channels)


def test_a_gap_of_years_is_no_silence(tmp_path: Path) -> None:
    path = write_video(tmp_path / "a.mkv", "matroska", "", "pcm_s16le", late=1e8)
    late = write_video(tmp_path / "b.mkv", "matroska", audio="pcm_s16le", late=1e8)
    assert read_sound(path).seconds == pytest.approx(0.5, abs=0.1)
    with pytest.raises(InputError, match="unfold to far more"):
        read_sound(late)
    far = write_video(tmp_path / "c.mkv", "matroska", "mpeg4", "", times=(0, 1, 1 << 33))
    with pytest.raises(InputError, match="unfold to far more"):
        read_frames(far, rate=50)
    assert len(list(read_frames(far))) == 3


def test_a_codec_that_is_not_in_the_table_is_named(tmp_path: Path) -> None:
    with av.open(str(tmp_path / "a.mov"), "w") as out:
        pictures = out.add_stream("png", rate=25)
        pictures.width, pictures.height, pictures.pix_fmt = WIDTH, HEIGHT, "rgb24"
        out.mux([*pictures.encode(av.VideoFrame.from_ndarray(colour(1), format="rgb24")), *pictures.encode()])
    with pytest.raises(InputError, match="has pictures in png, which is not read: convert it to h264 and aac in mp4"):
        read_frames(tmp_path / "a.mov")


def test_a_thread_of_pixels_is_not_scaled_to_a_huge_picture() -> None:
    """Of a few kilobytes of a png, the shorter side to 224 pixels makes gigabytes."""
    reads = PictureInput(height=224, width=224, resize=(224,))
    with pytest.raises(InputError, match="a: a picture of 60000 x 1 would become 13440000 x 224 pixels"):
        reads.sample("a", np.zeros((1, 60_000, 3), np.uint8))
    with pytest.raises(InputError, match="a face image of 1 x 60000 is longer than 16384 pixels"):
        resize(np.zeros((60_000, 1, 3), np.uint8), 8)


def test_pictures_of_a_huge_size_are_not_decoded(tmp_path: Path) -> None:
    path = write_video(tmp_path / "a.avi", "avi", "mjpeg", "", options={"strict": "-1"})
    content = bytearray(path.read_bytes())
    small, huge = struct.pack("<II", WIDTH, HEIGHT), struct.pack("<II", 60_000, 60_000)
    at = content.index(b"strf")
    at = content.index(small, at)
    content[at : at + 8] = huge
    while (at := content.find(struct.pack(">HH", HEIGHT, WIDTH), at)) >= 0:
        content[at : at + 4] = struct.pack(">HH", 60_000, 60_000)
    path.write_bytes(content)
    with pytest.raises(InputError):
        list(read_frames(path))


CUT = {"wav", "aiff", "rf64", "flac", "mp3", "vorbis", "opus", "mp4", "mov", "m4a", "webm", "mkv", "avi"}
"""Kinds that say how long they are, or where they end."""


@pytest.mark.parametrize("kind", sorted(CUT))
def test_a_file_that_was_cut_off_is_never_a_shorter_one(tmp_path: Path, kind: str) -> None:
    path = made(tmp_path, kind)
    whole = path.read_bytes()
    for part in (0.5, 0.9):
        path.write_bytes(whole[: int(part * len(whole))])
        with pytest.raises(InputError):
            read_sound(path)


DAMAGE = """
import resource, sys
from pathlib import Path
resource.setrlimit(resource.RLIMIT_AS, (3 << 30, 3 << 30))
resource.setrlimit(resource.RLIMIT_CPU, (60, 60))
sys.path.insert(0, sys.argv[1])
from damage import mutations
from mer_export.data.media.frames import read_frames
from mer_export.data.media.sound import read_sound
from mer_export.errors import InputError
ended = 0
for path in map(Path, sys.argv[2:]):
    for changed in mutations(path.read_bytes(), 40, 0):
        path.write_bytes(changed)
        for read in (read_sound, lambda p: list(read_frames(p))):
            try:
                read(path)
            except InputError as error:
                assert "\\n" not in str(error), error
            ended += 1
print(ended)
"""


def test_damage_gives_data_or_a_sentence_within_bounds_of_time_and_memory(tmp_path: Path) -> None:
    paths = [made(folder, kind) for kind in ("wav", "mp4", "mkv") if (folder := tmp_path / kind).mkdir() is None]
    arguments = [sys.executable, "-c", DAMAGE, str(Path(__file__).parent), *map(str, paths)]
    done = subprocess.run(arguments, capture_output=True, text=True, check=False, cwd=Path(__file__).parents[1])
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.split() == ["240"]
