"""Exports: what is made, what is left alone, what is refused."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from types import ModuleType

import mtee_bundles
import numpy as np
import onnx
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save
from small_bundle import CONFIG, make_bundle, make_samples, reweigh
from torch import Tensor, nn

from mer_export import registry
from mer_export.bucket import Bucket
from mer_export.bundle import WEIGHTS, Bundle
from mer_export.contract import BATCH, Contract, TensorSpec
from mer_export.data.example_inputs import example_inputs, random_inputs
from mer_export.errors import BundleError, NotAvailableError, UnsupportedError, UsageError
from mer_export.exporters import export_formats, export_variant, exported_program, torchscript
from mer_export.exporters.export_job import ExportJob, prove
from mer_export.exporters.graph.merge import merge_linears
from mer_export.exporters.onnx import to_onnx
from mer_export.reference import run_model
from mer_export.weights import bundle_model
from runtimes.backends.session import SessionOptions
from runtimes.backends.table import open_session

FOUR = Bucket(utterances=4)


@pytest.fixture
def bundle(tmp_path: Path) -> Bundle:
    return make_bundle(tmp_path / "bundle")


def graph_of(bundle: Bundle) -> onnx.GraphProto:
    variant = next(v for v in bundle.manifest.variants if v.format == "onnx")
    return onnx.load(bundle.path(variant.model)).graph


def test_every_format_of_the_table_lands_in_the_bundle_with_its_files_listed(exported: Bundle) -> None:
    made = {(v.format, v.lengths["utterances"]) for v in exported.manifest.variants}
    assert made == {(f, n) for f in ("torchscript", "exported_program", "onnx") for n in (4, 8)}
    reopened = Bundle.open(exported.root)
    assert reopened.verify() == len(reopened.manifest.files)
    for variant in reopened.manifest.variants:
        assert Path(variant.model).suffix == Path(export_formats()[variant.format].file).suffix


def test_real_samples_and_reference_outputs_are_kept_beside_an_export(exported: Bundle) -> None:
    with np.load(exported.path("samples/utterances8.npz")) as kept:
        arrays = dict(kept)
    assert len(arrays["lengths"]) == 4
    assert arrays["lengths"].max() == 8
    with open_session(exported, None, "torch") as session:
        found = session.run({s.name: arrays[s.name] for s in session.contract.inputs})
    np.testing.assert_array_equal(found["log_prob"], arrays["log_prob"])


def test_the_onnx_graph_keeps_the_names_dims_and_order_of_the_contract(exported: Bundle) -> None:
    graph, contract = graph_of(exported), exported.manifest.contract
    for specs, values in ((contract.inputs, graph.input), (contract.outputs, graph.output)):
        assert [v.name for v in values] == [s.name for s in specs]
        for spec, value in zip(specs, values, strict=True):
            dims = [d.dim_param or d.dim_value for d in value.type.tensor_type.shape.dim]
            assert dims == [d if d == "batch" or isinstance(d, int) else 4 for d in spec.dims]


def test_the_onnx_graph_holds_no_work_on_constants(exported: Bundle) -> None:
    graph = graph_of(exported)
    constants = {i.name for i in graph.initializer}
    assert [n.name for n in graph.node if all(i in constants for i in n.input if i)] == []


def test_recurrent_layers_become_one_operator_each_that_reads_the_lengths(exported: Bundle) -> None:
    nodes = [n for n in graph_of(exported).node if n.op_type == "GRU"]
    assert len(nodes) == 2
    for node in nodes:
        assert {a.name: onnx.helper.get_attribute_value(a) for a in node.attribute}["direction"] == b"bidirectional"
        assert node.input[4]


@pytest.mark.parametrize("base_model", ["lstm", "transformer"])
def test_other_base_models_keep_their_answers_in_onnx(tmp_path: Path, base_model: str) -> None:
    """Long, short and empty items through ONNX Runtime and, where the lengths matter most, OpenVINO."""
    import torch

    system = registry.get("cmerc")
    torch.manual_seed(1)
    config = system.parse(
        CONFIG | {"base_model": base_model, "encode_audio_vision": True, "hypergraph_layers": 1, "frequency_layers": 1}
    )
    model, contract = system.build(config), system.contract(config)
    bucket = Bucket(utterances=6)
    arrays = random_inputs(contract, bucket, items=3)
    arrays["lengths"][:] = (6, 2, 0)
    path = tmp_path / "model.onnx"
    job = ExportJob(model, contract, bucket, 0, 20, arrays, run_model(model, contract, arrays))
    onnx.save_model(to_onnx(job), path)
    from runtimes.backends.onnx_runtime import OnnxRuntimeSession
    from runtimes.backends.openvino.session import OpenVinoSession
    from runtimes.backends.session import Artefact

    for kind in (OnnxRuntimeSession, OpenVinoSession):
        if kind.problem(SessionOptions()):
            continue
        with kind(Artefact(path, contract, bucket), SessionOptions()) as session:
            np.testing.assert_allclose(session.run(arrays)["log_prob"], job.reference["log_prob"], rtol=0, atol=1e-5)


def test_an_export_that_is_up_to_date_is_left_alone_unless_forced(bundle: Bundle) -> None:
    first = export_variant(bundle, "torchscript", FOUR)
    stamp = bundle.path(first.model).stat().st_mtime_ns
    assert export_variant(bundle, "torchscript", FOUR) == first
    assert bundle.path(first.model).stat().st_mtime_ns == stamp
    export_variant(bundle, "torchscript", FOUR, force=True)
    assert bundle.path(first.model).stat().st_mtime_ns != stamp


def test_new_weights_make_an_export_out_of_date(bundle: Bundle) -> None:
    first = export_variant(bundle, "torchscript", FOUR)
    reweigh(bundle, seed=5)
    second = export_variant(bundle, "torchscript", FOUR)
    assert second.options["weights"] == bundle.manifest.files[WEIGHTS].sha256 != first.options["weights"]
    contract = bundle.manifest.contract
    with np.load(bundle.path("samples/utterances4.npz")) as kept:
        wanted = run_model(bundle_model(bundle), contract, {s.name: kept[s.name] for s in contract.inputs})
        np.testing.assert_allclose(kept["log_prob"], wanted["log_prob"], atol=1e-6)


def test_weights_that_were_replaced_meanwhile_do_not_run_as_those_of_before(bundle: Bundle) -> None:
    opened = Bundle.open(bundle.root)
    open_session(opened, None, "torch").close()
    reweigh(bundle, seed=5)
    with pytest.raises(BundleError, match=f"{WEIGHTS} was replaced since this bundle was opened: open it again"):
        open_session(opened, None, "torch")


def test_weights_of_another_network_are_named(bundle: Bundle) -> None:
    weights = load_file(bundle.path(WEIGHTS))
    name = next(n for n, t in weights.items() if t.ndim == 2)
    cases = {
        "Missing key": save({n: t for n, t in weights.items() if n != name}),
        "size mismatch": save(weights | {name: weights[name][..., :1].contiguous()}),
        "header": b"no weights at all",
    }
    for said, content in cases.items():
        with bundle.commit() as change:
            change.write(WEIGHTS, content)
        with pytest.raises(BundleError, match=rf"{WEIGHTS} does not hold the weights of cmerc .*{said}.*: train or"):
            bundle_model(bundle)


def test_a_failing_export_leaves_the_bundle_as_it_was(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    def fail(*_: object) -> None:
        raise RuntimeError("disk full")

    before = bundle.manifest.model_copy(deep=True)
    monkeypatch.setattr(torch.jit, "save", fail)
    with pytest.raises(RuntimeError):
        export_variant(bundle, "torchscript", FOUR)
    reopened = Bundle.open(bundle.root)
    assert reopened.manifest == before
    assert not list(bundle.root.glob("variants/*"))


def test_an_export_that_answers_differently_is_refused() -> None:
    system = registry.get("cmerc")
    config = system.parse(CONFIG)
    model, contract = system.build(config), system.contract(config)
    arrays = random_inputs(contract, FOUR, items=2)
    job = ExportJob(model, contract, FOUR, 0, 20, arrays, run_model(model, contract, arrays))
    prove(job, list(job.reference.values()), "the same")
    with pytest.raises(UsageError, match=r"differs from the model in log_prob by 1\.00e-02"):
        prove(job, [v + np.float32(0.01) for v in job.reference.values()], "another")


class Unrolled(nn.Module):
    """A loop of Python over the items: a trace has as many steps as it was made with."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.stack([2 * x[i] for i in range(x.shape[0])])


def doubling(batch: int, error: float) -> ExportJob:
    """Of `Unrolled`, whose reference is off by so much."""
    x, y = (TensorSpec(name=n, dtype="float32", dims=(BATCH, 3)) for n in "xy")
    contract = Contract(inputs=(x,), outputs=(y,), buckets=(Bucket(),), longest={})
    arrays = {"x": np.ones((2, 3), np.float32)}
    return ExportJob(Unrolled(), contract, Bucket(), batch, 20, arrays, {"y": 2 * arrays["x"] + np.float32(error)})


@pytest.mark.parametrize(
    ("kind", "batch", "error", "said"),
    [
        (torchscript, 0, 0.0, "the TorchScript module breaks on a batch of 1 "),
        (exported_program, 3, 0.01, r"the exported program differs from the model in y by 1\.00e-02"),
    ],
)
def test_a_file_is_proven_on_another_batch_too(
    tmp_path: Path, kind: ModuleType, batch: int, error: float, said: str
) -> None:
    with pytest.raises(UsageError, match=said):
        kind.export(doubling(batch, error), tmp_path / "model")
    assert not list(tmp_path.iterdir())


def test_examples_are_the_samples_that_fit_longest_first() -> None:
    contract = registry.get("cmerc").contract(registry.get("cmerc").parse(CONFIG))
    found = example_inputs(contract, FOUR, make_samples(20))
    assert found["lengths"][0] == 4
    assert len(found["lengths"]) == 4
    assert (np.diff(found["lengths"]) <= 0).all()


@pytest.mark.parametrize(
    ("change", "error", "words"),
    [
        ({"opset": 23}, UnsupportedError, "opset 23 is not exported"),
        ({"opset": 17}, UnsupportedError, "choose 18-22"),
        ({"format": "torchscript", "precision": "fp16"}, UnsupportedError, r"it has \['fp32'\]"),
        ({"precision": "bf16"}, UnsupportedError, "it has .*'fp16', 'int8'.*--precision bf16"),
        ({"format": "tensorrt", "precision": "int8"}, UnsupportedError, "no dynamic quantisation"),
        ({"format": "tflite"}, UsageError, "no format 'tflite'"),
        ({"lengths": {"utterances": 0}}, UsageError, "must be 1..997"),
        ({"lengths": {"words": 4}}, UsageError, "asks for"),
        ({"batch": -1}, UsageError, "batch must be 0"),
    ],
)
def test_what_does_not_exist_is_refused_before_any_work(
    bundle: Bundle, change: dict[str, object], error: type[Exception], words: str
) -> None:
    request = {"format": "onnx", "lengths": FOUR, **change}
    with pytest.raises(error, match=words):
        export_variant(bundle, **request)  # type: ignore[arg-type]


@pytest.mark.parametrize("opset", [18, 22])
def test_the_oldest_and_the_newest_opset_export_and_run(tmp_path: Path, opset: int) -> None:
    bundle = mtee_bundles.make_bundle(tmp_path / "bundle", "rnn_ef")
    variant = export_variant(bundle, "onnx", bundle.manifest.contract.buckets[0], batch=1, opset=opset)
    assert onnx.load(bundle.path(variant.model)).opset_import[0].version == opset
    assert variant.batch == 1
    assert variant.name.endswith("-b1")


@settings(max_examples=30, deadline=None)
@given(widths=st.tuples(*[st.integers(1, 12)] * 4), seed=st.integers(0, 99))
def test_merged_linear_layers_compute_the_same_with_less_work(widths: tuple[int, int, int, int], seed: int) -> None:
    from onnx import TensorProto, helper, numpy_helper
    from onnx.reference import ReferenceEvaluator

    rows, width, middle, out = widths
    draw = np.random.default_rng(seed)
    shapes = {"w1": (width, middle), "b1": (middle,), "b2": (middle,), "w2": (middle, out)}
    constants = {n: draw.standard_normal(s, dtype=np.float32) for n, s in shapes.items()}
    nodes = [
        helper.make_node(op, list(i), [o], name=o)
        for op, i, o in (
            ("MatMul", ("x", "w1"), "a"),
            ("Add", ("a", "b1"), "b"),
            ("Add", ("b", "b2"), "c"),
            ("MatMul", ("c", "w2"), "y"),
        )
    ]
    graph = helper.make_graph(
        nodes,
        "two",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [rows, width])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [rows, out])],
        [numpy_helper.from_array(a, n) for n, a in constants.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    feed = {"x": draw.standard_normal((rows, width), dtype=np.float32)}
    expected = ReferenceEvaluator(model).run(None, feed)[0]
    merged = merge_linears(model)
    assert merged == (width * out < width * middle + middle * out)
    onnx.checker.check_model(model, full_check=True)
    np.testing.assert_allclose(ReferenceEvaluator(model).run(None, feed)[0], expected, rtol=1e-4, atol=1e-4)


def test_linear_layers_with_another_reader_between_them_stay() -> None:
    from onnx import TensorProto, helper, numpy_helper

    nodes = [helper.make_node("MatMul", ["x", "w"], ["a"]), helper.make_node("MatMul", ["a", "w"], ["y"])]
    outputs = [helper.make_tensor_value_info(n, TensorProto.FLOAT, [2, 2]) for n in ("y", "a")]
    graph = helper.make_graph(
        nodes,
        "shared",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [2, 2])],
        outputs,
        [numpy_helper.from_array(np.eye(2, dtype=np.float32), "w")],
    )
    assert merge_linears(helper.make_model(graph)) == 0


rtx = pytest.mark.skipif(find_spec("tensorrt_rtx_bindings") is None, reason="tensorrt-rtx is not installed")


@rtx
def test_a_real_engine_is_built_with_its_onnx_beside_it_and_refuses_to_run_without_a_gpu(bundle: Bundle) -> None:
    from mer_export.cuda import find_gpu

    variant = export_variant(bundle, "tensorrt", FOUR)
    engine = bundle.variant_files(variant)
    assert engine.stat().st_size > 10_000
    assert variant.batch == 1
    key = variant.options["engine_key"]
    assert key["onnx"] == bundle.manifest.files[f"variants/{variant.name}/model.onnx"].sha256
    if find_gpu() is None:
        with pytest.raises(NotAvailableError, match="no CUDA device"):
            open_session(bundle, variant, "tensorrt")


@rtx
def test_a_gpu_that_tensorrt_rtx_has_no_kernels_for_is_named_with_those_that_it_has() -> None:
    from mer_export.cuda import Gpu
    from mer_export.exporters.tensorrt import find_library, without_kernels

    library, flavour = find_library()
    said = without_kernels(library, flavour, Gpu("NVIDIA H200", "9.0"))
    assert said is not None
    assert "no kernels for the compute capability 9.0 of NVIDIA H200, only for 7.5, 8.0, " in said
    assert without_kernels(library, flavour, Gpu("NVIDIA L4", "8.9")) is None


@rtx
def test_a_graph_that_tensorrt_cannot_read_is_refused_in_one_sentence(bundle: Bundle, tmp_path: Path) -> None:
    from mer_export.exporters.tensorrt import build_engine

    path = tmp_path / "model.onnx"
    path.write_bytes(b"no graph")
    with pytest.raises(UsageError, match=r"tensorrt.* cannot read model.onnx"):
        build_engine(path, bundle.manifest.contract)


def test_an_engine_of_another_environment_says_which_field_differs() -> None:
    from mer_export.exporters.tensorrt import ANY, EngineKey
    from runtimes.backends.tensorrt.session import stale

    built = EngineKey(onnx="a", batch=1, lengths=FOUR, flavour="tensorrt", version="10.9", gpu="H200", capability="9.0")
    here = built.model_copy(update={"version": "11.4", "gpu": "L4", "capability": "8.9"})
    assert stale(built, built) == []
    assert stale(built, here) == ["version: 10.9, not 11.4", "gpu: H200, not L4", "capability: 9.0, not 8.9"]
    portable = built.model_copy(update={"gpu": ANY, "capability": ANY})
    assert stale(portable, built) == []
    assert stale(portable, here) == ["version: 10.9, not 11.4"]
