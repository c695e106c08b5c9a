"""The `mer` command as a person meets it: output, one-sentence errors and exit codes."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import get_args

import numpy as np
import pytest
import torch
from conftest import Mer

import cli
from mer_export.bundle import Bundle
from mer_export.data.open import open_corpus
from mer_export.errors import NotAvailableError
from mer_export.install import Extra
from runtimes import doctor
from runtimes.speed import bench

SMALL = ["--set", "epochs=2", "--set", "model.buckets=[8, 33]"]


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A synthetic corpus and a bundle trained on it, with ONNX and TorchScript variants."""
    root = tmp_path_factory.mktemp("cli")
    dims = ["--set", "text_dim=32", "--set", "audio_dim=24", "--set", "vision_dim=16"]
    for words in (
        ["data", "synth", "cmerc", "--out", root / "data", "--dialogues", "24", *dims],
        ["train", "cmerc", "--preset", "sample/demo", "--data", root / "data", "--out", root / "bundle", *SMALL],
        ["export", root / "bundle", "--format", "onnx", "--data", root / "data"],
        ["export", root / "bundle", "--format", "torchscript", "--seq-len", "utterances=8"],
    ):
        cli.app([*map(str, words)], standalone_mode=False)
    return root


@pytest.fixture
def bundle(work: Path, tmp_path: Path) -> Path:
    """A copy to write to."""
    return Path(shutil.copytree(work / "bundle", tmp_path / "bundle"))


def test_list_and_doctor_say_what_there_is(mer: Mer) -> None:
    code, out, _ = mer("list", "--json")
    known = json.loads(out)
    assert code == 0
    assert "cmerc" in known["systems"]
    assert "wav2vec2-base-960h" in known["systems"]["facialmmt"]["encoders"]["audio"]
    assert all(s["encoders"].keys() <= {"text", "audio", "vision"} and s["encoders"] for s in known["systems"].values())
    assert {"cmerc/iemocap", "cmerc/meld", "m3net/iemocap", "m3net/meld"} <= set(known["presets"])
    assert {"onnx", "torchscript", "exported_program", "tensorrt"} <= set(known["export formats"])
    assert {"torch", "torchscript", "onnxruntime", "openvino", "tensorrt"} <= set(known["runtimes"])
    code, out, _ = mer("doctor", "--json")
    assert code == 0
    checks = {c["name"]: c for c in json.loads(out)}
    assert checks["torch"]["status"] == "ok"
    assert (checks["tokenizers"]["status"], checks["tokenizers"]["role"]) == ("ok", "text")
    code, _, err = mer("doctor", "--require", "warp drive")
    assert code == 5
    assert "warp drive" in err


def test_the_doctor_has_a_prescription_for_every_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor.util, "find_spec", lambda name: None)
    told = " ".join(check.detail for check in doctor.examine())
    assert [extra for extra in get_args(Extra) if f"[{extra}]" not in told] == []


def test_verify_accepts_a_bundle_and_refuses_a_damaged_one(mer: Mer, bundle: Path) -> None:
    code, out, _ = mer("verify", bundle)
    assert (code, "all intact" in out) == (0, True)
    weights = bundle / "model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    code, out, err = mer("verify", bundle)
    assert (code, out) == (6, "")
    assert "model.safetensors does not match its checksum" in err


@pytest.mark.parametrize(("ending", "runtime"), [("jsonl", "onnxruntime"), ("csv", "torch"), ("parquet", "openvino")])
def test_infer_answers_every_utterance_in_order(
    mer: Mer, work: Path, tmp_path: Path, ending: str, runtime: str
) -> None:
    out = tmp_path / f"labels.{ending}"
    code, _, err = mer("infer", work / "bundle", work / "data", "--out", out, "--runtime", runtime)
    assert code == 0, err
    truth = json.loads((work / "data" / "ground_truth.json").read_text())
    utterances = sum(len(labels) for labels in truth["labels"].values())
    if ending == "jsonl":
        rows = [json.loads(line) for line in out.read_text().splitlines()]
        assert len(rows) == utterances
        assert [r["unit"] for r in rows] == [unit for sample in open_corpus(work / "data") for unit in sample.units]
        assert all(r["modalities"] == ["text", "audio", "vision"] for r in rows)
        assert all(abs(sum(r["probabilities"].values()) - 1) < 1e-5 for r in rows)
        assert all(max(r["probabilities"], key=r["probabilities"].get) == r["label"] for r in rows)
    elif ending == "csv":
        assert len(out.read_text().splitlines()) == utterances + 1
    else:
        from pyarrow import parquet

        assert parquet.read_table(out).num_rows == utterances
    code, _, err = mer("infer", work / "bundle", work / "data", "--out", out, "--runtime", runtime)
    assert (code, "pass --force" in err) == (2, True)


@pytest.mark.usefixtures("threads")
def test_eval_agrees_on_every_runtime_and_offers_the_published_semantics(mer: Mer, work: Path) -> None:
    found = {}
    for runtime in ("torch", "onnxruntime", "openvino"):
        code, out, err = mer("eval", work / "bundle", "--data", work / "data", "--runtime", runtime, "--json")
        assert code == 0, err
        found[runtime] = json.loads(out)["metrics"]
    assert found["torch"] == found["onnxruntime"] == found["openvino"]
    torch.set_num_threads(2)
    published = ("eval", work / "bundle", "--data", work / "data", "--semantics", "batch")
    code, out, _ = mer(*published, "--threads", 1, "--json")
    assert (code, torch.get_num_threads()) == (0, 1)
    assert {"loss", "accuracy", "weighted_f1"} <= set(json.loads(out)["metrics"])
    code, _, err = mer(*published, "--runtime", "onnxruntime")
    assert (code, "pass --runtime torch" in err) == (2, True)


def test_converted_data_give_the_same_answers(mer: Mer, work: Path, tmp_path: Path) -> None:
    table = tmp_path / "corpus.parquet"
    code, _, err = mer("data", "convert", work / "data", "--out", table, "--preset", "sample/demo")
    assert code == 0, err
    metrics = []
    for data in (work / "data", table):
        code, out, err = mer("eval", work / "bundle", "--data", data, "--runtime", "onnxruntime", "--json")
        assert code == 0, err
        metrics.append(json.loads(out)["metrics"])
    assert metrics[0] == metrics[1]


@pytest.mark.usefixtures("warm")
def test_parity_and_bench_write_their_reports(mer: Mer, work: Path, bundle: Path) -> None:
    code, out, err = mer("parity", bundle, "--data", work / "data", "--json", "--quiet")
    assert code == 0, err
    assert json.loads(out)["verdict"] in ("pass", "warn")
    code, out, err = mer("bench", bundle, "--data", work / "data", "--rounds", "3", "--batch", "1", "--json")
    assert code == 0, err
    opened = Bundle.open(bundle)
    for name in ("parity.json", "parity.md", "bench.json", "bench.md", "report.html"):
        assert opened.path(f"reports/{name}").stat().st_size > 0
    words = ["--runtime", "onnxruntime", "--atol", "1e-12", "--rtol", "0", "--quiet"]
    code, _, err = mer("parity", bundle, "--data", work / "data", *words)
    assert code == 3
    assert err.splitlines()[-1].startswith("mer: parity failed")


def missing(*_: object) -> str:
    raise NotAvailableError("jinja2 is not installed")


@pytest.mark.usefixtures("warm")
def test_a_benchmark_slower_than_its_baseline_ends_with_4(
    mer: Mer, bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The report is a real one; the second run of it is replaced by the first."""
    code, _, err = mer("bench", bundle, "--runtime", "onnxruntime", "--rounds", "3", "--batch", "1", "--quiet")
    assert code == 0, err
    own = bundle / "reports" / "bench.json"
    report = bench.BenchReport.model_validate_json(own.read_bytes())
    monkeypatch.setattr(bench, "run_bench", lambda *_, **__: report)
    code, out, _ = mer("bench", bundle, "--baseline", own)
    assert (code, "x eager before" in out) == (0, True)
    for row in report.cases[0].rows:
        row.ratio.median /= 2
    before = own.read_bytes()
    code, out, err = mer("bench", bundle, "--baseline", own, "--tolerance", "10%", "--json", "--quiet")
    assert code == 4
    assert "50% slower, allowed are 10%" in err
    assert any(r["slower"] for r in json.loads(out)["against"]["rows"])
    assert own.read_bytes() == before
    # What draws the page need not be there.
    earlier = tmp_path / "earlier.json"
    earlier.write_bytes(before)
    monkeypatch.setattr("runtimes.pages.report.render", missing)
    code, out, err = mer("bench", bundle, "--baseline", earlier, "--quiet")
    assert (code, "x eager before" in out) == (4, True)
    assert "report.html is not written: jinja2 is not installed" in err


def test_buckets_are_planned_from_the_lengths_of_data(mer: Mer, work: Path, bundle: Path) -> None:
    code, out, err = mer("export", bundle, "--plan", work / "data", "--max-variants", "3", "--dry-run", "--json")
    assert code == 0, err
    planned = json.loads(out)
    truth = json.loads((work / "data" / "ground_truth.json").read_text())
    longest = max(len(labels) for labels in truth["labels"].values())
    assert 1 <= len(planned["buckets"]) <= 3
    assert planned["buckets"][-1]["lengths"] == {"utterances": longest}
    assert len(Bundle.open(bundle).manifest.variants) == 3
    code, out, err = mer("export", bundle, "--plan", work / "data", "--max-variants", "1", "--format", "torchscript")
    assert (code, out) == (0, f"torchscript-fp32-utterances{longest}-bdynamic\n")
    assert "ms per item expected" in err
    assert "reports/plan.json" in Bundle.open(bundle).manifest.files


def test_a_tuned_bundle_answers_by_goal(mer: Mer, work: Path, bundle: Path) -> None:
    code, out, err = mer("tune", bundle, "--batch", "2", "--precision", "fp32", "--quiet")
    assert code == 0, err
    assert "- throughput: " in out
    found = {}
    for goal in ("latency", "throughput"):
        code, out, err = mer("eval", bundle, "--data", work / "data", "--goal", goal, "--json")
        assert code == 0, err
        assert f"{goal}: " in err
        found[goal] = json.loads(out)
    reference = json.loads(mer("eval", bundle, "--data", work / "data", "--json")[1])
    assert found["latency"]["metrics"] == found["throughput"]["metrics"] == reference["metrics"]
    assert reference["runtime"] == "onnxruntime"


def test_dry_run_prints_the_plan_and_does_nothing(mer: Mer, work: Path, tmp_path: Path) -> None:
    code, out, _ = mer(
        "train",
        "cmerc",
        "--preset",
        "sample/demo",
        "--data",
        work / "data",
        "--out",
        tmp_path / "x",
        "--dry-run",
        "--json",
        "--seed",
        "5",
    )
    plan = json.loads(out)
    assert (code, plan["seed"], plan["model"]["width"]) == (0, 5, 64)
    assert set(plan["plan"]["splits"]) == {"train", "test"}
    assert not (tmp_path / "x").exists()
    code, out, _ = mer("export", work / "bundle", "--seq-len", "utterances=12", "--dry-run")
    assert code == 0
    assert "12" in out


@pytest.mark.parametrize(
    ("words", "code", "sentence"),
    [
        (["train", "bert", "--preset", "x", "--data", ".", "--out", "{new}"], 2, "no system 'bert'"),
        (["train", "cmerc", "--preset", "nowhere", "--data", ".", "--out", "{new}"], 2, "no preset 'cmerc/nowhere'"),
        (["train", "cmerc", "--data", ".", "--out", "{new}"], 2, ". is in no known format"),
        (["crossval", "tab", "--data", ".", "--out", "{new}"], 2, "pass either --preset or --config"),
        (
            ["train", "cmerc", "--preset", "meld", "--data", ".", "--out", "{new}", "--set", "model.dropout=2"],
            2,
            "dropout",
        ),
        (["train", "cmerc", "--preset", "sample/demo", "--data", "{nothing}", "--out", "{new}"], 2, "does not exist"),
        (["verify", "{nothing}"], 6, "is not a bundle"),
        (["export", "{bundle}", "--format", "coffee"], 2, "no format 'coffee'"),
        (["export", "{bundle}", "--precision", "fp12"], 7, "fp12"),
        (["export", "{bundle}", "--opset", "23"], 7, "opset 23"),
        (["export", "{bundle}", "--seq-len", "words=3"], 2, "no sequence dim 'words'"),
        (["infer", "{bundle}", "{data}", "--out", "{new}.txt"], 2, "txt"),
        (["infer", "{bundle}", "{data}", "--out", "{new}.jsonl", "--runtime", "abacus"], 2, "no runtime 'abacus'"),
        (["infer", "{bundle}", "{data}", "--out", "{new}.jsonl", "--device", "cuda"], 5, "CUDAExecutionProvider"),
        (["infer", "{bundle}", "{data}", "--out", "{new}.jsonl", "--runtime", "torchscript"], 2, "--overflow"),
        (["eval", "{bundle}", "--data", "{data}", "--split", "dev"], 2, "no split 'dev'"),
        (["infer", "{bundle}", "{data}", "--out", "{new}.jsonl", "--goal", "latency"], 2, "run mer tune"),
        (["infer", "{bundle}", "{data}", "--out", "{new}.jsonl", "--goal", "speed"], 2, "budget=5ms"),
        (["infer", "{bundle}", "{data}", "--out", "{new}.jsonl", "--cuda-graph"], 2, "pass --device cuda"),
        (["export", "{bundle}", "--plan", "{data}", "--seq-len", "utterances=8"], 2, "leave --seq-len out"),
        (["export", "{bundle}", "--precision", "bf16"], 7, "--precision bf16"),
        (["bench", "{bundle}", "--baseline", "{nothing}"], 2, "cannot be read"),
        (["bench", "{bundle}", "--baseline", "{nothing}", "--tolerance", "2"], 2, "a share below 100 %"),
    ],
)
def test_an_error_is_one_sentence_with_the_right_exit_code(
    mer: Mer, work: Path, tmp_path: Path, words: list[str], code: int, sentence: str
) -> None:
    places = {
        "new": tmp_path / "new",
        "nothing": tmp_path / "nothing",
        "bundle": work / "bundle",
        "data": work / "data",
    }
    found, _, err = mer(*[w.format(**places) for w in words])
    last = err.strip().splitlines()[-1]
    assert found == code, err
    assert last.startswith("mer: ")
    assert sentence in last
    assert "Traceback" not in err


def test_a_hostile_checkpoint_runs_nothing_and_is_refused(mer: Mer, tmp_path: Path) -> None:
    import pickle

    class Attack:
        def __reduce__(self) -> tuple[object, tuple[str]]:
            return os.mkdir, (str(tmp_path / "owned"),)

    (tmp_path / "weights.pkl").write_bytes(pickle.dumps({"linear_a.weight": Attack()}))
    code, _, err = mer("import", "cmerc", tmp_path / "weights.pkl", "--preset", "meld", "--out", tmp_path / "b")
    assert (code, len(err.strip().splitlines())) == (2, 1)
    assert not (tmp_path / "owned").exists()
    assert not (tmp_path / "b").exists()


def test_an_authors_checkpoint_is_imported_and_a_wrong_one_lists_every_problem(mer: Mer, tmp_path: Path) -> None:
    import torch

    from mer_export import registry
    from mer_export.weights import export_weights

    sets = [
        w
        for s in ("text_dim=16", "width=16", "hidden=8", "audio_dim=6", "vision_dim=5")
        for w in ("--set", f"model.{s}")
    ]
    system = registry.get("cmerc")
    values = dict(text_dim=16, width=16, hidden=8, audio_dim=6, vision_dim=5, text_linear=False, frequency_layers=3)
    config = system.parse(values | {"speakers": 9, "labels": [str(i) for i in range(7)]})
    state = export_weights(system.build(config), registry.resolve(system.weights), config)
    torch.save(state, tmp_path / "MELD_checkpoint.pkl")
    words = ["import", "cmerc", tmp_path / "MELD_checkpoint.pkl", "--preset", "m3net/meld", *sets]
    code, out, err = mer(*words, "--out", tmp_path / "b", "--json")
    assert code == 0, err
    assert json.loads(out)["loaded"] == 56
    assert Bundle.open(tmp_path / "b").verify() == 2
    state.pop("smax_fc.bias")
    state["extra"] = torch.zeros(1)
    state["linear_a.weight"] = torch.zeros(3, 3)
    torch.save(state, tmp_path / "MELD_checkpoint.pkl")
    code, _, err = mer(*words, "--out", tmp_path / "c")
    assert code == 2
    for problem in ("3 problems", "missing smax_fc.bias", "unexpected extra", "linear_a.weight is (3, 3)"):
        assert problem in err


def test_over_long_dialogues_follow_the_overflow_policy(mer: Mer, work: Path, tmp_path: Path) -> None:
    words = ["infer", work / "bundle", work / "data", "--runtime", "torchscript"]
    counts = {}
    for policy in ("window", "truncate"):
        code, _, err = mer(*words, "--overflow", policy, "--out", tmp_path / f"{policy}.jsonl")
        assert code == 0, err
        rows = [json.loads(line) for line in (tmp_path / f"{policy}.jsonl").read_text().splitlines()]
        counts[policy] = (len(rows), sum(r["label"] is None for r in rows))
    assert counts["window"][1] == 0
    assert counts["truncate"][1] > 0
    assert counts["window"][0] == counts["truncate"][0]


def test_serving_needs_no_torch(work: Path) -> None:
    script = """
import sys
import runtimes
from mer_export.data.open import open_corpus
samples = open_corpus(sys.argv[2]).split("test")
with runtimes.load(sys.argv[1], backend="onnxruntime", threads=1) as predictor:
    answers = list(predictor.predict(samples))
assert answers and all(a.label for a in answers)
heavy = {"torch", "transformers", "onnx", "openvino", "sklearn", "pyarrow"} & set(sys.modules)
assert not heavy, heavy
"""
    subprocess.run([sys.executable, "-c", script, str(work / "bundle"), str(work / "data")], check=True)


def test_nan_features_are_refused_with_the_place(mer: Mer, work: Path, tmp_path: Path) -> None:
    lines = tmp_path / "one.jsonl"
    rng = np.random.default_rng(0)
    utterance = {"text": rng.normal(size=(4, 32)).tolist(), "audio": [float("nan")] * 24, "vision": [0.0] * 16}
    lines.write_text(json.dumps({"dialogue": "d1", "utterances": [utterance, utterance]}) + "\n")
    code, _, err = mer("infer", work / "bundle", lines, "--out", tmp_path / "o.jsonl")
    assert (code, "audio" in err, "nan" in err) == (2, True, True)
    assert not (tmp_path / "o.jsonl").exists()
