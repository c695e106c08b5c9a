"""Compiled OpenVINO models: kept from one start to the next, for one user, file, processor and version."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import onnx
import pytest
from small_bundle import make_samples

from mer_export import machine
from mer_export.bundle import Bundle
from mer_export.data.collate import collate
from mer_export.errors import BundleError
from mer_export.kept import Kept
from runtimes.backends.openvino import compiled
from runtimes.backends.session import SessionOptions
from runtimes.backends.table import backend_problem, open_session

pytestmark = pytest.mark.skipif(backend_problem("openvino") is not None, reason=str(backend_problem("openvino")))


@pytest.fixture
def bundle(exported: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Bundle:
    """The exported bundle in a place of its own, with a user who has a key."""
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    compiled._made_by.cache_clear()
    return Bundle.open(shutil.copytree(exported.root, tmp_path / "bundle"))


def start(bundle: Bundle, threads: int = 1, **options: object) -> tuple[np.ndarray, list[int]]:
    """Answers of a fresh session on three items, and the batch sizes whose compiled models were kept."""
    graph = next(v for v in bundle.manifest.variants if v.format == "onnx")
    samples = [s for s in make_samples(24) if len(s.units) <= 4][:3]
    asked = SessionOptions(threads=threads, batch=3, **options)  # type: ignore[arg-type]
    with open_session(bundle, graph, "openvino", asked) as session:
        found = session.run(collate(samples, session.contract, graph.lengths))["log_prob"]
        assert session.info["threads"] == threads
        return found, session.info["kept"]


def files(bundle: Bundle) -> list[Path]:
    return sorted(p for p in Kept.beside(bundle.root).folder.iterdir())


@pytest.mark.parametrize("reduced", [None, "bf16", "int8"])
def test_a_second_start_takes_the_compiled_model_and_answers_the_same(bundle: Bundle, reduced: str | None) -> None:
    first, kept = start(bundle, reduced=reduced)
    assert kept == []
    again, kept = start(bundle, reduced=reduced)
    assert kept == [3]
    np.testing.assert_array_equal(again, first)
    _, kept = start(bundle, threads=2, reduced=reduced)
    assert kept == [3], "threads are set when a model is read"
    streams, kept = start(bundle, streams=2, reduced=reduced)
    assert kept == [3], "and so are streams"
    np.testing.assert_allclose(streams, first, rtol=0, atol=1e-6)
    assert len(files(bundle)) == 1


def test_precisions_have_models_of_their_own_and_a_moved_bundle_takes_its_own(bundle: Bundle, tmp_path: Path) -> None:
    for reduced in (None, "int8"):
        assert start(bundle, reduced=reduced)[1] == []
    assert len(files(bundle)) == 2
    moved = Bundle.open(shutil.copytree(bundle.root, tmp_path / "moved"))
    shutil.copytree(Kept.beside(bundle.root).folder, Kept.beside(moved.root).folder)
    assert start(moved)[1] == [3]


def test_a_damaged_or_foreign_model_is_compiled_anew(
    bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, _ = start(bundle)
    (file,) = files(bundle)
    whole = file.read_bytes()
    file.write_bytes(whole[:-1])
    found, kept = start(bundle)
    assert kept == []
    np.testing.assert_array_equal(found, first)
    assert start(bundle)[1] == [3], "and kept again"
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "another user"))
    found, kept = start(bundle)
    assert kept == []
    np.testing.assert_array_equal(found, first)


def test_what_the_plugin_does_not_read_is_compiled_anew(bundle: Bundle) -> None:
    first, _ = start(bundle)
    (file,) = files(bundle)
    assert Kept.beside(bundle.root).write(file.name, b"nothing that a plugin wrote")
    found, kept = start(bundle)
    assert kept == []
    np.testing.assert_array_equal(found, first)


def test_another_processor_version_or_file_has_another_model(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    start(bundle)
    with monkeypatch.context() as patch:
        patch.setattr(machine, "cpu_model", lambda: "another processor")
        compiled._made_by.cache_clear()
        assert start(bundle)[1] == []
    compiled._made_by.cache_clear()
    with monkeypatch.context() as patch:
        patch.setattr(bundle, "variant_digest", lambda variant: "another file")
        assert start(bundle)[1] == []
    assert start(bundle)[1] == [3]
    assert len(files(bundle)) == 3


def test_a_file_that_was_replaced_since_it_was_opened_is_not_read_again(bundle: Bundle) -> None:
    graph = next(v for v in bundle.manifest.variants if v.format == "onnx")
    samples = [s for s in make_samples(24) if len(s.units) <= 4]
    with open_session(bundle, graph, "openvino", SessionOptions(threads=1, batch=3)) as session:
        three, four = (collate(samples[:size], session.contract, graph.lengths) for size in (3, 4))
        first = session.run(three)["log_prob"]
        other = onnx.load(bundle.variant_files(graph))
        for writer in (bundle, Bundle.open(bundle.root)):
            other.producer_name += "another export"
            with writer.commit() as change:
                change.write(graph.model, other.SerializeToString())
            with pytest.raises(BundleError, match=r"was replaced since .* opened: open it again"):
                session.run(four)
        np.testing.assert_array_equal(session.run(three)["log_prob"], first)
        assert len(files(bundle)) == 1
        shutil.rmtree(bundle.root)
        with pytest.raises(BundleError, match="was changed since it was opened: open it again"):
            session.run(four)


def test_a_digest_is_of_every_file_that_a_variant_reads(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    graph = next(v for v in bundle.manifest.variants if v.format == "onnx")
    paths, whole = bundle._paths(graph), bundle.variant_digest(graph)
    assert graph.model in paths
    monkeypatch.setattr(bundle, "_paths", lambda variant: paths)
    for name in paths:
        with monkeypatch.context() as patch:
            other = bundle.manifest.files[name].model_copy(update={"sha256": "0" * 64})
            patch.setitem(bundle.manifest.files, name, other)
            assert bundle.variant_digest(graph) != whole


def test_large_models_and_those_without_a_key_are_not_kept(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(compiled, "LARGEST", 10)
        start(bundle)
    assert not Kept.beside(bundle.root).folder.exists()
    monkeypatch.setenv("XDG_CONFIG_HOME", "/dev/null")
    assert start(bundle)[1] == []
    assert not Kept.beside(bundle.root).folder.exists()
