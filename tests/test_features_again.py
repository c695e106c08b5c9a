"""`mer features` once more: after a kill, after failures, for another request."""

from __future__ import annotations

import csv
import json
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from conftest import Mer
from noise_clips import failed, samples, write_clips, write_encoders

from mer_export.encoders.encoder import Encoder
from mer_export.encoders.reading import Reading
from mer_export.progress import TimeLeft
from runtimes.backends.session import SessionOptions
from runtimes.features import encoded, parts, plan, run
from runtimes.features.clips import open_clips
from runtimes.features.run import make_features

pytest.importorskip("pyarrow")
soundfile = pytest.importorskip("soundfile")


ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def encoders(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_encoders(tmp_path_factory.mktemp("encoders"))


@pytest.fixture
def clips(tmp_path: Path) -> Path:
    return write_clips(tmp_path)


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
    mer: Mer, clips: Path, encoders: Path, small_blocks: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    (clips / "wav" / "3.wav").write_bytes(b"nothing")
    command = ["features", clips / "clips.csv", "--encoder", f"audio={encoders}/states", "--out"]
    together: list[list[str]] = []
    through = encoded.Encoder._encoded
    monkeypatch.setattr(
        encoded.Encoder,
        "_encoded",
        lambda e, reads: together.append([r.utterance.id for r in reads]) or through(e, reads),
    )
    assert mer(*command, clips / "whole.parquet")[0] == 0
    whole = together[:]
    words = [sys.executable, "-c", KILLED, *map(str, command), str(clips / "cut.parquet")]
    assert subprocess.run(words, cwd=ROOT, capture_output=True).returncode == -9
    parts = clips / "cut.parquet.parts"
    kept = {p.name: p.stat().st_mtime_ns for p in parts.glob("*.parquet")}
    assert sorted(kept) == ["000000.parquet", "000001.parquet"]
    assert not (clips / "cut.parquet").exists()
    code, said, err = mer(*command, clips / "cut.parquet")
    assert (code, "utterances 23, failed 1" in said) == (0, True), err
    assert "blocks 2..5" in err, "the first one lacks c3, which is tried again"
    assert together[len(whole) :] == [["c3"], *whole[2:]], "a network gets the same batches"
    assert (clips / "cut.parquet").read_bytes() == (clips / "whole.parquet").read_bytes()
    assert list(failed(clips / "failed.csv")) == ["c3"]
    assert sorted(p.name for p in parts.iterdir()) == ["finished.json", "lock", "request.json"]


def test_parts_of_another_request_are_refused_by_name(
    mer: Mer, clips: Path, encoders: Path, small_blocks: None
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
    assert "done with other labels:" in mer(*command, *one, "--set", "data.label_names=[joy, anger]")[2]
    (clips / "clips.csv").write_text((clips / "clips.csv").read_text().replace("s2", "s1"))
    assert "done with other data:" in mer(*command, *one)[2]
    assert mer(*command, *other, "--force")[0] == 0
    assert samples(out)["c1"].inputs["audio"].shape == (1, 6)
    code, _, err = mer(*command, *one)
    assert (code, f"{out} exists and was made with other encoders: name another file" in err) == (2, True)


@pytest.mark.parametrize("cut", [False, True], ids=["after the end", "after a kill"])
def test_what_failed_is_tried_again_and_nothing_else_is(
    mer: Mer, clips: Path, encoders: Path, small_blocks: None, monkeypatch: pytest.MonkeyPatch, cut: bool
) -> None:
    command = ["features", clips / "clips.csv", "--encoder", f"audio={encoders}/states", "-q", "--out"]
    assert mer(*command, clips / "good.parquet")[0] == 0
    out, broken = clips / "f.parquet", ("c3", "c20")
    whole = {n: (clips / "wav" / f"{n[1:]}.wav").read_bytes() for n in broken}
    for name in broken:
        (clips / "wav" / f"{name[1:]}.wav").write_bytes(b"")
    assert mer(*command, out)[0] == 0
    first = samples(out)
    assert list(failed(clips / "failed.csv")) == list(broken)
    (clips / "wav" / "3.wav").write_bytes(whole["c3"])
    read: list[str] = []
    raws = Reading.raws
    monkeypatch.setattr(Reading, "raws", lambda self, e: read.append(self.utterance.id) or raws(self, e))
    if cut:
        request = run_request(clips, encoders, out)
        with monkeypatch.context() as patch:
            patch.setattr(run._Run, "_join", interrupted)
            with pytest.raises(KeyboardInterrupt):
                make_features(request)
    assert mer(*command, out)[0] == 0
    assert (read[:2], set(read)) == (["c3", "c20"], {"c3", "c20"})
    assert list(failed(clips / "failed.csv")) == ["c20"]
    second = samples(out)
    assert second.keys() == first.keys() | {"c3"}
    for name, sample in first.items():
        np.testing.assert_array_equal(second[name].inputs["audio"], sample.inputs["audio"])
    (clips / "wav" / "20.wav").write_bytes(whole["c20"])
    assert mer(*command, out)[0] == 0
    assert out.read_bytes() == (clips / "good.parquet").read_bytes()
    assert not (clips / "failed.csv").exists()
    assert not out.with_name("f.parquet.parts").exists()
    code, _, err = mer(*command, out)
    assert (code, f"{out} exists: pass --force" in err) == (2, True)


def interrupted(self: object) -> None:
    raise KeyboardInterrupt


def run_request(clips: Path, encoders: Path, out: Path) -> run.Request:
    chosen = {"audio": [Encoder.open(encoders / "states")]}
    how = {"backend": None, "options": SessionOptions("cpu", None), "batch": None, "precision": None}
    return run.Request(open_clips(clips / "clips.csv"), chosen, out, options=how)


def test_data_that_change_while_they_are_read_end_the_run(
    mer: Mer, clips: Path, encoders: Path, small_blocks: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    data, note = clips / "d.jsonl", parts.Parts.note

    def say(label: str) -> None:
        told = ({"id": f"c{i}", "recording": f"wav/{i}.wav", "label": label} for i in range(24))
        data.write_text("".join(json.dumps({"dialogue": u["id"], "utterances": [u]}) + "\n" for u in told))

    say("joy")
    monkeypatch.setattr(parts.Parts, "note", lambda own, *said: note(own, *said) or say("anger"))
    command = ["features", data, "--encoder", f"audio={encoders}/vector", "-q", "--out", clips / "f"]
    code, _, err = mer(*command)
    assert (code, "d.jsonl was written while it was read: run the command again" in err) == (2, True)
    assert not (clips / "f.parquet").exists()
    assert "done with other data and labels:" in mer(*command)[2]


def test_a_data_set_that_was_changed_is_not_completed(mer: Mer, clips: Path, encoders: Path) -> None:
    command = ["features", clips / "clips.csv", "--encoder", f"audio={encoders}/states", "-q", "--out", clips / "f"]
    (clips / "wav" / "3.wav").unlink()
    assert mer(*command)[0] == 0
    with (clips / "f.parquet").open("ab") as stream:
        stream.write(b" ")
    code, _, err = mer(*command)
    assert (code, "f.parquet is not the file that lacks what" in err) == (2, True)
    assert mer(*command, "--force")[0] == 0


def test_time_left_is_that_of_what_this_run_does() -> None:
    now = iter([0.0, 10.0, 40.0, 70.0])
    left = TimeLeft(1000, lambda: next(now))
    left.skip(400)
    assert left.text(400) == "time left unknown"
    assert left.text(460) == "4 min 30 s left"
    assert TimeLeft(1, lambda: 0.0).text(1) == "0 s left"


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
