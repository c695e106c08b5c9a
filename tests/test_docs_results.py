"""docs/results.md says what the kept experiments measured, digit for digit."""

from __future__ import annotations

import re

import pytest

from benchmarks.tables import KEPT, MARKED, PAGE, kept, kept_as, with_tables
from mer_export.errors import UsageError
from train.experiments.experiment import load_experiment

TEXT = PAGE.read_text(encoding="utf-8")
RESULTS = kept(TEXT)


def test_every_table_of_the_page_is_the_one_of_its_experiment() -> None:
    assert with_tables(TEXT, RESULTS) == TEXT
    assert {kept_as(name) for name in RESULTS} == {f.name for f in KEPT.glob("*.json")}
    one = MARKED.sub(lambda m: m[0].replace(".", ",", 1), TEXT, count=1)
    assert with_tables(one, RESULTS) == TEXT


@pytest.mark.parametrize("name", RESULTS)
def test_the_kept_result_is_of_the_experiment_as_it_is_now(name: str) -> None:
    experiment, result = load_experiment(name), RESULTS[name]
    assert (result.title, result.table) == (experiment.title, experiment.table)
    assert list(dict.fromkeys(t.model for t in result.trained)) == list(experiment.models)
    assert not result.failed
    runs = {axis: len(values) for axis, values in experiment.grid.items() if axis in experiment.table.over}
    assert min(runs.values()) >= 3
    assert not re.search(r"(?m)^\s*\"bundle\": \"/", (KEPT / kept_as(name)).read_text())


def test_a_result_without_a_place_is_refused() -> None:
    with pytest.raises(UsageError, match="the page has no line <!-- table of sample/none -->"):
        with_tables(TEXT, {"sample/none": next(iter(RESULTS.values()))})
