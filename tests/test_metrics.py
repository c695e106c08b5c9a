"""One table says what every metric is; whatever shows, compares or chooses by one asks it."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest

from mer_export.agreement.compare import Comparison
from mer_export.agreement.metrics import MetricDifference
from mer_export.agreement.policy import Policy, Rule
from mer_export.agreement.verdict import findings
from mer_export.errors import UsageError
from mer_export.metrics import FAMILIES, METRICS, find
from mer_export.metrics.measure import measure
from mer_export.metrics.table import main
from mer_export.models.mtee.config import SENTIMENT
from mer_export.models.utterance import SCALES
from mer_export.task import Task
from mer_export.terminal import json_text, summary_line
from train.config import load_preset

LABELS = ("anger", "joy", "calm")
TASKS = {
    "classification": Task(labels=LABELS),
    "multilabel": Task(kind="multilabel", labels=LABELS),
    "mtee": SENTIMENT,
    **SCALES,
}
"""One of each family whose answers are measured by labels; features are not."""
ONLY_PUBLISHED = {"batch_mean"}


@pytest.mark.parametrize("family", TASKS)
def test_what_is_measured_is_what_the_table_lists(family: str) -> None:
    task, draw = TASKS[family], np.random.default_rng(0)
    scores = draw.normal(size=(40, task.width)).astype(np.float32)
    sets = draw.integers(0, 2, (40, task.width)).astype(np.float32)
    labels = {"classification": draw.integers(0, 3, 40), "multilabel": sets}.get(family, np.round(scores[:, 0] + 0.3))
    found = measure(task, labels, scores)
    assert {name.partition("/")[0] for name in found} == {m.name for m in task.family.metrics} - ONLY_PUBLISHED
    assert {n.partition("/")[2] for n in found} <= {"", *LABELS}
    assert find(task.headline) in task.family.metrics
    assert main(found)


@pytest.mark.parametrize(
    ("family", "labels", "given"),
    [
        ("mosi", np.asarray([1, 3]), "classes"),
        ("mosi", np.ones((2, 1), np.float32), "sets of 1 labels"),
        ("classification", np.asarray([1.0, np.nan], np.float32), "scores"),
        ("multilabel", np.asarray([0.0, 1.0], np.float32), "scores"),
        ("multilabel", np.ones((2, 2), np.float32), "sets of 2 labels"),
    ],
)
def test_labels_of_another_kind_are_refused_and_not_measured_as_what_they_are_not(
    family: str, labels: np.ndarray, given: str
) -> None:
    task = TASKS[family]
    with pytest.raises(UsageError, match=f"the data have {given}, a {task.kind} goes by "):
        measure(task, labels, np.zeros((2, task.width), np.float32))
    with pytest.raises(UsageError, match=f"the data have {given}"):
        task.gold(labels)
    assert measure(task, np.full(2, np.nan), np.zeros((2, task.width))) == {}


def test_a_name_means_the_same_in_every_family() -> None:
    for family in FAMILIES.values():
        for metric in family.metrics:
            assert (metric.unit, metric.better) == (METRICS[metric.name].unit, METRICS[metric.name].better)


def test_only_errors_and_losses_are_better_when_lower_and_only_shares_are_in_percent() -> None:
    assert {n for n, m in METRICS.items() if m.better == "lower"} == {"mae", "loss", "loss_prediction"}
    assert {n for n, m in METRICS.items() if m.unit == "plain"} == {"mae", "corr", "cosine", "loss", "loss_prediction"}


def test_values_are_written_with_the_digits_of_their_unit() -> None:
    assert summary_line({"epoch": 3, "mae": 0.83124, "acc_2": 81.2345, "seconds": 1.234}) == (
        "epoch 3, mae 0.8312, acc_2 81.23, seconds 1.23"
    )
    assert [find("mae").printed(v) for v in (0.8312, float("nan"))] == ["0.831", "–"]
    assert (find("accuracy").printed(71.26), find("accuracy").change(-0.5)) == ("71.3", "-0.50")
    assert find("weighted_accuracy/joy").title == "weighted accuracy/joy"
    assert (find("f1/joy").main, find("weighted_f1").title) == (False, "weighted F1")


def test_an_unknown_metric_is_named_with_those_that_exist() -> None:
    with pytest.raises(UsageError, match=r"no metric 'f2', there are .*'weighted_f1'"):
        find("f2")


@pytest.mark.parametrize(("preset", "metric"), [("cmerc/meld", "mae"), ("cmerc/meld", "f2"), ("emt/mosi", "macro_f1")])
def test_the_best_epoch_is_chosen_by_a_metric_of_the_task(preset: str, metric: str) -> None:
    with pytest.raises(UsageError, match=f"keep.metric '{metric}' is not measured by this task, there are") as caught:
        load_preset(preset, [f"keep.metric={metric}"])
    assert "\n" not in str(caught.value)
    assert load_preset(preset, [f"keep.metric={metric}", "keep.rule=last", "keep.patience=null"])


@pytest.mark.parametrize(
    ("metric", "change", "verdict"),
    [("mae", 0.5, "fail"), ("mae", -0.5, None), ("weighted_f1", -0.5, "fail"), ("weighted_f1", 0.5, None)],
)
def test_parity_knows_which_direction_is_worse(metric: str, change: float, verdict: str | None) -> None:
    moved = MetricDifference(
        metric=metric, reference=1, candidate=1 + change, difference=change, low=change, high=change
    )
    found = Comparison(samples=9, units=9, outputs=[], flips=0, flips_beyond_noise=0, flip_matrix=[], metrics=[moved])
    policy = Policy(rules={"int8": Rule(atol=0, rtol=0, metric_drop=0.1, metric=metric)})
    assert [grade for grade, _ in findings(found, "int8", SENTIMENT, policy)] == ([verdict] if verdict else [])


def test_json_says_null_of_what_is_undefined() -> None:
    found = json_text({"corr": math.nan, "rows": [(1.5, -math.inf)], "units": 1})
    assert json.loads(found) == {"corr": None, "rows": [[1.5, None]], "units": 1}
