"""What must hold on every runtime, whatever the dialogue: padding, neighbours and missing modalities."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import combinations

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mer_export.bucket import bucket_for
from mer_export.bundle import Bundle
from mer_export.contract import Contract
from mer_export.data.collate import collate
from mer_export.data.samples import Sample
from runtimes.backends.session import Session, SessionOptions
from runtimes.backends.table import backend_problem, known_backends, open_session
from runtimes.predict.predictor import Predictor

RUNTIMES = ("torch", "torchscript", "exported_program", "onnxruntime", "openvino")
MODALITIES = ("text", "audio", "vision")
COMBINATIONS = [c for n in (1, 2, 3) for c in combinations(MODALITIES, n)]
ATOL = 1e-5
ONE_THREAD = SessionOptions(threads=1)
many = settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
seeds = st.integers(0, 2**32 - 1)
Sessions = dict[int, Session]


@pytest.fixture(scope="module", params=RUNTIMES)
def sessions(request: pytest.FixtureRequest, exported: Bundle) -> Iterator[Sessions]:
    """The sessions of one runtime by bucket length."""
    problem = backend_problem(request.param)
    if problem:
        pytest.skip(problem)
    opened = {}
    for bucket in exported.manifest.contract.buckets:
        fitting = (v for v in exported.manifest.variants if v.format in known_backends()[request.param].formats)
        variant = next((v for v in fitting if v.lengths == bucket), None)
        opened[bucket["utterances"]] = open_session(exported, variant, request.param, ONE_THREAD)
    yield opened
    for session in opened.values():
        session.close()


@pytest.fixture(scope="module")
def eager(exported: Bundle) -> Iterator[Session]:
    with open_session(exported, None, "torch", ONE_THREAD) as session:
        yield session


def draw_sample(contract: Contract, size: int, seed: int) -> Sample:
    random = np.random.default_rng(seed)
    inputs = {}
    for spec in contract.features:
        shape = tuple(size if isinstance(d, str) else d for d in spec.dims[1:])
        inputs[spec.name] = (
            random.integers(0, spec.below, shape) if spec.below else random.standard_normal(shape, dtype=np.float32)
        )
    return Sample(f"d{seed}", inputs, tuple(f"u{i}" for i in range(size)))


def spoil_padding(arrays: dict[str, np.ndarray], contract: Contract, seed: int, scale: float) -> None:
    """Overwrites everything past the real length of each item."""
    random = np.random.default_rng(seed)
    for row, size in enumerate(arrays["lengths"]):
        for spec in contract.features:
            axis = spec.dims.index("utterances") - 1
            where = [slice(None)] * axis + [slice(size, None)]
            padded = arrays[spec.name][row][tuple(where)]
            padded[...] = (
                random.integers(0, spec.below, padded.shape)
                if spec.below
                else scale * random.standard_normal(padded.shape)
            )


def scores(session: Session, arrays: dict[str, np.ndarray]) -> list[np.ndarray]:
    found = session.run(arrays)["log_prob"]
    return [row[:size] for row, size in zip(found, arrays["lengths"], strict=True)]


@many
@given(size=st.integers(1, 4), seed=seeds, scale=st.sampled_from([0.0, 1.0, 1e3]))
def test_padding_never_changes_a_prediction(sessions: Sessions, size: int, seed: int, scale: float) -> None:
    short, long = sessions.values()
    contract = short.contract
    sample = draw_sample(contract, size, seed)
    expected = scores(short, collate([sample], contract, contract.buckets[0]))[0]
    for session, bucket in zip((short, long), contract.buckets, strict=True):
        arrays = collate([sample], contract, bucket)
        spoil_padding(arrays, contract, seed, scale)
        np.testing.assert_allclose(scores(session, arrays)[0], expected, rtol=0, atol=ATOL)


@many
@given(sizes=st.lists(st.integers(1, 8), min_size=1, max_size=3), seed=seeds, data=st.data())
def test_neighbours_never_change_a_prediction(
    sessions: Sessions, sizes: list[int], seed: int, data: st.DataObject
) -> None:
    session = sessions[8]
    contract, bucket = session.contract, session.contract.buckets[-1]
    samples = [draw_sample(contract, n, seed + i) for i, n in enumerate(sizes)]
    alone = [scores(session, collate([s], contract, bucket))[0] for s in samples]
    order = data.draw(st.permutations(range(len(samples))))
    together = scores(session, collate([samples[i] for i in order], contract, bucket, batch=4))
    for place, number in enumerate(order):
        np.testing.assert_allclose(together[place], alone[number], rtol=0, atol=ATOL)


@many
@given(size=st.integers(1, 8), seed=seeds)
def test_rows_past_the_real_length_are_zero(sessions: Sessions, size: int, seed: int) -> None:
    session = sessions[8]
    contract, bucket = session.contract, session.contract.buckets[-1]
    found = session.run(collate([draw_sample(contract, size, seed)], contract, bucket, batch=2))["log_prob"]
    assert not found[0, size:].any()
    assert not found[1].any()


@pytest.mark.parametrize("present", COMBINATIONS, ids="+".join)
def test_a_missing_modality_gives_finite_answers(sessions: Sessions, present: tuple[str, ...]) -> None:
    session = sessions[8]
    contract = session.contract
    whole = draw_sample(contract, 5, seed=1)
    kept = {k: v for k, v in whole.inputs.items() if k in (*present, "speaker")}
    sample = Sample("part", kept, whole.units)
    found = scores(session, collate([sample], contract, contract.buckets[-1]))[0]
    assert np.isfinite(found).all()
    np.testing.assert_allclose(np.exp(found).sum(-1), 1, atol=1e-5)


@pytest.mark.parametrize("present", COMBINATIONS, ids="+".join)
def test_a_prediction_names_the_modalities_it_used(exported: Bundle, present: tuple[str, ...]) -> None:
    whole = draw_sample(exported.manifest.contract, 3, seed=1)
    kept = {k: v for k, v in whole.inputs.items() if k in (*present, "speaker")}
    with Predictor(exported, "torch") as predictor:
        assert {p.modalities for p in predictor.predict([Sample("part", kept, whole.units)])} == {present}


@many
@given(size=st.integers(1, 8), seed=seeds)
def test_every_runtime_agrees_with_eager(sessions: Sessions, eager: Session, size: int, seed: int) -> None:
    contract = eager.contract
    sample = draw_sample(contract, size, seed)
    bucket = bucket_for({"utterances": size}, contract.buckets)
    assert bucket is not None
    expected = scores(eager, collate([sample], contract))[0]
    found = scores(sessions[bucket["utterances"]], collate([sample], contract, bucket))[0]
    np.testing.assert_allclose(found, expected, rtol=0, atol=ATOL)
