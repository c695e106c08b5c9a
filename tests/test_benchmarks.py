"""The suites count work as it is and draw items as they say."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from benchmarks import histograms
from benchmarks.flops import gflop
from benchmarks.original import CASES
from benchmarks.spent import by_operator
from benchmarks.suite import NETWORKS, random_samples, real_samples
from mer_export import registry


@pytest.fixture
def product(tmp_path: Path) -> Path:
    """A file with one product, of (batch, 3, 5) by (5, 7)."""
    weight = np.ones((5, 7), np.float32)
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["x", "w"], ["y"])],
        "product",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", 3, 5])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
        [numpy_helper.from_array(weight, "w")],
    )
    path = tmp_path / "model.onnx"
    onnx.save_model(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=9), path)
    return path


def test_work_is_two_operations_for_each_multiply_add_at_the_shapes_of_the_run(product: Path) -> None:
    path = product
    assert gflop(path, {"x": np.zeros((4, 3, 5), np.float32)}) == 2 * 4 * 3 * 5 * 7 / 1e9
    assert [p.name for p in path.parent.iterdir()] == ["model.onnx"]


def test_time_is_told_by_operator_and_the_profile_goes(product: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(product.parent)
    assert by_operator(product, {"x": np.zeros((4, 3, 5), np.float32)}) == {"MatMul": 1.0}
    assert [p.name for p in product.parent.iterdir()] == ["model.onnx"]


def test_items_of_the_authors_calls_have_a_bucket_each_and_the_longest_is_the_networks_or_shorter() -> None:
    for name, case in CASES.items():
        own = NETWORKS[case.network].buckets[-1]
        assert len(case.exported) == len(case.buckets or {tuple(i.items()) for i in case.items}), name
        for item in case.items:
            assert any(all(n <= bucket[d] for d, n in item.items()) for bucket in case.exported), name
        assert all(bucket.keys() == own.keys() for bucket in case.exported), name
    drawn = CASES["emt_b32"].items
    assert len(drawn) == 32
    assert drawn[0] == {"text_len": 50, "audio_len": 375, "vision_len": 500}


def test_real_lengths_are_those_of_the_histogram_within_what_the_network_takes() -> None:
    network = NETWORKS["mtee_mosei"]
    contract = registry.get("mtee").contract(network.config)
    steps = [len(s.inputs["text"]) for s in real_samples(contract, network, 40)]
    assert steps == [min(n, 20) for n in histograms.lengths("mosi_utterance")["tokens"][:40]]


def test_items_without_lengths_are_drawn_too() -> None:
    network = NETWORKS["facialmmt_face"]
    contract = registry.get(network.system).contract(network.config)
    assert len(random_samples(contract, network.lengths, 3)) == 3
