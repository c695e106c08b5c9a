"""What must hold for emt, mult and tfr_net on every runtime: padding, neighbours and missing modalities."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from itertools import combinations

import numpy as np
import onnx
import pytest
from conftest import Once
from every_session import ONE_THREAD, RUNTIMES, Sessions, every_session
from small_emt import CONFIGS, export_emt, utterance

from mer_export.bundle import Bundle
from mer_export.contract import Contract
from mer_export.data.collate import collate
from mer_export.data.samples import Sample
from mer_export.exporters.graph.share import share_initializers
from runtimes.backends.session import Session
from runtimes.backends.table import open_session
from runtimes.predict.predictor import Predictor

ATOL = 1e-5
NAMES = [n for n in CONFIGS if n not in ("emt unshared", "tfr_net max", "mult vectors")]
"""The options of the others are also those of `emt vectors` and `tfr_net vectors`."""


@pytest.fixture(scope="module", params=NAMES)
def bundle(request: pytest.FixtureRequest, once: Once) -> Bundle:
    return export_emt(once, request.param)


@pytest.fixture(scope="module", params=RUNTIMES)
def sessions(request: pytest.FixtureRequest, bundle: Bundle) -> Iterator[Sessions]:
    with every_session(bundle, request.param) as opened:
        yield opened


@pytest.fixture(scope="module")
def eager(bundle: Bundle) -> Iterator[Session]:
    with open_session(bundle, None, "torch", ONE_THREAD) as session:
        yield session


def score(
    session: Session, samples: list[Sample], bucket: Mapping[str, int] | None, batch: int | None = None
) -> np.ndarray:
    arrays = collate(samples, session.contract, bucket, batch)
    return session.run(arrays)[session.contract.outputs[0].name][: len(samples)]


def parts(contract: Contract) -> list[tuple[str, ...]]:
    """Every combination of the modalities that a network reads."""
    return [c for n in range(len(contract.modalities)) for c in combinations(contract.modalities, n + 1)]


def part(sample: Sample, present: tuple[str, ...]) -> Sample:
    """`sample` with the other modalities missing."""
    text = {"text", "input_ids", "token_type_ids"}
    names = {n for m in present for n in (text if m == "text" else {m})}
    return Sample(sample.id, {n: a for n, a in sample.inputs.items() if n in names}, sample.units)


def spoil(arrays: dict[str, np.ndarray], session: Session, seed: int) -> None:
    random = np.random.default_rng(seed)
    for spec in session.contract.features:
        dim = str(spec.dims[1])
        for row, length in enumerate(arrays[f"{dim.removesuffix('_len')}_lengths"]):
            rest = arrays[spec.name][row, length:]
            rest[...] = (
                random.integers(0, spec.below, rest.shape) if spec.below else 100 * random.normal(size=rest.shape)
            )


def test_padding_and_bucket_never_change_a_score(sessions: Sessions, eager: Session) -> None:
    for seed in range(4):
        sample = utterance(eager.contract, seed)
        expected = score(eager, [sample], None)
        for session, bucket in sessions:
            arrays = collate([sample], session.contract, bucket)
            spoil(arrays, session, seed)
            found = session.run(arrays)[session.contract.outputs[0].name]
            np.testing.assert_allclose(found, expected, rtol=0, atol=ATOL)


def test_neighbours_never_change_a_score(sessions: Sessions) -> None:
    session, bucket = sessions[-1]
    samples = [utterance(session.contract, seed) for seed in range(3)]
    alone = np.concatenate([score(session, [s], bucket) for s in samples])
    together = score(session, samples[::-1], bucket, batch=4)[::-1]
    np.testing.assert_allclose(together, alone, rtol=0, atol=ATOL)


def test_a_missing_modality_is_finite_and_the_same_everywhere(sessions: Sessions, eager: Session) -> None:
    for present in parts(eager.contract):
        sample = part(utterance(eager.contract, 7), present)
        expected = score(eager, [sample], None)
        assert np.isfinite(expected).all()
        for session, bucket in sessions:
            found = score(session, [sample], bucket)
            np.testing.assert_allclose(found, expected, rtol=0, atol=ATOL, err_msg=str(present))
            assert np.array_equal(found, score(session, [sample], bucket))


def test_a_text_without_words_does_not_depend_on_its_padding(sessions: Sessions, eager: Session) -> None:
    if eager.contract.features[0].name != "input_ids":
        pytest.skip("text comes in as vectors")
    whole = utterance(eager.contract, 3)
    blank = {"input_ids": np.array([101, 102]), "token_type_ids": np.zeros(2, dtype=np.int64)}
    sample = Sample("blank", {**whole.inputs, **blank}, whole.units)
    expected = score(eager, [part(whole, ("audio", "vision"))], None)
    for session, bucket in sessions:
        np.testing.assert_allclose(score(session, [sample], bucket), expected, rtol=0, atol=ATOL)


def test_a_prediction_names_the_modalities_it_used(bundle: Bundle) -> None:
    there = parts(bundle.manifest.contract)
    samples = [part(utterance(bundle.manifest.contract, 5), present) for present in there]
    with Predictor(bundle, "onnxruntime", ONE_THREAD) as predictor:
        answers = list(predictor.predict(samples))
    assert [a.modalities for a in answers] == there
    for found in answers:
        assert found.label in bundle.manifest.task.labels
        assert (found.score is None) == (bundle.manifest.task.kind == "classification")


def test_exports_hold_each_weight_once_and_no_training_heads(bundle: Bundle) -> None:
    variant = next(v for v in bundle.manifest.variants if v.format == "onnx")
    model = onnx.load(bundle.path(variant.model))
    assert not [i.name for i in model.graph.initializer if "restoration" in i.name]
    assert share_initializers(model) == 0
