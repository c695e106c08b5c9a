"""One way to run that breaks never ends `bench`, `tune` or `parity`: it is named, with its reason."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
from small_bundle import make_samples, part_of

from mer_export.bundle import Bundle
from mer_export.errors import UnsupportedError
from runtimes.backends import table
from runtimes.backends.onnx_runtime import OnnxRuntimeSession
from runtimes.backends.torchscript import TorchScriptSession
from runtimes.parity.run import run_parity
from runtimes.speed import settings, tune
from runtimes.speed.bench import run_bench

SHORT, LONG = "onnx-fp32-utterances4-bdynamic", "torchscript-fp32-utterances8-bdynamic"
RAISED = "it does not run: RuntimeError: out of arena"


@pytest.fixture(scope="module")
def made(exported: Bundle, tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("broken") / "bundle"
    return part_of(exported, root, ("onnx", 4), ("onnx", 8), ("torchscript", 8)).root


@pytest.fixture
def bundle(made: Path, tmp_path: Path) -> Bundle:
    """Its short ONNX file has the right checksum, and nothing can load it."""
    opened = Bundle.open(shutil.copytree(made, tmp_path / "bundle"))
    with opened.commit() as change:
        change.write(opened.find(SHORT).model, b"not a model")
    return opened


@pytest.fixture
def raising(monkeypatch: pytest.MonkeyPatch) -> None:
    """TorchScript raises in its third call."""
    original, calls = TorchScriptSession.compute, iter(range(10**9))

    def breaking(self: TorchScriptSession, inputs: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        if next(calls) >= 3:
            raise RuntimeError("out of arena\nat 0x7f")
        return original(self, inputs)

    monkeypatch.setattr(TorchScriptSession, "compute", breaking)


@pytest.mark.usefixtures("raising")
def test_bench_times_the_rest(bundle: Bundle) -> None:
    report = run_bench(bundle, make_samples(8), batches=(1,), rounds=3, cold=False)
    reasons = dict(report.not_run)
    assert "is not an ONNX file" in reasons[f"onnxruntime: {SHORT}"]
    assert reasons[f"torchscript: {LONG}"] == RAISED
    for case in report.cases:
        assert {r.name for r in case.rows}.isdisjoint(reasons)
        assert case.rows[0].ratio.median == 1
    assert "Not measured" in report.page()


@pytest.mark.usefixtures("raising")
def test_parity_judges_the_rest(bundle: Bundle) -> None:
    report = run_parity(bundle, make_samples(8), threads=1)
    found = {c.name: c for c in report.candidates}
    assert found["torch: eager"].verdict == "pass"
    assert found[f"onnxruntime: {SHORT}"].verdict == found[f"torchscript: {LONG}"].verdict == "fail"
    assert found[f"onnxruntime: {SHORT}"].reasons[0].startswith("it does not run: ")
    assert found[f"torchscript: {LONG}"].reasons == [RAISED]


def test_tune_measures_the_rest(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(settings, "parallel", lambda: [(1, 1)])
    monkeypatch.setattr(tune, "PASSES", tune.PASSES[:2])
    profile = tune.run_tune(bundle, make_samples(8), batches=(1, 2))
    assert {e.way.format for e in profile.entries} == {"onnx", "torchscript"}
    assert SHORT not in {e.way.variant for e in profile.entries}
    assert {e.share for e in profile.entries} == {1.0}
    assert all(name.startswith(SHORT) and "is not an ONNX file" in reason for name, reason in profile.not_run)
    assert "Not measured" in profile.page()


@pytest.mark.usefixtures("raising")
def test_tune_says_why_where_nothing_runs(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(settings, "parallel", lambda: [(1, 1)])
    monkeypatch.setattr(tune, "_ways", lambda *_: [w for w in ways(bundle) if w.variant in (SHORT, LONG)])
    with pytest.raises(UnsupportedError, match=r"nothing that was exported runs here: .*it does not run"):
        tune.run_tune(bundle, make_samples(8), batches=(1, 2))


def ways(bundle: Bundle) -> list[tune.Way]:
    return [w for w in tune.find_ways(bundle) if w.why_not is None and w.variant and w.options.reuse]


def test_a_package_whose_libraries_are_missing_is_not_available(monkeypatch: pytest.MonkeyPatch) -> None:
    def torn(*_: object) -> None:
        raise OSError("libgomp.so.1: cannot open shared object file")

    monkeypatch.setattr(OnnxRuntimeSession, "problem", torn)
    assert table.backend_problem("onnxruntime") == (
        "runtime onnxruntime is installed and does not load: libgomp.so.1: cannot open shared object file"
    )
