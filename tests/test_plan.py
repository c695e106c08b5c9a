"""Bucket plans: the least expected cost for given lengths, and what infer makes of them."""

from __future__ import annotations

from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from small_bundle import make_bundle, make_samples

from mer_export.bucket import Bucket
from mer_export.bundle import Bundle
from mer_export.contract import Contract, TensorSpec
from mer_export.errors import UsageError
from mer_export.exporters import export_variant
from runtimes.backends.session import SessionOptions
from runtimes.backends.way import Way, eager
from runtimes.predict.plan import Filling
from runtimes.predict.predictor import Predictor
from runtimes.speed import cost, planning
from runtimes.speed.cost import CostModel, fit, representative

ONE, FOUR = 1, 4


def model(dims: int, seed: int = 0) -> CostModel:
    """A cost that grows with every length."""
    draw = np.random.default_rng(seed)
    terms = 1 + dims + dims * (dims + 1) // 2
    return CostModel({batch: draw.uniform(0, 1, terms) * batch**0.8 for batch in (ONE, FOUR)})


def total(lengths: np.ndarray, corners: np.ndarray, cost: CostModel) -> float:
    return float(cost.per_item(corners).min(axis=1)[planning.route(lengths, corners)].sum())


@settings(max_examples=40, deadline=None)
@given(lengths=st.lists(st.integers(1, 12), min_size=1, max_size=30), most=st.integers(1, 4), seed=st.integers(0, 99))
def test_one_dim_is_planned_as_well_as_by_trying_everything(lengths: list[int], most: int, seed: int) -> None:
    items, cost = np.array(lengths)[:, None], model(1, seed)
    found = planning.choose(items, cost, most)
    ends = np.unique(items)
    least = min(
        total(items, np.array([*chosen, ends[-1]])[:, None], cost)
        for k in range(most)
        for chosen in combinations(ends[:-1], k)
    )
    assert len(found) <= most
    assert total(items, found, cost) <= least * (1 + planning.WORTH) + 1e-9


@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 99), most=st.integers(1, 4))
def test_several_dims_hold_every_item_and_never_cost_more_than_one_bucket(seed: int, most: int) -> None:
    draw = np.random.default_rng(seed)
    items, cost = draw.integers(1, 40, (60, 2)), model(2, seed)
    found = planning.choose(items, cost, most)
    assert 1 <= len(found) <= most
    assert (items[:, None] <= found[None]).all(axis=2).any(axis=1).all()
    assert total(items, found, cost) <= total(items, items.max(axis=0)[None], cost) + 1e-9


def test_two_kinds_of_items_get_a_bucket_each() -> None:
    """Short texts with long audio and the reverse: no chain of nested buckets would do."""
    items = np.array([[5, 100]] * 20 + [[50, 8]] * 20)
    found = planning.choose(items, CostModel({1: np.array([0, 1, 1, 0, 0, 0.0])}), 3)
    assert {(5, 100), (50, 8)} <= {tuple(c) for c in found.tolist()}


def test_a_bucket_that_saves_nothing_is_not_planned() -> None:
    flat = CostModel({1: np.array([1.0, 0, 0])})
    assert planning.choose(np.arange(1, 30)[:, None], flat, 4).tolist() == [[29]]


@settings(max_examples=20, deadline=None)
@given(dims=st.integers(1, 3), seed=st.integers(0, 99))
def test_a_cost_that_is_a_polynomial_is_found_again(dims: int, seed: int) -> None:
    draw = np.random.default_rng(seed)
    truth = model(dims, seed)
    shapes = [tuple(s) for s in draw.integers(1, 60, (14, dims)).tolist()]
    seconds = [float(truth.per_item(np.array([s]))[0, 0]) for s in shapes]
    found = fit(shapes, [ONE] * len(shapes), seconds)
    np.testing.assert_allclose(found.per_item(np.array(shapes))[:, 0], seconds, rtol=1e-6)
    assert (found.coefficients[ONE] >= 0).all()


def test_timed_shapes_reach_from_the_shortest_to_the_longest_along_every_dim() -> None:
    items = np.random.default_rng(0).integers(1, 50, (100, 2))
    found = np.array(representative(items))
    assert found.min(axis=0).tolist() == items.min(axis=0).tolist()
    assert found.max(axis=0).tolist() == items.max(axis=0).tolist()
    assert np.linalg.matrix_rank(found - found.mean(axis=0)) == 2


def ways(count: int, device: Any = "cpu", **more: Any) -> list[Way]:
    """One in each of so many buckets."""
    buckets = [Bucket(utterances=n) for n in range(1, count + 1)]
    options = SessionOptions(device=device, reuse=more.pop("reuse", True))
    own = {"backend": "onnxruntime", "format": "onnx", "options": options} | more
    return [Way(bucket=b, variant=f"{b.name} {more}", **own) for b in buckets]


def test_ways_whose_times_make_one_cost_differ_by_bucket_alone(
    exported: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    stages = {r: ways(3, stages=True, reuse=r) for r in (True, False)}
    for there, timed in (
        (ways(3) + ways(3, device="cuda"), ways(3)),
        (ways(2) + ways(3, device="cuda"), ways(3, device="cuda")),
        # The times of what keeps its answers are those of giving them again.
        (stages[True] + stages[False], stages[False]),
        (ways(2) + stages[False][2:], [eager()]),
    ):
        monkeypatch.setattr(cost, "find_ways", lambda *_, there=there: there)
        assert cost.measured_ways(exported, "onnx", "fp32", None) == timed


def test_lengths_of_shared_inputs_are_not_planned() -> None:
    contract = Contract(
        inputs=(
            TensorSpec(name="x", dtype="float32", dims=("batch", "steps", 3)),
            TensorSpec(name="emotions", dtype="float32", dims=("emotions", 3)),
        ),
        outputs=(TensorSpec(name="y", dtype="float32", dims=("batch", "emotions")),),
        buckets=(Bucket(steps=20, emotions=16),),
        longest={"steps": 50, "emotions": 99},
    )
    assert planning.varying(contract) == ["steps"]
    found = planning.describe(np.array([[4], [9]]), np.array([[4], [9]]), model(1), contract)
    assert [b.lengths for b in found.buckets] == [Bucket(steps=n, emotions=16) for n in (4, 9)]
    assert [b.share for b in found.buckets] == [0.5, 0.5]


def test_a_plan_is_measured_kept_and_followed_by_infer(tmp_path: Path) -> None:
    bundle, samples = make_bundle(tmp_path / "bundle"), make_samples(24)
    found = planning.make_plan(bundle, samples, most=3, source="samples")
    assert found.measured == "torch eager"
    assert found.items == 24
    assert found.buckets[-1].lengths == Bucket(utterances=8)
    assert sum(b.share for b in found.buckets) == pytest.approx(1)
    assert found.gain >= 1
    assert all(f"utterances{b.lengths['utterances']}" in found.page() for b in found.buckets)
    found.model_copy(update={"buckets": [b.model_copy(update={"batch": 5}) for b in found.buckets]}).save(bundle)
    for bucket in found.buckets:
        export_variant(bundle, "torchscript", bucket.lengths)
    sizes = []
    with Predictor(Bundle.open(bundle.root), "torchscript", batch=None) as running:
        for bucket in running.buckets:
            session = running.session(bucket)
            plain = session.run
            session.run = lambda a, plain=plain: (sizes.append(len(a["lengths"])), plain(a))[1]  # type: ignore
        assert len(running.scores(samples)) == 24
    assert max(sizes) <= 5 < sum(sizes) == 24


def test_what_cannot_be_planned_is_a_usage_error(tmp_path: Path) -> None:
    bundle = make_bundle(tmp_path / "bundle")
    with pytest.raises(UsageError, match="no samples to plan for"):
        planning.make_plan(bundle, [], most=3, source="nothing")
    with pytest.raises(UsageError, match="--max-variants must be 1 or more"):
        planning.make_plan(bundle, make_samples(), most=0, source="samples")


def test_who_pads_most_of_the_steps_is_told_how_to_plan_buckets() -> None:
    filling, bucket = Filling(), {"text_len": 32, "audio_len": 512, "emotions": 16}
    short, long = ({"text_len": 14, "audio_len": n, "emotions": 7} for n in (120, 400))
    filling.add([short] * 15, bucket, ("text_len", "audio_len"))
    assert filling.advice("runs/a") is None, "too few to judge by"
    filling.add([short], bucket, ("text_len", "audio_len"))
    assert filling.advice("runs/a") == (
        "items fill 14 of 32 text_len, 120 of 512 audio_len on average, the rest is padding that costs time: "
        "`mer export runs/a --plan DATA` makes buckets for such items"
    )
    filling.add([long] * 32, bucket, ("text_len", "audio_len"))
    assert filling.advice("runs/a") is None


def test_a_predictor_counts_how_its_items_fill_their_buckets(exported: Bundle) -> None:
    pytest.importorskip("onnxruntime")
    alone = [s for s in make_samples(200) if len(s.units) == 1]
    with Predictor(exported, batch=16) as predictor:
        bucket = predictor.buckets[0]
        list(predictor.predict((alone * 16)[:16]))
        assert f"items fill 1 of {bucket['utterances']} utterances" in (predictor.filling.advice("runs/a") or "")
