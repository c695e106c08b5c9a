"""Experiments: what a file plans, what a killed one keeps, and the table over what was measured."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import re
import signal
import subprocess
import sys
import time
from concurrent.futures import Future
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import Any

import pytest
import yaml
from conftest import Mer
from small_facialmmt import SMALL as SMALL_FACIALMMT
from small_facialmmt import SWIN

from mer_export.errors import InputError, UsageError
from mer_export.experiment import ExperimentResult, Failed, TableSpec, Trained
from mer_export.progress import SILENT
from train.experiments import run as runs
from train.experiments.experiment import NAMES, Plan, load_experiment, plan
from train.fit import fit

RANDOM = {
    "emt": ["protocol.text_encoder=random"],
    "tab": ["first:protocol.text_encoder=random", "first:protocol.audio_encoder=random"],
}
"""What the published recipes need from the command line, by system."""
STAGES: dict[str, Any] = {
    "title": "CMERC in three stages",
    "models": {
        "M3NET": [
            {
                "preset": "synthetic/cmerc_meld",
                "set": {"protocol.curriculum": None, "protocol.calibrate": False, "protocol.contrast": False},
            }
        ],
        "CMERC": [{"preset": "synthetic/cmerc_meld", "set": {"protocol.curriculum.difficulty": "{M3NET}"}}],
    },
    "grid": {"seed": [1, 2]},
    "table": {"columns": {"weighted F1": "weighted_f1", "joy": "f1/joy"}},
}
STEP, FROM_FIRST = {"preset": "m3net/meld"}, {"init": "{first}"}
SMALL = [f"--set={s}" for s in ("epochs=2", "model.width=16", "model.hidden=16", "model.hypergraph_layers=1")]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from mer_export.data.synthetic import synthesise

    out = tmp_path_factory.mktemp("meld") / "data"
    synthesise("cmerc", "meld", out, dialogues=24, seed=0)
    return out


def written(folder: Path, **changes: Any) -> Path:
    path = folder / "experiment.yaml"
    path.write_text(yaml.safe_dump(STAGES | changes, sort_keys=False))
    return path


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
    planned = plan(load_experiment(str(written(tmp_path, models=models))), tmp_path, tmp_path / "o", ["once:seed=5"])
    assert [(str(j.folder), j.config.seed) for j in planned.rounds[0]] == [
        ("once", 5),
        ("each/seed1", 1),
        ("each/seed2", 2),
    ]
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


def test_a_killed_experiment_goes_on_and_ends_with_the_table_of_an_uninterrupted_one(
    mer: Mer, data: Path, tmp_path: Path
) -> None:
    words = ["experiment", written(tmp_path), "--data", data, "--quiet", *SMALL]
    line = [sys.executable, "-m", "cli", *map(str, words), "--out", str(tmp_path / "a")]
    running = subprocess.Popen(line, env={**os.environ, "PYTHONPATH": str(Path(__file__).parent.parent)})
    while not (tmp_path / "a" / "M3NET" / "seed1" / "bundle.json").exists():
        assert running.poll() is None
        time.sleep(0.01)
    running.send_signal(signal.SIGKILL)
    running.wait()
    assert not (tmp_path / "a" / "experiment.html").exists()
    code, out, err = mer(*words, "--out", tmp_path / "a", "--json")
    assert code == 0, err
    assert mer(*words, "--out", tmp_path / "b", "--jobs", "2")[0] == 0
    ours, theirs = ((tmp_path / d / "experiment.json").read_text() for d in "ab")
    assert ours == theirs
    result = ExperimentResult.model_validate_json(ours)
    assert json.loads(out)["trained"] == [t.model_dump() for t in result.trained]
    assert [(r.model, r.runs) for r in result.rows] == [("M3NET", 2), ("CMERC", 2)]
    evaluation = json.loads((tmp_path / "a" / "CMERC" / "seed2" / "train" / "evaluation.json").read_text())
    assert result.trained[-1].metrics["weighted_f1"] == evaluation["test"]["single"]["weighted_f1"]
    page = (tmp_path / "a" / "experiment.html").read_text()
    assert "CMERC in three stages" in page
    assert page.count("<svg") == 2
    code, out, _ = mer("difficulty", tmp_path / "a/M3NET/seed1", "--data", data, "--out", tmp_path / "d.json", "--json")
    assert code == 0
    kept = json.loads((tmp_path / "a" / "CMERC" / "seed1" / "train" / "difficulty.json").read_text())
    assert json.loads((tmp_path / "d.json").read_text()) == pytest.approx(kept, abs=1e-6)
    assert json.loads(out)["dialogues"] == len(kept)


def test_a_cell_that_fails_is_a_row_with_its_reason_and_ends_no_other(mer: Mer, data: Path, tmp_path: Path) -> None:
    models = {
        "broken": [{"name": "a", "preset": "synthetic/cmerc_meld", "set": {"data.dataset": "iemocap"}}],
        "after": [{"name": "b", "preset": "synthetic/cmerc_meld", "set": {"init": "{broken}"}}],
        "good": [{"name": "c", "preset": "synthetic/cmerc_meld"}],
    }
    table = STAGES["table"] | {"beside": ["dev"]}
    path = written(tmp_path, models=models, grid={"seed": [1]}, table=table)
    code, out, err = mer("experiment", path, "--data", data, "--out", tmp_path / "o", *SMALL, "--set", "epochs=1")
    assert code == 2
    assert "5 of 6 cells were not measured, the first is broken seed=1 split=test: " in err
    assert "* after seed=1 split=dev: an earlier step failed" in out
    assert "* good seed=1 split=dev: the split 'dev' was not measured, there are ['test']" in out
    assert "| good | test | 1 |" in out


def test_a_recipe_is_not_measured_by_what_a_baseline_of_before_left_in_its_folder(tmp_path: Path) -> None:
    planned = plan(load_experiment(str(written(tmp_path))), tmp_path, tmp_path / "o")
    job, cell = planned.rounds[0][0], planned.cells[0]
    (tmp_path / "o" / cell.folder).mkdir(parents=True)
    (tmp_path / "o" / cell.folder / "baseline.json").write_text("{}")
    assert "is not a bundle" in runs._measured(cell, job, tmp_path, tmp_path / "o", "test")


CHILD = """
import fcntl, multiprocessing, os, sys, time
from concurrent.futures import ProcessPoolExecutor
from train.experiments.workers import end_with_parent

def hold(path):
    file = open(path, "w")
    fcntl.flock(file, fcntl.LOCK_EX)
    print("held", flush=True)
    time.sleep(30)
    print("still there", flush=True)
    os._exit(0)

if __name__ == "__main__":
    context = multiprocessing.get_context("spawn")
    ProcessPoolExecutor(1, mp_context=context, initializer=end_with_parent).submit(hold, sys.argv[1]).result()
"""


def test_processes_that_train_end_with_the_experiment_and_leave_no_lock(tmp_path: Path) -> None:
    (tmp_path / "child.py").write_text(CHILD)
    line = [sys.executable, str(tmp_path / "child.py"), str(tmp_path / "lock")]
    here = {**os.environ, "PYTHONPATH": str(Path(__file__).parent.parent)}
    with subprocess.Popen(line, stdout=subprocess.PIPE, env=here) as running:
        assert running.stdout is not None
        assert running.stdout.readline() == b"held\n"
        running.kill()
        assert running.stdout.read() == b""
    with (tmp_path / "lock").open() as file:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)


class Killed:
    """Processes one of which is killed."""

    def submit(self, *_: Any) -> Future[str | None]:
        future: Future[str | None] = Future()
        future.set_exception(BrokenProcessPool())
        return future


def test_a_process_that_is_killed_while_it_trains_is_one_sentence(tmp_path: Path) -> None:
    planned = plan(load_experiment(str(written(tmp_path))), tmp_path, tmp_path / "o")
    found = runs._trained(Killed(), planned.rounds[0], tmp_path, tmp_path / "o", False)  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="was killed, perhaps for want of memory: run it again with fewer --jobs"):
        list(found)


def test_a_full_disk_is_the_reason_of_a_cell_and_ends_no_other(tmp_path: Path) -> None:
    planned = plan(load_experiment(str(written(tmp_path))), tmp_path, tmp_path / "o")

    def full(*_: Any, **__: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device", "weights")

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(runs, "fit", full)
        assert runs.train(planned.rounds[0][0], tmp_path, tmp_path / "o") == (
            "weights: the disk is full: free some space or write elsewhere"
        )


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


BERT = "model.bert={vocabulary: 400, hidden: 16, layers: 1, heads: 2, feed_forward: 24, positions: 64}"
NARROW = ["model.width=8", "model.heads=2", "model.levels=1"]
PUBLISHED: dict[str, tuple[str, dict[str, Any], list[str], list[str]]] = {
    "emt/sims": (
        "sims",
        {},
        ["missing=0.0", "seed=111"],
        [
            *("protocol.text_encoder=random", BERT, "keep.patience=null", "epochs=1", "protocol.accumulate=1"),
            *(f"{model}:{s}" for model in ("MulT", "TFR-Net") for s in NARROW),
            *("TFR-Net:model.fusion_widths={text: 8, audio: 8, vision: 8}", "EMT-DLFR:model.width=8"),
        ],
    ),
    "tab/iemocap": (
        "iemocap",
        {"width": 6, "sizes": [1], "text_vocabulary": 60, "audio_vocabulary": 70, "text_len": 6, "audio_len": 8},
        ["fold=7"],
        [
            *("model.sentence_dim=6", "model.context=1", "data.context.size=1", "model.tab_width=8", "epochs=1"),
            *("model.text={vocabulary: 60, hidden: 8, layers: 1, heads: 2, feed_forward: 8, positions: 34}",),
            *("model.audio={vocabulary: 70, hidden: 8, layers: 1, heads: 2, feed_forward: 8, positions: 50}",),
            *("model.head_width=10", "model.buckets=[]", "protocol.freeze={text: 0, audio: 0}", *RANDOM["tab"]),
        ],
    ),
    "mtee/iemocap_zeroshot": (
        "iemocap",
        {},
        ["seed=0"],
        ["model.layers=1", "model.hidden_sizes=[300, 16, 16]", "epochs=1", "keep.rule=last"],
    ),
    "mtee/mosei_fewshot": (
        "mosei_emo",
        {},
        ["k=5", "seed=0"],
        ["model.layers=1", "model.hidden_sizes=[300, 16, 16]", "epochs=1", "keep.rule=last", "keep.patience=null"],
    ),
    "mtee/mosi": (
        "mosi",
        {},
        ["seed=0"],
        [
            *("epochs=1", "model.hidden_size=8", "model.hidden_sizes=[8, 8, 8]", "model.layers=1"),
            "model.mult={width: 8, heads: 2, layers: 1}",
        ],
    ),
}
"""Data set to imitate, how, values on the grid, and settings that make the published recipes small."""
PUBLISHED["tab/iemocap_main"] = (*PUBLISHED["tab/iemocap"][:2], [], PUBLISHED["tab/iemocap"][3])


@pytest.mark.parametrize("name", PUBLISHED)
def test_a_published_experiment_fills_its_table_from_the_authors_files(mer: Mer, tmp_path: Path, name: str) -> None:
    from mer_export.data.synthetic import synthesise

    dataset, how, grid, sets = PUBLISHED[name]
    synthesise(name.partition("/")[0], dataset, tmp_path / "data", dialogues=24, seed=2, **how)
    words = [w for g in grid for w in ("--grid", g)] + [w for s in sets for w in ("--set", s)]
    code, _, err = mer("experiment", name, "--data", tmp_path / "data", "--out", tmp_path / "o", "--quiet", *words)
    assert code == 0, err
    result = ExperimentResult.model_validate_json((tmp_path / "o" / "experiment.json").read_bytes())
    headings = list(load_experiment(name).table.columns)
    assert list(result.header()[-len(headings) :]) == headings
    first = result.table.columns[headings[0]][0]
    assert all(t.metrics[first] is not None for t in result.trained)
    if name == "mtee/iemocap_zeroshot":
        scored = {
            t.cell["unseen"]: [n for n, v in t.metrics.items() if "/" in n and v is not None] for t in result.trained
        }
        assert scored == {e: [f"accuracy/{e}"] for e in ("excited", "surprised", "frustrated")}


FACES: dict[str, Any] = {"audio_dim": 5, "vision_dim": 4, "audio_len": 6, "vision_len": 5, "image_size": 8}


def test_no_experiment_is_written_into_its_data(mer: Mer, tmp_path: Path) -> None:
    data, link = tmp_path / "data", tmp_path / "runs"
    data.mkdir()
    link.symlink_to(data)
    code, out, err = mer("experiment", "sample/mosi", "--data", data, "--out", link)
    assert (code, out) == (2, "")
    assert "is the data set: name another directory" in err
    assert not [*data.iterdir()]


def small_facialmmt(data: Path) -> list[str]:
    """Settings that make the published FacialMMT small, of every model of its experiment."""
    named = {"FacialMMT-RoBERTa": "roberta", "FacialMMT-BERT": "bert"}
    text = {"hidden": 8, "layers": 1, "heads": 2, "feed_forward": 8}
    sets = [f"model.{n}={json.dumps(v)}" for n, v in SMALL_FACIALMMT.items() if n not in ("encoder", "bert")]
    sets += [f"{n}:model.swin={json.dumps(SWIN)}" for n in named] + [f"{n}:data.faces.size=8" for n in named]
    sets += [f"{n}:protocol.face_encoder=random" for n in named]
    reading = [n for n in load_experiment("facialmmt/meld").models if n != "vision"]
    sets += [f"{n}:data.tokenizer={data / 'tokenizer'}" for n in reading]
    sets += [f"{n}:protocol.text_encoder=random" for n in reading]
    sets += [f"{n}:model.bert.{k}={v}" for n in reading for k, v in (text | {"vocabulary": 120}).items()]
    return [*sets, "batch=8", "protocol.accumulate=1", "lr=0.001", "device=cpu", "precision=fp32"]


def test_facialmmts_ablations_killed_in_the_middle_end_with_the_table_of_an_uninterrupted_run(
    data_of_faces: Path, tmp_path: Path
) -> None:
    """Both text encoders with faces and expressions inside, faces alone, and the fusion without modalities."""
    data, sets = data_of_faces, small_facialmmt(data_of_faces)
    begun: list[str] = []

    def two_and_no_more(config: Any, data_path: Path, out: Path, **how: Any) -> Any:
        begun.append(out.name)
        if len(begun) == 3:
            raise KeyboardInterrupt
        return fit(config, data_path, out, **how)

    def planned(out: Path) -> Plan:
        return plan(load_experiment("facialmmt/meld"), data, out, sets)

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(runs, "fit", two_and_no_more)
        with pytest.raises(KeyboardInterrupt):
            runs.run(planned(tmp_path / "a"), data, tmp_path / "a", SILENT)
    kept = tmp_path / "a" / "FacialMMT-RoBERTa" / "bundle.json"
    before = kept.stat().st_mtime_ns
    resumed = runs.run(planned(tmp_path / "a"), data, tmp_path / "a", SILENT)
    whole = runs.run(planned(tmp_path / "b"), data, tmp_path / "b", SILENT)
    assert kept.stat().st_mtime_ns == before
    assert resumed == whole
    assert (tmp_path / "a" / "experiment.md").read_text() == (tmp_path / "b" / "experiment.md").read_text()
    assert not whole.failed
    assert [row.model for row in whole.rows] == list(load_experiment("facialmmt/meld").models)
    assert whole.header()[-1] == "weighted F1"


@pytest.fixture(scope="module")
def data_of_faces(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from mer_export.data.synthetic import synthesise

    out = tmp_path_factory.mktemp("facialmmt") / "meld"
    synthesise("facialmmt", "meld", out, dialogues=6, seed=1, **FACES)
    return out
