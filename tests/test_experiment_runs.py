"""Experiments that run: what a killed one keeps, what fails in one, and that published ones fill their tables."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import signal
import subprocess
import sys
import time
from concurrent.futures import Future
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import Any

import pytest
from conftest import Mer
from small_experiment import RANDOM, STAGES, written
from small_facialmmt import SMALL as SMALL_FACIALMMT
from small_facialmmt import SWIN

from mer_export.errors import UsageError
from mer_export.experiment import ExperimentResult
from mer_export.progress import SILENT
from train.experiments import run as runs
from train.experiments.experiment import Plan, load_experiment, plan
from train.fit import fit

SMALL = [f"--set={s}" for s in ("epochs=2", "model.width=16", "model.hidden=16", "model.hypergraph_layers=1")]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from mer_export.data.synthetic import synthesise

    out = tmp_path_factory.mktemp("meld") / "data"
    synthesise("cmerc", "meld", out, dialogues=24, seed=0)
    return out


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
FACES: dict[str, Any] = {"audio_dim": 5, "vision_dim": 4, "audio_len": 6, "vision_len": 5, "image_size": 8}


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


@pytest.fixture(scope="module")
def data_of_faces(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from mer_export.data.synthetic import synthesise

    out = tmp_path_factory.mktemp("facialmmt") / "meld"
    synthesise("facialmmt", "meld", out, dialogues=6, seed=1, **FACES)
    return out


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
