"""`mer features`: recordings and transcripts become a data set, whatever happens to the files."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from conftest import CONTAINERS, Mer
from noise_clips import CLIPS, RATE, failed, noise, samples, write_clips, write_encoders

from mer_export.data.formats.parquet.reader import source
from mer_export.data.open import open_corpus, said_extractors
from mer_export.data.spec import DataSpec
from mer_export.encoders.encoder import Encoder
from runtimes.encode import open_encoder

pytest.importorskip("pyarrow")
soundfile = pytest.importorskip("soundfile")


ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def encoders(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_encoders(tmp_path_factory.mktemp("encoders"))


@pytest.fixture
def clips(tmp_path: Path) -> Path:
    return write_clips(tmp_path)


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


def test_who_speaks_is_known_across_dialogues(mer: Mer, clips: Path, encoders: Path) -> None:
    (clips / "wav" / "0.wav").unlink()
    chosen = ["--encoder", f"audio={encoders}/vector", "-q"]
    assert mer("features", clips / "clips.csv", *chosen, "--out", clips / "f")[0] == 0
    spec = DataSpec()
    own, again, third = (clips / f"{n}.parquet" for n in "fgh")
    code, _, err = mer("data", "convert", own, "--out", again)
    assert code == 0, err
    for path in (own, again):
        said = {u.id: u.person for d in source(path, spec).dialogues() for u in d.utterances}
        assert said == {f"c{i}": f"s{i % 3}" for i in range(1, CLIPS)}
    assert mer("features", own, "--set", "data.audio=null", *chosen, "--out", third)[0] == 0
    indices = [[u.speaker for d in source(p, spec).dialogues() for u in d.utterances] for p in (own, third)]
    assert indices[0] == indices[1]
    assert not {s for s in indices[0] if isinstance(s, str)}, "a network is given the index, as of before"


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
    assert (code, "audio: log_mel gives one vector and mfcc gives a sequence" in err) == (2, True)
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


def test_the_command_needs_no_torch_for_signals(clips: Path, encoders: Path) -> None:
    code = (
        "import sys, cli; sys.argv = ['mer', 'features', sys.argv[1], '--encoder', sys.argv[2], '--out', sys.argv[3]]\n"
        "try: cli.main()\n"
        "except SystemExit as stop: print([m for m in ('torch', 'transformers') if m in sys.modules], stop.code)"
    )
    words = [str(clips / "clips.csv"), f"audio={encoders}/vector", str(clips / "f.parquet")]
    done = subprocess.run([sys.executable, "-c", code, *words], cwd=ROOT, capture_output=True, text=True)
    assert done.stdout.splitlines()[-1] == "[] 0"


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
