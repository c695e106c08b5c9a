"""GRU layers of int8 exports: loops that give what the layer gives, whatever stands beside an item or behind it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper
from small_bundle import make_samples, part_of

from mer_export.bucket import Bucket
from mer_export.bundle import Bundle
from mer_export.exporters import export_variant
from mer_export.exporters.graph import int8_gru
from mer_export.exporters.graph.int8_gru import gru_loops
from mer_export.exporters.graph.names import module_of
from mer_export.exporters.graph.nodes import all_nodes
from runtimes.backends.way import find_ways
from runtimes.parity.run import run_parity

STEPS, WIDTH, HIDDEN = 7, 16, 32
Arrays = dict[str, np.ndarray]


@pytest.fixture(autouse=True)
def _any_size(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(int8_gru, "LEAST", 1)


def eighths(shape: tuple[int, ...], seed: int) -> np.ndarray:
    """Values whose sums are exact in any order."""
    return (np.random.default_rng(seed).integers(-8, 9, shape) / 8).astype(np.float32)


def layer(directions: int = 2, lengths: bool = True, steps: int = STEPS, **changes: object) -> onnx.ModelProto:
    """x (steps, batch, width) -> y (steps, directions, batch, hidden)."""
    weights = {
        "w": eighths((directions, 3 * HIDDEN, WIDTH), 0) / 4,
        "r": eighths((directions, 3 * HIDDEN, HIDDEN), 1) / 4,
        "b": eighths((directions, 6 * HIDDEN), 2),
    }
    given = ["x", "w", "r", "b", *(["lengths"] if lengths else [])]
    attributes = {"hidden_size": HIDDEN, "linear_before_reset": 1} | changes
    if directions == 2:
        attributes |= {"direction": "bidirectional"}
    inputs = [helper.make_tensor_value_info("x", TensorProto.FLOAT, [steps, "batch", WIDTH])]
    inputs += [helper.make_tensor_value_info("lengths", TensorProto.INT32, ["batch"])] if lengths else []
    graph = helper.make_graph(
        [helper.make_node("GRU", given, ["y"], **attributes)],
        "layer",
        inputs,
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [steps, directions, "batch", HIDDEN])],
        [numpy_helper.from_array(a, n) for n, a in weights.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)


def looped(*arguments: object, **changes: object) -> onnx.ModelProto:
    model = layer(*arguments, **changes)  # type: ignore[arg-type]
    assert gru_loops(model) == 1
    return model


def run(model: onnx.ModelProto, arrays: Arrays) -> np.ndarray:
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    return session.run(None, {i.name: arrays[i.name] for i in session.get_inputs()})[0]


def items(*lengths: int, steps: int = STEPS) -> Arrays:
    x = eighths((max(steps, STEPS), len(lengths), WIDTH), 3)[:steps]
    return {"x": x, "lengths": np.array(lengths, np.int32)}


@pytest.mark.parametrize("directions", [1, 2])
@pytest.mark.parametrize("lengths", [True, False])
def test_a_loop_gives_what_the_layer_gives(directions: int, lengths: bool) -> None:
    arrays = items(7, 1, 4, 6)
    found, wanted = (run(m(directions, lengths), arrays) for m in (looped, layer))
    assert np.abs(wanted).max() > 0.9
    np.testing.assert_allclose(found, wanted, rtol=0, atol=0.02)
    if lengths:
        assert not found[1:, :, 1].any(), "padding is 0"


def test_no_item_is_changed_by_its_neighbours_or_by_padding() -> None:
    arrays, model = items(7, 1, 4, 6), looped()
    together = run(model, arrays)
    spoilt = {"x": arrays["x"].copy(), "lengths": arrays["lengths"]}
    for item, real in enumerate(arrays["lengths"]):
        alone = {"x": arrays["x"][:, [item]], "lengths": arrays["lengths"][[item]]}
        np.testing.assert_array_equal(run(model, alone)[:, :, 0], together[:, :, item])
        spoilt["x"][real:, item] = 1e4
    np.testing.assert_array_equal(run(model, spoilt), together)
    wider = {"x": np.pad(arrays["x"], ((0, 5), (0, 0), (0, 0))), "lengths": arrays["lengths"]}
    np.testing.assert_array_equal(run(looped(steps=STEPS + 5), wider)[:STEPS], together)


def test_a_graph_does_not_grow_with_its_steps() -> None:
    counts = {steps: len(list(all_nodes(looped(steps=steps).graph))) for steps in (2, 200)}
    assert counts[2] == counts[200] < 60


@pytest.mark.parametrize("changes", [{"linear_before_reset": 0}, {"clip": 3.0}, {"direction": "reverse"}])
def test_a_layer_of_another_form_stays(changes: dict[str, object]) -> None:
    assert gru_loops(layer(directions=1, **changes)) == 0


def test_a_layer_that_leaves_its_form_to_the_default_stays() -> None:
    model = layer()
    kept = [a for a in model.graph.node[0].attribute if a.name != "linear_before_reset"]
    del model.graph.node[0].attribute[:]
    model.graph.node[0].attribute.extend(kept)
    assert gru_loops(model) == 0


def test_a_layer_to_keep_stays_and_others_are_of_their_module() -> None:
    model = layer()
    model.graph.node[0].name = "text.rnn/GRU_0"
    assert gru_loops(model, keep=["text.rnn/GRU_0"]) == 0
    assert gru_loops(model, keep=["audio.rnn/GRU_0"]) == 1
    names = [n.name for n in all_nodes(model.graph)]
    assert {module_of(n) for n in names} == {"text.rnn"}
    assert len(set(names)) == len(names)


def test_a_small_layer_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(int8_gru, "LEAST", HIDDEN + 1)
    assert gru_loops(layer()) == 0


def test_an_export_with_loops_passes_its_gate_and_parity(exported: Bundle, tmp_path: Path) -> None:
    bundle, samples = part_of(exported, tmp_path / "bundle", ("onnx", 8)), make_samples()
    variant = export_variant(bundle, "onnx", Bucket(utterances=8), precision="int8", example=samples, force=True)
    rewrite = variant.options["rewrite"]
    assert rewrite["way"] == "per channel"
    # Two layers of two directions.
    assert rewrite["operators"]["MatMulIntegerToFloat"] == 4
    graph = onnx.load(bundle.path(variant.model), load_external_data=False).graph
    assert not [n for n in graph.node if n.op_type == "GRU"]
    candidates = [w for w in find_ways(bundle) if w.variant == variant.name and w.why_not is None]
    report = run_parity(bundle, samples, candidates=candidates, threads=1)
    assert [c.verdict for c in report.candidates] == ["pass"]
