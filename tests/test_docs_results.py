"""docs/results.md says what the kept experiments measured, digit for digit."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from benchmarks.tables import KEPT, MARKED, PAGE, agreement, kept, kept_as, with_tables
from mer_export.bundle import Bundle
from mer_export.errors import UsageError
from mer_export.experiment import ExperimentResult
from train.experiments.experiment import load_experiment

TEXT = PAGE.read_text(encoding="utf-8")
RESULTS = kept(TEXT)
EXPERIMENTS = {n: r for n, r in RESULTS.items() if isinstance(r, ExperimentResult)}


def test_every_table_of_the_page_is_the_one_of_its_experiment() -> None:
    assert with_tables(TEXT, RESULTS) == TEXT
    assert {kept_as(name) for name in RESULTS} == {f.name for f in KEPT.glob("*.json")}
    one = MARKED.sub(lambda m: m[0].replace(".", ",", 1), TEXT, count=1)
    assert with_tables(one, RESULTS) == TEXT


def test_no_table_of_the_page_is_typed() -> None:
    typed = MARKED.sub("", TEXT)
    assert not re.search(r"(?m)^\|[^|]*\|.*\d", typed)


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_the_kept_result_is_of_the_experiment_as_it_is_now(name: str) -> None:
    experiment, result = load_experiment(name), EXPERIMENTS[name]
    assert (result.title, result.table) == (experiment.title, experiment.table)
    assert list(dict.fromkeys(t.model for t in result.trained)) == list(experiment.models)
    assert not result.failed
    runs = {axis: len(values) for axis, values in experiment.grid.items() if axis in experiment.table.over}
    assert min(runs.values()) >= 3
    assert not re.search(r"(?m)^\s*\"bundle\": \"/", (KEPT / kept_as(name)).read_text())


def test_a_result_without_a_place_is_refused() -> None:
    with pytest.raises(UsageError, match="the page has no line <!-- table of sample/none -->"):
        with_tables(TEXT, {"sample/none": next(iter(RESULTS.values()))})


def test_parity_of_a_bundle_is_the_worst_of_each_runtimes_files() -> None:
    found = agreement([Bundle.open(Path(__file__).parent / "data" / "bundles" / "cmerc")])
    rows = {row[1:3]: row[3:] for row in found.rows}
    assert {row[0] for row in found.rows} == {"CMERC demo: 26 units"}
    assert rows["onnxruntime", "int8"] == ("pass", "2.1e-03", "0", "+0.00", "3.6e-03")
    assert rows["onnxruntime", "fp32"] == ("pass", "2.4e-07", "0", "+0.00", "0.0e+00")
