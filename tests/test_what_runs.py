"""Commands say what will run and what ran: dry runs, summaries, the choice of a runtime, output as it comes."""

from __future__ import annotations

import csv
import io
import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import Mer
from rich.console import Console
from small_bundle import make_bundle, other_bytes

import cli
from mer_export.bundle import Bundle
from mer_export.data.open import open_corpus
from mer_export.data.synthetic import synthesise
from mer_export.exporters import export_variant
from mer_export.progress import Bar, Lines, Progress, progress_unless
from mer_export.task import Task, shortest
from runtimes.backends import table
from runtimes.backends.session import SessionOptions
from runtimes.pages.card import card
from runtimes.pages.report import content
from runtimes.parity.report import ParityReport
from runtimes.predict import opening
from runtimes.predict.opening import installed_backend, open_predictor
from runtimes.predict.predictor import Predictor

ROOT = Path(__file__).parent.parent
SMALL = Path(__file__).parent / "data"
BUNDLE, DIALOGUES = SMALL / "bundles" / "cmerc", SMALL / "small" / "dialogues.jsonl"
UNITS = {"train": 42, "test": 26}


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    """A copy to write to."""
    return Path(shutil.copytree(BUNDLE, tmp_path / "bundle"))


def ok(mer: Mer, *words: str | Path) -> Any:
    code, out, err = mer(*words, "--json")
    assert code == 0, err
    return json.loads(out)


def files(folder: Path) -> dict[str, bytes]:
    return {str(p): p.read_bytes() for p in folder.rglob("*") if p.is_file() and p.name != ".lock"}


def test_the_summary_of_infer_says_what_answered(mer: Mer, tmp_path: Path) -> None:
    found = ok(mer, "infer", BUNDLE, DIALOGUES, "-o", tmp_path / "o.jsonl", "--precision", "int8")
    names = ["onnx-int8-utterances4-bdynamic", "onnx-int8-utterances8-bdynamic"]
    assert (found["runtime"], found["precision"], found["variants"]) == ("onnxruntime", "int8", names)
    code, out, _ = mer("infer", BUNDLE, DIALOGUES, "-o", tmp_path / "p.jsonl", "--runtime", "torch")
    assert (code, "runtime torch, precision fp32, variants eager" in out) == (0, True)


def test_only_variants_that_answered_are_named() -> None:
    with Predictor(Bundle.open(BUNDLE), "onnxruntime") as running:
        assert running.answered_by == []
        narrow = [s for s in open_corpus(DIALOGUES) if len(s.units) <= 4]
        list(running.predict(narrow))
        assert running.answered_by == ["onnx-fp32-utterances4-bdynamic"]


def test_a_dash_prints_the_rows_and_nothing_else(mer: Mer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    code, out, err = mer("infer", BUNDLE, DIALOGUES, "--out", "-", "--json")
    assert code == 0
    assert json.loads(err)["units"] == sum(UNITS.values())
    ok(mer, "infer", BUNDLE, DIALOGUES, "--out", tmp_path / "o.jsonl")
    assert out == (tmp_path / "o.jsonl").read_text()
    assert not Path("-").exists()


def test_a_reader_that_has_seen_enough_ends_the_stream_well() -> None:
    command = (
        f"{sys.executable} {ROOT / 'cli.py'} infer {BUNDLE} {DIALOGUES} -o - -q | head -1; echo ${{PIPESTATUS[0]}}"
    )
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True)
    row, code = done.stdout.splitlines()
    assert (json.loads(row)["unit"], code) == ("d0/0", "0")


def test_folders_of_the_output_are_made(mer: Mer, tmp_path: Path) -> None:
    out = tmp_path / "new" / "deep" / "o.jsonl"
    ok(mer, "infer", BUNDLE, DIALOGUES, "--out", out)
    assert len(out.read_text().splitlines()) == sum(UNITS.values())


def rows_of(path: Path) -> list[dict[str, Any]]:
    if path.suffix == ".parquet":
        from pyarrow import parquet

        return list(parquet.read_table(path).to_pylist())
    if path.suffix == ".csv":
        return list(csv.DictReader(io.StringIO(path.read_text())))
    return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.mark.parametrize("ending", ["jsonl", "csv", "parquet"])
def test_split_and_gold_are_added_where_they_are_asked_for(mer: Mer, tmp_path: Path, ending: str) -> None:
    plain, both = tmp_path / f"plain.{ending}", tmp_path / f"both.{ending}"
    ok(mer, "infer", BUNDLE, DIALOGUES, "--out", plain)
    ok(mer, "infer", BUNDLE, DIALOGUES, "--out", both, "--with", "split,gold")
    corpus = open_corpus(DIALOGUES)
    names = corpus.info["labels"]
    wanted = [
        (unit, split, names[label])
        for split, samples in corpus.splits.items()
        for s in samples
        for unit, label in zip(s.units, s.labels, strict=True)
    ]
    assert sorted((r["unit"], r["split"], r["gold"]) for r in rows_of(both)) == sorted(wanted)
    assert [{n: v for n, v in r.items() if n not in ("split", "gold")} for r in rows_of(both)] == rows_of(plain)


def test_gold_is_a_score_in_a_regression_and_empty_where_it_is_unknown(mer: Mer, tmp_path: Path) -> None:
    data = tmp_path / "d.jsonl"
    utterances = [{"audio": [[0.1] * 5] * 3, "score": 1.4}, {"audio": [[0.1] * 5] * 3, "score": None}]
    data.write_text('{"unit": "utterance"}\n' + json.dumps({"dialogue": "d", "utterances": utterances}) + "\n")
    ok(mer, "infer", SMALL / "bundles" / "emt", data, "--out", tmp_path / "o.jsonl", "--with", "gold")
    assert [r["gold"] for r in rows_of(tmp_path / "o.jsonl")] == [1.4, None]


def test_gold_of_several_labels_are_those_that_hold() -> None:
    task = Task(kind="multilabel", labels=("a", "b", "c"))
    labels = np.asarray([[1, 0, 1], [0, 0, 0], [np.nan] * 3], dtype=np.float32)
    assert task.gold(labels) == [("a", "c"), (), None]


def test_a_column_that_does_not_exist_is_named(mer: Mer, tmp_path: Path) -> None:
    code, _, err = mer("infer", BUNDLE, DIALOGUES, "--out", tmp_path / "o.csv", "--with", "split,speaker")
    assert (code, "--with speaker: there are split and gold" in err) == (2, True)


def test_numbers_have_the_digits_of_float32_and_no_more(mer: Mer, tmp_path: Path) -> None:
    values = np.random.default_rng(0).random(2000, dtype=np.float32)
    for value, short in zip(values, shortest(values), strict=True):
        assert np.float32(short) == value
        assert len(repr(short).strip("0.")) <= 9
    ok(mer, "infer", BUNDLE, DIALOGUES, "--out", tmp_path / "o.jsonl")
    for row in rows_of(tmp_path / "o.jsonl"):
        found = list(row["probabilities"].values())
        assert found == shortest(np.asarray(found, dtype=np.float32))
        assert sum(found) == pytest.approx(1, abs=1e-6)


DRY = {
    "infer": ["infer", "{bundle}", "{data}", "--out", "{new}.jsonl"],
    "eval": ["eval", "{bundle}", "--data", "{data}"],
    "parity": ["parity", "{bundle}", "--data", "{data}"],
    "bench": ["bench", "{bundle}", "--data", "{data}"],
    "tune": ["tune", "{bundle}", "--data", "{data}"],
    "export": ["export", "{bundle}", "--data", "{data}", "--format", "torchscript"],
}


@pytest.mark.parametrize("command", DRY)
def test_a_dry_run_changes_nothing_and_reads_the_data(mer: Mer, bundle: Path, tmp_path: Path, command: str) -> None:
    places = {"bundle": bundle, "data": DIALOGUES, "new": tmp_path / "new"}
    words = [word.format(**places) for word in DRY[command]]
    before = files(tmp_path)
    assert ok(mer, *words, "--dry-run")["command"] == command
    assert mer(*words, "--dry-run")[1].startswith(f"{command}:\n  bundle: {bundle}\n")
    assert files(tmp_path) == before
    damaged = tmp_path / "damaged.jsonl"
    damaged.write_text(DIALOGUES.read_text() + '{"dialogue": "x"}\n')
    words = [word.format(**places | {"data": damaged}) for word in DRY[command]]
    code, _, err = mer(*words, "--dry-run")
    assert (code, "damaged.jsonl: line" in err) == (2, True)


@pytest.mark.parametrize("command", ["infer", "eval"])
def test_a_dry_run_says_what_the_run_then_does(mer: Mer, bundle: Path, tmp_path: Path, command: str) -> None:
    words = [w.format(bundle=bundle, data=DIALOGUES, new=tmp_path / "new") for w in DRY[command]]
    planned, found = ok(mer, *words, "--split", "test", "--dry-run"), ok(mer, *words, "--split", "test")
    for name in ("runtime", "precision", "units", "features"):
        assert planned[name] == found[name], name
    assert [b["variant"] for b in planned["buckets"].values()] == found["variants"]
    assert sum(b["samples"] for b in planned["buckets"].values()) == planned["samples"]
    assert planned["labelled"] == UNITS["test"]


def test_a_dry_run_stops_where_the_run_would(mer: Mer, bundle: Path, tmp_path: Path) -> None:
    words = ["infer", bundle, DIALOGUES, "--out", tmp_path / "o.jsonl", "--dry-run"]
    assert mer(*words, "--device", "cuda", "--runtime", "openvino")[0] == 5
    long = tmp_path / "long.jsonl"
    utterance = {"text": [[0.1] * 8] * 2, "audio": [0.1] * 5, "vision": [0.1] * 4, "speaker": 0}
    long.write_text(json.dumps({"dialogue": "d", "utterances": [utterance] * 9}) + "\n")
    words[2] = long
    code, _, err = mer(*words)
    assert (code, "--overflow window|truncate" in err) == (2, True)
    planned = ok(mer, *words, "--overflow", "truncate")
    assert (planned["units"], planned["without_prediction"]) == (9, 1)
    (tmp_path / "o.jsonl").write_text("")
    code, _, err = mer(*words, "--overflow", "truncate")
    assert (code, "pass --force" in err) == (2, True)


def test_a_dry_run_of_training_says_what_it_trains_on_and_which_encoders_are_missing(mer: Mer, tmp_path: Path) -> None:
    synthesise("emt", "mosi", tmp_path / "data", 20, seed=0)
    words = ["train", "emt", "--preset", "mosi", "--data", tmp_path / "data", "--out", tmp_path / "run", "--dry-run"]
    words += ["--set", "batch=2", "--set", "protocol.accumulate=2"]
    planned = ok(mer, *words)
    items = {n: len(s) for n, s in open_corpus(tmp_path / "data").splits.items()}
    assert {n: s["items"] for n, s in planned["plan"]["splits"].items()} == items
    assert planned["plan"]["training"]["items"] == items["train"]
    assert planned["plan"]["training"]["steps_per_epoch"] == items["train"] // 2 // 2, "one item left over joins"
    assert planned["plan"]["encoders"]["protocol.text_encoder"].startswith("missing: set it to")
    planned = ok(mer, *words, "--set", "protocol.text_encoder=random")
    assert planned["plan"]["encoders"] == {"protocol.text_encoder": "random weights"}
    nowhere = tmp_path / "nowhere"
    planned = ok(mer, *words, "--set", f"protocol.text_encoder={nowhere}")
    assert planned["plan"]["encoders"]["protocol.text_encoder"] == f"missing: {nowhere} does not exist"
    code, _, err = mer(*words, "--set", "model.audio_dim=6")
    assert (code, "the model was made for 6" in err) == (2, True)
    assert not (tmp_path / "run").exists()


def test_a_dry_run_of_an_import_reads_the_checkpoint(mer: Mer, tmp_path: Path) -> None:
    import torch
    from small_bundle import CONFIG

    from mer_export import registry
    from mer_export.weights import export_weights

    system = registry.get("cmerc")
    config = system.parse(CONFIG)
    state = export_weights(system.build(config), registry.resolve(system.weights), config)
    torch.save(state, tmp_path / "c.pt")
    sets = [w for n, v in CONFIG.items() for w in ("--set", f"model.{n}={json.dumps(v)}")]
    words = ["import", "cmerc", tmp_path / "c.pt", "--preset", "m3net/meld", *sets, "--out"]
    planned = ok(mer, *words, tmp_path / "b", "--dry-run")
    assert not (tmp_path / "b").exists()
    made = ok(mer, *words, tmp_path / "made")
    assert {n: planned[n] for n in made if n != "bundle"} == {n: v for n, v in made.items() if n != "bundle"}
    state.pop("smax_fc.bias")
    torch.save(state, tmp_path / "c.pt")
    code, _, err = mer(*words, tmp_path / "b", "--dry-run")
    assert (code, "missing smax_fc.bias" in err) == (2, True)


def without(monkeypatch: pytest.MonkeyPatch, *names: str) -> None:
    """Nothing of these is installed."""

    def problem(name: str, options: SessionOptions | None = None) -> str | None:
        return f"{name} is not installed" if name in names else table.backend_problem(name, options)

    monkeypatch.setattr(opening, "backend_problem", problem)


@pytest.mark.parametrize(
    ("missing", "precision", "chosen"),
    [
        ((), "fp32", "onnxruntime"),
        ((), "int8", "onnxruntime"),
        ((), "bf16", "openvino"),
        (("onnxruntime",), "fp32", "openvino"),
        (("onnxruntime", "openvino"), "fp32", "exported_program"),
        (("onnxruntime", "openvino", "exported_program", "torchscript"), "fp32", "torch"),
        (("onnxruntime", "openvino", "exported_program", "torchscript", "torch"), "fp32", "onnxruntime"),
    ],
)
def test_what_is_installed_answers(
    monkeypatch: pytest.MonkeyPatch, missing: tuple[str, ...], precision: str, chosen: str
) -> None:
    without(monkeypatch, *missing)
    assert installed_backend(Bundle.open(BUNDLE), SessionOptions(), precision) == chosen


def test_what_was_never_exported_is_answered_by_pytorch(tmp_path: Path) -> None:
    with open_predictor(make_bundle(tmp_path / "bundle"), None, SessionOptions()) as running:
        assert running.backend == "torch"


def test_eval_needs_no_torch_where_something_else_is_installed() -> None:
    code = "import sys; sys.modules['torch'] = None; import cli; cli.main()"
    words = ["eval", str(BUNDLE), "--data", str(DIALOGUES), "--json"]
    done = subprocess.run([sys.executable, "-c", code, *words], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["runtime"] == "onnxruntime"


def test_eval_takes_what_is_too_long_as_infer_does(mer: Mer, bundle: Path) -> None:
    words = ["eval", bundle, "--data", DIALOGUES, "--runtime", "torchscript"]
    with Bundle.open(bundle).commit() as change:
        change.manifest.variants = [v for v in change.manifest.variants if v.format != "torchscript"]
    export_variant(Bundle.open(bundle), "torchscript", {"utterances": 4})
    code, _, err = mer(*words)
    assert (code, "--overflow window|truncate" in err) == (2, True)
    found = ok(mer, *words, "--overflow", "truncate")
    assert found["left_out"] == sum(max(0, len(s.units) - 4) for s in open_corpus(DIALOGUES).split("test"))
    assert found["units"] + found["left_out"] == UNITS["test"]


@pytest.mark.usefixtures("warm")
def test_parity_and_bench_take_one_runtime(mer: Mer, bundle: Path) -> None:
    found = ok(mer, "parity", bundle, "--data", DIALOGUES, "--runtime", "onnxruntime", "--quiet")
    assert {c["runtime"].split()[0] for c in found["candidates"]} == {"onnxruntime"}
    words = ["bench", bundle, "--runtime", "openvino", "--batch", "1", "--rounds", "3", "--quiet"]
    rows = {r["runtime"].split()[0] for case in ok(mer, *words)["cases"] for r in case["rows"]}
    assert rows == {"torch", "openvino"}
    for command in ("parity", "bench"):
        code, _, err = mer(command, bundle, "--data", DIALOGUES, "--runtime", "abacus")
        assert (code, "no runtime 'abacus'" in err) == (2, True)


def test_parity_of_one_runtime_keeps_what_is_known_of_the_others(
    mer: Mer, bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for runtime in ("openvino", "onnxruntime"):
        ok(mer, "parity", bundle, "--data", DIALOGUES, "--runtime", runtime, "--quiet")
    opened = Bundle.open(bundle)
    report = ParityReport.load(opened)
    assert report is not None
    earlier = {c.runtime.split()[0]: c.earlier for c in report.ran}
    assert (earlier["openvino"], earlier["onnxruntime"]) == (True, False)
    assert "(earlier run)" in report.page()
    other_bytes(opened, "onnx-fp32-utterances4-bdynamic")
    # Neither the card nor the page says of the new file what was found about the old one.
    (said,) = (line for line in card(opened).splitlines() if line.startswith("Not compared, or exported anew since: "))
    unchecked = {v["variant"].name for v in content(opened)["variants"] if v["unchecked"]}
    for name, again in (("onnx-fp32-utterances4-bdynamic", True), ("onnx-fp32-utterances8-bdynamic", False)):
        assert (f"`{name}`" in said, name in unchecked) == (again, again)
    ok(mer, "parity", bundle, "--data", DIALOGUES, "--runtime", "onnxruntime", "--quiet")
    report = ParityReport.load(Bundle.open(bundle))
    assert report is not None
    kept = [c.variant for c in report.ran if c.earlier]
    assert "onnx-fp32-utterances8-bdynamic" in kept
    assert "onnx-fp32-utterances4-bdynamic" not in kept
    with Bundle.open(bundle).commit() as change:
        change.write(ParityReport.path(), "{}")
    monkeypatch.setattr("runtimes.parity.run.run_parity", lambda *_, **__: pytest.fail("measured for nothing"))
    code, _, err = mer("parity", bundle, "--data", DIALOGUES, "--runtime", "onnxruntime", "--quiet")
    assert (code, "run mer parity again" in err) == (6, True)


def work(progress: Progress) -> None:
    with progress.over("parity", 2, "candidate") as shown:
        shown.begin("first")
        shown.begin("second")


def test_progress_is_a_bar_on_a_terminal_and_lines_elsewhere(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    said: list[str] = []
    work(Lines(said.append))
    assert said == ["parity: candidates 1..2", "candidate 1/2  first", "candidate 2/2  second"]
    screen = io.StringIO()
    work(Bar(Console(file=screen, force_terminal=True, width=120)))
    shown = screen.getvalue()
    assert "parity" in shown
    assert "second" in shown
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    assert isinstance(progress_unless(False), Bar)
    monkeypatch.setattr(sys.stderr, "isatty", lambda: False, raising=False)
    assert isinstance(progress_unless(False), Lines)
    work(progress_unless(True))
    assert capsys.readouterr() == ("", "")


@pytest.mark.usefixtures("warm")
@pytest.mark.parametrize(
    ("words", "unit"),
    [
        (["parity", "--data", DIALOGUES, "--runtime", "onnxruntime"], "candidate 1/4  onnxruntime: "),
        (["bench", "--runtime", "onnxruntime", "--rounds", "3", "--batch", "1"], "case 1/"),
        (["export", "--format", "torchscript", "--force"], "variant 1/2  torchscript fp32 utterances4"),
    ],
)
def test_long_work_shows_where_it_is(mer: Mer, bundle: Path, words: list[str | Path], unit: str) -> None:
    code, out, err = mer(words[0], bundle, *words[1:])
    assert code == 0, err
    assert unit in err
    assert unit not in out
    assert mer(words[0], bundle, *words[1:], "--quiet")[2] == ""


def test_every_command_that_runs_something_has_a_dry_run() -> None:
    for command in ("train", "crossval", "import", "export", "infer", "eval", "parity", "bench", "tune"):
        assert "dry_run" in cli.COMMANDS[command].__annotations__, command
