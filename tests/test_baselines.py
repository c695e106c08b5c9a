"""Baselines of an experiment: they read what a recipe reads, choose on dev alone, and are measured as bundles are."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import Mer
from sklearn.linear_model import LogisticRegression, Ridge
from small_experiment import written

from mer_export import registry
from mer_export.data.samples import Sample
from mer_export.data.synthetic import synthesise
from mer_export.errors import InputError, NotAvailableError, UsageError
from mer_export.experiment import ExperimentResult, TableSpec, Trained
from mer_export.metrics.measure import measure
from mer_export.progress import SILENT
from mer_export.task import Task
from train.experiments.baselines import linear, recurrent
from train.experiments.baselines.inputs import Items, Reader
from train.experiments.baselines.settings import Linear, Recurrent
from train.experiments.experiment import load_experiment, plan
from train.experiments.run import run

LABELS = ("a", "b", "c")
TASKS = {
    "classification": Task(labels=LABELS),
    "multilabel": Task(kind="multilabel", labels=LABELS),
    "regression": registry.get("emt").task(registry.get("emt").config()),
}


def clips(task: Task, count: int, seed: int = 0) -> list[Sample]:
    """Utterances whose first audio number, averaged over 2 to 5 steps, says the label."""
    rng = np.random.default_rng(seed)
    found = []
    for i in range(count):
        steps, label = int(rng.integers(2, 6)), i % 3
        audio = rng.normal(size=(steps, 4)).astype(np.float32)
        audio[:, 0] += 4 * label - audio[:, 0].mean()
        truth: Any = {"classification": label, "regression": float(label - 1), "multilabel": np.eye(3)[label]}[
            task.kind
        ]
        dtype = np.int64 if task.kind == "classification" else np.float32
        vision = {"vision": rng.normal(size=(3, 2)).astype(np.float32)} if i % 2 else {}
        found.append(Sample(str(i), {"audio": audio, **vision}, (str(i),), np.asarray([truth], dtype=dtype)))
    return found


def contract_of_clips() -> Any:
    """That of late fusion, for sequences of their own lengths."""
    system = registry.get("mtee")
    sizes = {"text_dim": 3, "audio_dim": 4, "vision_dim": 2, "hidden_sizes": [3, 4, 4]}
    values = {
        "model": "rnn",
        "fusion": "lf",
        "labels": list(LABELS),
        "modalities": ["audio", "vision"],
        "aligned": False,
        **sizes,
    }
    return system.contract(system.parse(values))


def read(task: Task, count: int = 60, seed: int = 0) -> Items:
    reader = Reader(contract_of_clips(), task, clips(task, 60))
    return reader.read(clips(task, count, seed))


def test_an_utterance_is_pooled_to_mean_and_deviation_of_standardised_steps():
    task = TASKS["classification"]
    samples = clips(task, 60)
    pooled = read(task).pooled()
    audio = [np.asarray(s.inputs["audio"], dtype=np.float64) for s in samples]
    every = np.concatenate(audio)
    scaled = [(a - every.mean(0)) / every.std(0) for a in audio]
    assert pooled.shape == (60, 2 * 4 + 2 * 2)
    np.testing.assert_allclose(pooled[:, :4], [a.mean(0) for a in scaled], atol=1e-5)
    np.testing.assert_allclose(pooled[:, 4:8], [a.std(0) for a in scaled], atol=1e-5)
    assert not pooled[0, 8:].any(), "a missing modality is the mean of the training split"


@pytest.mark.parametrize("kind", TASKS)
def test_the_linear_baseline_is_scikit_learns(kind: str):
    task, training, test = TASKS[kind], read(TASKS[kind]), read(TASKS[kind], 21, seed=1)
    ((strength, scores),) = linear.fits(Linear(strengths=(0.1,)), task, training, seed=0)
    rows = training.pooled()
    deviation = rows.std(0)
    x, unseen = ((r - rows.mean(0)) / deviation for r in (rows, test.pooled()))
    assert strength == 0.1
    if kind == "regression":
        expected = Ridge(alpha=10.0).fit(x, training.labels).predict(unseen)[:, None]
    elif kind == "classification":
        expected = LogisticRegression(C=0.1, max_iter=1000).fit(x, training.labels).decision_function(unseen)
    else:
        each = [LogisticRegression(C=0.1, max_iter=1000).fit(x, y) for y in training.labels.T]
        expected = np.stack([m.decision_function(unseen) for m in each], axis=1)
    np.testing.assert_allclose(scores(test), expected, atol=1e-4)


def test_the_last_step_alone_is_read_where_that_is_asked_for():
    task = TASKS["classification"]
    items = read(task, 6)
    # Backwards a GRU has seen one step at the last one: other steps reach its output through the forward half alone.
    cut = Items({d: [a[-1:] for a in x] for d, x in items.sequences.items()}, False, items.rows, items.labels)
    torch.manual_seed(0)
    widths = {d: a[0].shape[1] for d, a in items.sequences.items()}
    model = recurrent.BiGru(widths, Recurrent(width=3, pool="last"), by_step=False, outputs=3).eval()
    whole, last = (
        {d: model._states(d, [torch.from_numpy(a) for a in x.sequences[d]]) for d in widths} for x in (items, cut)
    )
    for dim in widths:
        assert torch.allclose(whole[dim][:, 3:], last[dim][:, 3:], atol=1e-6)
    assert not torch.allclose(whole["audio_len"][:, :3], last["audio_len"][:, :3], atol=1e-3)


@pytest.mark.parametrize("kind", TASKS)
def test_the_recurrent_baseline_learns(kind: str):
    task, training, test = TASKS[kind], read(TASKS[kind]), read(TASKS[kind], 30, seed=1)
    settings = Recurrent(width=8, dropout=0.1, lr=0.02, batch=10, epochs=12)
    *_, (epochs, scores) = recurrent.fits(settings, task, training, seed=1)
    found = measure(task, test.labels, scores(test))
    assert epochs == 12
    assert found["mae"] < 0.5 if kind == "regression" else found["weighted_f1"] > 80


def test_the_seed_of_a_recurrent_baseline_decides():
    task, settings = TASKS["classification"], Recurrent(width=4, batch=30, epochs=1)
    items = read(task)
    runs = [next(recurrent.fits(settings, task, items, seed))[1](items) for seed in (1, 1, 2)]
    assert np.array_equal(runs[0], runs[1])
    assert not np.array_equal(runs[0], runs[2])


def test_a_label_that_training_lacks_is_never_the_answer():
    task = TASKS["classification"]
    training = read(task)
    kept = training.labels < 2
    fewer = Items(training.sequences, False, training.rows[kept], training.labels[kept])
    ((_, scores),) = linear.fits(Linear(strengths=(1.0,)), task, fewer, seed=0)
    assert set(task.decide(scores(training))) == {0, 1}


def test_without_scikit_learn_a_sentence_names_the_extra(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "sklearn", None)
    with pytest.raises(
        NotAvailableError, match=r"scikit-learn .* is not installed: pip install 'mer-export\[baselines\]'"
    ):
        next(linear.fits(Linear(), TASKS["classification"], read(TASKS["classification"]), seed=0))


def test_token_ids_alone_are_no_input_of_a_baseline():
    system = registry.get("tab")
    contract = system.contract(system.parse({"variant": "lhs"}))
    with pytest.raises(UsageError, match="a baseline reads vectors and sequences of them, of "):
        Reader(contract, TASKS["classification"], [])


def test_a_split_without_labels_is_named_and_not_measured():
    reader = Reader(contract_of_clips(), TASKS["classification"], clips(TASKS["classification"], 3))
    for labels in (None, np.asarray([-1])):
        with pytest.raises(UsageError, match="a split has no labels to choose or measure by"):
            reader.read([replace(s, labels=labels) for s in clips(TASKS["classification"], 3)])


def test_a_training_item_of_another_width_is_named_as_by_the_recipe():
    task = TASKS["classification"]
    wide = replace(clips(task, 1)[0], id="wide", inputs={"audio": np.ones((3, 9), np.float32)})
    with pytest.raises(InputError, match="wide: audio is 9 wide, the model was made for 4"):
        Reader(contract_of_clips(), task, [*clips(task, 3), wide])


def test_what_no_seed_changes_counts_as_one_run():
    alike = {"metrics": {"accuracy": 50.0}, "model": "linear", "bundle": "linear"}
    trained = [Trained(cell={"seed": s}, **alike) for s in "012"]
    result = ExperimentResult(title="t", table=TableSpec(columns={"A": ("accuracy",)}), trained=trained)
    assert [result.line(r) for r in result.rows] == [("linear", "1", "50.00")]


EXPERIMENT: dict[str, Any] = {
    "title": "baselines beside a recipe",
    "models": {
        "linear": [{"preset": "synthetic/mtee_mosi", "baseline": {"kind": "linear", "choose_on": "valid"}, "axes": []}],
        "recurrent": [
            {"preset": "synthetic/mtee_mosi", "baseline": {"kind": "recurrent", "choose_on": "valid", "epochs": 3}}
        ],
    },
    "grid": {"seed": [1, 2]},
    "table": {"columns": {"MAE": "mae", "Acc7": "acc_7"}},
}


def test_an_experiment_fits_its_baselines_once_and_measures_them_as_bundles(mer: Mer, tmp_path: Path, threads: int):
    data, out = tmp_path / "data", tmp_path / "o"
    synthesise("mtee", "mosi", data, dialogues=40, seed=0)
    file = str(written(tmp_path, EXPERIMENT))

    def again(*sets: str) -> ExperimentResult:
        return run(plan(load_experiment(file), data, out, sets), data, out, SILENT)

    torch.set_num_threads(threads + 1)
    code, said, err = mer("experiment", file, "--data", data, "--out", out, "--quiet")
    assert (code, torch.get_num_threads()) == (0, threads + 1), err
    assert "| linear | 1 |" in said
    assert "| recurrent | 2 |" in said
    linear_cell = out / "linear" / "baseline.json"
    cell = json.loads(linear_cell.read_text())
    assert cell["chosen"] in Linear().strengths
    result = ExperimentResult.model_validate_json((out / "experiment.json").read_bytes())
    assert result.trained[0].metrics["mae"] == cell["evaluation"]["test"]["single"]["mae"]
    del cell["recipe"]["model"]["fill_side"]
    linear_cell.write_text(json.dumps(cell))
    (out / "recurrent" / "seed2" / "baseline.json").unlink()
    before = {f: f.stat().st_mtime_ns for f in out.rglob("baseline.json")}
    assert again() == result
    assert {f: f.stat().st_mtime_ns for f in before} == before, "taken as it is; later settings have defaults"
    assert "was made with another recipe.train_splits" in again("linear:train_splits=[train, valid]").failed[0].reason
    linear_cell.write_text("{}")
    assert "baseline.json cannot be read" in again().failed[0].reason


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        (
            {"grid": {"seed": [1], "unseen": {"x": {"measure:model.labels": []}}}},
            "linear: measure:model.labels measures a bundle again, a baseline leaves none",
        ),
        (
            {"models": {"M": [{"name": "a", "preset": "emt/mosi", "baseline": "linear"}, {"preset": "emt/mosi"}]}},
            "a baseline is a model of its own",
        ),
        ({"models": {"M": [{"preset": "emt/mosi", "baseline": "tree"}]}}, "expected tags: 'linear', 'recurrent'"),
        (
            {"models": {"M": [{"preset": "emt/mosi", "baseline": {"kind": "linear", "choose_on": None}}]}},
            "choose_on is null: give one value of strengths",
        ),
    ],
)
def test_what_a_baseline_cannot_be_is_refused(mer: Mer, tmp_path: Path, changes: dict[str, Any], sentence: str):
    code, _, err = mer(
        "experiment", written(tmp_path, EXPERIMENT, **changes), "--data", tmp_path, "--out", tmp_path / "o"
    )
    assert code == 2
    assert sentence in err.replace("\n", " ")
