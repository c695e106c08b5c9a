"""Experiments: what a file plans and what it refuses, and the table over what was measured."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
from conftest import Mer
from small_experiment import RANDOM, STAGES, written

from mer_export.errors import InputError, UsageError
from mer_export.experiment import ExperimentResult, Failed, TableSpec, Trained
from train.config import load_preset
from train.experiments.experiment import NAMES, load_experiment, plan

STEP, FROM_FIRST = {"preset": "m3net/meld"}, {"init": "{first}"}


@pytest.mark.parametrize("name", NAMES)
def test_every_published_experiment_is_planned_to_the_last_setting(name: str, tmp_path: Path) -> None:
    experiment = load_experiment(name)
    planned = plan(experiment, tmp_path, tmp_path / "out", RANDOM.get(name.partition("/")[0], ()))
    folders = [j.folder for jobs in planned.rounds for j in jobs]
    assert len(set(folders)) == len(folders)
    assert {c.folder for c in planned.cells} <= set(folders)
    cells = len(experiment.models)
    for values in experiment.grid.values():
        cells *= len(values)
    assert len(planned.cells) == cells


def test_a_step_is_trained_once_for_all_cells_that_agree_on_its_axes(tmp_path: Path) -> None:
    planned = plan(load_experiment("mtee/iemocap_zeroshot"), tmp_path, tmp_path / "out")
    assert [str(j.folder) for j in planned.rounds[0]] == ["seed0", "seed1", "seed2"]
    assert [c.place["unseen"] for c in planned.cells][::3] == ["excited", "surprised", "frustrated"]
    unseen = {
        (c.place["unseen"], *c.config.model["labels"][4:], c.config.data.emotions.zsl)
        for c in planned.cells
        if c.config and c.config.data.emotions
    }
    assert unseen == {("excited", "excited", 1), ("surprised", "surprised", 4), ("frustrated", "frustrated", 5)}


def test_a_step_that_no_seed_changes_is_measured_as_it_was_trained(tmp_path: Path) -> None:
    models = {"once": [STEP | {"axes": []}], "each": [STEP]}
    experiment = load_experiment(str(written(tmp_path, models=models)))
    for sets, seed in (([], load_preset("m3net/meld").seed), (["once:seed=5"], 5)):
        planned = plan(experiment, tmp_path, tmp_path / "o", sets)
        seeds = {str(j.folder): j.config.seed for j in planned.rounds[0]}
        assert seeds == {"once": seed, "each/seed1": 1, "each/seed2": 2}
        assert [(c.model, c.config) for c in planned.cells] == [(m, None) for m in ("once", "once", "each", "each")]


def test_what_holds_for_measuring_goes_before_what_is_set_for_training(tmp_path: Path) -> None:
    planned = plan(load_experiment("sample/mosi_missing"), tmp_path, tmp_path / "o", ["protocol.missing=0.3"])
    assert {j.config.protocol["missing"]["text"] for j in planned.rounds[0]} == {0.3}
    measured = {(c.place["rate"], c.config.protocol["missing"]["text"]) for c in planned.cells if c.config}
    assert measured == {(rate, float(rate)) for rate in ("0.0", "0.2", "0.4", "0.6", "0.8", "1.0")}


def test_the_first_stage_of_a_fold_trains_on_that_fold(tmp_path: Path) -> None:
    planned = plan(load_experiment("tab/iemocap", ["fold=0,7"]), tmp_path, tmp_path / "o", RANDOM["tab"])
    first, second = planned.rounds
    assert [j.config.data.context.fold for j in first if j.config.data.context] == [0, 7]
    assert [j.needs for j in second] == [(j.folder,) for j in first]
    assert [j.config.protocol["lhs"] for j in second] == [str(tmp_path / "o" / j.folder) for j in first]


def test_what_the_value_of_an_axis_starts_from_is_trained_before(tmp_path: Path) -> None:
    steps = [{"name": "first", "preset": "m3net/meld", "axes": []}, {"name": "second", "preset": "m3net/meld"}]
    grid = {"start": {"scratch": {"init": None}, "tuned": {"init": "{first}"}}}
    file = str(written(tmp_path, models={"M": steps}, grid=grid, table=STAGES["table"] | {"over": []}))
    rounds = plan(load_experiment(file), tmp_path, tmp_path / "o").rounds
    named = [{str(j.folder): [str(f) for f in j.needs] for j in jobs} for jobs in rounds]
    assert named == [{"first": [], "startscratch/second": []}, {"starttuned/second": ["first"]}]


@pytest.mark.parametrize(
    ("changes", "words", "sentence"),
    [
        ({}, ["--grid", "rate=1"], r"--grid rate=1: write it as axis=value,value with one of \['seed'\]"),
        ({}, ["--set", "EMT:lr=1"], r"there is no model or step 'EMT', there are \['CMERC', 'M3NET', 'model'\]"),
        ({}, ["--set", "epoch=1"], "epoch"),
        ({"grid": {"seed": []}}, [], "axis 'seed' has no values"),
        ({"table": {"columns": {"A": "f2"}}}, [], "no metric 'f2', there are"),
        ({"table": {"columns": {"A": "accuracy"}, "area": "rate"}}, [], r"the table names the axis 'rate'"),
        ({}, ["--set", "seed=7"], "--set seed=7: the axis seed sets seed, choose its values with --grid seed="),
        (
            {"grid": {"x": {"few": {}, "many": {}}}, "table": {"columns": {"A": "accuracy"}, "over": [], "area": "x"}},
            [],
            "area over 'x': name an axis of numbers",
        ),
        (
            {"grid": {"x": {"a b": {"epochs": 1}, "a_b": {"epochs": 2}}}, "table": STAGES["table"] | {"over": []}},
            [],
            "M3NET x=a b model and M3NET x=a_b model have one folder, M3NET/xa_b",
        ),
        (
            {"models": {"M": [STEP | {"name": "first"}, STEP | {"name": "second", "axes": [], "set": FROM_FIRST}]}},
            [],
            "M second starts from first, and that is trained for each value of further axes",
        ),
        ({"models": {"../M": [{"preset": "cmerc/meld"}]}}, [], r"model '../M' needs a plain name"),
        ({"models": {"M": [{"preset": "cmerc/mosi"}]}}, [], "no preset 'cmerc/mosi'"),
        (
            {"models": {"M": [{"preset": "cmerc/meld", "set": {"init": "{N}"}}], "N": [{"preset": "cmerc/meld"}]}},
            [],
            r"M: \{N\} is no axis and no step or model before it, there are \['seed'\]",
        ),
    ],
)
def test_what_does_not_fit_is_refused_before_anything_is_trained(
    mer: Mer, tmp_path: Path, changes: dict[str, Any], words: list[str], sentence: str
) -> None:
    code, _, err = mer("experiment", written(tmp_path, **changes), "--data", tmp_path, "--out", tmp_path / "o", *words)
    assert code == 2
    assert re.search(sentence, err), err
    assert not (tmp_path / "o").exists()


def test_a_path_in_a_file_leads_into_the_data_or_the_experiment_alone(tmp_path: Path) -> None:
    models = {"M": [{"preset": "emt/mosi", "set": {"protocol.text_encoder": "/etc"}}]}
    with pytest.raises(InputError, match="leads out of"):
        plan(load_experiment(str(written(tmp_path, models=models))), tmp_path, tmp_path / "o")


def result_of(values: dict[str, list[float | None]]) -> ExperimentResult:
    """Two seeds at each rate."""
    trained = [
        Trained(
            model="M",
            cell={"missing": rate, "seed": str(i)},
            bundle=f"{rate}-{i}",
            metrics={"has0_acc_2": v, "mae": 1.0},
        )
        for rate, runs in values.items()
        for i, v in enumerate(runs)
    ]
    columns = {"Acc-2": ("has0_acc_2",), "both": ("mae", "has0_acc_2")}
    return ExperimentResult(title="t", table=TableSpec(columns=columns, area="missing"), trained=trained)


def test_the_table_has_mean_deviation_least_and_most_and_the_area_of_the_paper() -> None:
    result = result_of({"0.0": [80.0, 82.0], "0.5": [70.0, 70.0], "1.0": [50.0, 52.0]})
    first = result.line(result.rows[0])
    assert first == (
        "M",
        "0.0",
        "2",
        "81.00 ± 1.41 (80.00 to 82.00)",
        "1.0000/81.00 ± 0.0000/1.41 (1.0000/80.00 to 1.0000/82.00)",
    )
    # 0.5 * ((81 + 70) / 2 + (70 + 51) / 2)
    assert [result.area_line(r) for r in result.areas] == [("M", "68.0", "1.000/68.0")]
    assert "M,0.0,test,has0_acc_2,2,81.0,1.41" in result.csv()
    assert "M,area,test,has0_acc_2,2,68.0,,," in result.csv()


@pytest.mark.parametrize("rates", [["0.5", "1.0"], ["0.0", "0.5", "0.8"], ["0.0"]])
def test_there_is_no_area_where_the_rates_do_not_rise_from_0_in_equal_steps(rates: list[str]) -> None:
    assert result_of({r: [1.0, 2.0] for r in rates}).areas == []


def test_there_is_no_area_over_fewer_rates_than_are_known() -> None:
    whole = result_of({"0.0": [80.0], "0.5": [70.0], "1.0": [50.0]})
    fewer = [t.model_copy(update={"model": "N"}) for t in whole.trained[:2]]
    assert [row.model for row in whole.model_copy(update={"trained": [*whole.trained, *fewer]}).areas] == ["M"]
    lost = Failed(model="M", cell={"missing": "1.0", "seed": "0"}, reason="r")
    assert whole.model_copy(update={"trained": whole.trained[:2], "failed": [lost]}).areas == []


def test_what_one_run_lacks_has_no_mean_over_runs() -> None:
    result = result_of({"0.0": [80.0, None]})
    assert result.line(result.rows[0])[3] == "–"


def test_semantics_that_do_not_exist_are_refused() -> None:
    with pytest.raises((UsageError, ValueError), match="semantics are single and batch, not 'whole'"):
        TableSpec(columns={"A": ("whole:accuracy",)})
