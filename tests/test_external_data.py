"""Weights that the ONNX files of a bundle share: one file, checked before it is loaded, gone when nothing reads it."""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from safetensors.numpy import load_file, save_file
from small_bundle import make_bundle, make_samples, randomise

from mer_export.agreement.error import output_error
from mer_export.agreement.policy import RULES
from mer_export.bucket import Bucket
from mer_export.bundle import MANIFEST, WEIGHTS, Bundle, FileEntry, Variant, seal, sha256
from mer_export.errors import BundleError
from mer_export.exporters import export_variant
from mer_export.exporters import onnx as onnx_exporter
from mer_export.exporters.export_job import ExportJob
from mer_export.exporters.graph import external_data as external
from mer_export.untrusted.onnx_files import data_files
from runtimes.backends.table import backend_problem, open_session
from runtimes.predict.predictor import Predictor

BIAS = "text_linear.bias"


def outside(patch: pytest.MonkeyPatch, exported: Bundle) -> None:
    """Exports have each tensor of 64 bytes and more outside. Their graphs are those of `exported`, which has the same
    weights, with one bias of the network in question: to capture them would take longer than all tests here."""

    def to_onnx(job: ExportJob) -> onnx.ModelProto:
        model = onnx.load(exported.variant_files(exported.find(f"onnx-fp32-{job.lengths.name}-bdynamic")))
        (bias,) = (i for i in model.graph.initializer if i.name == f"model.{BIAS}")
        bias.CopyFrom(numpy_helper.from_array(job.model.get_parameter(BIAS).numpy(), bias.name))
        return model

    patch.setattr(external, "SMALLEST", 64)
    patch.setattr(external, "WORTH", 1024)
    patch.setattr(onnx_exporter, "to_onnx", to_onnx)


@pytest.fixture(scope="module")
def made(exported: Bundle, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle with both buckets in fp32 and one in int8."""
    bundle = make_bundle(tmp_path_factory.mktemp("external") / "bundle")
    randomise(bundle)
    with pytest.MonkeyPatch.context() as patch:
        outside(patch, exported)
        for lengths in bundle.manifest.contract.buckets:
            export_variant(bundle, "onnx", lengths, example=make_samples())
        export_variant(bundle, "onnx", bundle.manifest.contract.buckets[0], precision="int8", example=make_samples())
    return bundle.root


@pytest.fixture
def bundle(made: Path, tmp_path: Path) -> Bundle:
    """A copy to write to, in another place."""
    return Bundle.open(shutil.copytree(made, tmp_path / "elsewhere" / "bundle"))


def weights(bundle: Bundle, precision: str = "fp32") -> list[str]:
    return [n for n in bundle.manifest.files if n.startswith(f"variants/onnx-{precision}/") and n.endswith(".weights")]


def variants(bundle: Bundle, precision: str = "fp32") -> list[Variant]:
    return [v for v in bundle.manifest.variants if v.precision == precision]


def test_buckets_share_one_file_that_is_called_by_its_content(bundle: Bundle) -> None:
    (name,) = weights(bundle)
    assert hashlib.sha256((bundle.root / name).read_bytes()).hexdigest() == Path(name).stem
    shared = {v.name: data_files(bundle.variant_files(v)) for v in variants(bundle)}
    assert list(shared.values()) == [[Path(name).name]] * 2
    size = (bundle.root / name).stat().st_size
    alone = [onnx.load(bundle.root / v.model).ByteSize() for v in variants(bundle)]
    assert all(
        (bundle.root / v.model).stat().st_size < n - size / 2 for v, n in zip(variants(bundle), alone, strict=True)
    )
    assert bundle.verify() == len(bundle.manifest.files)


@pytest.mark.parametrize("backend", ["onnxruntime", "openvino"])
def test_shared_weights_answer_as_pytorch_does_after_a_move(bundle: Bundle, backend: str) -> None:
    if backend_problem(backend):
        pytest.skip(str(backend_problem(backend)))
    samples = make_samples(9)
    with Predictor(bundle, backend) as running, Predictor(bundle, "torch") as eager:
        for mine, theirs in zip(running.scores(samples), eager.scores(samples), strict=True):
            np.testing.assert_allclose(mine, theirs, rtol=0, atol=1e-5)


@pytest.mark.skipif(find_spec("tensorrt_rtx_bindings") is None, reason="tensorrt-rtx is not installed")
def test_tensorrt_reads_shared_weights(bundle: Bundle) -> None:
    from mer_export.exporters.tensorrt import build_engine

    variant = export_variant(bundle, "onnx", Bucket(utterances=8), batch=1)
    assert len(build_engine(bundle.variant_files(variant), bundle.manifest.contract)) > 10_000


def test_damaged_weights_are_refused(bundle: Bundle) -> None:
    path = bundle.root / weights(bundle)[0]
    content = bytearray(path.read_bytes())
    content[5] ^= 1
    path.write_bytes(content)
    with pytest.raises(BundleError, match="weights does not match its checksum"):
        open_session(Bundle.open(bundle.root), variants(bundle)[0], "onnxruntime")


def forge(bundle: Bundle, change: Callable[[onnx.TensorProto], None]) -> None:
    """Changes where the first variant says its weights are, and makes its checksum agree."""
    name = variants(bundle)[0].model
    model = onnx.load(bundle.root / name, load_external_data=False)
    change(next(t for t in model.graph.initializer if t.external_data))
    onnx.save_model(model, bundle.root / name)
    path = bundle.root / name
    bundle.manifest.files[name] = FileEntry(size=path.stat().st_size, sha256=sha256(path))
    (bundle.root / MANIFEST).write_bytes(seal(bundle.manifest))


@pytest.mark.parametrize("place", ["../../bundle.json", "/etc/passwd", "link", "./x", "deeper/x", "..", ""])
def test_weights_that_are_no_listed_file_beside_the_model_are_refused(bundle: Bundle, place: str) -> None:
    (bundle.root / "variants" / "onnx-fp32" / "link").symlink_to("/etc/passwd")

    def point_elsewhere(tensor: onnx.TensorProto) -> None:
        next(e for e in tensor.external_data if e.key == "location").value = place

    # What the bundle has under that name from its root is not what a runtime reads.
    (bundle.root / "deeper").mkdir()
    (bundle.root / "deeper" / "x").touch()
    bundle.manifest.files["deeper/x"] = FileEntry(size=0, sha256=hashlib.sha256().hexdigest())
    forge(bundle, point_elsewhere)
    for opened in (lambda b: b.verify(), lambda b: open_session(b, variants(b)[0], "onnxruntime")):
        with pytest.raises(BundleError, match=f"reads '{place}', which is not a file of this bundle") as caught:
            opened(Bundle.open(bundle.root))
        assert caught.value.exit_code == 6


def test_a_second_location_of_a_tensor_is_seen_too(bundle: Bundle) -> None:
    forge(bundle, lambda tensor: tensor.external_data.add(key="location", value="../secret"))
    with pytest.raises(BundleError, match=r"reads '\.\./secret'"):
        Bundle.open(bundle.root).verify()


def test_every_tensor_of_a_graph_is_looked_at(tmp_path: Path) -> None:
    """Initializers, attributes, graphs inside nodes and functions."""

    def outside(name: str) -> onnx.TensorProto:
        tensor = numpy_helper.from_array(np.zeros(3, np.float32), name)
        tensor.data_location = TensorProto.EXTERNAL
        tensor.ClearField("raw_data")
        tensor.external_data.add(key="location", value=f"{name}.bin")
        return tensor

    inner = helper.make_graph([], "inner", [], [], [outside("branch")])
    nodes = [
        helper.make_node("Constant", [], ["c"], value=outside("attribute")),
        helper.make_node("If", ["c"], ["d"], then_branch=inner, else_branch=inner),
    ]
    constant = helper.make_node("Constant", [], ["y"], value=outside("in_function"))
    function = helper.make_function("own", "f", [], ["y"], [constant], [])
    model = helper.make_model(helper.make_graph(nodes, "g", [], [], [outside("initializer")]), functions=[function])
    (tmp_path / "model.onnx").write_bytes(model.SerializeToString())
    found = data_files(tmp_path / "model.onnx")
    assert sorted(found) == ["attribute.bin", "branch.bin", "in_function.bin", "initializer.bin"]


@pytest.mark.parametrize("content", [b"no graph at all", b"\x3a\xff\x01", b"\x08" + b"\xff" * 20])
def test_what_is_no_onnx_file_is_refused(bundle: Bundle, content: bytes) -> None:
    name = variants(bundle)[0].model
    with bundle.commit() as change:
        change.write(name, content)
    with pytest.raises(BundleError, match="is not an ONNX file"):
        Bundle.open(bundle.root).variant_files(variants(bundle)[0])


def test_weights_that_nothing_reads_any_more_leave_the_bundle(
    bundle: Bundle, exported: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    outside(monkeypatch, exported)
    (old,) = weights(bundle)
    values = load_file(bundle.path(WEIGHTS))
    with bundle.commit() as change:
        save_file(values | {BIAS: values[BIAS] + 1}, change.file(WEIGHTS))
    first, last = bundle.manifest.contract.buckets
    export_variant(bundle, "onnx", first)
    assert len(weights(bundle)) == 2
    export_variant(bundle, "onnx", last)
    (new,) = weights(bundle)
    assert new != old
    assert not (bundle.root / old).exists()
    assert (bundle.root / weights(bundle, "int8")[0]).exists()
    assert Bundle.open(bundle.root).verify()


def test_files_that_would_grow_too_large_keep_their_weights_outside(
    bundle: Bundle, exported: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same path as past 2 GB: every file on the way, fp32 and rewritten, has its weights beside it."""
    outside(monkeypatch, exported)
    for name in ("LARGE", "WORTH"):
        monkeypatch.setattr(external, name, 1)
    with bundle.commit() as change:
        change.manifest.variants = []
    samples = make_samples(6)
    variant = export_variant(bundle, "onnx", Bucket(utterances=8), precision="int8", example=samples)
    assert data_files(bundle.variant_files(variant))
    with (
        Predictor(bundle, "torch") as eager,
        Predictor(bundle, "onnxruntime", variants=[variant], precision="int8") as running,
    ):
        rule = RULES["int8"]
        error = output_error("log_prob", eager.scores(samples), running.scores(samples), rule.atol, rule.rtol)
    assert error.agrees, error.size


def test_a_reduced_precision_is_rewritten_from_the_fp32_file_that_is_there(
    bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise AssertionError("exported again")

    monkeypatch.setattr(onnx_exporter, "to_onnx", fail)
    eight = Bucket(utterances=8)
    variant = export_variant(bundle, "onnx", eight, precision="int8", example=make_samples())
    assert variant.options["rewrite"]["operators"]["MatMulInteger"] > 0
    with open_session(bundle, variant, "onnxruntime") as session:
        assert session.info["precision"] == "int8"
    for change in ({"batch": 2}, {"opset": 19}, {"lengths": Bucket(utterances=7)}):
        with pytest.raises(AssertionError, match="exported again"):
            export_variant(bundle, "onnx", **({"lengths": eight, "precision": "int8"} | change))  # type: ignore[arg-type]
    randomise(bundle, seed=3)
    with pytest.raises(AssertionError, match="exported again"):
        export_variant(bundle, "onnx", eight, precision="int8")


def test_an_onnx_file_says_nothing_of_the_machine_that_made_it(bundle: Bundle) -> None:
    for variant in bundle.manifest.variants:
        content = (bundle.root / variant.model).read_bytes()
        assert b".py" not in content
        assert b"stack_trace" not in content
