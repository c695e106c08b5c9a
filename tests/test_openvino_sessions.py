"""Sessions of OpenVINO: precisions that it makes of fp32 files, and batch sizes that it compiles for."""

from __future__ import annotations

import numpy as np
import pytest
from small_bundle import make_samples

from mer_export.bundle import Bundle
from mer_export.data.collate import collate
from runtimes.backends.session import SessionOptions
from runtimes.backends.table import open_session
from runtimes.predict.predictor import Predictor


def test_openvino_says_which_precision_it_computes_in(exported: Bundle) -> None:
    graph = next(v for v in exported.manifest.variants if v.format == "onnx")
    with open_session(exported, graph, "openvino", SessionOptions(threads=1)) as session:
        assert (session.info["precision"], session.info["inference_precision"]) == ("fp32", "f32")
        assert session.info["threads"] == 1
        # Tied to cores, two sessions of one thread would share the first and one of two threads wait for them.
        with session._request(1) as (request, _):
            assert request.get_compiled_model().get_property("ENABLE_CPU_PINNING") is False
    with open_session(exported, graph, "openvino", SessionOptions(reduced="bf16")) as session:
        assert session.info["precision"] == "bf16"
        assert session.info["inference_precision"] in ("bf16", "f32")


def test_openvino_fills_a_smaller_batch_up_until_compiling_for_it_would_have_paid(exported: Bundle) -> None:
    graph = next(v for v in exported.manifest.variants if v.format == "onnx")
    samples = [s for s in make_samples(24) if len(s.units) <= 4][:4]
    with open_session(exported, graph, "openvino", SessionOptions(threads=1, batch=4)) as session:
        four = session.run(collate(samples, session.contract, graph.lengths))["log_prob"]
        three = collate(samples[:3], session.contract, graph.lengths)
        found = session.run(three)["log_prob"]
        assert session.info["batches"] == [4]
        assert found.shape == (3, *four.shape[1:])
        np.testing.assert_allclose(found, four[:3], rtol=0, atol=1e-6)
        calls = 0
        while session.info["batches"] == [4]:
            session.run(three)
            calls += 1
        assert session.info["batches"] == [4, 3]
        assert calls > 1
        np.testing.assert_allclose(session.run(three)["log_prob"], four[:3], rtol=0, atol=1e-6)


def test_openvino_int8_is_near_fp32_and_an_answer_does_not_depend_on_its_neighbours(exported: Bundle) -> None:
    graph = next(v for v in exported.manifest.variants if v.format == "onnx")
    samples = [s for s in make_samples(24) if len(s.units) <= 4][:5]
    with (
        open_session(exported, graph, "openvino") as exact,
        open_session(exported, graph, "openvino", SessionOptions(reduced="int8")) as session,
    ):
        together = collate(samples, session.contract, graph.lengths)
        rounded = session.run(together)["log_prob"]
        assert session.info["int8_products"] > 5
        np.testing.assert_allclose(rounded, exact.run(together)["log_prob"], rtol=0.02, atol=0.02)
        assert not np.array_equal(rounded, exact.run(together)["log_prob"])
        for i, sample in enumerate(samples):
            alone = session.run(collate([sample], session.contract, graph.lengths))["log_prob"]
            real = len(sample.units)
            np.testing.assert_allclose(alone[0, :real], rounded[i, :real], rtol=0, atol=2e-3)


def test_a_precision_that_the_runtime_makes_itself_needs_fp32_variants_alone(exported: Bundle) -> None:
    samples = [s for s in make_samples(24) if len(s.units) <= 4][:3]
    found = {}
    for precision in ("fp32", "bf16", "int8"):
        with Predictor(exported, "openvino", SessionOptions(threads=1), 3, precision=precision) as predictor:
            found[precision] = np.concatenate(predictor.scores(samples))
            assert predictor.precision == precision
    assert not np.array_equal(found["fp32"], found["int8"])
    for scores in found.values():
        np.testing.assert_allclose(scores, found["fp32"], rtol=0.05, atol=0.05)


def test_int8_matrices_keep_their_products_and_vectors_stay() -> None:
    import openvino
    from openvino import opset13 as ops

    from runtimes.backends.openvino.int8 import quantise_matrices

    draw = np.random.default_rng(0)
    wide, vector = draw.standard_normal((96, 40), np.float32), draw.standard_normal((40, 1), np.float32)
    wide[:, 3] = 0
    x = ops.parameter([-1, 96], np.float32)
    hidden = ops.matmul(x, ops.constant(wide), False, False)
    model = openvino.Model([hidden, ops.matmul(hidden, ops.constant(vector), False, False)], [x])
    assert quantise_matrices(model) == 1
    given = draw.standard_normal((7, 96), np.float32)
    found = openvino.Core().compile_model(model, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})(given)[0]
    assert np.all(found[:, 3] == 0)
    # Half a step of each weight, over 96 products.
    step = np.abs(wide).max(axis=0) / 127
    assert np.all(np.abs(found - given @ wide) <= 0.5 * step * np.abs(given).sum(axis=1, keepdims=True) + 1e-4)


@pytest.mark.parametrize("transposed", [False, True])
def test_weights_are_rounded_in_blocks_as_they_would_be_at_once(transposed: bool) -> None:
    from runtimes.backends.openvino import int8

    rows = np.random.default_rng(0).standard_normal((40, 24) if transposed else (24, 40), np.float32)
    rows = rows.T if transposed else rows
    rows[5] = 0
    rounded, scale = int8._rounded(rows)
    whole = np.abs(rows).max(axis=1, keepdims=True) / int8.LARGEST
    whole[5] = 1
    assert np.array_equal(scale, whole)
    assert np.array_equal(rounded, np.round(rows / whole).astype(np.int8))


def test_openvino_takes_any_number_of_batch_sizes(exported: Bundle) -> None:
    graph = next(v for v in exported.manifest.variants if v.format == "onnx")
    samples = [s for s in make_samples(24) if len(s.units) <= 4]
    with open_session(exported, graph, "openvino") as session, open_session(exported, None, "torch") as eager:
        for size in (1, 2, 3, 4, 5, 6, 2):
            arrays = collate(samples[:size], session.contract, graph.lengths)
            np.testing.assert_allclose(
                session.run(arrays)["log_prob"], eager.run(arrays)["log_prob"], rtol=0, atol=1e-5
            )
