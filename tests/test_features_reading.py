"""What `mer features` reads: sentences once, pictures, faces, recordings of many utterances, ahead of the networks."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import Mer
from media_files import write_video
from noise_clips import RATE, failed, noise, samples, write_clips, write_encoders

from mer_export.bundle import Bundle
from mer_export.data.dialogues import Recording, Utterance
from mer_export.data.media import sound
from mer_export.data.media.sound import read_sound
from mer_export.data.open import open_corpus
from mer_export.encoders import sounds
from mer_export.encoders.encoder import Encoder
from mer_export.encoders.faces import faces_in, look_at_faces, sample_frames
from mer_export.encoders.inputs import FaceCut, Room
from mer_export.encoders.mtcnn.detector import NETWORKS, FaceDetector
from mer_export.encoders.reading import Reading
from mer_export.encoders.signal.folder import write_signal_encoder
from mer_export.errors import InputError
from mer_export.untrusted.places import Reach
from runtimes.encode import Encoding, open_encoder
from runtimes.features import plan, sentences
from runtimes.features.ahead import ahead

pytest.importorskip("pyarrow")
soundfile = pytest.importorskip("soundfile")


@pytest.fixture(scope="module")
def encoders(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_encoders(tmp_path_factory.mktemp("encoders"))


@pytest.fixture
def clips(tmp_path: Path) -> Path:
    return write_clips(tmp_path)


@pytest.fixture
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plan, "BLOCK", 6)


def test_no_more_is_decoded_than_the_queue_holds() -> None:
    going, most, lock = 0, 0, threading.Lock()

    def work(number: int) -> int:
        return number * number

    def items() -> Iterator[int]:
        nonlocal going, most
        for number in range(50):
            with lock:
                going += 1
                most = max(most, going)
            yield number

    found = []
    for square in ahead(work, items(), workers=3, most=5):
        found.append(square)
        going -= 1
    assert found == [n * n for n in range(50)]
    assert most == 5


def test_what_a_thread_raises_comes_in_its_turn() -> None:
    def work(number: int) -> int:
        if number == 3:
            raise InputError("three")
        return number

    results = ahead(work, iter(range(9)), workers=2, most=4)
    assert [next(results) for _ in range(3)] == [0, 1, 2]
    with pytest.raises(InputError, match="three"):
        next(results)


def test_half_a_step_is_added_where_an_encoder_asks_for_it(tmp_path: Path, encoders: Path) -> None:
    whole = np.random.default_rng(0).integers(-900, 900, 2000).astype(np.int16)
    soundfile.write(tmp_path / "a.flac", whole, RATE)
    said = Utterance("u", recording=Recording("a.flac", "u", Reach(tmp_path)))
    half = write_signal_encoder("log_mel", tmp_path / "half", half_step=True).root
    plain, added = (next(Reading(said).raws(Encoder.open(e))) for e in (encoders / "vector", half))
    np.testing.assert_array_equal(plain, whole.astype(np.float32) / 32768)
    np.testing.assert_array_equal(added, (whole.astype(np.float32) + 0.5) / 32768)


@pytest.fixture(scope="module")
def networks(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Random networks for text and pictures."""
    pytest.importorskip("transformers")
    from benchmarks.small_encoders import save_folder
    from mer_export.exporters.encoders.transformers_folder import Wanted, import_folder

    root = tmp_path_factory.mktemp("networks")
    for kind, name in (("bert", "text"), ("vit", "picture")):
        save_folder(kind, root / f"{name}-source")
        import_folder(root / f"{name}-source", root / name, Wanted(pooling="mean"))
    return root


def test_each_sentence_goes_through_its_encoder_once(
    mer: Mer, clips: Path, networks: Path, small_blocks: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sentences, "GROUP", 2)
    prepared: list[str] = []
    prepare = Encoding.prepare
    monkeypatch.setattr(Encoding, "prepare", lambda self, raw, name: prepared.append(raw) or prepare(self, raw, name))
    rows = (clips / "clips.csv").read_text().replace("c7,wav/7.wav,What is number 1", "c7,wav/7.wav,")
    (clips / "clips.csv").write_text(rows)
    command = ["features", clips / "clips.csv", "--encoder", f"text={networks}/text", "--out", clips / "f", "--json"]
    code, said, _ = mer(*command)
    assert (code, json.loads(said)["missing"]) == (0, {"text": 1})
    assert sorted(prepared) == [f"What is number {i}" for i in range(3)]
    found = samples(clips / "f.parquet")
    with open_encoder(networks / "text") as encoding:
        (wanted,) = encoding.encode(["What is number 2"])
    np.testing.assert_allclose(found["c20"].inputs["text"], wanted[None], atol=1e-6)
    np.testing.assert_array_equal(found["c20"].inputs["text"], found["c2"].inputs["text"])


def test_things_of_one_name_stay_apart(networks: Path) -> None:
    """As the second picture of `clip` and the first of an utterance that is called `clip 1`."""
    with open_encoder(networks / "text") as encoding:
        wanted = list(encoding.encode(["a b", "c d"]))
        found = list(encoding.finish([encoding.prepare(text, "clip 1") for text in ("a b", "c d")]))
    np.testing.assert_array_equal(found, wanted)


def test_dialogues_whose_utterances_have_one_vector_each_stay_dialogues(
    mer: Mer, clips: Path, encoders: Path, networks: Path
) -> None:
    rows = (clips / "clips.csv").read_text().splitlines()
    rows = [f"{r},{'call' if not i else (i - 1) // 4}" for i, r in enumerate(rows)]
    (clips / "clips.csv").write_text("\n".join(rows) + "\n")
    (clips / "wav" / "1.wav").write_bytes(b"")
    chosen = ["--encoder", f"text={networks}/text", "--encoder", f"audio={encoders}/vector"]
    assert mer("features", clips / "clips.csv", *chosen, "--out", clips / "f", "-q")[0] == 0
    first, *others = open_corpus(clips / "f.parquet")
    assert first.units == ("0/c0", "0/c2", "0/c3")
    assert {n: a.shape for n, a in first.inputs.items()} == {"text": (1, 3, 32), "audio": (3, 6), "speaker": (3,)}
    assert first.inputs["speaker"].tolist() == [0, 2, 0]
    assert len(others) == 5


def test_pictures_of_a_video_are_a_sequence_within_memory_and_a_sound_has_none(
    mer: Mer, tmp_path: Path, networks: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    av = pytest.importorskip("av")
    shown = np.random.default_rng(0).integers(0, 255, (10, 48, 64, 3)).astype(np.uint8)
    with av.open(str(tmp_path / "a.mp4"), "w") as container:
        stream = container.add_stream("mpeg4", rate=10)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        for picture in shown:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(stream.encode())
    soundfile.write(tmp_path / "b.wav", noise(0), RATE)
    command = ["features", tmp_path, "--encoder", f"vision={networks}/picture", "--out", tmp_path / "f", "--json"]
    code, said, err = mer(*command)
    assert code == 0, err
    assert json.loads(said)["missing"] == {"vision": 1}
    found = samples(tmp_path / "f.parquet")
    assert {n: [a.shape for a in s.inputs.values()] for n, s in found.items()} == {"a.mp4": [(8, 32)], "b.wav": []}
    shutil.copytree(networks / "picture", tmp_path / "often")
    often = sample_frames(Bundle.open(tmp_path / "often"), fps=4)
    assert often.identity.sha256 != Encoder.open(networks / "picture").identity.sha256
    assert len(list(Reading(Utterance("u", recording=Recording("a.mp4", "u", Reach(tmp_path)))).raws(often))) == 4
    often = sample_frames(Bundle.open(tmp_path / "often"), frames=3)
    assert len(list(Reading(Utterance("u", recording=Recording("a.mp4", "u", Reach(tmp_path)))).raws(often))) == 3
    monkeypatch.setattr(Room, "MOST", 5 * 4 * 3 * 32 * 32)
    assert mer(*command, "--force")[0] == 0
    assert list(failed(tmp_path / "failed.csv")) == ["a.mp4/a.mp4"]
    with pytest.raises(InputError, match=r"takes more than .* fewer --frames or --fps"):
        list(faces_in([np.full((40, 40, 3), 255, np.uint8)] * 7, Brightest(), FaceCut(detector="0" * 64, size=64)))


class Brightest:
    """Finds what is white, as a detector finds faces."""

    def boxes(self, picture: np.ndarray) -> np.ndarray:
        rows, columns = np.nonzero(picture.mean(axis=2) > 200)
        found = [[columns.min(), rows.min(), columns.max() + 1, rows.max() + 1, 1.0]] if len(rows) else []
        return np.asarray(found, dtype=np.float32).reshape(-1, 5)


def test_an_encoder_of_faces_brings_its_detector_and_misses_whom_it_does_not_find(
    mer: Mer, tmp_path: Path, networks: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    image = pytest.importorskip("PIL.Image")
    shutil.copytree(networks / "picture", tmp_path / "faces")
    (tmp_path / "detector").mkdir()
    for name in NETWORKS:
        (tmp_path / "detector" / f"{name}.onnx").write_bytes(name.encode())
    monkeypatch.setattr(FaceDetector, "load", lambda folder: Brightest())
    plain = Encoder.open(tmp_path / "faces").identity
    made = look_at_faces(Bundle.open(tmp_path / "faces"), tmp_path / "detector", size=32, margin=0.0)
    assert made.identity.sha256 != plain.sha256
    pictures = np.zeros((3, 60, 80, 3), np.uint8)
    pictures[0, 10:42, 5:37], pictures[1, 20:52, 8:40] = 255, 230
    lines = []
    for clip, shown in (("a", (0, 1, 2)), ("b", (2,))):
        for i in shown:
            image.fromarray(pictures[i]).save(tmp_path / f"{clip}{i}.png")
        lines.append({"id": clip, "images": [f"{clip}{i}.png" for i in shown]})
    (tmp_path / "d.jsonl").write_text(json.dumps({"dialogue": "d", "utterances": lines}) + "\n")
    command = ["features", tmp_path / "d.jsonl", "--set", "data.faces.images=true", "--set", "data.unit=utterance"]
    command += ["--encoder", f"vision={tmp_path}/faces", "--out", tmp_path / "f", "--json"]
    code, said, err = mer(*command)
    assert (code, json.loads(said or "{}").get("missing")) == (0, {"vision": 1}), err
    found = samples(tmp_path / "f.parquet")
    with open_encoder(networks / "picture") as encoding:
        wanted = list(encoding.encode([np.full((32, 32, 3), 255, np.uint8), np.full((32, 32, 3), 230, np.uint8)]))
    np.testing.assert_allclose(found["a"].inputs["vision"], np.stack(wanted), atol=1e-6)
    assert "vision" not in found["b"].inputs
    kept = Encoder.open(tmp_path / "f.encoders" / "vision" / "0")
    assert (kept.identity, kept.bundle.path("faces/onet.onnx").read_bytes()) == (made.identity, b"onet")


def test_a_compressed_recording_of_many_utterances_is_decoded_twice_and_its_parts_are_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    both = np.stack([noise(0, 4), noise(1, 4)], axis=1)
    soundfile.write(tmp_path / "call.mp3", both, RATE)
    soundfile.write(tmp_path / "call.wav", both, RATE)
    decoded: list[str] = []

    def counted(path: Path, *given: Any) -> Any:
        decoded.append(path.name)
        return decode(path, *given)

    decode = sound._decoded
    monkeypatch.setattr(sound, "_decoded", counted)
    # In memory, in a file, too long for both.
    for name, most, times in (
        ("call.mp3", (1 << 20, 0), 2),
        ("call.mp3", (1000, 1 << 20), 2),
        ("call.mp3", (1000, 1000), 7),
        ("call.wav", (1 << 20, 0), 6),
    ):
        decoded.clear()
        soundfile.write(tmp_path / name, both, RATE)
        kept = sounds.Sounds(*most)
        for start in (0.0, 0.5, 1.25, 2.0, 3.0, 3.75):
            found = kept.read(Recording(name, "u", Reach(tmp_path), start, start + 0.4))
            wanted = read_sound(tmp_path / name, start, start + 0.4)
            decoded.pop()
            np.testing.assert_array_equal(found.mono(RATE), wanted.mono(RATE))
        assert len(decoded) == times
        with pytest.raises(InputError, match="is past the end"):
            kept.read(Recording(name, "u", Reach(tmp_path), 9.0, None))
        # A file that was written again is another recording.
        soundfile.write(tmp_path / name, both[::-1], RATE)
        found = kept.read(Recording(name, "u", Reach(tmp_path), 0.5, 0.9))
        np.testing.assert_array_equal(found.mono(RATE), read_sound(tmp_path / name, 0.5, 0.9).mono(RATE))


def test_recordings_that_are_kept_in_files_give_way_to_later_ones(tmp_path: Path) -> None:
    kept = sounds.Sounds(most=1000, most_on_disk=150_000)
    for number in range(3):
        soundfile.write(tmp_path / f"{number}.mp3", noise(number, 2), RATE)
        for start in (0.5, 1.0):
            found = kept.read(Recording(f"{number}.mp3", "u", Reach(tmp_path), start, 1.5))
            wanted = read_sound(tmp_path / f"{number}.mp3", start, 1.5)
            np.testing.assert_array_equal(found.mono(RATE), wanted.mono(RATE))
    assert [path.name for path, _ in kept._asked] == ["2.mp3"]


def test_silence_of_hours_in_a_small_file_is_not_kept(tmp_path: Path) -> None:
    path = write_video(tmp_path / "a.mkv", "matroska", audio="pcm_s16le", late=5 * 3600)
    assert path.stat().st_size < 1 << 20
    assert sounds.Sounds()._decoded(path) is None


def test_where_nothing_can_be_kept_parts_are_decoded_as_ever(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    soundfile.write(tmp_path / "a.mp3", noise(0, 2), RATE)
    monkeypatch.setattr(tempfile, "_get_default_tempdir", lambda: os.fspath(tmp_path / "none"))
    monkeypatch.setattr(tempfile, "tempdir", os.fspath(tmp_path / "none"))
    kept = sounds.Sounds(most=1000)
    for _ in range(3):
        found = kept.read(Recording("a.mp3", "u", Reach(tmp_path), 0.5, 1.5))
        np.testing.assert_array_equal(found.mono(RATE), read_sound(tmp_path / "a.mp3", 0.5, 1.5).mono(RATE))
