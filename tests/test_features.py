"""`mer features`: recordings and transcripts become a data set, whatever happens to the files and to the run."""

from __future__ import annotations

import csv
import json
import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from conftest import Mer

from mer_export.bundle import Bundle
from mer_export.data.dialogues import Recording, Utterance
from mer_export.data.media.sound import Sound, read_sound
from mer_export.data.open import open_corpus, said_extractors
from mer_export.data.samples import Sample
from mer_export.data.spec import DataSpec
from mer_export.encoders import sounds
from mer_export.encoders.encoder import Encoder
from mer_export.encoders.faces import look_at_faces, sample_frames
from mer_export.encoders.mtcnn.detector import NETWORKS, FaceDetector
from mer_export.encoders.reading import Reading
from mer_export.encoders.signal.folder import write_signal_encoder
from mer_export.errors import InputError
from mer_export.progress import TimeLeft
from mer_export.untrusted.places import Reach
from runtimes.encode import Encoding, open_encoder
from runtimes.features import parts, plan, sentences
from runtimes.features.ahead import ahead

pytest.importorskip("pyarrow")
soundfile = pytest.importorskip("soundfile")

ROOT = Path(__file__).parents[1]
RATE, CLIPS = 16000, 24
HEADER = "clip,path,transcript,emotion,who,split"


def noise(seed: int, seconds: float = 0.3) -> np.ndarray:
    return np.random.default_rng(seed).normal(0, 0.1, int(seconds * RATE)).astype(np.float32)


@pytest.fixture(scope="module")
def encoders(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Encoders of sound that need no network."""
    root = tmp_path_factory.mktemp("encoders")
    write_signal_encoder("log_mel", root / "vector", pooling="mean", mels=6)
    write_signal_encoder("mfcc", root / "states", every=5)
    write_signal_encoder("log_mel", root / "frames", mels=3, every=5)
    write_signal_encoder("log_mel", root / "finer", mels=3)
    return root


@pytest.fixture
def clips(tmp_path: Path) -> Path:
    """A plain table of recordings, by the names that people give columns."""
    (tmp_path / "wav").mkdir()
    rows = [HEADER]
    for i in range(CLIPS):
        soundfile.write(tmp_path / "wav" / f"{i}.wav", noise(i), RATE)
        split = "train" if i < 16 else "test"
        rows.append(f"c{i},wav/{i}.wav,What is number {i % 3},{('joy', 'anger')[i % 2]},s{i % 3},{split}")
    (tmp_path / "clips.csv").write_text("\n".join(rows) + "\n")
    return tmp_path


def samples(path: Path, **spec: Any) -> dict[str, Sample]:
    return {s.id: s for s in open_corpus(path, DataSpec(**spec))}


def failed(path: Path) -> dict[str, str]:
    with path.open() as stream:
        return {row["utterance"]: row["reason"] for row in csv.DictReader(stream)}


def test_a_plain_table_becomes_a_data_set_that_knows_its_encoder(mer: Mer, clips: Path, encoders: Path) -> None:
    out = clips / "made" / "clips"
    code, said, err = mer("features", clips / "clips.csv", "--encoder", f"audio={encoders}/states", "--out", out)
    assert (code, f"{out}.parquet: utterances 24, failed 0" in said) == (0, True)
    assert "has no table.yaml, it is read by the names of its columns:\n  table: clips.csv" in err
    assert "24 of 24 utterances" in err
    found = samples(out.with_suffix(".parquet"))
    with open_encoder(encoders / "states") as encoding:
        (wanted,) = encoding.encode([soundfile.read(clips / "wav" / "5.wav", dtype="float32")[0]])
    np.testing.assert_array_equal(found["c5"].inputs["audio"], wanted)
    corpus = open_corpus(out.with_suffix(".parquet"))
    assert {n: len(s) for n, s in corpus.splits.items()} == {"train": 16, "test": 8}
    assert (corpus.info["labels"], corpus.info["sentences"]["c4"]) == (["anger", "joy"], ["What is number 1"])
    assert [int(found[n].labels[0]) for n in ("c0", "c1")] == [1, 0]  # type: ignore[index]
    identity = Encoder.open(encoders / "states").identity
    assert said_extractors(out.with_suffix(".parquet"), DataSpec()) == {"audio": identity}
    assert Encoder.open(out.with_name("clips.encoders") / "audio" / "0").identity == identity
    assert not (clips / "made" / "failed.csv").exists()
    assert not list((clips / "made").glob("*.parts"))


def test_mer_train_trains_on_it_and_takes_the_encoder_along(mer: Mer, clips: Path, encoders: Path) -> None:
    pytest.importorskip("accelerate")
    out = clips / "f.parquet"
    assert mer("features", clips / "clips.csv", "--encoder", f"audio={encoders}/states", "--out", out, "-q")[0] == 0
    small = ["--set", "epochs=1", "--set", "model.hidden_sizes=[8, 8, 8]"]
    code, _, err = mer("train", "mtee", "--data", out, "--out", clips / "run", *small, "-q")
    assert code == 0, err
    manifest = json.loads((clips / "run" / "bundle.json").read_text())
    assert manifest["features"]["audio"]["sha256"] == Encoder.open(encoders / "states").identity.sha256
    assert list(manifest["encoders"]) == ["audio"]


KILLED = """
import os, signal, sys
from runtimes.features import parts, plan
plan.BLOCK = 6
noted = parts.Parts.note
def note(self, block, record):
    noted(self, block, record)
    if block == 2:
        os.kill(os.getpid(), signal.SIGKILL)
parts.Parts.note = note
import cli
cli.main()
"""


@pytest.fixture
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plan, "BLOCK", 6)


def test_a_killed_run_goes_on_where_it_was_and_ends_with_the_same_bytes(
    mer: Mer, clips: Path, encoders: Path, small_blocks: None
) -> None:
    (clips / "wav" / "3.wav").write_bytes(b"nothing")
    command = ["features", clips / "clips.csv", "--encoder", f"audio={encoders}/states", "--out"]
    assert mer(*command, clips / "whole.parquet")[0] == 0
    words = [sys.executable, "-c", KILLED, *map(str, command), str(clips / "cut.parquet")]
    assert subprocess.run(words, cwd=ROOT, capture_output=True).returncode == -9
    parts = clips / "cut.parquet.parts"
    kept = {p.name: p.stat().st_mtime_ns for p in parts.glob("*.parquet")}
    assert sorted(kept) == ["000000.parquet", "000001.parquet"]
    assert not (clips / "cut.parquet").exists()
    code, said, err = mer(*command, clips / "cut.parquet")
    assert (code, "utterances 23, failed 1" in said) == (0, True)
    assert "blocks 3..5" in err
    assert (clips / "cut.parquet").read_bytes() == (clips / "whole.parquet").read_bytes()
    assert list(failed(clips / "failed.csv")) == ["c3"]
    assert not parts.exists()


def test_parts_of_another_request_are_refused_by_name(
    mer: Mer, clips: Path, encoders: Path, small_blocks: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = clips / "f.parquet"
    (clips / "wav" / "20.wav").unlink()
    command = ["features", clips / "clips.csv", "--out", out, "-q"]
    one, other = [["--encoder", f"audio={encoders}/{n}"] for n in ("states", "vector")]
    code, _, err = mer(*command, *one, "--strict")
    assert (code, "c20: " in err) == (2, True)
    code, _, err = mer(*command, *other)
    assert code == 2
    assert "f.parquet.parts holds what was done with other encoders: run that to its end, or pass --force" in err
    (clips / "clips.csv").write_text((clips / "clips.csv").read_text().replace("s2", "s1"))
    assert "done with other data:" in mer(*command, *one)[2]
    assert mer(*command, *other, "--force")[0] == 0
    assert samples(out)["c1"].inputs["audio"].shape == (1, 6)
    code, _, err = mer(*command, *other)
    assert (code, f"{out} exists: pass --force" in err) == (2, True)


def test_blocks_that_nothing_says_the_request_of_are_not_taken_over(
    mer: Mer, clips: Path, encoders: Path, small_blocks: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As a run leaves them that is killed while it removes the blocks of a finished data set."""
    out = clips / "f.parquet"

    with monkeypatch.context() as patch:
        patch.setattr(parts, "shutil", SimpleNamespace(rmtree=lambda folder: None))
        assert mer("features", clips / "clips.csv", "--encoder", f"audio={encoders}/vector", "--out", out)[0] == 0
    left = {p.name for p in out.with_name("f.parquet.parts").iterdir()}
    assert "000000.parquet" in left
    assert "request.json" not in left
    command = ["features", clips / "clips.csv", "--encoder", f"audio={encoders}/states", "--force", "--out"]
    assert mer(*command, out)[0] == mer(*command, clips / "whole.parquet")[0] == 0
    assert out.read_bytes() == (clips / "whole.parquet").read_bytes()
    assert not out.with_name("f.parquet.parts").exists()


def test_a_bad_file_is_a_row_and_a_silent_one_lacks_a_modality(mer: Mer, clips: Path, encoders: Path) -> None:
    rows = (clips / "clips.csv").read_text().splitlines()
    soundfile.write(clips / "wav" / "0.wav", np.zeros(RATE), RATE)
    (clips / "wav" / "1.wav").write_bytes((clips / "wav" / "1.wav").read_bytes()[:900])
    (clips / "wav" / "2.wav").unlink()
    for number, name in ((3, "../3.wav"), (4, "https://example.org/4.wav")):
        rows[number + 1] = rows[number + 1].replace(f"wav/{number}.wav", name)
    rows[6] = rows[6].replace("wav/5.wav", "")
    (clips / "clips.csv").write_text("\n".join(rows) + "\n")
    out = clips / "f.parquet"
    command = ["features", clips / "clips.csv", "--encoder", f"audio={encoders}/vector", "--out", out, "--json"]
    code, said, _ = mer(*command)
    assert code == 0
    assert json.loads(said) == {
        "out": str(out),
        "utterances": 20,
        "failed": 4,
        "failed_csv": str(clips / "failed.csv"),
        "missing": {"audio": 2},
    }
    reasons = failed(clips / "failed.csv")
    for name, reason in (
        ("c1", "was cut off"),
        ("c2", "No such file"),
        ("c3", "leads out of"),
        ("c4", "nothing is fetched: download it"),
    ):
        assert reason in reasons[name]
    assert list(reasons) == ["c1", "c2", "c3", "c4"]
    found = samples(out)
    assert "audio" not in found["c0"].inputs
    assert "audio" not in found["c5"].inputs
    assert not reasons.keys() & found.keys()
    code, _, err = mer(*command, "--strict", "--force")
    assert (code, "mer: c1: " in err) == (2, True)


def test_where_nothing_can_be_read_there_is_no_data_set(mer: Mer, clips: Path, encoders: Path) -> None:
    for file in (clips / "wav").iterdir():
        file.write_bytes(b"")
    out = clips / "f.parquet"
    code, _, err = mer("features", clips / "clips.csv", "--encoder", f"audio={encoders}/vector", "--out", out)
    assert (code, "none of 24 utterances could be read" in err, out.exists()) == (2, True, False)


def test_a_part_of_a_recording_is_read_by_its_times(mer: Mer, tmp_path: Path, encoders: Path) -> None:
    sound = noise(0, 3)
    soundfile.write(tmp_path / "call.wav", sound, RATE)
    lines = [
        {"id": "a", "recording": "call.wav", "start": 0.5, "end": 1.0},
        {"id": "b", "recording": "call.wav", "start": "0:00:01,500", "end": "2.5"},
        {"id": "c", "recording": "call.wav", "start": 9},
    ]
    (tmp_path / "d.jsonl").write_text(json.dumps({"dialogue": "d", "utterances": lines}) + "\n")
    command = ["features", tmp_path / "d.jsonl", "--encoder", f"audio={encoders}/vector", "--out", tmp_path / "f", "-q"]
    assert mer(*command)[0] == 0
    (dialogue,) = open_corpus(tmp_path / "f.parquet")
    stored = soundfile.read(tmp_path / "call.wav", dtype="float32")[0]
    with open_encoder(encoders / "vector") as encoding:
        wanted = np.stack(list(encoding.encode([stored[8000:16000], stored[24000:40000]])))
    assert dialogue.units == ("a", "b")
    np.testing.assert_array_equal(dialogue.inputs["audio"], wanted)
    assert "start 9.0 is past the end" in failed(tmp_path / "failed.csv")["c"]


def test_a_folder_of_recordings_is_a_data_set_without_labels(mer: Mer, clips: Path, encoders: Path) -> None:
    (clips / "wav" / "deeper").mkdir()
    soundfile.write(clips / "wav" / "deeper" / "x.flac", noise(1), RATE)
    (clips / "wav" / "notes.txt").write_text("not a recording")
    command = ["features", clips / "wav", "--encoder", f"audio={encoders}/vector", "--out", clips / "f", "-q"]
    assert mer(*command)[0] == 0
    found = samples(clips / "f.parquet")
    assert len(found) == CLIPS + 1
    assert (found["deeper/x.flac"].labels, found["deeper/x.flac"].inputs["audio"].shape) == (None, (1, 6))


def test_encoders_of_one_input_stand_side_by_side_where_their_steps_agree(
    mer: Mer, clips: Path, encoders: Path
) -> None:
    def run(*names: str) -> tuple[int, str, str]:
        chosen = [w for n in names for w in ("--encoder", f"audio={encoders}/{n}")]
        return mer("features", clips / "clips.csv", *chosen, "--out", clips / "f", "--force", "-q")

    assert run("states", "frames")[0] == 0
    array = samples(clips / "f.parquet")["c0"].inputs["audio"]
    assert array.shape == (6, 16)
    said = said_extractors(clips / "f.parquet", DataSpec())["audio"]
    assert (said.name, len(said.sha256)) == ("mfcc + log_mel", 64)
    code, _, err = run("vector", "states")
    assert (code, "audio: log_mel gives one vector and mfcc a sequence" in err) == (2, True)
    code, _, err = run("states", "finer")
    assert (code, "audio has 6 of mfcc and 28 of log_mel steps" in err) == (2, True)


def test_what_the_data_hold_already_passes_through_unchanged(mer: Mer, clips: Path, encoders: Path) -> None:
    units = np.random.default_rng(0).random((CLIPS, 5), dtype=np.float32)
    np.save(clips / "units.npy", units)
    (clips / "table.yaml").write_text(
        "table: clips.csv\nunit: utterance\nrecording: path\nsentence: transcript\nlabel: emotion\nsplit: split\n"
        "utterance: clip\nvision: {file: units.npy}\nextractors: {vision: OpenFace}\n"
    )
    command = ["features", clips, "--out", clips / "f.parquet", "-q", "--force", "--encoder"]
    assert mer(*command, f"audio={encoders}/states")[0] == 0
    found = samples(clips / "f.parquet")
    np.testing.assert_array_equal(np.concatenate([found[f"c{i}"].inputs["vision"] for i in range(CLIPS)]), units)
    assert {n: e.name for n, e in said_extractors(clips / "f.parquet", DataSpec()).items()} == {
        "vision": "OpenFace",
        "audio": "mfcc",
    }
    code, _, err = mer(*command, f"vision={encoders}/states")
    assert (code, f"reads sound: write audio={encoders}/states" in err) == (2, True)
    again = [
        "features",
        clips / "f.parquet",
        "--out",
        clips / "g.parquet",
        "-q",
        "--encoder",
        f"audio={encoders}/vector",
    ]
    code, _, err = mer(*again)
    assert (code, "has audio already: leave it out (--set data.audio=null)" in err) == (2, True)
    assert mer(*again, "--set", "data.audio=null")[0] == 0
    assert samples(clips / "g.parquet")["c3"].inputs["audio"].shape == (1, 6)


def test_the_times_of_one_sentence_are_told_from_none(mer: Mer, clips: Path, encoders: Path) -> None:
    text = (clips / "clips.csv").read_text().replace(",path,", ",place,")
    (clips / "clips.csv").write_text(text)
    code, _, err = mer("features", clips / "clips.csv", "--encoder", f"audio={encoders}/vector", "--out", clips / "f")
    assert code == 2
    assert "no utterance names a recording, of which audio is made: set data.recording" in err
    told = ["--set", "data.recording=place", "-q"]
    command = ["features", clips / "clips.csv", "--encoder", f"audio={encoders}/vector", "--out", clips / "f", *told]
    assert mer(*command)[0] == 0


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


def test_time_left_is_that_of_what_this_run_does() -> None:
    now = iter([0.0, 10.0, 40.0, 70.0])
    left = TimeLeft(1000, lambda: next(now))
    left.skip(400)
    assert left.text(400) == "time left unknown"
    assert left.text(460) == "4 min 30 s left"
    assert TimeLeft(1, lambda: 0.0).text(1) == "0 s left"


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


def test_pictures_of_a_video_are_a_sequence_and_a_sound_has_none(mer: Mer, tmp_path: Path, networks: Path) -> None:
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


def test_the_command_needs_no_torch_for_signals(clips: Path, encoders: Path) -> None:
    code = (
        "import sys, cli; sys.argv = ['mer', 'features', sys.argv[1], '--encoder', sys.argv[2], '--out', sys.argv[3]]\n"
        "try: cli.main()\n"
        "except SystemExit as stop: print([m for m in ('torch', 'transformers') if m in sys.modules], stop.code)"
    )
    words = [str(clips / "clips.csv"), f"audio={encoders}/vector", str(clips / "f.parquet")]
    done = subprocess.run([sys.executable, "-c", code, *words], cwd=ROOT, capture_output=True, text=True)
    assert done.stdout.splitlines()[-1] == "[] 0"


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


CONTAINERS = Path(os.environ.get("MER_SAMPLE_DATA", ROOT.parent / "shared" / "data")) / "media" / "containers"
BROKEN = {"zero_samples.wav", "not_audio_text.wav"}


@pytest.mark.skipif(not CONTAINERS.is_dir(), reason="no media files beside the repository")
def test_a_folder_of_odd_and_broken_files_ends_with_a_row_for_each_broken_one(
    mer: Mer, tmp_path: Path, encoders: Path
) -> None:
    command = ["features", CONTAINERS, "--encoder", f"audio={encoders}/vector", "--out", tmp_path / "f", "--json"]
    code, said, err = mer(*command)
    assert code == 0, err
    broken = {p.name for p in CONTAINERS.iterdir() if p.name.startswith("broken_")} | BROKEN
    # The last sample of this one lacks a byte: the others are read.
    broken -= {"broken_header_odd_data.wav"}
    assert failed(tmp_path / "failed.csv").keys() == broken
    assert json.loads(said)["missing"] == {"audio": 1}
    found = samples(tmp_path / "f.parquet")
    assert found.keys() == {p.name for p in CONTAINERS.iterdir() if p.suffix != ".md"} - broken
    assert "audio" not in found["video_only.mp4"].inputs


def test_a_compressed_recording_of_many_utterances_is_decoded_twice_and_its_parts_are_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    both = np.stack([noise(0, 4), noise(1, 4)], axis=1)
    soundfile.write(tmp_path / "call.mp3", both, RATE)
    soundfile.write(tmp_path / "call.wav", both, RATE)
    read: list[tuple[str, object]] = []

    def counted(path: Path, *span: float | None) -> Sound:
        read.append((path.name, span or None))
        return read_sound(path, *span)

    monkeypatch.setattr(sounds, "read_sound", counted)
    for name, times in (("call.mp3", 2), ("call.wav", 6)):
        kept = sounds.Sounds()
        for start in (0.0, 0.5, 1.25, 2.0, 3.0, 3.75):
            found = kept.read(Recording(name, "u", Reach(tmp_path), start, start + 0.4))
            wanted = read_sound(tmp_path / name, start, start + 0.4)
            np.testing.assert_array_equal(found.mono(RATE), wanted.mono(RATE))
        assert len([n for n, _ in read if n == name]) == times
        with pytest.raises(InputError, match="is past the end"):
            kept.read(Recording(name, "u", Reach(tmp_path), 9.0, None))
    assert sounds.Sounds(most=1000)._decoded(tmp_path / "call.mp3") is None


def test_failures_of_several_data_sets_stand_in_one_file_and_another_file_is_left_alone(
    mer: Mer, clips: Path, encoders: Path
) -> None:
    def run(out: str) -> tuple[int, str, str]:
        chosen = f"audio={encoders}/vector"
        return mer("features", clips / "clips.csv", "--encoder", chosen, "--out", clips / out, "--force", "-q")

    def rows() -> list[tuple[str, str]]:
        with (clips / "failed.csv").open() as stream:
            return [(row["data"], row["utterance"]) for row in csv.DictReader(stream)]

    (clips / "wav" / "1.wav").rename(clips / "1.wav")
    assert (run("f")[0], run("g")[0], rows()) == (0, 0, [("f.parquet", "c1"), ("g.parquet", "c1")])
    (clips / "1.wav").rename(clips / "wav" / "1.wav")
    assert (run("f")[0], rows()) == (0, [("g.parquet", "c1")])
    assert run("g")[0] == 0
    assert not (clips / "failed.csv").exists()
    (clips / "failed.csv").write_text("my,own\n")
    code, _, err = run("f")
    assert (code, "failed.csv is where failures are listed and holds something else" in err) == (2, True)
    assert (clips / "failed.csv").read_text() == "my,own\n"
