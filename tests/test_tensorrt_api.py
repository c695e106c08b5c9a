"""TensorRT without a GPU: every call of ours exists in each binding, and what was built is kept for its user alone.

The library and the CUDA driver are stand-ins (`tensorrt_double`); what only real ones can show is in `test_gpu`.
"""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import onnx
import pytest
import record_tensorrt_api
from onnx import TensorProto, helper, numpy_helper
from small_bundle import make_bundle, make_samples
from tensorrt_double import TABLE, Driver, TensorRt

from benchmarks.small_encoders import save_folder
from mer_export import cuda
from mer_export.bucket import Bucket
from mer_export.bundle import Bundle
from mer_export.data.collate import collate
from mer_export.errors import NotAvailableError
from mer_export.exporters import export_variant
from mer_export.exporters import onnx as onnx_exporter
from mer_export.exporters.encoders.transformers_folder import Wanted, import_folder
from mer_export.exporters.export_job import Exported, ExportJob
from mer_export.kept import Kept
from runtimes.backends.session import SessionOptions
from runtimes.backends.table import backend_problem, open_session
from runtimes.doctor import examine
from runtimes.encode import open_encoder

WEIGHT = np.random.default_rng(0).standard_normal((16, 3), np.float32)
FOUR = Bucket(utterances=4)
ON_GPU = SessionOptions(device="cuda")
FLAVOURS = {"tensorrt 10": "tensorrt", "tensorrt 11": "tensorrt", "tensorrt_rtx": "tensorrt_rtx"}


class World:
    """A machine with a stand-in for a GPU and for one flavour of TensorRT, and a user with a key."""

    def __init__(self, patch: pytest.MonkeyPatch, home: Path):
        self._patch = patch
        patch.setenv("XDG_CONFIG_HOME", str(home))

    def be(self, flavour: str, driver: Driver | None = None) -> TensorRt:
        """From here on the machine is of that kind."""
        self.driver = driver or Driver()
        made = TensorRt(flavour, self.driver)
        for name in ("tensorrt", "tensorrt_rtx"):
            self._patch.delitem(sys.modules, name, raising=False)
        self._patch.setitem(sys.modules, FLAVOURS[flavour], made)  # type: ignore[arg-type]
        self._patch.setattr(cuda, "load_driver", lambda: self.driver)
        cuda.find_gpu.cache_clear()
        return made


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle, and in place of its network's ONNX file one that gives the mean of the text vectors times WEIGHT."""
    root = tmp_path_factory.mktemp("plain")
    contract = make_bundle(root / "bundle").manifest.contract
    shapes = {s.name: s.shape(1, FOUR) for s in (*contract.inputs, *contract.outputs)}
    kinds = {"float32": TensorProto.FLOAT, "int64": TensorProto.INT64}
    inputs, outputs = (
        [helper.make_tensor_value_info(s.name, kinds[s.dtype], shapes[s.name]) for s in specs]
        for specs in (contract.inputs, contract.outputs)
    )
    (answer,) = (o.name for o in contract.outputs)
    nodes = [helper.make_node("ReduceMean", ["text", "one"], ["mean"], keepdims=0)]
    nodes.append(helper.make_node("MatMul", ["mean", "weight"], [answer]))
    held = [numpy_helper.from_array(np.array([1]), "one"), numpy_helper.from_array(WEIGHT, "weight")]
    graph = helper.make_graph(nodes, "plain", inputs, outputs, held)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10), root / "model.onnx")
    return root


@pytest.fixture
def bundle(plain: Path, tmp_path: Path) -> Bundle:
    return Bundle.open(shutil.copytree(plain / "bundle", tmp_path / "bundle"))


@pytest.fixture
def world(plain: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[World]:
    def export_before(job: ExportJob, path: Path) -> Exported:
        shutil.copy(plain / "model.onnx", path)
        return Exported("a file that was there")

    monkeypatch.setattr(onnx_exporter, "export", export_before)
    yield World(monkeypatch, tmp_path / "config")
    cuda.find_gpu.cache_clear()


def one_item(bundle: Bundle) -> dict[str, np.ndarray]:
    return collate(make_samples(4)[2:3], bundle.manifest.contract, FOUR)


def answers(bundle: Bundle, options: SessionOptions = ON_GPU) -> np.ndarray:
    variant = next(v for v in bundle.manifest.variants if v.format == "tensorrt")
    with open_session(bundle, variant, "tensorrt", options) as session:
        return session.run(one_item(bundle))["log_prob"]


@pytest.mark.parametrize("flavour", FLAVOURS)
def test_every_call_of_an_export_and_of_a_session_is_one_that_the_binding_has(
    bundle: Bundle, world: World, flavour: str
) -> None:
    library = world.be(flavour)
    variant = export_variant(bundle, "tensorrt", FOUR)
    assert variant.options["layers"] == {"bf16": 1, "fp16": 2, "fp32": 1}
    wanted = one_item(bundle)["text"].mean(axis=1) @ WEIGHT
    np.testing.assert_allclose(answers(bundle), wanted, rtol=0, atol=1e-5)
    (said,) = (c for c in examine() if c.name == "tensorrt")
    assert (said.status, said.version) == ("ok", library.__version__)
    assert {"Builder.build_serialized_network", "IExecutionContext.execute_async_v3"} <= set(library.calls)
    assert not world.driver.memory, "what a session took on device and host is freed"


def test_an_encoder_is_exported_and_run_as_a_model_is(
    world: World, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    pytest.importorskip("transformers")
    save_folder("bert", tmp_path / "source")
    encoder = import_folder(tmp_path / "source", tmp_path / "encoder", Wanted(longest=16, buckets=(16,)))
    library = world.be("tensorrt_rtx")
    table = np.arange(32 * 16, dtype=np.float32).reshape(16, 32)

    def export_before(job: ExportJob, path: Path) -> Exported:
        """The vector of a sentence: the row of its length."""
        shapes = {s.name: s.shape(job.batch, job.lengths) for s in (*job.contract.inputs, *job.contract.outputs)}
        inputs = [helper.make_tensor_value_info(s.name, TensorProto.INT64, shapes[s.name]) for s in job.contract.inputs]
        output = helper.make_tensor_value_info("vector", TensorProto.FLOAT, shapes["vector"])
        nodes = [helper.make_node("Gather", ["table", "tokens_len"], ["vector"])]
        graph = helper.make_graph(nodes, "lengths", inputs, [output], [numpy_helper.from_array(table, "table")])
        made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
        onnx.save(made, path)
        return Exported("a file that was there")

    monkeypatch.setattr(onnx_exporter, "export", export_before)
    export_variant(encoder, "tensorrt", Bucket(tokens=16), batch=2)
    sentences = ["hello there you", "a", "the quick"]
    with open_encoder(tmp_path / "encoder", "tensorrt", options=ON_GPU) as encoding:
        lengths = [len(encoding.encoder.tokenizer.encode(s)) for s in sentences]
        found = list(encoding.encode(sentences))
    np.testing.assert_array_equal(np.stack(found), table[lengths])
    assert "IExecutionContext.execute_async_v3" in set(library.calls)


def test_the_stand_in_takes_nothing_that_a_binding_lacks() -> None:
    ten, eleven = (TensorRt(f, Driver()) for f in ("tensorrt 10", "tensorrt 11"))
    logger = ten.Logger()  # type: ignore[attr-defined]
    with pytest.raises(AttributeError, match="Runtime has no get_engine_validity"):
        _ = ten.Runtime(logger).get_engine_validity  # type: ignore[attr-defined]
    with pytest.raises(AttributeError, match="IBuilderConfig has no max_workspace_size"):
        ten.make("IBuilderConfig").max_workspace_size = 1
    with pytest.raises(TypeError, match=r"Builder.create_network.*the binding has"):
        ten.Builder(logger).create_network(1, 2)  # type: ignore[attr-defined]
    assert hasattr(ten.BuilderFlag, "FP16")  # type: ignore[attr-defined]
    assert not hasattr(eleven.BuilderFlag, "FP16")  # type: ignore[attr-defined]


@pytest.mark.skipif(find_spec("tensorrt_rtx_bindings") is None, reason="tensorrt-rtx is not installed")
def test_the_recorded_calls_are_those_of_the_installed_binding() -> None:
    import tensorrt_rtx_bindings

    if tensorrt_rtx_bindings.__version__ != TABLE["tensorrt_rtx"]["version"]:
        pytest.skip(f"{tensorrt_rtx_bindings.__version__} is installed, the table is of another")
    assert record_tensorrt_api.describe(tensorrt_rtx_bindings) == TABLE["tensorrt_rtx"]


def test_an_engine_runs_from_any_thread_each_with_the_device_current(bundle: Bundle, world: World) -> None:
    world.be("tensorrt 11")
    variant = export_variant(bundle, "tensorrt", FOUR)
    samples = [collate([s], bundle.manifest.contract, FOUR) for s in make_samples(20) if len(s.units) <= 4]
    with open_session(bundle, variant, "tensorrt", ON_GPU) as session:
        alone = [session.run(s)["log_prob"] for s in samples]
        with ThreadPoolExecutor(4) as pool:
            together = list(pool.map(lambda s: session.run(s)["log_prob"], samples * 3))
    np.testing.assert_array_equal(alone * 3, together)


def test_one_of_several_gpus_is_the_one_that_runs(bundle: Bundle, world: World) -> None:
    world.be("tensorrt 11", Driver(devices=2))
    export_variant(bundle, "tensorrt", FOUR)
    answers(bundle, SessionOptions(device="cuda:1"))
    assert set(world.driver.number.values()) == {1001}
    with pytest.raises(NotAvailableError, match="no device cuda:2, this machine has cuda:0 to cuda:1"):
        answers(bundle, SessionOptions(device="cuda:2"))


def test_an_engine_of_another_gpu_is_built_once_for_this_one_and_kept_beside_the_bundle(
    bundle: Bundle, world: World, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    world.be("tensorrt 10")
    export_variant(bundle, "tensorrt", FOUR)
    before = sorted(p for p in bundle.root.rglob("*") if p.is_file())
    library = world.be("tensorrt 11", Driver(capability=(9, 0)))
    first = answers(bundle)
    assert library.calls.count("Builder.build_serialized_network") == 1
    np.testing.assert_array_equal(answers(bundle), first)
    assert library.calls.count("Builder.build_serialized_network") == 1
    assert sorted(p for p in bundle.root.rglob("*") if p.is_file()) == before, "the bundle is as it was"
    # A program of somebody else is not loaded, whatever it is called.
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "another user"))
    answers(Bundle.open(bundle.root, trust=True))
    assert library.calls.count("Builder.build_serialized_network") == 2


def test_a_session_that_fails_halfway_frees_what_it_took(
    bundle: Bundle, world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    world.be("tensorrt 11")
    export_variant(bundle, "tensorrt", FOUR)

    def broken(*_: object) -> None:
        raise RuntimeError("no address")

    for step in ("deserialize_cuda_engine", "set_tensor_address"):
        with monkeypatch.context() as patch:
            patch.setattr(TensorRt, step, broken)
            with pytest.raises(RuntimeError, match="no address"):
                answers(bundle)
        assert world.driver.log.count("cuStreamDestroy_v2") == world.driver.log.count("cuStreamCreate") > 0
        assert not world.driver.memory


def test_times_of_kernels_are_kept_from_build_to_build_of_regular_tensorrt(bundle: Bundle, world: World) -> None:
    world.be("tensorrt 11")
    kept = Kept.beside(bundle.root)
    for builds in (1, 2):
        variant = export_variant(bundle, "tensorrt", FOUR, force=True)
        (file,) = kept.folder.glob("*.timings")
        assert kept.read(file.name) == b"times" * builds
    # Times that the library does not take are left out.
    assert kept.write(file.name, b"other")
    export_variant(bundle, "tensorrt", FOUR, force=True)
    assert kept.read(file.name) == b"times"
    assert variant.options["engine_key"]["capability"] == "8.9"


def test_tensorrt_rtx_keeps_no_times(bundle: Bundle, world: World) -> None:
    library = world.be("tensorrt_rtx")
    export_variant(bundle, "tensorrt", FOUR)
    assert not Kept.beside(bundle.root).folder.exists()
    assert "IBuilderConfig.create_timing_cache" not in library.calls


def test_without_a_gpu_regular_tensorrt_neither_builds_nor_runs(bundle: Bundle, world: World) -> None:
    world.be("tensorrt 11", Driver(devices=0))
    assert "this machine has no CUDA device" in str(backend_problem("tensorrt", ON_GPU))
    with pytest.raises(NotAvailableError, match="tensorrt builds engines only on a machine with a GPU"):
        export_variant(bundle, "tensorrt", FOUR)


@pytest.fixture
def kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Kept:
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    return Kept(tmp_path / "bundle-engines", most=1000)


def test_what_is_kept_is_read_by_its_name_and_content_or_not_at_all(kept: Kept) -> None:
    assert kept.write("a", b"engine")
    assert kept.read("a") == b"engine"
    assert kept.read("b") is None
    (kept.folder / "b").write_bytes((kept.folder / "a").read_bytes())
    assert kept.read("b") is None, "a digest is of one name"
    (kept.folder / "a").write_bytes((kept.folder / "a").read_bytes() + b"!")
    assert kept.read("a") is None, "and of one content"


def test_a_folder_that_others_can_write_to_or_that_is_a_link_is_not_used(kept: Kept, tmp_path: Path) -> None:
    assert kept.write("a", b"engine")
    kept.folder.chmod(0o777)
    assert kept.read("a") is None
    assert not kept.write("a", b"engine")
    kept.folder.chmod(0o700)
    kept.folder.rename(tmp_path / "elsewhere")
    kept.folder.symlink_to(tmp_path / "elsewhere")
    assert kept.read("a") is None
    assert not kept.write("a", b"engine")


def test_what_was_used_longest_ago_makes_room(kept: Kept) -> None:
    for age, name in ((30, "old"), (20, "read again"), (10, "young")):
        assert kept.write(name, bytes(300))
        now = (kept.folder / name).stat().st_mtime
        os.utime(kept.folder / name, (now - age, now - age))
    assert kept.read("read again") is not None
    assert kept.write("new", bytes(300))
    assert kept.read("old") is None
    assert {p.name for p in kept.folder.iterdir()} == {"read again", "young", "new"}
    assert not kept.write("too large", bytes(1000))


def test_without_a_key_nothing_is_kept_and_nothing_fails(tmp_path: Path) -> None:
    kept = Kept(tmp_path / "bundle-engines")
    assert not kept.write("a", b"engine")
    assert kept.read("a") is None
    assert not kept.folder.exists()
