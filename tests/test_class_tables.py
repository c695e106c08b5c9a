"""What the authors print of each class: equal to scikit-learn's, and to sums by hand where it has none."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn import metrics as reference

from mer_export.metrics.measure import class_tables, measure, tally
from mer_export.metrics.tally import ClassTable
from mer_export.models.mtee.config import SENTIMENT
from mer_export.models.utterance import SCALES
from mer_export.task import Task

LABELS = ("anger", "joy", "calm", "never")
CLASSES = Task(labels=LABELS)
SETS = Task(kind="multilabel", output="logits", labels=LABELS)
SHARES = ("precision", "recall", "f1")


def drawn(task: Task, units: int = 200) -> tuple[np.ndarray, np.ndarray]:
    """Labels and scores that follow them somewhat; of classes the last one never occurs."""
    draw = np.random.default_rng(3)
    scores = draw.normal(size=(units, task.width)).astype(np.float32)
    if task.kind == "multilabel":
        return draw.integers(0, 2, scores.shape).astype(np.float32), scores
    if task.kind == "classification":
        labels = draw.integers(0, len(LABELS) - 1, units)
        scores[np.arange(units), labels] += 1
        return labels, scores
    return np.round(np.clip(scores[:, 0] + draw.normal(size=units) / 2, -3, 3), 1).astype(np.float32), scores


def shares(table: ClassTable) -> dict[str, list[float]]:
    return {n: [getattr(r, n) for r in table.rows] for n in SHARES}


def test_precision_recall_support_and_confusion_of_classes_are_scikit_learns() -> None:
    labels, scores = drawn(CLASSES)
    (table,) = class_tables(CLASSES, labels, scores)
    said, every = scores.argmax(-1), range(len(LABELS))
    assert table.matrix == tuple(map(tuple, reference.confusion_matrix(labels, said, labels=every).tolist()))
    theirs = reference.precision_recall_fscore_support(labels, said, labels=every, zero_division=0)
    assert shares(table) == {n: pytest.approx(100 * v, abs=0.005) for n, v in zip(SHARES, theirs[:3], strict=True)}
    assert [r.support for r in table.rows] == theirs[3].tolist()
    assert [r.accuracy for r in table.rows] == [None] * 4


def test_counts_of_emotions_that_hold_side_by_side_are_scikit_learns() -> None:
    labels, scores = drawn(SETS)
    (table,) = class_tables(SETS, labels, scores)
    theirs = reference.multilabel_confusion_matrix(labels, scores > 0)
    assert [(r.right, r.support - r.right, r.predicted - r.right) for r in table.rows] == [
        (t[1, 1], t[1, 0], t[0, 1]) for t in theirs
    ]
    found = reference.precision_recall_fscore_support(labels, scores > 0, zero_division=0)
    assert shares(table) == {n: pytest.approx(100 * v, abs=0.005) for n, v in zip(SHARES, found[:3], strict=True)}
    right = ((scores > 0) == (labels > 0)).mean(0)
    assert [r.accuracy for r in table.rows] == pytest.approx(100 * right, abs=0.005)
    assert (table.matrix, table.header()[-1]) == (None, "accuracy")


@pytest.mark.parametrize("task", [SENTIMENT, *SCALES.values()], ids=lambda task: str(task.scale))
def test_each_accuracy_of_a_scale_is_the_diagonal_of_its_table(task: Task) -> None:
    labels, scores = drawn(task)
    found, tables = measure(task, labels, scores), class_tables(task, labels, scores)
    assert [t.name for t in tables] == [
        m.name for m in task.family.metrics if m.name.rpartition("_")[0].endswith("acc")
    ]
    for table in tables:
        matrix = np.array(table.matrix)
        assert 100 * np.trace(matrix) / matrix.sum() == pytest.approx(found[table.name], abs=0.006)
        kept = (labels != 0).sum() if table.name.startswith("non0") else len(labels)
        assert matrix.sum() == sum(r.support for r in table.rows) == kept


def test_sentiment_by_hand() -> None:
    truths = np.array([2.6, -1.4, 0.0, 0.4], dtype=np.float32)
    values = np.array([[3.4], [-0.6], [0.2], [-0.2]], dtype=np.float32)
    seven, five, has0, non0 = class_tables(SCALES["mosi"], truths, values)
    assert (seven.labels[0], seven.labels[3], seven.labels[-1]) == ("-3", "0", "+3")
    assert [(r.label, r.support, r.predicted, r.right) for r in seven.rows if r.support] == [
        *(("-1", 1, 1, 1), ("0", 2, 2, 2), ("+3", 1, 1, 1)),
    ]
    assert five.rows[-1].right == 1
    assert has0.matrix == ((1, 0), (1, 2))
    assert non0.matrix == ((1, 0), (1, 1))


@pytest.mark.parametrize("task", [CLASSES, SETS, SENTIMENT, *SCALES.values()], ids=lambda t: t.scale or t.kind)
def test_a_resample_of_groups_is_measured_as_its_units_would_be(task: Task) -> None:
    labels, scores = drawn(task)
    group = np.random.default_rng(0).integers(0, 20, len(labels))
    counted = tally(task, labels, scores, group, 20)
    weights = np.random.default_rng(1).multinomial(20, np.full(20, 0.05), size=3)
    assert counted is not None
    found = counted.metrics(weights.astype(float))
    for place, row in enumerate(weights):
        units = np.concatenate([np.flatnonzero(group == g) for g, times in enumerate(row) for _ in range(times)])
        plain = measure(task, labels[units], scores[units])
        # As published, shares of mosi have four digits, and error is a sum in float32 there.
        assert {n: v[place] for n, v in found.items()} == pytest.approx(plain, nan_ok=True, abs=0.01)
