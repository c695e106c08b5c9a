"""Multilabel and sentiment metrics and decisions: equal to scikit-learn's where it has them."""

from __future__ import annotations

import tracemalloc

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn import metrics as reference

from mer_export.agreement.answers import Compared
from mer_export.agreement.compare import compare
from mer_export.agreement.policy import Policy
from mer_export.data.samples import Sample
from mer_export.errors import UsageError
from mer_export.metrics import multilabel
from mer_export.metrics.measure import measure, tally
from mer_export.models.mtee.config import SENTIMENT
from mer_export.task import Task

LABELS = ("anger", "happy", "sad")


def drawn(seed: int, units: int = 50) -> tuple[np.ndarray, np.ndarray]:
    draw = np.random.default_rng(seed)
    return draw.integers(0, 2, (units, 3)), np.round(draw.normal(size=(units, 3)), 1).astype(np.float32)


@given(st.integers(0, 10_000))
def test_metrics_of_each_label_are_scikit_learns(seed: int) -> None:
    truths, scores = drawn(seed)
    said = (scores > 0).astype(int)
    found = measure(Task(kind="multilabel", output="logits", labels=LABELS), truths.astype(np.float32), scores)
    for j, label in enumerate(LABELS):
        t, p = truths[:, j], said[:, j]
        theirs = {
            "weighted_f1": reference.f1_score(t, p, average="weighted"),
            "weighted_accuracy": reference.balanced_accuracy_score(t, p),
            "auc": reference.roc_auc_score(t, scores[:, j]),
            "accuracy": reference.accuracy_score(t, p),
        }
        assert {n: found[f"{n}/{label}"] / 100 for n in theirs} == pytest.approx(theirs)
    assert found["strict"] / 100 == pytest.approx(reference.accuracy_score(truths, said))
    assert found["strict"] <= found["subset"] <= found["intersect"]


def test_a_label_that_never_holds_has_no_auc_and_the_rest_stays_defined() -> None:
    truths, scores = drawn(0)
    truths[:, 0] = 0
    found = measure(Task(kind="multilabel", output="logits", labels=LABELS), truths.astype(np.float32), scores)
    assert np.isnan(found["auc/anger"])
    assert np.isnan(found["weighted_accuracy/anger"])
    assert np.isfinite(found["auc/sad"])
    assert np.isfinite(found["weighted_f1"])


def test_resamples_of_groups_of_many_units_take_no_more_memory_than_of_few(monkeypatch: pytest.MonkeyPatch) -> None:
    truths, scores = drawn(0, 20_000)
    group = np.arange(20_000) % 4
    task = Task(kind="multilabel", output="logits", labels=LABELS)
    counted = tally(task, truths.astype(np.float32), scores, group, 4)
    assert counted is not None
    weights = np.random.default_rng(0).integers(0, 3, (100, 4)).astype(np.float64)
    whole = counted.metrics(weights)
    monkeypatch.setattr(multilabel, "ELEMENTS", 1 << 17)
    tracemalloc.start()
    found = counted.metrics(weights)
    _, most = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert most < weights.shape[0] * len(group) * 4
    assert all(np.array_equal(found[name], whole[name], equal_nan=True) for name in whole)


def test_units_without_labels_are_left_out() -> None:
    truths, scores = drawn(1)
    task = Task(kind="multilabel", output="logits", labels=LABELS)
    known = truths.astype(np.float32)
    known[3] = np.nan
    assert measure(task, known, scores) == measure(task, np.delete(known, 3, 0), np.delete(scores, 3, 0))
    assert measure(task, np.full((2, 3), np.nan, np.float32), scores[:2]) == {}
    with pytest.raises(UsageError, match="50 labels do not fit 2 units"):
        measure(task, known, scores[:2])


def test_a_label_holds_strictly_above_its_own_threshold() -> None:
    task = Task(kind="multilabel", output="logits", labels=LABELS, thresholds=(0.5, 0.2, 0.9))
    scores = np.array([[0.0, 0.0, 0.0], [1e-3, -2.0, 3.0]], dtype=np.float32)
    assert task.decide(scores).tolist() == [[0, 1, 0], [1, 0, 1]]
    assert task.holding(task.decisions(scores)[1]) == ("anger", "sad")
    assert task.probabilities(scores)[0].tolist() == [0.5, 0.5, 0.5]
    renamed = task.with_labels(("sad", "bored"))
    assert renamed.thresholds == (0.9, 0.5)


def test_flips_are_counted_for_every_threshold() -> None:
    task = Task(kind="multilabel", output="logits", labels=LABELS, thresholds=(0.5, 0.2, 0.9))
    a = np.array([[0.1, -1.0, 2.0]], dtype=np.float32)
    b = np.array([[-0.1, -1.0, 2.3]], dtype=np.float32)
    sample = Sample("u", {}, ("u",), np.array([[1, 0, 0]], dtype=np.float32))
    found = compare([Compared(sample, {"logits": a[0]}, {"logits": b[0]}, {"kind": "part"})], task, Policy(), "fp32")
    assert found.flips == 2
    said = [(f.reference, f.candidate, f.label) for f in found.listed_flips]
    assert said == [("no sad", "sad", "no sad"), ("anger", "no anger", "anger")]
    assert found.listed_flips[0].margin == pytest.approx(np.log(9) - 2, abs=1e-6)
    assert found.flip_matrix == []


def test_values_are_decided_by_their_sign_and_measured_as_sentiment() -> None:
    task = SENTIMENT
    truths = np.array([2.6, -1.4, 0.0, 0.4, np.nan], dtype=np.float32)
    values = np.array([[3.4], [-0.6], [0.2], [-0.2], [9.0]], dtype=np.float32)
    assert task.decide(values).tolist() == [1, 0, 1, 0, 1]
    found = measure(task, truths, values)
    assert found["mae"] == pytest.approx(np.mean([0.8, 0.8, 0.2, 0.6]), abs=1e-6)
    assert (found["acc_7"], found["acc_2"], found["non0_acc_2"]) == (100.0, 50.0, pytest.approx(200 / 3))
