"""Reduced precisions: what is rewritten, what stays, what is refused, and which runtime takes it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import small_bundle
import small_emt
import torch
from conftest import Once
from onnx import TensorProto, helper, numpy_helper

from mer_export.agreement.error import output_error
from mer_export.agreement.policy import RULES, Rule
from mer_export.bucket import Bucket
from mer_export.bundle import Bundle
from mer_export.contract import Contract, TensorSpec
from mer_export.data.collate import collate
from mer_export.data.samples import Sample
from mer_export.errors import ParityError, UnsupportedError, UsageError
from mer_export.exporters import export_formats, export_variant, precision
from mer_export.exporters.export_job import ExportJob
from mer_export.exporters.graph.bf16 import round_to_bf16, to_bf16
from mer_export.exporters.precision import PRECISIONS, unshare_initializers, write
from mer_export.exporters.precision_gate import check, open_file
from mer_export.task import Task
from mer_export.weights import bundle_model
from runtimes.backends.session import SessionOptions
from runtimes.backends.table import known_backends, open_session
from runtimes.backends.way import find_ways
from runtimes.parity.run import run_parity
from runtimes.predict.predictor import Predictor

EIGHT = Bucket(utterances=8)
CONTRACT = Contract(
    inputs=(TensorSpec(name="x", dtype="float32", dims=("batch", 32)),),
    outputs=(TensorSpec(name="y", dtype="float32", dims=("batch", 1)),),
    buckets=({},),
    longest={},
)
REDUCED = [p for p in export_formats()["onnx"].precisions if p in PRECISIONS]
"""Those that ONNX Runtime runs."""


def emt_samples(bundle: Bundle, count: int = 6) -> list[Sample]:
    return [small_emt.utterance(bundle.manifest.contract, seed) for seed in range(count)]


@pytest.fixture(scope="module", params=["cmerc", "emt"])
def case(
    request: pytest.FixtureRequest, exported: Bundle, once: Once, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Bundle, list[Sample]]:
    """A bundle with recurrent layers (GRU, or BERT with LSTMs) in every precision of ONNX, and samples for it."""
    root = tmp_path_factory.mktemp("precision") / "bundle"
    if request.param == "cmerc":
        bundle, lengths = small_bundle.part_of(exported, root, ("onnx", 8)), EIGHT
        samples = small_bundle.make_samples()
    else:
        lengths = small_emt.SHORT
        bundle = small_bundle.part_of(small_emt.export_emt(once, "emt"), root, ("onnx", *lengths.values()))
        samples = emt_samples(bundle)
    for name in export_formats()["onnx"].precisions:
        export_variant(bundle, "onnx", lengths, precision=name, example=samples)
    return bundle, samples


def graph_of(bundle: Bundle, name: str) -> onnx.GraphProto:
    variant = next(v for v in bundle.manifest.variants if v.precision == name)
    return onnx.load(bundle.path(variant.model)).graph


def linears(width: int = 32, transposed: bool = True, tied: bool = True) -> onnx.ModelProto:
    """x -> two square Linears, one weight between them where `tied` -> sum with a vector."""
    draw = np.random.default_rng(0)
    square = [(draw.standard_normal((width, width)) / np.sqrt(width)).astype(np.float32) for _ in range(2)]
    nodes = [
        helper.make_node("Gemm", ["x", "w1", "b"], ["h"], name="first", transB=int(transposed)),
        helper.make_node("Gemm", ["h", "w1" if tied else "w2", "b"], ["k"], name="second", transB=int(transposed)),
        helper.make_node("MatMul", ["k", "v"], ["y"], name="vector"),
    ]
    constants = {"w1": square[0], "b": draw.standard_normal(width).astype(np.float32)}
    constants |= {"v": draw.standard_normal((width, 1)).astype(np.float32)} | ({} if tied else {"w2": square[1]})
    graph = helper.make_graph(
        nodes,
        "linears",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", width])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["batch", 1])],
        [numpy_helper.from_array(a, n) for n, a in constants.items()],
        # What an exporter left behind and a Gemm with transB makes untrue.
        value_info=[helper.make_tensor_value_info("h", TensorProto.FLOAT, ["batch", width])],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)


def job_of(model: onnx.ModelProto, path: Path, name: str, **changes: Any) -> tuple[ExportJob, Path]:
    """A job around a bare graph, and the fp32 file."""
    onnx.save_model(model, path / "fp32.onnx")
    x = np.random.default_rng(1).standard_normal((6, 32), dtype=np.float32)
    y = open_file(path / "fp32.onnx").run(None, {"x": x})[0]
    task = Task(kind="regression", output="y", labels=("low", "high"), limits=(-9.0, 9.0), edges=(0.0,), scale="mosi")
    job = ExportJob(None, CONTRACT, Bucket(), 0, 20, {"x": x}, {"y": y}, precision=name, task=task)  # type: ignore[arg-type]
    return replace(job, **changes), path / "fp32.onnx"


@pytest.mark.parametrize("transposed", [True, False])
@pytest.mark.parametrize("name", REDUCED)
def test_tied_linears_keep_their_answers(tmp_path: Path, name: str, transposed: bool) -> None:
    """ONNX Runtime's quantiser alone gives a wrong model here, and says nothing."""
    job, fp32 = job_of(linears(transposed=transposed), tmp_path, name)
    write(job, fp32, tmp_path / "model.onnx")
    found = open_file(tmp_path / "model.onnx").run(None, job.example)[0]
    np.testing.assert_allclose(found, job.reference["y"], rtol=0, atol=0.05 * np.abs(job.reference["y"]).max())


def test_the_quantiser_alone_breaks_tied_linears_and_the_gate_sees_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    job, fp32 = job_of(linears(), tmp_path, "int8")
    monkeypatch.setattr(precision, "unshare_initializers", lambda model: 0)
    with pytest.raises(ParityError, match=r"in int8 y is off by"):
        write(job, fp32, tmp_path / "model.onnx")
    assert not (tmp_path / "model.onnx").exists()


def test_tied_weights_are_in_the_int8_file_once(tmp_path: Path) -> None:
    sizes = {}
    for tied in (True, False):
        job, fp32 = job_of(linears(tied=tied), tmp_path, "int8")
        write(job, fp32, tmp_path / "model.onnx")
        sizes[tied] = (tmp_path / "model.onnx").stat().st_size
    assert sizes[True] < sizes[False] - 32 * 32 / 2


def test_products_with_a_vector_stay_in_fp32(tmp_path: Path) -> None:
    job, fp32 = job_of(linears(), tmp_path, "int8")
    options = write(job, fp32, tmp_path / "model.onnx")
    assert options["way"] == "per channel"
    assert options["operators"] == {"MatMulInteger": 2}
    left = [n for n in onnx.load(tmp_path / "model.onnx").graph.node if n.op_type == "MatMul"]
    assert [n.input[1] for n in left] == ["v"]


def test_every_use_of_a_weight_gets_its_own_and_computes_the_same(tmp_path: Path) -> None:
    model = linears()
    job, _ = job_of(model, tmp_path, "int8")
    assert unshare_initializers(model) == 2
    assert unshare_initializers(model) == 0
    onnx.save_model(model, tmp_path / "unshared.onnx")
    np.testing.assert_array_equal(open_file(tmp_path / "unshared.onnx").run(None, job.example)[0], job.reference["y"])


def broken(change: Callable[[onnx.ModelProto], None]) -> Callable[..., onnx.ModelProto]:
    def rewrite(model: onnx.ModelProto, scratch: Path, keep: list[str]) -> onnx.ModelProto:
        model.graph.node[-1].op_type = "Cast"
        del model.graph.node[-1].input[1:]
        model.graph.node[-1].attribute.append(helper.make_attribute("to", TensorProto.FLOAT))
        model.graph.node[-1].output[0] = "cast"
        model.graph.node.append(helper.make_node("MatMul", ["cast", "v"], ["y"]))
        change(model)
        return model

    return rewrite


def scale_weight(model: onnx.ModelProto, factor: float) -> None:
    weight = next(i for i in model.graph.initializer if i.name == "v")
    weight.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(weight) * np.float32(factor), "v"))


HOSTILE = {
    "values that are NaN or infinite": lambda m: scale_weight(m, np.nan),
    "y is off by up to": lambda m: scale_weight(m, 1e3),
    "the int8 graph breaks": lambda m: m.graph.node[0].input.__setitem__(0, "nothing"),
}


@pytest.mark.parametrize("words", HOSTILE)
def test_a_rewrite_that_breaks_is_not_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, words: str) -> None:
    record = replace(PRECISIONS["int8"], ways={"hostile": broken(HOSTILE[words])}, marks=("Cast",))
    monkeypatch.setitem(PRECISIONS, "int8", record)
    job, fp32 = job_of(linears(), tmp_path, "int8")
    with pytest.raises(ParityError, match=words) as caught:
        write(job, fp32, tmp_path / "model.onnx")
    assert caught.value.exit_code == 3
    assert "was not written" in str(caught.value)
    assert not (tmp_path / "model.onnx").exists()


def test_the_next_way_is_taken_where_one_does_not_load(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ways = {"hostile": broken(HOSTILE["the int8 graph breaks"]), **PRECISIONS["int8"].ways}
    monkeypatch.setitem(PRECISIONS, "int8", replace(PRECISIONS["int8"], ways=ways))
    job, fp32 = job_of(linears(), tmp_path, "int8")
    assert write(job, fp32, tmp_path / "model.onnx")["way"] == "per channel"


def test_an_error_that_is_large_only_for_a_small_output_is_refused(tmp_path: Path) -> None:
    model = linears()
    scale_weight(model, 1e-3)
    job, fp32 = job_of(model, tmp_path, "int8")
    scale_weight(model, 1.5)
    onnx.save_model(model, tmp_path / "other.onnx")
    with pytest.raises(ParityError, match=r"off by 50\.0% of its size, allowed are 15%"):
        check(job, open_file(fp32), open_file(tmp_path / "other.onnx"))


def labelled(values: np.ndarray, truth: np.ndarray) -> list[Sample]:
    return [Sample(f"s{i}", {"x": v}, (f"s{i}",), truth[i : i + 1]) for i, v in enumerate(values)]


def turn_large_scores(model: onnx.ModelProto, above: float) -> None:
    """Turns the sign of every answer larger than `above` and leaves the others as they are."""
    model.graph.node[-1].output[0] = "answer"
    model.graph.initializer.append(numpy_helper.from_array(np.float32([above]), "above"))
    model.graph.node.extend(
        [
            helper.make_node("Abs", ["answer"], ["size"]),
            helper.make_node("Greater", ["size", "above"], ["large"]),
            helper.make_node("Neg", ["answer"], ["turned"]),
            helper.make_node("Where", ["large", "turned", "answer"], ["y"]),
        ]
    )


@pytest.mark.parametrize(("flips", "words"), [(1e-9, "labels change, allowed are 1"), (1.0, "non0_acc_2 is worse by")])
def test_labels_and_metric_are_judged_on_data(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, flips: float, words: str
) -> None:
    """A model that turns its clearest answers, under a rule that lets scores and, or not, labels go."""
    model = linears()
    job, fp32 = job_of(model, tmp_path, "int8")
    turn_large_scores(model, float(np.sort(np.abs(job.reference["y"][:, 0]))[-3]))
    onnx.save_model(model, tmp_path / "other.onnx")
    samples = labelled(np.repeat(job.example["x"], 100, 0), np.repeat(job.reference["y"], 100, 0)[:, 0])
    monkeypatch.setitem(RULES, "int8", Rule(atol=1e9, rtol=0, flip_share=flips, metric_drop=0.5))
    files = open_file(fp32), open_file(tmp_path / "other.onnx")
    with pytest.raises(ParityError, match=words):
        check(replace(job, samples=samples), *files)
    assert "flips" not in check(job, *files)


def test_a_limit_that_is_tightened_is_tightened_for_gate_and_parity(
    tmp_path: Path, case: tuple[Bundle, list[Sample]], monkeypatch: pytest.MonkeyPatch
) -> None:
    bundle, samples = case
    monkeypatch.setitem(RULES, "int8", Rule(atol=0, rtol=0))
    ways = [w for w in find_ways(bundle, 1, "onnxruntime") if w.precision == "int8" and w.why_not is None]
    assert {c.verdict for c in run_parity(bundle, samples[:1], candidates=ways).ran} == {"fail"}
    job, fp32 = job_of(linears(), tmp_path, "int8")
    with pytest.raises(ParityError, match="in int8 y is off by up to"):
        write(job, fp32, tmp_path / "model.onnx")


def test_every_precision_of_a_graph_passes_parity_where_it_runs(case: tuple[Bundle, list[Sample]]) -> None:
    bundle, samples = case
    report = run_parity(bundle, samples, threads=1)
    bad = [(c.name, c.reasons) for c in report.candidates if c.verdict == "fail"]
    assert not bad
    ran = {(c.runtime, c.precision) for c in report.ran}
    assert {("onnxruntime", p) for p in ("fp32", *REDUCED)} <= ran
    assert ("openvino", "int8") not in ran


def test_padding_reaches_no_scale_of_int8(tmp_path: Path) -> None:
    """A tensor has one scale, padding included: what stands there must be gone before the first product."""
    bundle = small_bundle.make_bundle(tmp_path / "bundle")
    model, contract = bundle_model(bundle), bundle.manifest.contract
    arrays = collate(small_bundle.make_samples()[:3], contract, EIGHT)
    lengths = arrays["lengths"]
    seen = []
    for layer in (model.text_norm, model.audio_linear, model.vision_linear):
        layer.register_forward_pre_hook(lambda _, given: seen.append(given[0].numpy()))
    spoilt = {n: a.copy() for n, a in arrays.items()}
    for name in ("text", "audio", "vision"):
        for item, real in enumerate(lengths):
            spoilt[name][item, ..., real:, :] = 1e4
    assert min(lengths) < 8
    for given in (arrays, spoilt):
        with torch.no_grad():
            model(**{s.name: torch.from_numpy(given[s.name]) for s in contract.inputs})
    for clean, same in zip(seen[:3], seen[3:], strict=True):
        np.testing.assert_array_equal(clean, same)


def test_graphs_hold_what_their_precision_says(case: tuple[Bundle, list[Sample]]) -> None:
    bundle, _ = case
    types = {p: [n.op_type for n in graph_of(bundle, p).node] for p in ("fp32", *REDUCED)}
    assert "MatMulInteger" in types["int8"]
    # LSTM has an int8 twin, GRU has none, and loops pay from more states on.
    assert types["int8"].count("DynamicQuantizeLSTM") == types["fp32"].count("LSTM")
    assert types["int8"].count("GRU") == types["fp32"].count("GRU")
    halves = [i for i in graph_of(bundle, "fp16").initializer if i.data_type == TensorProto.FLOAT16]
    assert halves
    names = [n.name for n in graph_of(bundle, "fp16").node]
    assert len(set(names)) == len(names)
    for name in REDUCED:
        onnx.checker.check_model(onnx.load(bundle.path(bundle.find(_name(bundle, name)).model)))
        assert [v.name for v in graph_of(bundle, name).input] == [s.name for s in bundle.manifest.contract.inputs]


def _name(bundle: Bundle, precision: str) -> str:
    return next(v.name for v in bundle.manifest.variants if v.precision == precision)


def test_nothing_is_rounded_between_two_fp32_nodes_of_an_fp16_graph(tmp_path: Path) -> None:
    weights = np.eye(8, dtype=np.float32)
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["a"]),
        helper.make_node("Softmax", ["a"], ["b"]),
        helper.make_node("Log", ["b"], ["c"]),
        # A cast of the graph's own, of numbers that fp16 cannot count.
        helper.make_node("Cast", ["n"], ["d"], to=TensorProto.FLOAT),
        helper.make_node("Mul", ["c", "d"], ["e"]),
        helper.make_node("Exp", ["e"], ["y"]),
    ]
    ports = [helper.make_tensor_value_info(n, t, ["b", 8]) for n, t in (("x", 1), ("n", TensorProto.INT64), ("y", 1))]
    graph = helper.make_graph(nodes, "g", ports[:2], ports[2:], [numpy_helper.from_array(weights, "w")])
    source, path = tmp_path / "source.onnx", tmp_path / "fp16.onnx"
    onnx.save_model(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=9), source)
    made = precision._fp16(precision._prepared(source), path, [])
    onnx.checker.check_model(made)
    made_by = {o: n for n in made.graph.node for o in n.output}
    log = next(n for n in made.graph.node if n.op_type == "Log")
    assert made_by[log.input[0]].op_type == "Softmax"
    assert {n.op_type for n in made.graph.node} == {"Cast", "MatMul", "Softmax", "Log", "Mul", "Exp"}
    onnx.save_model(made, path)
    arrays = {"x": np.random.default_rng(0).standard_normal((3, 8), np.float32), "n": np.full((3, 8), 2, np.int64)}
    exact, found = (open_file(f).run(["y"], arrays)[0] for f in (source, path))
    np.testing.assert_allclose(found, exact, rtol=0.02, atol=1e-3)


def test_a_variant_remembers_what_the_gate_measured(case: tuple[Bundle, list[Sample]]) -> None:
    bundle, samples = case
    for name in REDUCED:
        gate = bundle.find(_name(bundle, name)).options["rewrite"]["gate"]
        assert gate["units"] == sum(len(s.units) for s in samples)
        assert gate[f"{bundle.manifest.task.output} max_abs"] > 0


@pytest.mark.parametrize("name", REDUCED)
def test_the_predictor_answers_in_the_precision_that_is_asked_for(case: tuple[Bundle, list[Sample]], name: str) -> None:
    bundle, samples = case
    scores = {}
    for chosen in ("fp32", name):
        with Predictor(bundle, "onnxruntime", SessionOptions(threads=1), precision=chosen) as predictor:
            scores[chosen] = predictor.scores(samples)
    error = output_error("scores", scores["fp32"], scores[name], RULES[name].atol, RULES[name].rtol)
    assert error.agrees, error.size
    assert error.max_abs > 0


def test_a_runtime_without_the_precision_says_which_has_it(case: tuple[Bundle, list[Sample]]) -> None:
    bundle, _ = case
    with pytest.raises(UnsupportedError, match=r"tensorrt does not run int8 on cpu: .*onnxruntime.*openvino"):
        Predictor(bundle, "tensorrt", precision="int8")
    with pytest.raises(UnsupportedError, match="torchscript does not run int8"):
        Predictor(bundle, "torchscript", precision="int8")
    with pytest.raises(UnsupportedError, match="torch does not run fp16"):
        Predictor(bundle, "torch", precision="fp16")
    with pytest.raises(UnsupportedError, match=r"openvino runs .* not onnx-int8"):
        open_session(bundle, bundle.find(_name(bundle, "int8")), "openvino")
    own = [w for w in find_ways(bundle) if w.why_not is None and w.backend == "openvino"]
    there = {(bundle.find(w.variant).precision, w.options.reduced) for w in own if w.variant}
    assert there <= {("fp32", None), ("fp32", "bf16"), ("fp32", "int8"), ("fp16", None)}
    assert all(p in PRECISIONS or p == "fp32" for b in known_backends().values() for p in b.precisions)


def test_a_precision_that_was_not_exported_names_the_command(tmp_path: Path) -> None:
    bundle = small_bundle.make_bundle(tmp_path / "bundle")
    with pytest.raises(UsageError, match=r"no int8 variant .*--format onnx --precision int8"):
        Predictor(bundle, "onnxruntime", precision="int8")


def test_a_variant_that_fails_the_gate_leaves_the_bundle_as_it_was(
    exported: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bundle = small_bundle.part_of(exported, tmp_path / "bundle", ("onnx", 4))
    before, files = bundle.manifest.model_copy(deep=True), sorted(bundle.root.rglob("*"))
    monkeypatch.setitem(RULES, "int8", Rule(atol=0, rtol=0))
    with pytest.raises(ParityError, match="in int8 log_prob is off by up to"):
        export_variant(bundle, "onnx", Bucket(utterances=4), precision="int8")
    assert Bundle.open(bundle.root).manifest == before
    assert sorted(bundle.root.rglob("*")) == files


def test_bf16_is_proven_on_a_twin_that_rounds_where_an_engine_does(tmp_path: Path) -> None:
    """OpenVINO computes the bf16 graph itself, to one rounding step as the twin; ONNX Runtime refuses it on the CPU."""
    job, fp32 = job_of(linears(tied=False), tmp_path, "bf16")
    options = write(job, fp32, tmp_path / "model.onnx")
    assert options["operators"] == {"Gemm": 2, "MatMul": 1}
    model = onnx.load(tmp_path / "model.onnx")
    onnx.checker.check_model(model, full_check=True)
    assert {i.data_type for i in model.graph.initializer} == {TensorProto.BFLOAT16}
    assert [v.type.tensor_type.elem_type for v in (*model.graph.input, *model.graph.output)] == [TensorProto.FLOAT] * 2
    with pytest.raises(Exception, match="NOT_IMPLEMENTED"):
        open_file(tmp_path / "model.onnx")
    onnx.save_model(to_bf16(onnx.load(fp32), emulate=True), tmp_path / "twin.onnx")
    twin = open_file(tmp_path / "twin.onnx").run(None, job.example)[0]
    error = float(np.abs(twin - job.reference["y"]).max())
    assert 0 < error < 0.1
    assert options["gate"]["y max_abs"] == pytest.approx(error, rel=0.01)
    openvino = pytest.importorskip("openvino")
    compiled = openvino.Core().compile_model(tmp_path / "model.onnx", "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    np.testing.assert_allclose(compiled(job.example)[0], twin, rtol=2**-7, atol=0)


def test_rounding_to_bf16_is_to_nearest_even_and_never_overflows() -> None:
    values = np.array([1.0, 1 + 2**-8, 1 + 3 * 2**-8, -1.0, 0.0, np.finfo(np.float32).max], np.float32)
    found = (round_to_bf16(values).astype(np.uint32) << 16).view(np.float32)
    np.testing.assert_array_equal(found[:5], np.array([1.0, 1.0, 1 + 2**-6, -1.0, 0.0], np.float32))
    assert np.isfinite(found[5])


@pytest.mark.skipif(find_spec("tensorrt_rtx_bindings") is None, reason="tensorrt-rtx is not installed")
def test_a_bf16_engine_is_built_from_the_fp32_graph_that_is_there(tmp_path: Path) -> None:
    bundle = small_bundle.make_bundle(tmp_path / "bundle")
    small_bundle.randomise(bundle)
    export_variant(bundle, "onnx", EIGHT, batch=1)
    variant = export_variant(bundle, "tensorrt", EIGHT, precision="bf16", example=small_bundle.make_samples())
    assert variant.name == "tensorrt-bf16-utterances8-b1"
    assert bundle.variant_files(variant).stat().st_size > 10_000
    assert variant.options["onnx"]["rewrite"]["gate"]["log_prob relative"] <= 0.05
    assert [p.name for p in (bundle.root / "variants" / variant.name).iterdir() if p.is_dir()] == []
