"""The suite for GPUs: pieces that fail or cannot be are rows, runs continue, and only runs of one device are merged."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from benchmarks.gpu import __main__ as suite
from benchmarks.gpu import command_line, feeding, inference, prepare, rows, training
from benchmarks.gpu.page import markdown
from benchmarks.gpu.rows import Results, SkippedError
from benchmarks.gpu.timed import timed
from mer_export.errors import NotAvailableError, UsageError
from mer_export.exporters import export_formats

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


def test_a_failure_of_the_whole_goes_when_some_of_it_is_measured(tmp_path: Path) -> None:
    found = results(tmp_path / "run.json")
    for about in ({"network": "a"}, {"network": "a", "batch": 8}, {"network": "b", "batch": 8}):
        found.add([{"status": "failed", "reason": "no memory"}], part="inference", way=rows.ALL, **about)
    found.add([{"way": "torch fp32", **TIMED}], part="inference", network="a", batch=8)
    assert [(r["network"], r["way"]) for r in found.rows] == [("b", rows.ALL), ("a", "torch fp32")]


def test_an_export_that_was_made_later_is_no_longer_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(inference.Bundle, "open", lambda root, trust: None)
    monkeypatch.setattr(inference, "_in_bucket", lambda *arguments: None)
    found = results(tmp_path / "run.json")
    for status in ("skipped", "made"):
        row = {"way": "aot_inductor fp32", "bucket": "steps20", "status": status, "reason": "no GPU", "said": []}
        (tmp_path / "mtee_rnn-exports.json").write_text(json.dumps([row]))
        inference.speed(found, tmp_path, "mtee_rnn", [1], 1)
        assert [r["reason"] for r in found.rows] == ["it was not exported: no GPU"] * (status == "skipped")


def test_a_file_goes_on_with_the_device_that_it_is_of(tmp_path: Path) -> None:
    results(tmp_path / "run.json").write()
    with pytest.raises(UsageError, match=r"different devices.*run.json goes on with its own alone"):
        results(tmp_path / "run.json", "cuda")


def test_what_was_timed_in_turns_is_replaced_as_a_whole(tmp_path: Path) -> None:
    about = {"part": "inference", "network": "n", "batch": 1}
    results(tmp_path / "a").add([{"way": w, **TIMED} for w in ("torch fp32", "onnxruntime fp32")], **about)
    results(tmp_path / "b").add([{"way": "torch fp32", **TIMED, "p50_ms": 9.0}], **about)
    merged = rows.merge([tmp_path / "a", tmp_path / "b"])["rows"]
    assert [(r["way"], r["p50_ms"]) for r in merged] == [("torch fp32", 9.0)]


def test_last_words_stay_in_the_file_of_a_run(tmp_path: Path) -> None:
    found = results(tmp_path / "run.json")
    found.add([{"way": "w", "stage": "ran", "ended_by": "signal 11", "said": ["at /usr/lib/x"]}], part="packages")
    assert found.rows[0]["said"]
    assert "said" not in rows.merge([found.path])["rows"][0]


def broken() -> None:
    raise MemoryError("no memory left")


def test_a_call_that_breaks_is_a_row_and_the_others_are_timed() -> None:
    calls = {"torch fp32": int, "broken": broken, "graph": int}
    found = {r["way"]: r for r in timed(calls, "torch fp32", dict.fromkeys(calls, "fp32"), 8, 2, None)}
    assert (found["broken"]["status"], found["broken"]["reason"]) == ("failed", "MemoryError: no memory left")
    assert found["torch fp32"]["ratio"]["median"] == 1.0
    assert found["graph"]["items_per_s"] == 8000 / found["graph"]["p50_ms"]


def test_without_the_base_nothing_is_a_ratio_to_another_way(tmp_path: Path) -> None:
    calls = {"torch fp32": broken, "graph": int}
    found = results(tmp_path / "run.json")
    found.add(timed(calls, "torch fp32", dict.fromkeys(calls, "fp32"), 1, 2, None), part="inference", network="n")
    assert [(r["way"], "ratio" in r) for r in found.rows] == [("torch fp32", False), ("graph", False)]
    page = markdown(rows.merge([found.path]))
    assert "The fastest ways" not in page
    assert "- torch fp32: failed: MemoryError: no memory left" in page


def test_a_part_of_a_step_begins_when_the_device_is_done_with_what_was_before(monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[str] = []
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: said.append("wait"))
    feeding.Clock("cuda").timed("forward", lambda: said.append("forward"))()
    assert said == ["wait", "forward", "wait"]


def test_an_export_that_ends_its_process_leaves_a_row_for_all_that_was_to_be_made(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def export(bundle: Any, format: str, bucket: Any, precision: str, device: str) -> None:
        if (format, precision) == ("torchscript", "fp32"):
            raise NotAvailableError("no such device")
        if (format, precision) == ("onnx", "fp16"):
            raise KeyboardInterrupt

    monkeypatch.setattr(prepare, "export_variant", export)
    with pytest.raises(KeyboardInterrupt):
        prepare.prepare_here(tmp_path, "mtee_rnn", "cuda")
    found = {r["way"]: (r["status"], r.get("reason")) for r in prepare.exports_of(tmp_path, "mtee_rnn")}
    assert found.keys() == {
        f"{name} {p}" for name, f in export_formats().items() for p in prepare.PRECISIONS if p in f.precisions
    }
    assert found["torchscript fp32"] == ("skipped", "NotAvailableError: no such device")
    assert found["onnx fp32"] == ("made", None)
    assert found["onnx fp16"] == found["aot_inductor fp32"] == ("failed", prepare.ENDED)


def test_data_that_were_made_by_half_are_made_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def half(system: str, dataset: str, out: Path, dialogues: int) -> None:
        out.mkdir()
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(training, "synthesise", half)
        with pytest.raises(KeyboardInterrupt):
            training.synthetic_data(tmp_path / "kept", "mtee")
    assert not any((tmp_path / "kept").iterdir())
    monkeypatch.setattr(training, "synthesise", lambda system, dataset, out, dialogues: out.mkdir())
    assert training.synthetic_data(tmp_path / "kept", "mtee").is_dir()


def test_a_runtime_that_is_missing_is_left_out_and_one_that_breaks_has_failed(monkeypatch: pytest.MonkeyPatch) -> None:
    for status, kind in ((NotAvailableError.exit_code, NotAvailableError), (3, RuntimeError)):
        ended = [sys.executable, "-c", f"import sys; print('why', file=sys.stderr); sys.exit({status})"]
        monkeypatch.setattr(command_line, "module_command", lambda *words, ended=ended: ended)
        with pytest.raises(kind, match="why"):
            command_line._mer("infer")


def test_without_a_prepared_network_nothing_is_measured_in_silence(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    asked = ["measure", str(tmp_path), "--out", str(tmp_path / "run.json"), "--device", "cpu", "--part", "inference"]
    with pytest.raises(SystemExit) as ended:
        suite.main(asked)
    assert ended.value.code == UsageError.exit_code
    assert "has no network: run prepare first" in capsys.readouterr().err


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
    assert "- training run: all" in page
    assert "- inference: cmerc_iemocap, cmerc_meld in utterances16, emt_mosi, " in page


def test_without_a_gpu_the_suite_says_that_nothing_was_measured(tmp_path: Path) -> None:
    if torch.cuda.is_available():
        pytest.skip("this machine has a GPU")
    command = [sys.executable, "-m", "benchmarks.gpu", "measure", str(tmp_path), "--out", str(tmp_path / "run.json")]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 5
    assert "nothing was measured" in done.stderr
    assert "CUDA" in done.stderr
    assert not (tmp_path / "run.json").exists()
