"""Claims about exports of facialmmt: stages, text encoded once, faces one by one."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from conftest import Once
from small_facialmmt import LENGTHS, export_staged, make, utterances
from small_live import MAKERS

from mer_export import registry
from mer_export.bucket import Bucket
from mer_export.bundle import Bundle
from mer_export.contract import Contract
from mer_export.data.collate import collate
from mer_export.data.samples import Sample
from mer_export.errors import UnsupportedError
from mer_export.exporters import export_variant
from runtimes.backends.session import SessionOptions
from runtimes.backends.staged import Kept
from runtimes.backends.table import open_session
from runtimes.backends.way import find_ways
from runtimes.predict.predictor import Predictor
from runtimes.speed.bench import run_bench

ONE = SessionOptions(threads=1)


@pytest.fixture(scope="module")
def bundle(once: Once, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    copy = shutil.copytree(export_staged(once).root, tmp_path_factory.mktemp("facialmmt") / "bundle")
    bundle = Bundle.open(copy)
    export_variant(bundle, "torchscript", LENGTHS, example=utterances(bundle.manifest.contract))
    return bundle


def test_stages_and_whole_network_give_pytorchs_answers(bundle: Bundle) -> None:
    samples = utterances(bundle.manifest.contract, 3) + utterances(bundle.manifest.contract, 2, seed=1)
    with Predictor(bundle, "torch", ONE) as predictor:
        wanted = np.concatenate(predictor.scores(samples))
    for backend in ("onnxruntime", "openvino", "torchscript"):
        with Predictor(bundle, backend, ONE, batch=4) as predictor:
            assert np.abs(np.concatenate(predictor.scores(samples)) - wanted).max() < 1e-4


def test_the_text_of_a_dialogue_is_encoded_once(bundle: Bundle) -> None:
    contract = bundle.manifest.contract
    first, second = utterances(contract, 3), utterances(contract, 2, seed=1)
    with Predictor(bundle, "onnxruntime", ONE, batch=1) as predictor:
        list(predictor.predict([*first, *second]))
        text = predictor.session(LENGTHS).info["stages"]["text"]
    assert (text["calls"], text["rows"]) == (2, 2)


def test_of_a_live_dialogue_each_text_and_each_utterances_frames_are_encoded_once(tmp_path: Path) -> None:
    case = MAKERS["facialmmt"](tmp_path / "bundle")
    lengths = Bucket(text_len=40, audio_len=6, vision_len=5)
    example = utterances(case.bundle.manifest.contract)
    export_variant(case.bundle, "torchscript", lengths, example=example, stages=True)
    draw = np.random.default_rng(0)
    said = [case.draw(draw) for _ in range(4)]
    fused = {None: 1 + 2 + 3 + 4, 0: 4}
    for revise, rows in fused.items():
        with (
            Predictor(case.bundle, "torchscript", ONE, batch=8) as staged,
            Predictor(case.bundle, "torch", ONE, batch=8) as eager,
        ):
            live, whole = (p.dialogue("d", revise=revise) for p in (staged, eager))
            for utterance in said:
                found, wanted = live.say(utterance), whole.say(utterance)
                for a, b in zip((found.prediction, *found.revised), (wanted.prediction, *wanted.revised), strict=True):
                    assert a.unit == b.unit
                    np.testing.assert_allclose(a.numbers, b.numbers, atol=1e-5)
            stages = staged.session(lengths).info["stages"]
        assert {n: s["rows"] for n, s in stages.items()} == {"text": 4, "frames": 4, "fusion": rows}


def test_exports_of_before_have_the_frames_in_the_fusion(bundle: Bundle) -> None:
    system = registry.get("facialmmt")
    config = system.parse(bundle.manifest.config)
    now = [s.name for s in system.stages_of(config)]
    assert now == list(bundle.manifest.variants[0].stages) == ["face", "text", "frames", "fusion"]
    before = system.stages_of(config, ("face", "text", "fusion"))
    assert [s.name for s in before] == ["face", "text", "fusion"]
    read = {s.name for s in bundle.manifest.contract.inputs} - {"input_ids", "images"}
    assert {s.name for s in before[-1].inputs} == read | {"text_hidden", "expression_logits"}


def test_what_is_kept_of_stages_has_a_bound() -> None:
    kept = Kept(100)
    for number in (0, 1, 1, 1, *range(2, 9), 8, 8):
        kept.put(bytes([number]), {"x": np.zeros(10, np.float32)})
    assert kept.nbytes == 80
    assert [kept.get(bytes([n])) is not None for n in range(9)] == [False] * 7 + [True, True]


def test_only_real_faces_are_looked_at(bundle: Bundle) -> None:
    contract = bundle.manifest.contract
    samples = utterances(contract, 3)
    with Predictor(bundle, "onnxruntime", ONE, batch=3) as predictor:
        list(predictor.predict(samples))
        face = predictor.session(LENGTHS).info["stages"]["face"]
    assert face["rows"] == sum(len(s.inputs["images"]) for s in samples)


def faceless(contract: Contract, count: int) -> list[Sample]:
    found = utterances(contract, count)
    return [replace(s, inputs={n: a for n, a in s.inputs.items() if n not in ("vision", "images")}) for s in found]


def test_examples_without_a_face_export_stages_that_see_faces(tmp_path: Path) -> None:
    bundle = make(tmp_path / "bundle", "end_to_end")
    contract = bundle.manifest.contract
    export_variant(bundle, "torchscript", LENGTHS, example=faceless(contract, 2), stages=True)
    samples = utterances(contract, 2)
    with Predictor(bundle, "torch", ONE) as eager, Predictor(bundle, "torchscript", ONE) as staged:
        wanted, found = (np.concatenate(p.scores(samples)) for p in (eager, staged))
    np.testing.assert_allclose(found, wanted, atol=1e-4)


def test_no_face_at_all_runs(bundle: Bundle) -> None:
    arrays = collate(faceless(bundle.manifest.contract, 1), bundle.manifest.contract, LENGTHS)
    with open_session(bundle, bundle.manifest.variants[0], "onnxruntime", ONE) as session:
        assert np.isfinite(session.run(arrays)["logits"]).all()


def test_a_benchmark_sees_both_kinds_of_work_and_where_it_goes(bundle: Bundle) -> None:
    chosen = [c for c in find_ways(bundle, 1) if c.backend in ("onnxruntime", "torch") and c.why_not is None]
    samples = utterances(bundle.manifest.contract)
    report = run_bench(bundle, samples, [1], rounds=3, threads=1, ways=chosen, cold=False)
    names = {r.runtime: r.info.get("stages") for r in report.cases[0].rows}
    assert names["onnxruntime stages"]["text"]["calls"] == 1
    assert names["onnxruntime stages afresh"]["text"]["calls"] > 3
    assert "| fusion | onnxruntime stages |" in report.page()


def test_a_network_without_stages_says_so(tmp_path) -> None:
    made = make(tmp_path / "b", "vision")
    with pytest.raises(UnsupportedError, match="vision has no stages"):
        export_variant(made, "onnx", made.manifest.contract.buckets[0], stages=True)


def test_stages_have_no_engines_and_no_reduced_precision(bundle: Bundle) -> None:
    for format, precision in (("tensorrt", "fp32"), ("onnx", "int8")):
        with pytest.raises(UnsupportedError, match="stages are exported in fp32 with a dynamic batch"):
            export_variant(bundle, format, LENGTHS, precision=precision, stages=True)
