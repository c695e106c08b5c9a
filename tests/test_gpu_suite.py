"""The suite for GPUs: pieces that fail or cannot be are rows, runs continue, and only runs of one device are merged."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.gpu import command_line, rows
from benchmarks.gpu.page import markdown
from benchmarks.gpu.rows import Results, SkippedError
from mer_export.errors import UsageError

torch = pytest.importorskip("torch")
ROOT = Path(__file__).parents[1]
SPREAD = {"median": 2.0, "q25": 1.9, "q75": 2.1}
TIMED = {"p50_ms": 1.0, "p90_ms": 2.0, "first_ms": 9.0, "items_per_s": 1000.0, "ratio": SPREAD, "precision": "fp32"}


def results(path: Path, device: str = "cpu") -> Results:
    return Results(path, "a command", device)


def test_what_breaks_is_a_row_with_its_reason_and_the_next_piece_runs(tmp_path: Path) -> None:
    found = results(tmp_path / "run.json")
    with found.piece(part="inference", network="a", way="all"):
        raise RuntimeError("no kernel image\nmore")
    with found.piece(part="inference", network="b", way="all"):
        raise SkippedError("no such device")
    with found.piece(part="inference", network="c"):
        found.add([{"way": "torch fp32", **TIMED}], part="inference", network="c")
    written = json.loads((tmp_path / "run.json").read_text())["rows"]
    assert [(r["status"], r.get("reason")) for r in written] == [
        ("failed", "RuntimeError: no kernel image"),
        ("skipped", "no such device"),
        ("measured", None),
    ]


def test_a_run_goes_on_where_its_file_ends_and_does_nothing_again(tmp_path: Path) -> None:
    first = results(tmp_path / "run.json")
    first.add([{"way": "torch fp32", **TIMED}], part="inference", network="a", batch=1)
    first.add([{"way": "x", "status": "failed", "reason": "broken"}], part="inference", network="a", batch=8)
    second = results(tmp_path / "run.json")
    assert second.has(part="inference", network="a", batch=1)
    assert not second.has(part="inference", network="a", batch=8)
    second.add([{"way": "x", **TIMED}], part="inference", network="a", batch=8)
    assert [r["status"] for r in second.rows] == ["measured", "measured"]
    assert len(second.runs) == 2


def test_a_system_that_was_cut_short_goes_on_with_what_is_missing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    done: list[str] = []
    answers = [{"label": "joy", "score": 1.0}]

    def answer(bundle: Path, data: Path, kept: Path, runtime: str, device: str) -> tuple[list[dict], float]:
        return answers, 1.0

    monkeypatch.setattr(command_line, "_mer", lambda *words: done.append(words[3]))
    monkeypatch.setattr(command_line, "_answers", answer)
    monkeypatch.setattr(command_line, "synthetic_data", lambda kept, system: kept)
    (tmp_path / "emt").mkdir()
    (tmp_path / "emt" / "bundle.json").touch()
    found = results(tmp_path / "run.json")
    for name in ("torch", "torchscript"):
        found.add([{"way": name, "labels_changed": 0}], part="mer infer", network="emt")
    command_line.infer(found, tmp_path, ["emt"])
    assert done == ["onnx", "exported_program"]
    assert {r["way"] for r in found.rows if r["status"] == "measured"} == set(command_line.RUNTIMES)
    command_line.infer(found, tmp_path, ["emt"])
    assert done == ["onnx", "exported_program"]


def test_no_work_begins_after_the_minutes_that_were_given(tmp_path: Path) -> None:
    assert Results(tmp_path / "a.json", "", "cpu", minutes=1).in_time
    assert not Results(tmp_path / "b.json", "", "cpu", minutes=0).in_time


def test_runs_of_one_device_are_merged_later_rows_over_earlier_ones(tmp_path: Path) -> None:
    for name, p50 in (("a", 1.0), ("b", 3.0)):
        results(tmp_path / name).add([{"way": "w", **TIMED, "p50_ms": p50}], part="inference", network="n", batch=1)
    merged = rows.merge([tmp_path / "a", tmp_path / "b"])
    assert [r["p50_ms"] for r in merged["rows"]] == [3.0]
    results(tmp_path / "c", "cuda").write()
    with pytest.raises(UsageError, match="different devices"):
        rows.merge([tmp_path / "a", tmp_path / "c"])


def test_the_page_says_what_was_measured_and_why_the_rest_was_not(tmp_path: Path) -> None:
    found = results(tmp_path / "run.json")
    found.add([{"way": "product fp32", "gflops": 50_000.0}], part="device")
    about = {"part": "inference", "network": "cmerc_meld", "bucket": "utterances33", "batch": 8}
    found.add([{"way": "torch fp32", **TIMED, "gflops": 25_000.0}], **about)
    found.add([{"way": n, "status": "failed", "reason": "no kernel"} for n in ("a", "b")], **about)
    page = markdown(rows.merge([found.path]))
    assert "**cmerc_meld, utterances33, batch 8**" in page
    assert "| torch fp32 | 1.000 | 2.000 | 9 | 1000 | 2.00 [1.90, 2.10] | 50.0% |" in page
    assert "- a, b: failed: no kernel" in page
    assert "A rehearsal on the CPU" in page


def test_without_a_gpu_the_suite_says_that_nothing_was_measured(tmp_path: Path) -> None:
    if torch.cuda.is_available():
        pytest.skip("this machine has a GPU")
    command = [sys.executable, "-m", "benchmarks.gpu", "measure", str(tmp_path), "--out", str(tmp_path / "run.json")]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 5
    assert "nothing was measured" in done.stderr
    assert "CUDA" in done.stderr
    assert not (tmp_path / "run.json").exists()
