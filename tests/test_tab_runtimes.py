"""What must hold for every variant of tab on every runtime: padding, neighbours, buckets and missing modalities."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import numpy as np
import onnx
import pytest
from conftest import Once
from every_session import ONE_THREAD, RUNTIMES, Sessions, every_session
from small_tab import SHORT, VARIANTS, export_tab, spoken

from mer_export.bundle import Bundle
from mer_export.data.collate import collate
from mer_export.data.samples import Sample
from runtimes.backends.session import Session
from runtimes.backends.table import open_session
from runtimes.predict.predictor import Predictor

ATOL = 1e-5


@pytest.fixture(scope="module", params=VARIANTS)
def bundle(request: pytest.FixtureRequest, once: Once) -> Bundle:
    return export_tab(once, request.param)


@pytest.fixture(scope="module", params=RUNTIMES)
def sessions(request: pytest.FixtureRequest, bundle: Bundle) -> Iterator[Sessions]:
    with every_session(bundle, request.param) as opened:
        yield opened


@pytest.fixture(scope="module")
def eager(bundle: Bundle) -> Iterator[Session]:
    with open_session(bundle, None, "torch", ONE_THREAD) as session:
        yield session


def answer(session: Session, samples: list[Sample], bucket: Mapping[str, int] | None, batch: int | None = None) -> list:
    found = session.run(collate(samples, session.contract, bucket, batch))
    return [found[s.name][: len(samples)] for s in session.contract.outputs]


def close(found: list, expected: list) -> None:
    for a, b in zip(found, expected, strict=True):
        np.testing.assert_allclose(a, b, rtol=0, atol=ATOL)


def test_every_bucket_gives_the_same_answer(sessions: Sessions, eager: Session) -> None:
    for seed in range(4):
        sample = spoken(eager.contract, seed)
        expected = answer(eager, [sample], None)
        for session, bucket in sessions:
            close(answer(session, [sample], bucket), expected)


def test_neighbours_and_empty_slots_never_change_an_answer(sessions: Sessions) -> None:
    session, bucket = sessions[-1]
    samples = [spoken(session.contract, seed) for seed in range(3)]
    alone = [np.concatenate(parts) for parts in zip(*(answer(session, [s], bucket) for s in samples), strict=True)]
    together = answer(session, samples[::-1], bucket, batch=4)
    close([x[::-1] for x in together], alone)


def test_a_missing_modality_is_finite_and_the_same_everywhere(sessions: Sessions, eager: Session) -> None:
    whole = spoken(eager.contract, 7)
    for gone in whole.inputs:
        inputs = {n: a for n, a in whole.inputs.items() if n != gone}
        if not inputs:
            continue
        sample = Sample("part", inputs, whole.units)
        expected = answer(eager, [sample], None)
        assert all(np.isfinite(x).all() for x in expected)
        for session, bucket in sessions:
            close(answer(session, [sample], bucket), expected)


def test_too_long_a_text_is_cut_at_its_end_as_the_original_reads_it(bundle: Bundle, eager: Session) -> None:
    if "text_len" not in eager.contract.longest:
        pytest.skip("this variant reads no text")
    sample, longest = spoken(eager.contract, 1), eager.contract.longest["text_len"]
    ids = np.asarray([0, *range(4, 60), 2])
    cut = Sample("cut", {**sample.inputs, "text_tokens": ids[:longest]}, sample.units)
    long = Sample("cut", {**sample.inputs, "text_tokens": ids}, sample.units)
    with Predictor(bundle, "torch", ONE_THREAD, 2, "truncate") as predictor:
        found = list(predictor.predict([long, cut]))
    assert found[0].numbers == pytest.approx(found[1].numbers, abs=ATOL)


def test_the_last_layer_computes_one_row(bundle: Bundle) -> None:
    if bundle.manifest.variant != "text_tab":
        pytest.skip("one variant is enough")
    variant = bundle.manifest.variants[0]
    model = onnx.shape_inference.infer_shapes(onnx.load(bundle.path(variant.model)))
    shapes = {v.name: [d.dim_value for d in v.type.tensor_type.shape.dim] for v in model.graph.value_info}
    rows = [shapes.get(n.output[0], [0, 0])[-2] for n in model.graph.node if n.op_type in ("Gelu", "Erf")]
    assert rows == [SHORT["text_len"], 1]
