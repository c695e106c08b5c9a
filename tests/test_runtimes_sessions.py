"""Sessions and the predictor: routing, order, overflow, refusals, and what is not imported."""

from __future__ import annotations

import csv
import json
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import ClassVar

import numpy as np
import pytest
from small_bundle import make_bundle, make_samples

from mer_export.bucket import Bucket
from mer_export.bundle import Bundle, Variant
from mer_export.data.samples import Sample
from mer_export.errors import BundleError, InputError, NotAvailableError, UnsupportedError, UsageError
from mer_export.exporters import export_variant
from mer_export.registry import resolve
from mer_export.stages import Stage
from runtimes import load
from runtimes.backends.session import Artefact, Ports, Session, SessionOptions
from runtimes.backends.session_pool import Crew
from runtimes.backends.staged import StagedSession
from runtimes.backends.table import backend_problem, known_backends, open_session
from runtimes.backends.way import find_graphs, find_ways
from runtimes.predict import output, predictor
from runtimes.predict.prediction import Prediction
from runtimes.predict.predictor import Predictor

ONE_THREAD = SessionOptions(threads=1)
LABELS = ("neutral", "joy", "anger")


def long_sample(size: int = 20) -> Sample:
    """One dialogue of several short ones end to end."""
    parts = make_samples(16, seed=3)
    inputs = {
        name: np.concatenate([p.inputs[name] for p in parts], axis=1 if name == "text" else 0)
        for name in parts[0].inputs
    }
    cut = {k: v[:, :size] if k == "text" else v[:size] for k, v in inputs.items()}
    return Sample("long", cut, tuple(f"long/{i}" for i in range(size)))


def test_serving_an_onnx_bundle_imports_no_torch_and_little_else(exported: Bundle) -> None:
    code = """
import sys
import numpy as np
import pydantic
before = len(sys.modules)
import runtimes
brought = len(sys.modules) - before
from mer_export.data.samples import Sample
inputs = {"text": np.ones((2, 3, 16), np.float32), "audio": np.ones((3, 8), np.float32), "speaker": [0, 1, 0]}
with runtimes.load(sys.argv[1], threads=1) as predictor:
    found = list(predictor.predict([Sample("d", inputs, ("a", "b", "c"))]))
assert [p.unit for p in found] == ["a", "b", "c"]
heavy = {"torch", "transformers", "onnx", "onnxscript", "pyarrow", "matplotlib"} & set(sys.modules)
assert not heavy, heavy
assert brought < 250, brought
"""
    ran = subprocess.run([sys.executable, "-c", code, str(exported.root)], capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr


def test_the_tensorrt_backend_imports_no_torch() -> None:
    sessions = "runtimes.backends.tensorrt.session, runtimes.backends.openvino.session"
    code = f"import sys, {sessions}; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize(
    ("backend", "batch"),
    [
        *((name, 3) for name in ("torch", "torchscript", "exported_program", "onnxruntime", "openvino")),
        # What prepares for a batch does so for single items too.
        *((name, 1) for name in ("onnxruntime", "openvino")),
    ],
)
def test_predictions_keep_the_order_of_the_samples_on_every_runtime(
    exported: Bundle, backend: str, batch: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    if backend_problem(backend):
        pytest.skip(str(backend_problem(backend)))
    monkeypatch.setattr(predictor, "CHUNK_SAMPLES", 5)
    samples = make_samples(13)
    with Predictor(exported, "torch", ONE_THREAD) as reference:
        expected = reference.scores(samples)
    with Predictor(exported, backend, ONE_THREAD, batch=batch) as running:
        found = list(running.predict(iter(samples)))
        scores = running.scores(samples)
    assert [p.unit for p in found] == [u for s in samples for u in s.units]
    for mine, theirs in zip(scores, expected, strict=True):
        np.testing.assert_allclose(mine, theirs, rtol=0, atol=1e-5)
    for p in found:
        assert p.index is not None
        assert p.label == LABELS[p.index] == max(p.probabilities, key=p.probabilities.__getitem__)
        assert abs(sum(p.probabilities.values()) - 1) < 1e-5


def test_samples_are_read_as_they_are_answered(exported: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(predictor, "CHUNK_SAMPLES", 4)
    read = 0

    def stream() -> Iterator[Sample]:
        nonlocal read
        for sample in make_samples(40):
            read += 1
            yield sample

    with Predictor(exported, "torch") as running:
        next(iter(running.predict(stream())))
    assert read == 4


def test_each_sample_runs_in_the_smallest_bucket_that_holds_it(exported: Bundle) -> None:
    with Predictor(exported, "onnxruntime") as running:
        running.scores([s for s in make_samples(8) if len(s.units) <= 4])
        assert list(running._sessions) == [Bucket(utterances=4)]
        running.scores(make_samples(8))
        assert len(running._sessions) == 2


def test_a_fixed_batch_is_filled_with_empty_slots(tmp_path: Path) -> None:
    bundle = make_bundle(tmp_path / "bundle")
    export_variant(bundle, "exported_program", Bucket(utterances=8), batch=3)
    samples = make_samples(4)
    with Predictor(bundle, "torch") as reference, Predictor(bundle, "exported_program", batch=16) as running:
        for mine, theirs in zip(running.scores(samples), reference.scores(samples), strict=True):
            np.testing.assert_allclose(mine, theirs, rtol=0, atol=1e-5)


def test_an_overlong_dialogue_is_an_error_unless_a_policy_says_otherwise(exported: Bundle) -> None:
    with Predictor(exported, "onnxruntime") as running, pytest.raises(InputError, match="20 utterances are more than"):
        list(running.predict([long_sample()]))
    with Predictor(exported, "onnxruntime", overflow="truncate") as running:
        found = list(running.predict([long_sample()]))
    assert [p.label is None for p in found] == [True] * 12 + [False] * 8
    with Predictor(exported, "onnxruntime", overflow="window", batch=4) as running:
        found = list(running.predict([long_sample()]))
    assert [p.unit for p in found] == list(long_sample().units)
    assert all(p.label for p in found)


def test_a_bundle_without_a_fitting_variant_says_what_to_export(tmp_path: Path) -> None:
    bundle = make_bundle(tmp_path / "bundle")
    with pytest.raises(UsageError, match="run mer export --format onnx"):
        load(bundle.root)


def test_a_runtime_refuses_formats_and_devices_it_does_not_have(exported: Bundle) -> None:
    script = next(v for v in exported.manifest.variants if v.format == "torchscript")
    graph = next(v for v in exported.manifest.variants if v.format == "onnx")
    with pytest.raises(UnsupportedError, match="runtime openvino runs"):
        open_session(exported, script, "openvino")
    with pytest.raises(UsageError, match="no runtime 'tflite'"):
        open_session(exported, graph, "tflite")
    with pytest.raises(UsageError, match="needs an exported variant"):
        open_session(exported, None, "onnxruntime")
    import onnxruntime

    if "CUDAExecutionProvider" not in onnxruntime.get_available_providers():
        with pytest.raises(NotAvailableError, match="CUDAExecutionProvider"):
            open_session(exported, graph, "onnxruntime", SessionOptions(device="cuda"))


def test_a_provider_that_falls_back_is_refused(exported: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    """ONNX Runtime starts on the CPU, with a log line only, where a GPU provider cannot load its libraries."""
    import onnxruntime

    graph = next(v for v in exported.manifest.variants if v.format == "onnx")
    offered = ["CUDAExecutionProvider", "CPUExecutionProvider"]
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: offered)
    monkeypatch.setattr(onnxruntime, "preload_dlls", lambda: None)
    with (
        pytest.warns(UserWarning, match="CUDAExecutionProvider"),
        pytest.raises(NotAvailableError, match="started CPUExecutionProvider where CUDA"),
    ):
        open_session(exported, graph, "onnxruntime", SessionOptions(device="cuda"))


def test_every_way_either_runs_here_or_says_why_not(exported: Bundle) -> None:
    found = find_ways(exported)
    usable = [w for w in found if w.why_not is None]
    assert usable[0].backend == "torch"
    assert usable[0].variant is None
    assert all(w.why_not.strip() for w in found if w.why_not is not None)
    assert {w.backend for w in usable} >= {"torch", "torchscript", "exported_program", "onnxruntime"}


PACKAGES = {
    "torch": ["torch"],
    "torchscript": ["torch"],
    "exported_program": ["torch"],
    "aot_inductor": ["torch"],
    "onnxruntime": ["onnxruntime"],
    "openvino": ["openvino"],
    "tensorrt": ["tensorrt", "tensorrt_rtx", "tensorrt_rtx_bindings"],
}
COMPILED = "aot_inductor"
"""Its files are machine code, which takes a while to make: `test_aot_inductor` does it once."""
FILES = [name for name, backend in known_backends().items() if backend.formats and name not in ("tensorrt", COMPILED)]
"""The backends that load a file on any machine."""


@pytest.fixture
def damaged(exported: Bundle, tmp_path: Path) -> Bundle:
    """A copy in which one byte of every model file is another."""
    root = shutil.copytree(exported.root, tmp_path / "bundle")
    for variant in exported.manifest.variants:
        with (root / variant.model).open("r+b") as stream:
            stream.seek(-1, 2)
            last = stream.read(1)
            stream.seek(-1, 2)
            stream.write(bytes([last[0] ^ 1]))
    return Bundle.open(root)


def variant_for(bundle: Bundle, backend: str, length: int = 4) -> Variant | None:
    """A variant of that bucket in the backend's format; those of machine code get another one's by that name."""
    formats = known_backends()[backend].formats
    found = (v for v in bundle.manifest.variants if v.lengths["utterances"] == length)
    if backend in ("tensorrt", COMPILED):
        return next(found).model_copy(update={"format": backend})
    return next((v for v in found if v.format in formats), None)


def test_every_backend_is_opened_in_the_tests_of_the_one_way_to_a_session() -> None:
    assert list(PACKAGES) == list(known_backends())


@pytest.mark.parametrize("backend", PACKAGES)
def test_a_backend_without_its_package_is_refused_before_any_file_is_read(
    damaged: Bundle, backend: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for package in PACKAGES[backend]:
        monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(NotAvailableError, match="installed: pip install"):
        open_session(damaged, variant_for(damaged, backend), backend)


@pytest.mark.parametrize("backend", FILES)
def test_a_file_that_was_changed_is_refused_by_its_checksum(damaged: Bundle, backend: str) -> None:
    with pytest.raises(BundleError, match="does not match its checksum"):
        open_session(damaged, variant_for(damaged, backend), backend)


@pytest.mark.parametrize("backend", FILES)
def test_a_file_that_the_engine_cannot_read_is_refused_in_one_sentence(
    exported: Bundle, backend: str, tmp_path: Path
) -> None:
    path = tmp_path / "model"
    path.write_bytes(b"not a model")
    with pytest.raises(BundleError, match=f"^runtime {backend} cannot load {path}: .") as caught:
        resolve(known_backends()[backend].session)(Artefact(path, exported.manifest.contract), SessionOptions())
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("backend", FILES)
def test_a_file_that_declares_other_inputs_than_the_contract_is_refused(exported: Bundle, backend: str) -> None:
    contract = exported.manifest.contract
    renamed = contract.model_copy(update={"inputs": tuple(reversed(contract.inputs))})
    other = Bundle(exported.root, exported.manifest.model_copy(update={"contract": renamed}))
    with pytest.raises(BundleError, match=r"has \['text', .*\], the contract asks for \[.* 'text'\]: export again"):
        open_session(other, variant_for(other, backend), backend)


@pytest.mark.parametrize("backend", [b for b in FILES if b != "torchscript"])
def test_a_file_of_another_bucket_is_refused_where_the_format_keeps_sizes(exported: Bundle, backend: str) -> None:
    variant = variant_for(exported, backend)
    assert variant is not None
    other = variant.model_copy(update={"lengths": Bucket(utterances=8)})
    with pytest.raises(BundleError, match=r"text has dims .*, the contract asks for .*: export again"):
        open_session(exported, other, backend)


@pytest.mark.parametrize("backend", PACKAGES)
def test_what_a_session_computes_in_is_said_the_same_way(exported: Bundle, backend: str) -> None:
    if backend_problem(backend):
        pytest.skip(str(backend_problem(backend)))
    if backend == COMPILED:
        pytest.skip("this bundle has no compiled package")
    with open_session(exported, variant_for(exported, backend), backend, ONE_THREAD) as session:
        said = {k: session.info[k] for k in ("backend", "device", "threads", "precision")}
    assert said == {"backend": backend, "device": "cpu", "threads": 1, "precision": "fp32"}


class Noted(Session):
    """Notes what was closed; what lies under `broken` does not load."""

    backend = "noted"
    closed: ClassVar[list[str]] = []

    def load(self, path: Path) -> Ports:
        if path.parent.name == "broken":
            raise MemoryError
        return Ports()

    def compute(self, inputs: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        return inputs

    def close(self) -> None:
        self.closed.append(self.artefact.path.parent.name)


def in_stages(artefact: Artefact, names: list[str]) -> None:
    contract = artefact.contract
    StagedSession(artefact, ONE_THREAD, Noted, [Stage(n, contract.inputs, contract.outputs) for n in names])


def side_by_side(artefact: Artefact, names: list[str]) -> None:
    paths = (Path("v", name, "model") for name in names)
    Crew(lambda _: Noted(replace(artefact, path=next(paths)), ONE_THREAD), len(names))


@pytest.mark.parametrize("open_them", [in_stages, side_by_side])
def test_a_session_that_does_not_open_is_closed_with_those_that_were_opened_for_it(
    exported: Bundle, open_them: Callable[[Artefact, list[str]], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Noted, "closed", [])
    contract = exported.manifest.contract
    artefact = Artefact(Path("v/whole/model"), contract, contract.buckets[0])
    with pytest.raises(MemoryError):
        open_them(artefact, ["whole", "broken"])
    assert Noted.closed == ["broken", "whole"]


@pytest.fixture
def answers() -> list[Prediction]:
    one = Prediction("d0", "d0/0", "joy", 1, {"neutral": 0.1, "joy": 0.7, "anger": 0.2}, ("text", "audio"))
    return [one, Prediction("d1", "d1/0", None, None, {}, ("text",))]


def test_all_output_formats_hold_every_unit(exported: Bundle, answers: list[Prediction], tmp_path: Path) -> None:
    task = exported.manifest.task
    for ending in ("jsonl", "csv", "parquet"):
        counts = output.write(answers, tmp_path / f"out.{ending}", task)
        assert counts == {"units": 2, "samples": 2, "without_prediction": 1}
    lines = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    assert lines[0]["probabilities"]["joy"] == 0.7
    assert lines[0]["modalities"] == ["text", "audio"]
    assert lines[1]["label"] is lines[1]["probabilities"] is None
    with (tmp_path / "out.csv").open(newline="") as stream:
        rows = list(csv.DictReader(stream))
    assert rows[0]["p/joy"] == "0.7"
    assert rows[0]["modalities"] == "text+audio"
    assert rows[1]["label"] == rows[1]["p/joy"] == ""
    parquet = pytest.importorskip("pyarrow.parquet")
    table = parquet.read_table(tmp_path / "out.parquet").to_pylist()
    assert table[0]["p/joy"] == 0.7
    assert table[1]["label"] is table[1]["p/joy"] is None


def test_an_interrupted_output_leaves_the_old_file(exported: Bundle, answers: list[Prediction], tmp_path: Path) -> None:
    path = tmp_path / "out.jsonl"
    path.write_text("old")

    def breaking() -> Iterator[Prediction]:
        yield answers[0]
        raise InputError("bad sample")

    with pytest.raises(InputError):
        output.write(breaking(), path, exported.manifest.task)
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]
    with pytest.raises(UsageError, match="ending must be one of"):
        output.write(answers, tmp_path / "out.xml", exported.manifest.task)


def test_cuda_graphs_are_refused_where_nothing_can_be_captured(exported: Bundle) -> None:
    graph = next(v for v in exported.manifest.variants if v.format == "onnx")
    with pytest.raises(UnsupportedError, match=r"openvino captures no CUDA graphs.*'torch', .*'onnxruntime'"):
        open_session(exported, graph, "openvino", SessionOptions(device="cuda", cuda_graph=True))
    for backend, variant in (("torch", None), ("onnxruntime", graph)):
        with pytest.raises(UsageError, match="not on cpu: pass --device cuda"):
            open_session(exported, variant, backend, SessionOptions(cuda_graph=True))
        if backend_problem(backend, SessionOptions(device="cuda")):
            with pytest.raises(NotAvailableError, match="CUDA"):
                open_session(exported, variant, backend, SessionOptions(device="cuda", cuda_graph=True))


def test_a_benchmark_of_cuda_graphs_needs_a_gpu(exported: Bundle) -> None:
    usable = [b for b in ("torch", "onnxruntime") if not backend_problem(b, SessionOptions(device="cuda"))]
    if usable:
        found = find_graphs(exported)
        assert {c.runtime for c in found if c.why_not is None} == {f"{b} cuda graph" for b in usable}
    else:
        with pytest.raises(NotAvailableError, match="--cuda-graph needs a runtime on CUDA"):
            find_graphs(exported)
